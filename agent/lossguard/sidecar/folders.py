"""The run folders below the journals that a sidecar was given, and what is wrong with those journals.

Guarantees. Never raises: a folder that is not there yet, that may not be read, or whose disk answers with an error is
told of once in the log and kept in `trouble` until it is well, while the runs of the other folders go on. So a sidecar
may start before its trainer, as in a pod both start together.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lossguard.journal.layout import is_attempt_name

_log = logging.getLogger("lossguard.sidecar")


class JournalFolders:
    """Called, gives `<journal>/<project>/<run>` of all runs there are now. For one thread at a time.

    Args:
        directories: the journals.

    Attributes:
        trouble: by folder, a sentence that says what is wrong with it and what to do; empty if nothing is.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = tuple(directories)
        self.trouble: dict[Path, str] = {}

    def __call__(self) -> list[Path]:
        """The run folders; what is in trouble is left out."""
        now: dict[Path, str] = {}
        found = [run for directory in self._directories for run in _runs(directory, now)]
        before, self.trouble = self.trouble, now  # whoever reads the log finds it in `/healthz`
        for folder, sentence in now.items():
            if before.get(folder) != sentence:
                _log.warning("%s", sentence)
        for folder in before.keys() - now.keys():
            _log.info("%s: is well now", folder)
        return found


def journal_below(directory: Path) -> Path | None:
    """A journal that lies in this folder, whose runs are too deep to be found: the folder above may have been named."""
    for journal in _folders(directory, {}):
        for project in _folders(journal, {}):
            for run in _folders(project, {}):
                if any(is_attempt_name(attempt.name) for attempt in _folders(run, {})):
                    return journal
    return None


def _runs(directory: Path, trouble: dict[Path, str]) -> Iterator[Path]:
    for project in _folders(directory, trouble, is_root=True):
        runs = _folders(project, trouble)
        if any(is_attempt_name(folder.name) for folder in (project, *runs)):
            level = "run" if is_attempt_name(project.name) else "project"
            trouble[directory] = (
                f"{directory} is the folder of one {level}, so nothing in it is shipped: name the journal's folder, "
                "which holds the projects"
            )
            return
        yield from runs


def _folders(folder: Path, trouble: dict[Path, str], *, is_root: bool = False) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if _is_folder(entry) and not _is_foreign(entry.name)]
    except FileNotFoundError:
        if is_root:
            trouble[folder] = (
                f"there is no folder {folder} yet: waiting for the trainer to make it; if it never comes, compare the "
                "path with the journal of the trainer (`journal=` of Watch or Run)"
            )
    except OSError as error:
        trouble[folder] = f"{folder} cannot be read: {error.strerror}: its runs are not shipped until it can"
    return []


def _is_foreign(name: str) -> bool:
    # The second is in the root of every volume of its own with ext4, for root alone to read.
    return name.startswith(".") or name == "lost+found"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Of a link, `entry.is_dir()` raises where it leads in a circle.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))
