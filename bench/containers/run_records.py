"""Checks the files of a finished run. Used by `verify.py`.

Each check returns what it found, and raises ValueError if it is not what it should be. Reads only.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common import model_export
from fednc.common.config.run import RunConfig
from fednc.common.waiting import Deadline, wait_until
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.result_files import write_files
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog, read_events
from fednc.server.storage.events import Event, NodeLost, NodeReady, RoundCompleted, RunResumed

_POLL_S = 0.2


def check_names(folder: Path, names: Sequence[str], deadline: Deadline) -> str:
    """The finished run's summary and its last round have exactly these clients. Waits for it."""
    clients = _summary(folder, deadline)["clients"]
    found = sorted(client["name"] for client in clients)
    if found != sorted(names):
        raise ValueError(f"expected {', '.join(sorted(names))}; found {', '.join(found) or 'nobody'}")
    replies = [event.record.replies for event in read_events(folder) if isinstance(event, RoundCompleted)]
    if not replies or set(replies) != {len(names)}:
        raise ValueError(f"replies per round were {replies}, expected {len(names)} in each")
    return ", ".join(f"{client['name']} ({client['examples']} examples)" for client in clients)


def check_lost(folder: Path, name: str, after: int) -> str:
    """The server lost this client in the round after round `after`, and the client came back."""
    during = _events_of_round(folder, after + 1)
    for expected in (NodeLost, NodeReady):
        if not any(isinstance(event, expected) and event.node == name for event in during):
            raise ValueError(f"no {expected.kind!r} of {name} in round {after + 1}")
    return f"{name} in round {after + 1}"


def check_resumed(folder: Path, after: int) -> str:
    """The server was restarted in the round after round `after`, and continued from there."""
    resumed = [event.round for event in _events_of_round(folder, after + 1) if isinstance(event, RunResumed)]
    if resumed != [after]:
        raise ValueError(
            f"expected one restart in round {after + 1} from round {after}; found them from {resumed}"
        )
    return f"in round {after + 1}, continued after round {after}"


def check_model(folder: Path, run: RunConfig, names: Sequence[str], data: str) -> str:
    """The weights are, bit for bit, those of the same run in one process. Returns their digest."""
    served = digest_of_model(folder)
    with tempfile.TemporaryDirectory() as place:
        run_in_process(run, names, data, Path(place))
        reference = digest_of_model(Path(place))
    if served != reference:
        raise ValueError(f"sha256 served {served}, in process {reference}")
    return f"sha256 {served}"


def digest_of_model(folder: Path) -> str:
    """sha256 of the exported weights. Raises OSError, or ValueError if the manifest has another one."""
    place = folder / model_export.FOLDER
    found = hashlib.sha256((place / model_export.WEIGHTS).read_bytes()).hexdigest()
    said = json.loads((place / model_export.MANIFEST).read_bytes())["weights_sha256"]
    if found != said:
        raise ValueError(f"{place / model_export.WEIGHTS} has sha256 {found}, its manifest says {said}")
    return found


def run_in_process(run: RunConfig, names: Sequence[str], data: str, folder: Path) -> None:
    """Run without the link: client I has part I. Writes the model into `folder`."""
    clients = [ClientConfig(name=name, data=data, device="cpu") for name in names]
    prepared = FederatedRun(run, EventLog())
    with LocalGrid(run, clients) as grid:
        result = prepared.execute(grid, Surroundings(name_of=grid.name_of))
    write_files(folder, result, {})


def _summary(folder: Path, deadline: Deadline) -> dict[str, Any]:
    path = folder / "summary.json"
    if not wait_until(path.exists, deadline, _POLL_S):
        told = [event.text for event in read_events(folder)][-3:]
        raise ValueError(f"the run did not end in time; the server's last words: {' / '.join(told) or 'none'}")
    summary: dict[str, Any] = json.loads(path.read_bytes())
    return summary


def _events_of_round(folder: Path, number: int) -> list[Event]:
    """Events between the end of the previous round and the end of this one."""
    events = list(read_events(folder))
    ends = {event.record.round: at for at, event in enumerate(events) if isinstance(event, RoundCompleted)}
    return events[ends.get(number - 1, -1) + 1 : ends.get(number, len(events))]
