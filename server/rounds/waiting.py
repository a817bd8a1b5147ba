"""Writing a checkpoint where the disk may be full: the run waits for space, says so, and gives up in the end.

Called by the run after every round.
"""

from __future__ import annotations

import time

from fednc.common.errors import RunFailedError
from fednc.common.files import remedy
from fednc.server.rounds.control import RunControl
from fednc.server.storage.checkpoint import Checkpoint, Checkpoints
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import DiskProblem

_DISK_POLL_S = 2.0


def save_patiently(
    checkpoints: Checkpoints, checkpoint: Checkpoint, wait_s: float, control: RunControl, events: EventLog
) -> None:
    """Write `checkpoint`, again and again while there is no space for it.

    Raises:
        RunFailedError: after `wait_s`, or where an operator stops the run meanwhile.
    """
    give_up = time.monotonic() + wait_s
    while True:
        try:
            return checkpoints.save(checkpoint)
        except OSError as e:
            what = f"the checkpoint of round {checkpoint.round} cannot be written: {e.strerror}"
            if control.stopping or time.monotonic() > give_up:
                raise RunFailedError(f"{what}; {remedy(e)}, then start again with the same --folder") from e
            text = f"{what}; the run waits: {remedy(e)}"
            events.emit(DiskProblem(text=text, errno=e.errno))
        time.sleep(_DISK_POLL_S)
