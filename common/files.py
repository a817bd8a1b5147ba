"""Files that are there whole or not at all.

Used wherever something must survive a crash half way: exported models, checkpoints, summaries.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from fednc.common import fault_injection

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600


def private_folder(folder: Path, *, exist_ok: bool = True) -> None:
    """Make a folder that its owner alone can enter, whatever the umask; one that is there keeps its mode.

    Raises:
        FileExistsError: it is there, and `exist_ok` is false.
    """
    if exist_ok and folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=exist_ok)
    folder.chmod(PRIVATE_FOLDER)


def private(path: str, flags: int) -> int:
    """An opener for `open`: a new file is its owner's alone."""
    return os.open(path, flags, PRIVATE_FILE)


def write_atomically(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace `path` by `data` in one step: after a crash at any moment it holds the old bytes or the new ones.

    Written beside it, flushed to the disk, renamed over it; the folder is flushed too, or a power cut could
    undo the rename. Raises OSError.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data[: len(data) // 2])
            fault_injection.at("file.half")
            f.write(data[len(data) // 2 :])
            f.flush()
            os.fsync(f.fileno())
        Path(name).chmod(mode)  # mkstemp's are private
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
    """Type of the file system that `path` lies on, e.g. `ext4`; empty where the system does not say."""
    number = path.stat().st_dev
    mounts = Path("/proc/self/mountinfo")
    for line in mounts.read_text(encoding="utf-8").splitlines() if mounts.exists() else []:
        place, _, kind = line.partition(" - ")
        if place.split()[2] == f"{os.major(number)}:{os.minor(number)}":
            return kind.split()[0]
    return ""


def remedy(error: OSError) -> str:
    """What a person does about a file of the run that cannot be written."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (`ulimit -n`, LimitNOFILE= of the unit)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space in the run's folder"
    return "see to the run's folder and its disk"
