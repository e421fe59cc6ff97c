"""What the detectors do when frames that they would have to judge anew are kept no more."""

from collections.abc import Sequence

import pytest
import sqlalchemy as sa
from chunk_trainer import chunks, frames
from services import Clock, run, service

from lossguard_service.incidents.detectors import Detectors, FramesGone, Judged
from lossguard_service.store import schema
from lossguard_service.store.lineage import Stretch


def judged_without(database_url: str, gone: Sequence[int], plan: Sequence[Stretch]) -> Judged | None:
    """What fresh detectors make of a run of chunks of 32 steps, the bytes of some of which are gone."""

    def judge(connection: sa.Connection) -> Judged | None:
        table = schema.chunk_bytes
        connection.execute(sa.delete(table).where(table.c.index.in_(list(gone))))
        run_id = connection.execute(sa.select(schema.runs.c.id)).scalar_one()
        return Detectors().advance(connection, run_id, plan, {})

    async def story() -> Judged | None:
        async with service(database_url, Clock()) as one:
            for chunk in chunks(frames(1, 128)):
                await one.put(chunk)
            result: Judged | None = await one.app.state.database.write(judge)
            return result

    return run(story())


@pytest.mark.parametrize("gone", [0, 1])
def test_a_chunk_that_is_gone_is_not_judged_as_if_the_next_one_were_it(database_url: str, gone: int) -> None:
    """The chunk that stands behind it reaches to where a later attempt took over: nothing else would be missed."""
    with pytest.raises(FramesGone, match=f"chunk {gone} of attempt 1 is no longer kept in full"):
        judged_without(database_url, [gone], [Stretch(1, 0, 4, 32 * (gone + 2))])


def test_frames_beyond_where_a_later_attempt_took_over_may_be_gone(database_url: str) -> None:
    judged = judged_without(database_url, [3], [Stretch(1, 0, 4, 64)])
    assert judged is not None
    assert (judged.judged_step, judged.frames) == (64, 64)
    assert judged.position[-1].next_index == 2
