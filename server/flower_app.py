"""fednc's Flower ServerApp for stock Flower. Writes the same files as `fednc server`.

The run file arrives as JSON in the run configuration, under the key `run`. Over our own link, `main.py` is used
instead.
"""

from __future__ import annotations

import json
import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError
from fednc.server.rounds.result_files import summary_of, write_files
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import RunDone
from fednc.server.storage.run_folder import run_folder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point on stock Flower; writes the same files as `fednc server`."""
    run = run_of(str(context.run_config.get("run", "")))
    if any(session.start == "operator" for session in run.sessions):
        raise ConfigError(
            "[[sessions]] with start = 'operator' needs fednc's own server: on stock Flower no operator can start "
            "them. Set start = 'at-once'"
        )
    folder = run_folder(run, str(context.run_config.get("folder", "")))
    events = EventLog(folder / "events.jsonl")
    events.listen(lambda event: logging.getLogger("flwr").info(event.text))
    result = FederatedRun(run, events).execute(grid)
    write_files(folder, result, summary_of(folder.name, result))
    events.emit(RunDone(text=f"files in {folder.resolve()}", folder=str(folder)))


def run_of(text: str) -> RunConfig:
    """Parse a run file from JSON. Raises ConfigError."""
    try:
        values = json.loads(text)
    except ValueError as e:
        raise ConfigError(
            f"the run configuration's key 'run' is not a run file in JSON: {text!r:.60}; `fednc check RUN.toml "
            "--flower FILE` writes a file for `flwr run -c FILE`"
        ) from e
    return parse_run(values, source="the run configuration's key 'run'")
