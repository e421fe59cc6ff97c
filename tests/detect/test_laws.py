"""The laws of every detector, on the composed monitor: it is what the service and the replay run."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossguard.detect import course, monitor
from lossguard.wire.frame import Frames, Schema

from .runs import LAYERS, curve, decay, ranker, rarely


def shifting() -> Frames:
    """A healthy run whose label mean wavers and moves at step 236, just after the learning rate rose."""
    frames = ranker()
    scalars = frames.scalars.copy()
    scalars[:, 5] *= 1 + 0.01 * np.random.default_rng(3).standard_normal(len(frames))
    scalars[235:, 5] *= 1.5
    scalars[240:, 1] *= 2
    return dataclasses.replace(frames, scalars=scalars)


def heavy_tailed(frames: int = 1400) -> Frames:
    """A long healthy run: losses and gradients with heavy tails, an AUC that a rare task often lacks, one layer."""
    rng = np.random.default_rng(9)
    run = ranker(frames)
    scalars = run.scalars.copy()
    scalars[:, [0, 2, 3]] += 0.02 * np.abs(rng.standard_t(2.5, (frames, 3)))
    scalars[::5, 4] = np.nan
    stats = run.stats[:, :1] * np.exp(0.3 * rng.standard_t(2.5, (frames, 1, run.stats.shape[2]))).astype(np.float32)
    return dataclasses.replace(
        run, schema=Schema(run.schema.scalars, LAYERS[:1], run.schema.stats), scalars=scalars, stats=stats
    )


RUNS = {
    "shifting": shifting(),
    "healthy": ranker(),
    "full": ranker(onset=150),
    "micro": ranker(onset=150, recovers_after=40),
    "silent": ranker(nan_at=120),
    "rare stats": rarely(ranker(onset=150), phase=5),
    "curve": curve(np.concatenate([decay(200), decay(30) + 6, decay(170)])),
}


def without_signals(frames: Frames, keep: tuple[str, ...] = ("weight_norm", "stat7")) -> Frames:
    """The same run, recorded with layers and stats of which no layer signal can be made."""
    schema = Schema(frames.schema.scalars, frames.schema.layers, keep)
    stats = np.repeat(frames.stats[:, :, :1], len(keep), axis=2)
    return Frames.of(schema, frames.steps, frames.scalars, stats)


def judged(frames: Frames, cuts: list[int] | None = None) -> monitor.MonitorState:
    state = monitor.init()
    edges = [0, *sorted(set(cuts or [])), len(frames)]
    for start, stop in itertools.pairwise(edges):
        state = monitor.update(state, frames[start:stop])
    return state


@pytest.mark.parametrize("name", RUNS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cuts=st.lists(st.integers(0, 300), max_size=8))
def test_the_answer_does_not_depend_on_how_frames_are_cut_into_blocks(name: str, cuts: list[int]) -> None:
    frames = RUNS[name]
    assert monitor.dumps(judged(frames, cuts)) == monitor.dumps(judged(frames))


@pytest.mark.parametrize("name", RUNS)
def test_one_frame_at_a_time_gives_the_same_state(name: str) -> None:
    frames = RUNS[name]
    assert monitor.dumps(judged(frames, list(range(len(frames))))) == monitor.dumps(judged(frames))


@pytest.mark.parametrize("block", [1, 23, 64])
def test_a_long_run_with_heavy_tails_is_judged_alike_whatever_the_cuts(block: int) -> None:
    frames = heavy_tailed()
    whole = judged(frames)
    assert monitor.dumps(judged(frames, list(range(0, len(frames), block)))) == monitor.dumps(whole)
    assert monitor.report(whole, "x").incidents  # it is not the quiet road alone that was taken


def test_how_a_block_lies_in_memory_makes_no_difference() -> None:
    frames = RUNS["full"]
    by_series = np.ascontiguousarray(frames.stats.transpose(2, 1, 0)).transpose(2, 1, 0)
    other = dataclasses.replace(frames, stats=by_series, scalars=np.asfortranarray(frames.scalars))
    assert monitor.dumps(judged(other)) == monitor.dumps(judged(frames))


@pytest.mark.parametrize("block", [1, 16, 50, 64])
def test_an_auc_that_dies_in_silence_after_thousands_of_frames_is_seen_whatever_the_cuts(block: int) -> None:
    frames = ranker(2500)
    scalars = frames.scalars.copy()
    scalars[2200:, 4] = 0.5 + 0.02 * np.random.default_rng(3).standard_normal(300)
    scalars[2100, 0] += 40.0
    scalars[2150:, 1] *= 1.5
    frames = dataclasses.replace(frames, scalars=scalars)
    whole = judged(frames)
    assert monitor.dumps(judged(frames, list(range(0, len(frames), block)))) == monitor.dumps(whole)
    (full,) = [i for i in monitor.report(whole, "x").incidents if i.kind == "full_divergence"]
    assert 2200 <= full.detected_step <= 2232


@pytest.mark.parametrize("rate", ["steady", "falls", "falls and rises"])
@pytest.mark.parametrize("block", [1, 23, 256])
def test_a_slide_of_a_loss_without_metrics_is_seen_alike_whatever_the_cuts(block: int, rate: str) -> None:
    t = np.arange(1600)
    loss = 0.4 + np.exp(-t / 80) + 0.01 * np.random.default_rng(4).standard_normal(len(t))
    loss[700:1000] += np.linspace(0, 0.6, 300)
    loss[1300:] += np.linspace(0, 0.8, 300)
    rates = {"steady": 0.1 + 0 * t, "falls": 0.1 / (1 + t / 100), "falls and rises": 0.1 * 1.5 ** (t // 97 % 3)}[rate]
    frames = Frames.of(Schema(("loss", "learning_rate")), t + 1, np.stack([loss, rates], axis=1))
    whole = judged(frames)
    assert monitor.dumps(judged(frames, list(range(0, len(frames), block)))) == monitor.dumps(whole)
    slides = [i for i in monitor.report(whole, "x").incidents if i.kind in ("micro_divergence", "full_divergence")]
    assert len(slides) >= 2


def test_losses_may_come_and_go_within_a_run() -> None:
    frames, state = RUNS["healthy"], monitor.init()
    bare = Frames.of(
        Schema((), frames.schema.layers, frames.schema.stats), frames.steps, np.empty((len(frames), 0)), frames.stats
    )
    for part in (frames[:100], bare[100:130], frames[130:]):
        state = monitor.update(state, part)
    assert monitor.report(state, "x").status == "healthy"


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("at", [1, 37, 151, 160, 250])
def test_a_round_trip_through_bytes_changes_nothing(name: str, at: int) -> None:
    frames = RUNS[name]
    state = monitor.loads(monitor.dumps(monitor.update(monitor.init(), frames[:at])))
    assert monitor.dumps(monitor.update(state, frames[at:])) == monitor.dumps(judged(frames))


@pytest.mark.parametrize("name", ["full", "micro", "shifting"])
def test_layers_without_any_signal_cost_the_run_its_first_layer_and_nothing_else(name: str) -> None:
    bare = without_signals(RUNS[name])
    assert monitor.dumps(judged(bare)) == monitor.dumps(judged(bare, list(range(len(bare)))))
    kinds = [[i.kind for i in monitor.report(judged(f), "x").incidents] for f in (bare, RUNS[name])]
    assert kinds[0] == kinds[1]
    assert {incident.first_layer for incident in monitor.report(judged(bare), "x").incidents} <= {None}


@pytest.mark.parametrize("at", [60, 149, 155])
def test_stats_may_come_and_go_within_a_run(at: int) -> None:
    frames, state = RUNS["full"], monitor.init()
    for part in (frames[:at], without_signals(frames[at : at + 5]), frames[at + 5 :]):
        for start in range(len(part)):
            state = monitor.update(state, part[start : start + 1])
    assert [i.kind for i in monitor.report(state, "x").incidents] == ["full_divergence"]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("at", [1, 37, 100, 151, 160, 250])
def test_update_leaves_the_old_state_as_it_was(name: str, at: int) -> None:
    old = judged(RUNS[name][:at])
    before = monitor.dumps(old)
    for stop in (at + 1, at + 20, len(RUNS[name])):
        monitor.update(old, RUNS[name][at:stop])
        assert monitor.dumps(old) == before


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    where=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 5)), max_size=6),
    value=st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e300, -1e300]),
)
def test_nan_and_absurd_values_anywhere_are_judged_and_never_crash(where: list[tuple[int, int]], value: float) -> None:
    frames = RUNS["healthy"]
    scalars = frames.scalars.copy()
    for t, i in where:
        scalars[t, i] = value
    broken = dataclasses.replace(frames, scalars=scalars)
    report = monitor.report(judged(broken), "x")
    losses = {i for _, i in where} & {0, 2, 3}
    if losses and not np.isfinite(value):
        assert any(incident.kind == "nonfinite" for incident in report.incidents)
    report.to_json()


@pytest.mark.parametrize("constant", [0.0, 0.7, -3.0, 1e20])
def test_a_constant_loss_is_quiet(constant: float) -> None:
    assert monitor.report(judged(curve(np.full(500, constant))), "x").incidents == ()


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_unit_of_the_loss_makes_no_difference(factor: float) -> None:
    frames = RUNS["curve"]
    scaled = dataclasses.replace(frames, scalars=frames.scalars * factor)
    one, other = (monitor.report(judged(f), "x").incidents for f in (frames, scaled))
    facts = [(i.kind, i.onset_step, i.detected_step, i.declared_full_step, i.end_step) for i in one]
    assert facts == [(i.kind, i.onset_step, i.detected_step, i.declared_full_step, i.end_step) for i in other]


def test_a_shift_of_the_loss_leaves_the_verdict() -> None:
    frames = RUNS["curve"]
    shifted = dataclasses.replace(frames, scalars=frames.scalars - 2.5)
    one, other = (monitor.report(judged(f), "x").incidents for f in (frames, shifted))
    assert [i.kind for i in one] == [i.kind for i in other]
    assert [i.onset_step for i in one] == [i.onset_step for i in other]


def test_the_order_of_the_layers_makes_no_difference() -> None:
    frames = RUNS["full"]
    order = [2, 0, 3, 1]
    permuted = dataclasses.replace(
        frames,
        schema=Schema(frames.schema.scalars, tuple(LAYERS[i] for i in order), frames.schema.stats),
        stats=frames.stats[:, order],
    )
    assert monitor.report(judged(frames), "x") == monitor.report(judged(permuted), "x")


def test_absent_values_are_no_events() -> None:
    frames = RUNS["healthy"]
    present = np.ones_like(frames.scalars_present)
    present[::3, 2:] = False
    scalars = np.where(present, frames.scalars, np.nan)
    gappy = dataclasses.replace(frames, scalars=scalars, scalars_present=present)
    assert monitor.report(judged(gappy), "x").status == "healthy"


def test_scalars_may_come_and_go_between_blocks() -> None:
    frames = RUNS["healthy"]
    less = Frames.of(Schema(("loss",)), frames.steps[100:200], frames.scalars[100:200, :1])
    state = judged(frames[:100])
    state = monitor.update(monitor.update(state, less), frames[200:])
    assert monitor.report(state, "x").status == "healthy"


def test_one_step_is_a_run() -> None:
    report = monitor.report(judged(RUNS["full"][:1]), "x")
    assert (report.steps, report.status, report.incidents) == ((1, 1), "healthy", ())


def test_no_step_is_a_run() -> None:
    assert monitor.report(monitor.init(), "x").steps is None


def test_a_step_that_was_judged_is_refused_with_a_sentence() -> None:
    state = judged(RUNS["healthy"][:10])
    with pytest.raises(ValueError, match="call new_attempt first"):
        monitor.update(state, RUNS["healthy"][5:20])


def test_a_restart_in_the_middle_ends_what_is_open_and_begins_anew() -> None:
    state = judged(RUNS["full"][:200])
    assert monitor.report(state, "x").status == "diverged"
    state = monitor.new_attempt(state, 140)
    assert monitor.report(state, "x").status == "recovered"
    state = monitor.update(state, ranker()[140:])
    report = monitor.report(state, "x")
    assert report.status == "recovered"
    assert all(incident.end_step is not None for incident in report.incidents)


def test_memory_is_bounded_over_many_steps() -> None:
    rng = np.random.default_rng(1)
    state = monitor.init()
    sizes = []
    for block in range(10):
        values = 1 + 0.05 * rng.standard_t(3, 3000)
        schema = Schema(("loss",))
        steps = np.arange(block * 3000 + 1, (block + 1) * 3000 + 1)
        state = monitor.update(state, Frames.of(schema, steps, values[:, None]))
        sizes.append(len(monitor.dumps(dataclasses.replace(state, records=[]))))
    assert max(sizes[3:]) < 2 * sizes[3]


def test_a_million_steps_leave_a_state_of_bounded_size() -> None:
    rng = np.random.default_rng(2)
    state, schema, sizes = monitor.init(), Schema(("loss",)), []
    for block in range(100):
        values = 1 + 0.02 * rng.standard_normal(10_000)
        steps = np.arange(block * 10_000 + 1, (block + 1) * 10_000 + 1)
        state = monitor.update(state, Frames.of(schema, steps, values[:, None]))
        sizes.append(len(monitor.dumps(state)))
    assert state.last_step == 1_000_000
    assert max(sizes[50:]) < 2 * max(sizes[:5])


def test_damaged_bytes_are_refused_by_name() -> None:
    data = monitor.dumps(judged(RUNS["full"]))
    with pytest.raises(monitor.StateError, match="does not begin"):
        monitor.loads(b"xyz" + data)
    with pytest.raises(monitor.StateError, match="version"):
        monitor.loads(data[:3] + bytes([250]) + data[4:])
    with pytest.raises(monitor.StateError, match="damaged"):
        monitor.loads(data[: len(data) // 2])


def test_a_task_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'ranking'"):
        monitor.init({"click": "ranking"})


def test_a_divergence_after_thousands_of_spikes_is_still_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "RECORDS_KEPT", 3)
    frames = ranker(700, onset=600)
    scalars = frames.scalars.copy()
    scalars[100:600:50, [0, 3]] += 1e5
    report = monitor.report(judged(dataclasses.replace(frames, scalars=scalars)), "x")
    assert [incident.number for incident in report.incidents] == list(range(len(report.incidents)))
    assert len(report.incidents) <= 5
    assert report.status == "diverged"
