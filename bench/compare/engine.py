"""`fednc compare`: runs variants x settings x seeds in parallel processes, then writes tables and pictures.

First every variant is tuned in every setting, then it runs with each seed at its best learning rate. Called by the
command and by tests. `plan.py` decides what runs, `rows.py` runs it, `report.py` makes tables, `pictures.py`
pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from fednc.bench.compare import initialisation, natural
from fednc.bench.compare.class_sessions import draw_sessions, session_table
from fednc.bench.compare.pictures import draw, looks_of
from fednc.bench.compare.plan import Comparison, Row, final_rows, tuning_rows
from fednc.bench.compare.prepared_data import prepare
from fednc.bench.compare.report import Compared, choose_rates, report
from fednc.bench.compare.results_folder import read_folder
from fednc.bench.compare.rows import Bench, rounds_to_run, run_rows
from fednc.bench.compare.run_archive import archive_runs
from fednc.common.errors import MissingExtraError
from fednc.common.files import write_atomically

log = logging.getLogger("fednc.bench")
Progress = Callable[[float], None]  # share of the rounds to run that are done


def compare(
    whole: Comparison,
    places: dict[str, str],
    bench: Bench,
    progress: Progress = lambda _: None,
    *,
    settings: Sequence[str] = (),
    also: Sequence[int] = (),
) -> Compared:
    """Run the rows that are missing and read the others; archive them, write a table and, with `demo`, pictures.

    Args:
        whole: the comparison.
        places: paths by name, for `data.source`.
        bench: where results go, and how to run.
        progress: called as rounds end. Rows that the folder has do not count, so it shows the time left.
        settings: those to run, and to return; empty: all. Table and pictures show all that is in the folder.
        also: seeds that table and pictures show too, where the folder has them.

    Raises:
        ConfigError, DataError: the comparison, its data or its earlier results cannot be used.
        RunFailedError: a worker process was killed.
    """
    plan = whole.part(settings) if settings else whole
    for_tuning, for_report = prepare(plan, places, bench.folder)
    tuning = tuning_rows(plan, for_tuning.sha256)
    total, done = rounds_to_run([*zip(tuning), *_at_all_rates(plan, for_report.sha256)], bench.folder), 0

    def count(rounds: int) -> None:
        nonlocal done
        done += rounds
        progress(done / total if total else 1.0)

    tuned = run_rows(tuning, for_tuning, bench, count)
    rates = choose_rates(tuned)
    chosen = final_rows(plan, rates, for_report.sha256)
    total = done + rounds_to_run(zip(chosen), bench.folder)
    count(0)
    final = run_rows(chosen, for_report, bench, count)
    archive_runs(bench.folder)
    compared = Compared(plan=plan, tuning=tuned, rates=rates, final=final)
    shown = whole.model_copy(update={"seeds": tuple(sorted({*whole.seeds, *also}))})
    there = read_folder(shown, bench.folder).compared if settings or shown.seeds != whole.seeds else None
    _write(there or compared, whole, bench)
    return compared


def _at_all_rates(plan: Comparison, data_sha256: str) -> Iterator[tuple[Row, ...]]:
    """Each final row at every learning rate: before the tuning, nobody knows which of them runs."""
    names = [(setting.name, variant.tuned_as) for setting, variant in plan.pairs]
    return zip(
        *(final_rows(plan, dict.fromkeys(names, rate), data_sha256) for rate in plan.tuning.rates), strict=True
    )


def _write(compared: Compared, whole: Comparison, bench: Bench) -> None:
    looks = looks_of(whole)
    text = report(compared, bench.command)
    for setting in compared.plan.settings:
        if table := "\n".join(session_table(compared, setting.name)):
            text += f"\n## {setting.name}: each session, beginning with the base\n\n{table}\n"
    for setting in compared.plan.settings if natural.is_natural(compared) else ():
        table = "\n".join(natural.client_table(compared, setting.name))
        text += f"\n## {setting.name}: each client (test examples)\n\n{table}\n"
    write_atomically(bench.folder / "table.md", text.encode())
    try:
        draw(compared, bench.folder, looks)
        for setting in compared.plan.settings:
            draw_sessions(compared.final, setting.name, bench.folder, looks)
            if natural.is_natural(compared):
                natural.draw(compared, setting.name, bench.folder / f"{setting.name}-clients.png")
        initialisation.draw(bench.folder / "initialisation.png", compared.final)
    except MissingExtraError as e:
        log.warning("no pictures: %s", e)
