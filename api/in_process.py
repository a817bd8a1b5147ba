"""`fednc.run`: server and clients in this process, one client after the other, for notebooks and scripts.

Runs the same code as the server and client commands, but without the link between them. So the same run file and
data give the same bits (with the same number of threads in PyTorch). Opens no connection.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fednc.bench.local_grid import LocalGrid
from fednc.bench.run_pictures import draw
from fednc.callbacks import Callback, Progress
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig, parse_run, read_run_file
from fednc.common.device import pick_device
from fednc.common.errors import ConfigError
from fednc.common.files import private_folder
from fednc.common.model_export import ExportedModel, load
from fednc.server.operations.trackers import tracked
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.result_files import summary_of, write_files, write_round_examples
from fednc.server.rounds.run import FederatedRun, RunResult, checkpoints_of, new_or_continued
from fednc.server.storage import probe_record
from fednc.server.storage.client_metrics import ClientMetrics
from fednc.server.storage.data_manifests import ManifestFile
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, RoundCompleted
from fednc.server.storage.folder_lock import claimed
from fednc.server.storage.history import History, RoundRecord

FINISHED, INTERRUPTED = "finished", "interrupted"
CLIENTS = "clients"  # folder of what clients remember, in the folder of a run that can be resumed


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run.

    Attributes:
        run: the parsed run file.
        history: all rounds, each with its losses and metrics.
        metrics: metrics of the last evaluated round, on the run's test data, else on the clients' held-out data.
        model: the final model with its read-out, ready to predict; on the CPU.
        summary: the content of a run folder's `summary.json`.
        ended: `finished`, `interrupted`, or why a callback stopped the run.
        folder: where model, rounds, events and summary were written; None if they were not.
    """

    run: RunConfig
    history: History
    metrics: dict[str, float]
    model: ExportedModel
    summary: dict[str, Any]
    ended: str
    folder: Path | None

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.history.rounds)


class Running:
    """A run in progress, as passed to callbacks.

    Attributes:
        config: the run file.
        clients: names of the clients.
        primary: name of the task's primary metric.
        ended: why a callback stopped the run; empty if none has.
    """

    def __init__(self, prepared: FederatedRun, control: RunControl, clients: Sequence[str]) -> None:
        self.config = prepared.run
        self.clients = tuple(clients)
        self.primary = prepared.task.primary.name
        self.ended = ""
        self._prepared, self._control = prepared, control

    @property
    def history(self) -> History:
        """All rounds so far."""
        return self._prepared.history

    def rises(self, metric: str) -> bool:
        """Whether higher values of a metric are better, as the task defines it; not so for `train_loss`."""
        told = {one.name: one.higher_is_better for one in self._prepared.task.measured_by}
        return told.get(metric, metric != "train_loss")

    def stop(self, reason: str) -> None:
        """Start no further round. The last one is evaluated if it was not yet."""
        self.ended = reason
        self._control.stop()

    def export(self, folder: Path | str) -> None:
        """Write the current model with summary and rounds, for `fednc.load`."""
        result = self._prepared.last_good
        if result is None:
            raise ConfigError("there is no model before the end of round 1: export in on_round or later")
        private_folder(Path(folder))
        write_files(Path(folder), result, summary_of(Path(folder).name, result))


def run(
    run_file: str | Path | Mapping[str, Any] | RunConfig,
    clients: Mapping[str, str],
    callbacks: Sequence[Callback] = (),
    folder: str | Path | None = None,
    *,
    device: str = "auto",
    val_share: float = 0.1,
    progress: bool = True,
    resume: bool = False,
) -> Result:
    """Run all rounds of a run file in this process.

    Ctrl-C, or a notebook's stop button, ends the run with the model of the last complete round. Before the end of
    round 1 it raises KeyboardInterrupt.

    Args:
        run_file: path of a run file, its tables as a dict, or a RunConfig.
        clients: data spec of each client by name, e.g. {"anna": "npz:anna.npz"}; with a simulated [split] the
            clients get its parts in this order.
        callbacks: called after each round; see `fednc.EarlyStop`, `fednc.BestCheckpoint` and `fednc.Callback`.
        folder: where to write model, rounds, summary and events; None: write nothing.
        device: device that clients train on: `auto`, `cpu`, `cuda`, ...
        val_share: share of its data that each client holds out for evaluation.
        progress: show a line per round.
        resume: keep checkpoints in `folder` (`server.keep_checkpoints`), and continue from the newest one there.
            The result has the same bits as that of an uninterrupted run.

    Raises:
        ConfigError: a key, a name or a metric that cannot be used.
        DataError: data that is missing, unreadable or does not fit the run.
        QuorumError: too few clients answered a round.
        DivergedError: training diverged.
    """
    config = _config(run_file)
    _check(config, clients)
    place = Path(folder) if folder is not None else None
    if resume and place is None:
        raise ConfigError("resume: name the folder whose checkpoints the run continues from")
    here = pick_device(device)
    configs = [
        ClientConfig(
            name=name,
            data=spec,
            device=str(here),
            val_share=val_share,
            manifest=place is not None,
            state=str(place / CLIENTS / name) if place and resume else "",
        )
        for name, spec in clients.items()
    ]
    watching = [*([Progress()] if progress else []), *callbacks]
    with ExitStack() as stack:
        if place:
            private_folder(place)
            stack.enter_context(claimed(place))
        events = EventLog(place / "events.jsonl" if place else None)
        stack.callback(events.close)
        stack.enter_context(tracked(config, place.name if place else config.name, place, events))
        return _run(config, configs, watching, events, place, resume=resume)


