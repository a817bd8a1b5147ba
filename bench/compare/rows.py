"""Runs the rows of a comparison, each in one process with one thread, and writes a file for each.

Called by `engine.py`. A row that is already in the folder is not run again. Rows that train alike share one
training run (`training.py`): `shared_by` is their number, and `duration_s` the time for all of them. The processes
are this one, or spawned (never forked) by it, or Ray's (`on_ray.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Literal

import torch

from fednc.bench.batched_grid import BatchedGrid
from fednc.bench.compare.on_ray import on_ray
from fednc.bench.compare.plan import Row
from fednc.bench.compare.prepared_data import Prepared
from fednc.bench.compare.run_archive import Result, read_runs, write_run
from fednc.bench.compare.training import train
from fednc.bench.local_grid import LocalGrid
from fednc.bench.probe import commit, machine
from fednc.common.errors import RunFailedError

_POLL_S = 0.2
Engine = Literal["processes", "ray"]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where results go, and how rows run."""

    folder: Path
    command: str  # recorded in the rows; without paths of this machine
    device: str = "cpu"
    workers: int = 1  # one: in this process
    engine: Engine = "processes"
    batched: bool = False  # clients of a round train together where that pays


def run_rows(
    rows: Sequence[Row], data: Prepared, bench: Bench, count: Callable[[int], None] = lambda _: None
) -> list[Result]:
    """The results of all rows, in order; runs those that the folder does not have. `count` is called with the
    number of rounds done, of those rows.

    Raises:
        RunFailedError: a process was killed.
        DataError: a file in the folder is not what this program wrote.
        MissingExtraError, ConfigError: Ray is missing, or its cluster cannot be used.
    """
    kept = read_runs(bench.folder)
    there = {row.digest: kept[row.file_name] for row in rows if row.file_name in kept}
    missing = [row for row in rows if row.digest not in there]
    run = _run_on_ray if bench.engine == "ray" else _run_here if bench.workers <= 1 else _run_in_processes
    there |= {result["digest"]: result for result in run(missing, data, bench, count)}
    return [there[row.digest] for row in rows]


def rounds_to_run(choices: Iterable[Sequence[Row]], folder: Path) -> int:
    """The rounds that are missing if `folder` is to have one row of each choice."""
    kept = read_runs(folder)
    missing = (rows for rows in choices if not any(row.file_name in kept for row in rows))
    return sum(rows[0].run.all_rounds for rows in missing)


def _trainings(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows grouped by the training run that they share."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.training, []).append(row)
    return list(found.values())


def _run_here(rows: Sequence[Row], data: Prepared, bench: Bench, count: Callable[[int], None]) -> Iterator[Result]:
    for together in _trainings(rows):
        yield from _run(together, data, bench, partial(count, len(together)))


def _run_in_processes(
    rows: Sequence[Row], data: Prepared, bench: Bench, count: Callable[[int], None]
) -> Iterator[Result]:
    context = get_context("spawn")
    rounds: SimpleQueue[int] = context.SimpleQueue()
    trainings = _trainings(rows)
    with ProcessPoolExecutor(bench.workers, context, _start_worker, (rounds,)) as pool:
        futures = [pool.submit(_run_in_worker, together, data, bench) for together in trainings]
        open_ = set(futures)
        try:
            while open_:
                open_ = wait(open_, timeout=_POLL_S, return_when=FIRST_EXCEPTION).not_done
                while not rounds.empty():
                    count(rounds.get())
                _raise_first([future for future in futures if future.done()])
            yield from [result for future in futures for result in future.result()]
        finally:
            pool.shutdown(cancel_futures=True)


def _run_on_ray(
    rows: Sequence[Row], data: Prepared, bench: Bench, count: Callable[[int], None]
) -> Iterator[Result]:
    """Rows are written here, as they come back; no row is missing if this process is killed then."""
    if not rows:
        return
    gpu = bench.device.startswith("cuda")
    for found in on_ray(_trainings(rows), partial(_results, bench=bench), data, here=bench.workers, gpu=gpu):
        for result in found:
            write_run(bench.folder, result)
            count(len(result["rounds"]))
        yield from found


def _raise_first(done: Sequence[Future[list[Result]]]) -> None:
    try:
        for future in done:
            future.result()
    except BrokenProcessPool as e:
        raise RunFailedError(
            "a process of the comparison was killed; start it again, finished rows are kept"
        ) from e


_rounds_of_worker: SimpleQueue[int]


def _start_worker(rounds: SimpleQueue[int]) -> None:
    global _rounds_of_worker
    _rounds_of_worker = rounds


def _run_in_worker(together: Sequence[Row], data: Prepared, bench: Bench) -> list[Result]:
    return _run(together, data, bench, lambda: _rounds_of_worker.put(len(together)))


def _run(together: Sequence[Row], data: Prepared, bench: Bench, on_round: Callable[[], None]) -> list[Result]:
    results = _results(together, data, bench, on_round)
    for result in results:
        write_run(bench.folder, result)
    return results


def _results(
    together: Sequence[Row], data: Prepared, bench: Bench, on_round: Callable[[], None] = lambda: None
) -> list[Result]:
    torch.set_num_threads(1)  # sums round differently with more
    started = time.monotonic()
    outcomes = train(together, data, bench.device, on_round, BatchedGrid if bench.batched else LocalGrid)
    took_s = time.monotonic() - started
    return [
        _result(row, outcome, took_s, len(together), bench)
        for row, outcome in zip(together, outcomes, strict=True)
    ]


def _result(row: Row, outcome: Result, took_s: float, shared_by: int, bench: Bench) -> Result:
    return {
        "digest": row.digest,
        "training": row.training,
        "kind": row.kind,
        "setting": row.setting,
        "variant": row.variant,
        "seed": row.seed,
        "lr": row.lr,
        **({"trained_on": row.clients} if row.clients else {}),
        **outcome,
        "duration_s": round(took_s, 2),
        "shared_by": shared_by,
        "command": bench.command,
        "commit": commit(),
        "machine": machine(),
        "device": bench.device,
        "data_sha256": row.data_sha256,
        "config": row.run.decisive(),
    }
