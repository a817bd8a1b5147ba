"""Rows on disk: a file for each run, then one archive; the same rows give the same bytes, and none is lost."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fednc.bench.compare import run_archive
from fednc.bench.compare.run_archive import ARCHIVE, archive_runs, name_of, read_runs, write_run
from fednc.common.errors import DataError

ARCHIVER = """
import os, sys
from pathlib import Path
from fednc.bench.compare.run_archive import archive_runs
from fednc.common import fault_injection
fault_injection.arm(os.environ)
archive_runs(Path(sys.argv[1]))
"""


def row(number: int, kind: str = "final", **more: Any) -> dict[str, Any]:
    named = {"kind": kind, "setting": "easy", "variant": "fednc", "seed": number, "lr": 0.1}
    return {"digest": f"{number:064x}"[::-1], **named, "rounds": [{"accuracy": 0.1 + number / 7}], **more}


def write(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for one in rows:
        write_run(folder, one)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.json"))


def test_rows_come_back_as_they_were_sorted_by_name(tmp_path: Path) -> None:
    rows = [row(3), row(1), row(2, kind="tuning", failed="diverged \u00b1")]
    write(tmp_path, *rows)
    loose = read_runs(tmp_path)
    archive_runs(tmp_path)
    assert files(tmp_path) == []
    assert [*read_runs(tmp_path).items()] == [*loose.items()] == sorted((name_of(one), one) for one in rows)


def test_the_archive_depends_only_on_the_rows(tmp_path: Path) -> None:
    """Not on the order or the steps in which they came, nor on the time or the folder."""
    rows = [row(number) for number in range(20)]
    write(tmp_path / "once", *rows)
    archive_runs(tmp_path / "once")
    random.Random(1).shuffle(rows)
    for some in (rows[:7], rows[7:8], rows[8:]):
        write(tmp_path / "in steps", *some)
        archive_runs(tmp_path / "in steps")
    packed = [(tmp_path / name / ARCHIVE).read_bytes() for name in ("once", "in steps")]
    assert packed[0] == packed[1]
    assert packed[0][3:8] == bytes(5), "gzip header: no file name, no time"
    lines = gzip.decompress(packed[0]).decode().splitlines()
    assert [json.loads(line) for line in lines] == sorted(rows, key=name_of)


def test_nothing_to_archive_leaves_the_archive_alone(tmp_path: Path) -> None:
    write(tmp_path, row(1))
    archive_runs(tmp_path)
    before = (tmp_path / ARCHIVE).stat()
    archive_runs(tmp_path)
    assert (tmp_path / ARCHIVE).stat() == before
    (tmp_path / "empty").mkdir()
    archive_runs(tmp_path / "empty")
    assert not (tmp_path / "empty" / ARCHIVE).exists()
    assert read_runs(tmp_path / "empty") == read_runs(tmp_path / "nowhere") == {}


def test_a_row_in_both_places_counts_once_and_the_archived_one_stays(tmp_path: Path) -> None:
    write(tmp_path, row(1, duration_s=5), row(2))
    archive_runs(tmp_path)
    write(tmp_path, row(1, duration_s=9), row(3))
    assert [one["seed"] for one in read_runs(tmp_path).values()] == [1, 2, 3]
    archive_runs(tmp_path)
    assert files(tmp_path) == []
    found = [*read_runs(tmp_path).values()]
    assert [one["seed"] for one in found] == [1, 2, 3]
    assert found[0]["duration_s"] == 5


@pytest.mark.parametrize("point", ["file.half", "compare.archived"])
def test_a_kill_while_archiving_loses_no_row(point: str, tmp_path: Path) -> None:
    write(tmp_path, row(1), row(2))
    archive_runs(tmp_path)
    write(tmp_path, row(3), row(4))
    rows, loose = read_runs(tmp_path), files(tmp_path)
    env = {**os.environ, "FEDNC_TESTING": "1", "FEDNC_FAULT": f"{point}:1:kill"}
    killed = subprocess.run([sys.executable, "-c", ARCHIVER, str(tmp_path)], env=env, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert files(tmp_path) == loose
    assert read_runs(tmp_path) == rows
    archived = len(gzip.decompress((tmp_path / ARCHIVE).read_bytes()).splitlines())
    assert archived == (2 if point == "file.half" else 4)
    archive_runs(tmp_path)
    assert files(tmp_path) == []
    assert read_runs(tmp_path) == rows
    assert {path.name for path in tmp_path.iterdir()} == {ARCHIVE, ".runs.lock"}, "no half-written archive"


def test_processes_that_archive_at_once_keep_each_others_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins while the first has read the archive and not yet replaced it."""
    write(tmp_path, row(1))
    reading, go_on = threading.Event(), threading.Event()
    packed = run_archive._packed

    def slowly(rows: dict[str, Any]) -> bytes:
        reading.set()
        go_on.wait(timeout=20)
        return packed(rows)

    monkeypatch.setattr(run_archive, "_packed", slowly)
    first = threading.Thread(target=archive_runs, args=(tmp_path,))
    first.start()
    assert reading.wait(timeout=20)
    write(tmp_path, row(2))
    second = subprocess.Popen([sys.executable, "-c", ARCHIVER, str(tmp_path)])
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=5)
    go_on.set()
    first.join(timeout=20)
    assert second.wait(timeout=20) == 0
    assert [one["seed"] for one in read_runs(tmp_path).values()] == [1, 2]
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "damaged"),
        (lambda _: b"{}", "damaged"),
        (lambda _: gzip.compress(b'{"kind": "final"}\n'), "damaged: 'setting'"),
    ],
)
def test_a_damaged_archive_is_an_error_and_no_file_is_deleted(spoil: Any, said: str, tmp_path: Path) -> None:
    write(tmp_path, *map(row, range(5)))
    archive_runs(tmp_path)
    write(tmp_path, row(7))
    (tmp_path / ARCHIVE).write_bytes(spoil((tmp_path / ARCHIVE).read_bytes()))
    before = (tmp_path / ARCHIVE).read_bytes()
    for use in (read_runs, archive_runs):
        with pytest.raises(DataError, match=f"{said}.*Restore it from git"):
            use(tmp_path)
    assert (tmp_path / ARCHIVE).read_bytes() == before
    assert files(tmp_path) == [name_of(row(7))]


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "final"}', json.dumps(row(2))])
def test_a_file_that_is_not_the_row_in_its_name_is_not_archived(text: str, tmp_path: Path) -> None:
    path = tmp_path / name_of(row(1))
    path.write_text(text)
    with pytest.raises(DataError, match=r"[dD]elete it to run that row again"):
        archive_runs(tmp_path)
    assert path.read_text() == text


def test_other_files_stay(tmp_path: Path) -> None:
    write(tmp_path, row(1))
    (tmp_path / "out.json").write_text("{}")
    archive_runs(tmp_path)
    assert files(tmp_path) == ["out.json"]
