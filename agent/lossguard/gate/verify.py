"""Checks offline that what lies in a folder is what a verdict passed.

Guarantees. Needs neither the service nor its packages. True only if the verdict beside the model is a pass, its digest
is that of the bytes there, and, where a public key is given, its signature is by that key.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from lossguard.gate.client import Answer
from lossguard.gate.digest import VERDICT_NAME, artifact_digest
from lossguard.gate.errors import NotVerified
from lossguard.gate.signature import check_signature
from lossguard.wire.verdict import Verdict

MAX_VERDICT_BYTES = 16 << 20


def read_document(folder: Path) -> Answer:
    """The verdict that lies beside a published model.

    Raises:
        NotVerified: there is none that can be read.
    """
    path = folder / VERDICT_NAME
    if not folder.exists():
        raise NotVerified(f"{folder} does not exist: name the folder of a published version")
    versions = sorted(entry.parent.name for entry in folder.glob(f"*/{VERDICT_NAME}") if entry.parent.name.isdigit())
    if versions and not path.is_file():
        raise NotVerified(f"{folder} holds versions of a model: name one of them, {folder / max(versions, key=int)}")
    if not folder.is_dir() or not path.is_file():
        raise NotVerified(
            f"{folder} holds no {VERDICT_NAME}: the gate did not publish it. Publish it with `lossguard gate publish`."
        )
    if path.stat().st_size > MAX_VERDICT_BYTES:
        raise NotVerified(f"{path} is larger than any verdict: it was tampered with; do not serve this model")
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        return Answer(Verdict.from_json(document), document)
    except (ValueError, TypeError, RecursionError) as error:
        raise NotVerified(
            f"{path} is not a verdict ({error}): it was cut or changed; do not serve this model"
        ) from None


def verify(
    folder: str | Path,
    keys: Mapping[str, bytes] | None = None,
    *,
    project: str | None = None,
    policy: str | None = None,
) -> Answer:
    """The verdict of a published model, if it holds for what lies there.

    Args:
        folder: the version's folder.
        keys: the public keys that are trusted, by id (`lossguard.gate.signature.read_keys`); with none, only the
            verdict and the bytes are compared, which finds accidents and no forgers.
        project, policy: only a verdict about a run of this project, or by this policy, counts; None for any.

    Raises:
        NotVerified: it does not; the sentence says why.
        ArtifactUnreadable, ArtifactChanged: see `lossguard.gate.errors`.
    """
    answer = read_document(Path(folder))
    if answer.verdict.outcome != "pass":
        raise NotVerified(f"the verdict beside {folder} is {answer.verdict.outcome}: do not serve this model")
    if keys:
        check_signature(answer.verdict, answer.document, keys)
    for wanted, said, what in ((project, answer.verdict.project, "project"), (policy, answer.verdict.policy, "policy")):
        if wanted is not None and said != wanted:
            raise NotVerified(
                f"the verdict beside {folder} is of {what} {said!r}, and only {wanted!r} counts here: this model was "
                "judged for something else; do not serve it"
            )
    found = artifact_digest(folder)
    if found != answer.verdict.artifact_digest:
        raise NotVerified(
            f"the verdict beside {folder} is about {answer.verdict.artifact_digest}, and these bytes are {found}: the "
            "model was changed after it was judged. Do not serve it; publish the export again"
        )
    return answer
