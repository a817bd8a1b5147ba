"""A few threads for work on arrays. numpy releases the GIL in long loops, so they run in parallel.

Used by the fold in the strategy's thread. Knows nothing about what it runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait

THREADS = min(4, os.cpu_count() or 1)
_POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="fednc-fold")

Task = Callable[[], object]


def spread(tasks: Iterable[tuple[int, Task]], enough: int) -> None:
    """Run all tasks, given as (size, task). Each thread takes tasks of at least `enough` in all, in order.

    Raises:
        What a task raised, after all have ended.
    """
    groups: list[list[Task]] = []
    room = 0
    for size, task in tasks:
        if room <= 0:
            groups.append([])
            room = enough
        groups[-1].append(task)
        room -= size
    if len(groups) == 1:
        _run(groups[0])
        return
    started = [_POOL.submit(_run, group) for group in groups]
    wait(started)
    for each in started:
        each.result()


def _run(tasks: list[Task]) -> None:
    for task in tasks:
        task()
