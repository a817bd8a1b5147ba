"""Carries a federated run over our link: a server in this process, and a process for each client of this machine.

If clients come by themselves, only the server is started; its address and certificates are those of the run file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from fednc.common.address import is_wildcard
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.files import private_folder
from fednc.common.process.interrupt import run_until_interrupted
from fednc.common.security import credentials
from fednc.common.security.certificates import names_in
from fednc.ops.pipelines.base_rounds import CLIENTS
from fednc.ops.pipelines.child_process import die_with_parent
from fednc.ops.pipelines.pipeline_file import PipelineFile
from fednc.ops.pipelines.work import RunOrder, SearchOrder
from fednc.ops.search.study import SearchView, TrialView
from fednc.server.main import run_server
from fednc.server.operations.trackers import tracked
from fednc.server.run_series import serve_series
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.folder_lock import claimed

_END_S = 10.0


def over_link(order: RunOrder) -> None:
    """Serve the run to its end. Raises FedncError; KeyboardInterrupt."""
    run = _run_of(order.file, order.run)
    with claimed(order.folder), _Clients(order.file, order.clients, order.folder).ended() as clients:
        events = EventLog(order.folder / "events.jsonl", run.server.events_mib, run.server.events_kept)
        events.listen(order.heard)
        with tracked(run, order.folder.name, order.folder, events):
            serving = run_server(
                run, order.folder, events, on_listening=lambda _federation, port: clients.start(run, port)
            )
            run_until_interrupted(serving, stop_s=run.server.stop_s)
        events.close()


def search_over_link(order: SearchOrder) -> SearchView:
    """Do the trials of a search over the same attending clients. Raises FedncError; KeyboardInterrupt."""
    from fednc.ops.search.searcher import search

    plan = replace(order.plan, run=_run_of(order.file, order.plan.run))
    private_folder(plan.folder)
    events = EventLog(plan.folder / "events.jsonl")
    with _Clients(order.file, order.clients, plan.folder, once=False).ended() as clients:
        serving = serve_series(
            plan.run,
            plan.folder,
            events,
            lambda series: search(plan, series, partial(tell_trial, order)),
            on_listening=lambda _federation, port: clients.start(plan.run, port),
        )
        found = run_until_interrupted(serving, stop_s=plan.run.server.stop_s)
    events.close()
    return found


def tell_trial(order: SearchOrder, trial: TrialView) -> None:
    """A line for a trial that has ended."""
    settings = ", ".join(f"{key} = {value}" for key, value in trial.settings.items())
    values = ", ".join(f"{name} {value:.4g}" for name, value in trial.values.items())
    order.tell(f"trial {trial.number}: {settings}: {values or f'{trial.state}: {trial.reason}'}")


def _run_of(file: PipelineFile, run: RunConfig) -> RunConfig:
    """The run file; for clients of this machine with a port that is free."""
    if not file.link.start_clients:
        return run
    host = run.server.listen.rpartition(":")[0]
    return run.model_copy(update={"server": run.server.model_copy(update={"listen": f"{host}:0"})})


def host_of(run: RunConfig) -> str:
    """The host by which clients of this machine call the server, in brackets if it is an address of IPv6.

    A server that listens on all addresses is called by a name of this machine that its certificate has, if any.
    """
    host = run.server.listen.rpartition(":")[0]
    if not is_wildcard(host):
        return host
    own = "[::1]" if ":" in host else "127.0.0.1"
    server = run.server
    if not (server.cert or server.certs):
        return own
    path = Path(server.cert) if server.cert else Path(server.certs) / credentials.CERT
    try:
        names = [f"[{name}]" if ":" in name else name for name in names_in(path.read_bytes()) if "*" not in name]
    except (OSError, ValueError):
        return own  # the server says what is wrong with it
    return next((name for name in (own, "localhost", *names) if name in names), own)


class _Clients:
    """A process for each client that this machine runs; with `once` they leave after one run."""

    def __init__(self, file: PipelineFile, clients: Mapping[str, str], folder: Path, *, once: bool = True) -> None:
        self._file, self._clients, self._folder, self._once = file, clients, folder, once
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, run: RunConfig, port: int) -> None:
        """Start them all; the server listens on `port`."""
        if not self._file.link.start_clients:
            return
        host = host_of(run)
        with (self._folder / "clients.log").open("ab") as log:
            for index, (name, spec) in enumerate(self._clients.items()):
                words = self._command(run, name, spec, index, f"{host}:{port}")
                environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
                self._processes.append(
                    subprocess.Popen(die_with_parent(words), stdout=log, stderr=log, env=environment)
                )

    def _command(self, run: RunConfig, name: str, spec: str, index: int, server: str) -> list[str]:
        words = [sys.executable, "-m", "fednc.cli.start", "client", "--server", server, *["--once"] * self._once]
        words += ["--name", name, "--data", spec, "--device", self._file.device]
        words += ["--state", str(self._folder / CLIENTS / name)]
        if run.split:
            words += ["--partition", f"{index}/{run.split.parts}"]
        if certs := self._file.link.client_certs:
            words += ["--certs", str(_certs_of(Path(certs), name))]
        return words

    @contextmanager
    def ended(self) -> Iterator[_Clients]:
        """End them after the block."""
        try:
            yield self
        finally:
            for process in self._processes:
                process.terminate()
            for process in self._processes:
                try:
                    process.wait(timeout=_END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _certs_of(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        raise ConfigError(f"link.client_certs: {folder / name} does not exist; `fednc certs node` makes it")
    return folder / name
