"""Full disks: told apart from other errors, named by folder, and never fatal to the record of the run."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rhstudy.errors import StudyError, message

FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
FULL_WORDS = ("no space left on device", "disk is full", "disk quota exceeded", "os error 28")
REMEDY = "Free some space, or choose other folders with --tracking.work_dir and --tracking.uri, and start again"
RESERVE_BYTES = 512 * 1024


def reserve(path: Path) -> None:
    """Occupy half a megabyte at `path` while a run is RUNNING.

    Deleting it makes room to record how the run ended, on a disk that the run or its neighbours filled.

    Raises:
        OSError: the disk is full already.
    """
    try:
        with path.open("wb") as file:
            file.write(bytes(RESERVE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def release(path: Path) -> None:
    """Give back what `reserve` occupied."""
    path.unlink(missing_ok=True)


def copy_files(source: Path, target: Path) -> None:
    """Copy every file below `source` into `target`; on failure the files written so far are removed again.

    Raises:
        StudyError: the files cannot fit; nothing was copied.
        OSError: the copy itself failed.
    """
    files = [item for item in sorted(source.rglob("*")) if item.is_file()]
    target.mkdir(parents=True, exist_ok=True)
    needed, free = sum(item.stat().st_size for item in files), shutil.disk_usage(target).free
    if needed > free:
        raise StudyError(message("disk", f"have {needed} bytes free", f"<{free} bytes free>", REMEDY, str(target)))
    begun: list[Path] = []
    try:
        for item in files:
            place = target / item.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            begun.append(place)
            shutil.copy2(item, place)
    except BaseException:
        for place in begun:
            place.unlink(missing_ok=True)
        raise


def full_disk(error: BaseException, places: Sequence[Path]) -> StudyError | None:
    """The error that names the full folder, when `error` or one of its causes is a full disk or quota.

    Args:
        error: any exception.
        places: folders that were written to; the one with the least free space is named unless `error` names one.
    """
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        full = isinstance(current, OSError) and current.errno in FULL_ERRNOS
        if full or any(words in str(current).lower() for words in FULL_WORDS):
            return _full_disk_error(current, places)
        current = current.__cause__ or current.__context__
    return None


@contextlib.contextmanager
def naming_full_disks(places: Sequence[Path]) -> Iterator[None]:
    """Raise the error of `full_disk` in place of one that means the same.

    Raises:
        StudyError: the disk is full.
    """
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        full = full_disk(error, places)
        if full is None:
            raise
        raise full from error


def _full_disk_error(error: BaseException, places: Sequence[Path]) -> StudyError:
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    named = [Path(str(name)).absolute().parent] if name else []
    folders = [_existing(place) for place in named or places]
    folder = min(folders, key=lambda item: shutil.disk_usage(item).free)
    free = shutil.disk_usage(folder).free
    return StudyError(message("disk", "have free space", f"<{free} bytes free>", REMEDY, str(folder)))


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
