"""Writing files so that a crash never leaves half of one, and folders that only their owner can enter.

Used for everything that must survive a crash: exported models, checkpoints, summaries.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from fednc.common import fault_injection

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600


def private_folder(folder: Path, *, exist_ok: bool = True) -> None:
    """Make a folder that only its owner can enter, whatever the umask. An existing folder keeps its mode.

    Raises:
        FileExistsError: the folder exists and `exist_ok` is false.
    """
    if exist_ok and folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=exist_ok)
    folder.chmod(PRIVATE_FOLDER)


def private(path: str, flags: int) -> int:
    """An opener for `open`: only its owner can read or write a new file."""
    return os.open(path, flags, PRIVATE_FILE)


def write_atomically(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace the content of `path` in one step: after a crash at any moment it holds the old bytes or the new.

    The data goes into a temporary file beside it, which is flushed to disk and renamed. The folder is flushed
    too, because a power cut could otherwise undo the rename. Raises OSError.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data[: len(data) // 2])
            fault_injection.at("file.half")
            f.write(data[len(data) // 2 :])
            f.flush()
            os.fsync(f.fileno())
        Path(name).chmod(mode)  # mkstemp makes private files
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def filesystem_of(path: Path) -> str:
    """Type of the file system that holds `path`, e.g. `ext4`; empty if the system does not say."""
    number = path.stat().st_dev
    mounts = Path("/proc/self/mountinfo")
    for line in mounts.read_text(encoding="utf-8").splitlines() if mounts.exists() else []:
        place, _, kind = line.partition(" - ")
        if place.split()[2] == f"{os.major(number)}:{os.minor(number)}":
            return kind.split()[0]
    return ""


def remedy(error: OSError) -> str:
    """What to do about a file of the run that cannot be written."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (`ulimit -n`, LimitNOFILE= of the unit)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space in the run's folder"
    return "check the run's folder and its disk"
