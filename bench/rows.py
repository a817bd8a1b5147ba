"""Runs the rows of a comparison, each in one process with one thread, and keeps one results file for each.

Called by `compare.py`. A row that has its file is not run again. Processes are spawned, never forked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from fednc.bench.local_grid import LocalGrid
from fednc.bench.plan import DATA, Row
from fednc.bench.probe import commit, machine
from fednc.client.host import ClientConfig
from fednc.common.config import RunConfig
from fednc.common.errors import DataError, QuorumError, RunFailedError
from fednc.common.files import write_atomically
from fednc.server.events import EventLog
from fednc.server.history import RoundRecord
from fednc.server.run import FederatedRun, RunResult
from fednc.server.surroundings import Surroundings

Result = dict[str, Any]
_POLL_S = 0.2
_DIGITS = 6  # kept of figures: a file for people, not for arithmetic


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how rows run."""

    folder: Path
    command: str  # as it goes into the files; without paths of this machine
    device: str = "cpu"
    workers: int = 1  # one: in this process


def run_rows(
    rows: Sequence[Row], data: Path, bench: Bench, count: Callable[[int], None] = lambda _: None
) -> list[Result]:
    """What the files of all rows hold, in order; runs those that have none. `count` hears of rounds that are done.

    Raises:
        RunFailedError: a process was killed.
        DataError: a file that is there is not what this program wrote.
    """
    there = {row.digest: found for row in rows if (found := read_result(row, bench.folder))}
    missing = [row for row in rows if row.digest not in there]
    run = _run_here if bench.workers <= 1 else _run_in_processes
    count(sum(row.run.rounds.total for row in rows if row.digest in there))
    there |= {result["digest"]: result for result in run(missing, data, bench, lambda: count(1))}
    return [there[row.digest] for row in rows]


def read_result(row: Row, folder: Path) -> Result | None:
    """What the row's file holds, if there is one. Raises DataError."""
    path = folder / row.file_name
    if not path.exists():
        return None
    try:
        found: Result = json.loads(path.read_bytes())
    except ValueError as e:
        raise DataError(f"{path} is not a results file: {e}. Delete it to run that row again") from e
    if found["digest"] != row.digest:
        raise DataError(f"{path} holds digest {found['digest']}, its name says another. Delete it to run it again")
    return found


def _run_here(rows: Sequence[Row], data: Path, bench: Bench, on_round: Callable[[], None]) -> Iterator[Result]:
    for row in rows:
        yield _run(row, data, bench, on_round)


def _run_in_processes(
    rows: Sequence[Row], data: Path, bench: Bench, on_round: Callable[[], None]
) -> Iterator[Result]:
    context = get_context("spawn")
    rounds: SimpleQueue[None] = context.SimpleQueue()
    with ProcessPoolExecutor(bench.workers, context, _start_worker, (rounds,)) as pool:
        futures = [pool.submit(_run_in_worker, row, data, bench) for row in rows]
        open_ = set(futures)
        try:
            while open_:
                open_ = wait(open_, timeout=_POLL_S, return_when=FIRST_EXCEPTION).not_done
                while not rounds.empty():
                    rounds.get()
                    on_round()
                _raise_first([future for future in futures if future.done()])
            yield from [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def _raise_first(done: Sequence[Future[Result]]) -> None:
    try:
        for future in done:
            future.result()
    except BrokenProcessPool as e:
        raise RunFailedError("a process of the comparison was killed; start again, finished rows are kept") from e


_rounds_of_worker: SimpleQueue[None]


def _start_worker(rounds: SimpleQueue[None]) -> None:
    global _rounds_of_worker
    _rounds_of_worker = rounds


def _run_in_worker(row: Row, data: Path, bench: Bench) -> Result:
    return _run(row, data, bench, lambda: _rounds_of_worker.put(None))


def _run(row: Row, data: Path, bench: Bench, on_round: Callable[[], None]) -> Result:
    torch.set_num_threads(1)  # sums round differently with more
    started = time.monotonic()
    outcome = _outcome(row, data, bench, on_round)
    result = {
        "digest": row.digest, "kind": row.kind, "setting": row.setting, "variant": row.variant, "seed": row.seed,
        "lr": row.lr, **outcome, "duration_s": round(time.monotonic() - started, 2), "command": bench.command,
        "commit": commit(), "machine": machine(), "device": bench.device, "data_sha256": row.data_sha256,
        "config": row.run.model_dump(mode="json", exclude={"server"}),
    }  # fmt: skip
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_atomically(bench.folder / row.file_name, text.encode())
    return result


def _outcome(row: Row, data: Path, bench: Bench, on_round: Callable[[], None]) -> Result:
    run = _placed(row.run, data)
    assert run.split is not None
    names = [f"client-{index:03d}" for index in range(run.split.parts)]
    spec = run.evaluate.test
    clients = [ClientConfig(name=name, data=spec, device=bench.device, val_share=0) for name in names]
    events = EventLog()
    events.listen(lambda event: on_round() if event["kind"] == "round" else None)
    with LocalGrid(run, clients) as grid:
        prepared = FederatedRun(run, events)
        try:
            result = prepared.execute(grid, Surroundings(name_of=grid.name_of))
        except QuorumError as e:  # the loss was no number any more
            return {"failed": str(e), "summary": {}, "rounds": [_brief(r) for r in prepared.history.rounds]}
    return {"failed": "", "summary": _summary(result), "rounds": [_brief(r) for r in result.history.rounds]}


def _placed(run: RunConfig, data: Path) -> RunConfig:
    test = run.evaluate.test.replace(DATA, f"npz:{data}")
    return run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"test": test})})


def _summary(result: RunResult) -> Result:
    kept = ("accuracy", "best", "last5", "drift", "nc1")
    return {key: _rounded(value) for key, value in result.history.summary().items() if key in kept}


def _brief(record: RoundRecord) -> Result:
    test = {key: value for key, value in record.test.items() if not key.startswith("accuracy/")}
    train = {"round": record.round, "train_loss": record.loss, "drift": record.drift}
    return {key: _rounded(value) for key, value in {**train, **test}.items() if key != "examples"}


def _rounded(value: Any) -> Any:
    return round(value, _DIGITS) if isinstance(value, float) else value