def _run(
    config: RunConfig,
    clients: Sequence[ClientConfig],
    callbacks: Sequence[Callback],
    events: EventLog,
    folder: Path | None,
    *,
    resume: bool,
) -> Result:
    started = time.monotonic()
    with LocalGrid(config, clients, run_id=folder.name if folder and resume else "") as grid:
        manifests = ManifestFile()
        if folder:
            manifests.keep_in(folder)
            for name, manifest in grid.manifests.items():
                manifests.note(name, manifest)
        checkpoints = best = None
        if folder and resume:
            checkpoints, best = checkpoints_of(config, folder)
            prepared, kept = new_or_continued(config, events, folder, checkpoints, best)
        else:
            prepared, kept = FederatedRun(config, events), None
        control = RunControl()
        running = Running(prepared, control, [client.name for client in clients])

        def on_event(event: Event) -> None:
            for callback in callbacks:
                callback.on_event(running, event)
            if isinstance(event, RoundCompleted):
                for callback in callbacks:
                    callback.on_round(running, event.record)

        for callback in callbacks:
            callback.on_start(running)
        events.listen(on_event)
        around = Surroundings(
            name_of=grid.name_of,
            control=control,
            keep_examples=partial(write_round_examples, folder) if folder else None,
            keep_probe=partial(probe_record.write, folder, config) if folder else lambda _verdict: None,
            client_metrics=ClientMetrics(folder),
            checkpoints=checkpoints,
            best=best,
        )
        around.client_metrics.go_back_to(kept.round if kept else 0)
        try:
            done = prepared.execute(grid, around)
        except KeyboardInterrupt:
            good = prepared.last_good
            if good is None:
                raise
            done, running.ended = good, INTERRUPTED
    result = _result(done, running.ended or FINISHED, grid.run_id, time.monotonic() - started, folder)
    for callback in callbacks:
        callback.on_end(running, result)
    return result


def _result(done: RunResult, ended: str, run_id: str, duration_s: float, folder: Path | None) -> Result:
    more = {} if ended == FINISHED else {"ended": ended}
    summary = summary_of(folder.name if folder else run_id, done, duration_s=round(duration_s, 3), **more)
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        write_files(place, done, summary)
        if folder:
            draw(folder)
        model = load(place)  # the same model as loading it later gives
    return Result(
        run=done.run,
        history=done.history,
        metrics=_last_metrics(done.history.rounds),
        model=model,
        summary=summary,
        ended=ended,
        folder=folder,
    )


def _last_metrics(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    return next((dict(record.metrics) for record in reversed(rounds) if record.metrics), {})


def _config(run_file: str | Path | Mapping[str, Any] | RunConfig) -> RunConfig:
    if isinstance(run_file, RunConfig):
        return run_file
    if isinstance(run_file, Mapping):
        return parse_run(dict(run_file))
    return read_run_file(Path(run_file))


def _check(config: RunConfig, clients: Mapping[str, str]) -> None:
    """Raises ConfigError if the run would wait for ever, since no further client can join."""
    if not isinstance(clients, Mapping):
        raise ConfigError(
            f"clients: {clients!r:.80} has no names; give data specs by name, {{'anna': 'npz:a.npz'}}"
        )
    if len(clients) < max(1, config.rounds.min_clients):
        raise ConfigError(
            f"clients: got {len(clients)}, but rounds.min_clients is {config.rounds.min_clients}; give more "
            "clients, or lower it"
        )
    if config.split and len(clients) != config.split.parts:
        raise ConfigError(
            f"clients: got {len(clients)}, but split.parts is {config.split.parts}; give one client per part"
        )
    if any(session.start == "operator" for session in config.sessions):
        raise ConfigError(
            "sessions: start = 'operator' waits for `fednc session next`, which needs a server; name the classes "
            "and set start = 'at-once'"
        )
