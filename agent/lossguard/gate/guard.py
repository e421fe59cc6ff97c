"""Watches over a folder that TensorFlow Serving reads: what is not judged is moved out of sight.

Guarantees. After a look, every version in the folder carries a verdict that passed for exactly its bytes, signed by a
trusted key where keys are given. What does not is renamed, in one step, to a name that starts with a dot, which
TensorFlow Serving does not look at; nothing is deleted. Versions whose files have not changed since they were found
good are not hashed again.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lossguard.gate.digest import VERDICT_NAME, ArtifactFile, list_files
from lossguard.gate.errors import GateError
from lossguard.gate.publish import rename_new, sync_folder, version_of
from lossguard.gate.verify import verify

QUARANTINE: Final = ".lossguard-quarantine-"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look found out about one version.

    Attributes:
        version: its folder's name.
        good: True if it may be served.
        reason: why not.
        moved_to: where it was put, or None if it stayed (because it is good, or because of `dry`).
    """

    version: str
    good: bool
    reason: str = ""
    moved_to: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The finding, ready for `json.dumps`."""
        moved_to = None if self.moved_to is None else str(self.moved_to)
        return {"version": self.version, "good": self.good, "reason": self.reason, "moved_to": moved_to}


@dataclass(slots=True)
class Guard:
    """Looks at one model's folder, again and again.

    Attributes:
        folder: the one that TensorFlow Serving watches.
        keys: the public keys that are trusted; without any, signatures are not asked for.
        dry: True to say what would be moved and move nothing.
        project, policy: only verdicts about this project's runs, or by this policy, count; None for any.
    """

    folder: Path
    keys: Mapping[str, bytes]
    dry: bool = False
    project: str | None = None
    policy: str | None = None
    _known: dict[str, list[ArtifactFile]] = field(default_factory=dict)

    def trust(self, keys: Mapping[str, bytes]) -> None:
        """Trust these keys from now on; what was found good under others is looked at again."""
        if dict(keys) != dict(self.keys):
            self.keys = keys
            self._known.clear()

    def look(self) -> list[Finding]:
        """Verify every version, and move away what is not good."""
        # What reads as a number is served, whatever else lies there is not looked at by TensorFlow Serving.
        versions = [name for name in os.listdir(self.folder) if version_of(name) is not None]
        findings = [self._judge(name) for name in sorted(versions, key=lambda name: (version_of(name), name))]
        self._known = {name: files for name, files in self._known.items() if name in {f.version for f in findings}}
        return findings

    def _judge(self, name: str) -> Finding:
        place = self.folder / name
        try:
            if place.is_symlink():
                raise GateError(f"{place} is a link: what it leads to can change without a trace")
            files = list_files(place)
            verdict = place / VERDICT_NAME
            stamp = [*files, *(list_files(verdict) if verdict.is_file() else [])]
            if self._known.get(name) != stamp:
                verify(place, self.keys, project=self.project, policy=self.policy)
                self._known[name] = stamp
            return Finding(name, good=True)
        except GateError as error:
            self._known.pop(name, None)
            return Finding(name, good=False, reason=str(error), moved_to=None if self.dry else self._away(place))

    def _away(self, place: Path) -> Path:
        count = 0
        while True:
            target = self.folder / f"{QUARANTINE}{place.name.strip()}{f'-{count}' if count else ''}"
            try:
                rename_new(place, target)
            except FileExistsError:
                count += 1
                continue
            sync_folder(self.folder)
            return target
