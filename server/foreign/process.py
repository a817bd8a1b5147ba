"""The process that runs a foreign Flower ServerApp.

Started by `server/foreign_app.py` as `python -m fednc.server.foreign.process FD BELL`. As on stock Flower, the app
runs in the main thread of its own process: it may fork, set signal handlers, hold the GIL, or crash. The link to
the clients is in the server's process, which is reached over a pipe; see `server/foreign/grid.py`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Array, Context, RecordDict
from flwr.serverapp import ServerApp

from fednc.common import flower_adapter
from fednc.common.errors import EXIT_INTERRUPTED, ConfigError
from fednc.common.process.app_pipe import Pipe
from fednc.common.process.flower_env import quiet_flower
from fednc.common.wire.arrays import NPY
from fednc.protos import federation_pb2 as pb
from fednc.server.foreign.pipe_grid import PipeGrid

MODEL = "model.npz"


class AppRunner:
    """Loads the ServerApp, reports that, runs it when told to, and reports how it ended."""

    def __init__(self, pipe: Pipe, bell: int) -> None:
        self._pipe, self._bell = pipe, bell
        self._setup: dict[str, Any] = pipe.receive_json()
        self._model = ""

    def run(self) -> None:
        """Load and run the app."""
        setup = self._setup
        flower_adapter.adopt_identity(setup["run_id"])
        try:
            app = self._load()
        except ConfigError as e:
            self._pipe.send(pb.Failure(kind="ConfigError", reason=str(e)).SerializeToString())
            return
        self._pipe.send(pb.Failure().SerializeToString())
        self._pipe.receive()  # enough nodes are ready
        grid = PipeGrid(setup["run_id"], self._pipe, self._bell)
        flower_adapter.on_model(self._keep)
        try:
            app(grid, self._context())
        except (Exception, SystemExit) as e:
            traceback.print_exc()
            reason = str(e).encode(errors="replace").decode()
            grid.say({"call": "failed", "kind": type(e).__name__, "reason": reason})
        else:
            grid.say({"call": "done", "model": self._model})

    def _load(self) -> ServerApp:
        folder = self._setup["folder"]
        app = flower_adapter.read_app(Path(folder)).load("serverapp")
        if not isinstance(app, ServerApp):
            raise ConfigError(f"the serverapp of {folder} is a {type(app).__name__}, not a ServerApp")
        return app

    def _context(self) -> Context:
        return Context(
            run_id=flower_adapter.run_number(self._setup["run_id"]),
            node_id=flower_adapter.SERVER_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config=self._setup["run_config"],
        )

    def _keep(self, arrays: Mapping[str, Array]) -> None:
        """Write the model that the app's strategy ended with to the run's folder."""
        if arrays and all(array.stype == NPY for array in arrays.values()):
            path = Path(self._setup["keep"]) / MODEL
            with zipfile.ZipFile(path.with_suffix(".tmp"), "w") as file:
                for key, array in arrays.items():
                    with file.open(f"{key}.npy", "w", force_zip64=True) as entry:
                        entry.write(array.data)
            os.replace(path.with_suffix(".tmp"), path)
            self._model = MODEL


def _end_with(pipe: Pipe) -> None:
    """Kill this process and all that the app has started once the server is gone."""
    pipe.await_hang_up()
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """See the top of this file."""
    quiet_flower()
    pipe, bell = Pipe(socket.socket(fileno=int(sys.argv[1]))), int(sys.argv[2])
    os.set_inheritable(bell, False)
    sys.argv[1:] = []  # hidden from the app
    threading.Thread(target=_end_with, args=[pipe], daemon=True).start()
    try:
        AppRunner(pipe, bell).run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
