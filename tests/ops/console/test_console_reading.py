"""What the console reads from run folders and draws of it: by pieces as at once, exact geometry, bounded
pictures.
"""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fednc.common.learning.frame import draw_frame
from fednc.common.security.credentials import Role
from fednc.common.tasks.metric_info import MetricInfo
from fednc.ops.console.charts import (
    Band,
    ChartLine,
    corner,
    cosine_rows,
    histogram,
    line_chart,
    simplex,
    spark,
    thinned,
)
from fednc.ops.console.geometry import Geometry
from fednc.ops.console.pages import bytes_text, duration, metric_text
from fednc.ops.console.run_log import RunLog
from fednc.ops.console.shelf import RunShelf
from fednc.ops.console.tail import JsonTail
from fednc.ops.run_folders.folder import State
from fednc.server.storage.folder_lock import claimed
from support.console_states import write_checkpoint, write_run

FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)
CURVES = st.lists(FINITE, min_size=1, max_size=900).map(lambda ys: [(float(x), y) for x, y in enumerate(ys, 1)])


# ---- growing files ----------------------------------------------------------------------------------------------


def test_a_log_read_in_any_pieces_is_the_log_read_at_once(tmp_path: Path) -> None:
    written = write_run(tmp_path / "all", rounds=12)
    at_once = RunLog(written)
    at_once.read()
    content = {name: (written / name).read_bytes() for name in ("events.jsonl", "clients.jsonl")}
    draw = random.Random(3)
    for k in range(5):
        folder = tmp_path / f"piece-{k}"
        folder.mkdir()
        log = RunLog(folder)
        cuts = sorted(draw.random() for _ in range(6))
        for low, high in zip([0.0, *cuts], [*cuts, 1.0], strict=True):
            for name, data in content.items():
                with (folder / name).open("ab") as file:
                    file.write(data[int(low * len(data)) : int(high * len(data))])
            log.read()
        assert log.points == at_once.points
        assert [vars_of(one) for one in log.events] == [vars_of(one) for one in at_once.events]
        assert (log.clients, log.last, log.primary) == (at_once.clients, at_once.last, at_once.primary)


def vars_of(event: object) -> tuple[object, ...]:
    return tuple(getattr(event, name) for name in ("at", "kind", "level", "text", "node"))


def test_a_file_that_is_renamed_or_replaced_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = JsonTail(path)
    assert list(tail.news()) == []
    path.write_text('{"n": 1}\n{"n": 2}\nnot json\n[3]\n{"n"')
    assert list(tail.news()) == [{"n": 1}, {"n": 2}]
    with path.open("a") as file:
        file.write(": 4}\n")
    path.rename(tmp_path / "events.jsonl.1")
    path.write_text('{"n": 5}\n')
    assert list(tail.news()) == [{"n": 4}, {"n": 5}]
    assert list(tail.news()) == []


def test_older_rotated_files_come_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=9)
    whole = RunLog(folder)
    whole.read()
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl.2").write_text("".join(lines[:4]))
    (folder / "events.jsonl.1").write_text("".join(lines[4:8]))
    (folder / "events.jsonl").write_text("".join(lines[8:]))
    log = RunLog(folder)
    log.read()
    assert log.points == whole.points


def test_a_restarted_server_repeats_rounds_and_the_later_ones_count(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=8)
    log = RunLog(folder)
    log.read()
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"at": 1.0, "kind": "resume", "text": "", "round": 5}) + "\n")
        file.write(
            json.dumps({"at": 1.0, "kind": "round", "text": "", "round": 6, "test": {"accuracy": 0.123}}) + "\n"
        )
    log.read()
    assert [point.round for point in log.points] == [1, 2, 3, 4, 5, 6]
    assert log.points[-1].primary == 0.123


@given(
    values=st.dictionaries(
        st.sampled_from(
            [
                "kind",
                "text",
                "at",
                "round",
                "test",
                "pooled",
                "spread",
                "worst_client",
                "missing",
                "metric",
                "node",
            ]
        ),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=8),
            st.lists(st.integers(), max_size=2),
            st.dictionaries(st.text(max_size=5), st.floats(), max_size=2),
            st.sampled_from(["round", "start", "resume", "evaluated"]),
        ),
    )
)
def test_no_line_can_break_the_log(values: dict[str, object]) -> None:
    log = RunLog()
    log._take(values)
    log._take_client({**values, "client": values.get("node")})
    assert all(math.isfinite(point.round) for point in log.points)


def test_a_run_that_goes_on_is_listed_by_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "one", rounds=5)
    monkeypatch.setattr("fednc.ops.console.shelf._RUNNING_S", 0.0)
    monkeypatch.setattr("fednc.ops.console.shelf._LIST_S", 0.0)
    shelf = RunShelf([tmp_path])
    with claimed(folder):
        first = shelf.runs()["one"]
        assert (first.state, first.done, first.planned) == (State.RUNNING, 5, 100)
        with (folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "round", "text": "", "round": 6, "test": {"accuracy": 0.99}}) + "\n")
        grown = shelf.runs()["one"]
        assert (grown.state, grown.done, grown.planned, grown.last) == (State.RUNNING, 6, 100, 0.99)
        assert shelf.runs()["one"] is grown
    assert shelf.runs()["one"].state is not State.RUNNING


def test_runs_of_one_name_in_several_folders_are_all_listed(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "runs", tmp_path / "b" / "runs", tmp_path / "c" / "runs"]
    for folder in folders:
        write_run(folder / "one", rounds=2)
    shelf = RunShelf([*folders, folders[0]])  # a folder that is given twice has no runs of its own
    names = {name: run.path for name, run in shelf.runs().items()}
    assert names == {
        "one": folders[0] / "one",
        "runs/one": folders[1] / "one",
        "runs-2/one": folders[2] / "one",
    }


# ---- geometry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "dim"), [(2, 2), (3, 8), (10, 9), (60, 64)])
def test_means_at_their_vertices_lie_in_the_corners(tmp_path: Path, classes: int, dim: int) -> None:
    frame_KD = draw_frame(classes, dim, 5).etf_KD
    write_means(tmp_path, frame_KD, 0.7 * frame_KD)
    geometry = Geometry(tmp_path)
    geometry.read()
    assert geometry.now is not None
    for k, (place, spot) in enumerate(zip(geometry.now.places, geometry.now.spots, strict=True)):
        assert place.own == pytest.approx(1, abs=1e-5)
        assert place.other == pytest.approx(-1 / (classes - 1), abs=1e-5)
        assert place.length == pytest.approx(0.7, abs=1e-5)
        assert spot == pytest.approx(corner(k, classes), abs=1e-4)


def test_classes_nobody_has_are_left_out_and_another_width_is_explained(tmp_path: Path) -> None:
    frame_KD = draw_frame(4, 8, 5).etf_KD
    seen_K = torch.tensor([True, False, True, False])
    write_means(tmp_path, frame_KD, frame_KD.flip(0), seen_K)
    geometry = Geometry(tmp_path)
    geometry.read()
    assert geometry.now is not None
    assert [spot is not None for spot in geometry.now.spots] == [True, False, True, False]
    write_means(tmp_path, frame_KD, torch.zeros(4, 20), number=2)
    other = Geometry(tmp_path)
    other.read()
    assert other.now is None
    assert "before the projection" in other.why_not
    (tmp_path / "checkpoints" / "round-000003.json").write_text("{")
    other.read()
    assert "cannot be read" in other.why_not


def test_a_memory_before_the_projection_is_not_drawn_even_if_it_is_as_wide_as_the_frame(tmp_path: Path) -> None:
    frame_KD = draw_frame(4, 8, 5).etf_KD
    write_means(tmp_path, frame_KD, frame_KD)
    path = tmp_path / "checkpoints" / "round-000001.json"
    for space, reason in (("projected", ""), ("backbone", "before the projection")):
        head = json.loads(path.read_text())
        path.write_text(json.dumps({**head, "config": {"method": {"memory_space": space}}}))
        geometry = Geometry(tmp_path)
        geometry.read()
        assert (geometry.now is None) == bool(reason)
        assert reason in geometry.why_not


def test_earlier_checkpoints_become_trails(tmp_path: Path) -> None:
    geometry = Geometry(tmp_path)
    for number in (1, 2, 3):
        write_checkpoint(tmp_path, number, ["a", "b", "c"])
        geometry.read()
    assert [len(trail) for trail in geometry.trails()] == [2, 2, 2]


def write_means(
    folder: Path,
    frame_KD: torch.Tensor,
    mean_KD: torch.Tensor,
    seen_K: torch.Tensor | None = None,
    number: int = 1,
) -> None:
    write_checkpoint(folder, number, [f"c{k}" for k in range(len(frame_KD))])
    seen_K = torch.ones(len(frame_KD), dtype=torch.bool) if seen_K is None else seen_K
    tensors = {"frame.etf_KD": frame_KD, "memory.mean_KD": mean_KD, "memory.seen_K": seen_K}
    path = folder / "checkpoints" / f"round-{number:06d}.safetensors"
    save_file({name: value.contiguous().numpy() for name, value in tensors.items()}, path)


# ---- charts -----------------------------------------------------------------------------------------------------


@given(curve=CURVES)
def test_a_thinned_curve_is_short_and_keeps_its_extremes_and_its_end(curve: list[tuple[float, float]]) -> None:
    kept = thinned(curve)
    assert len(kept) <= 242
    assert set(kept) <= set(curve)
    assert kept == sorted(kept)
    assert kept[-1] == curve[-1]
    assert {min(y for _, y in kept), max(y for _, y in kept)} == {
        min(y for _, y in curve),
        max(y for _, y in curve),
    }


@given(curve=CURVES, from_zero=st.booleans(), wide=st.booleans())
def test_every_point_of_a_chart_lies_in_it(curve: list[tuple[float, float]], from_zero: bool, wide: bool) -> None:
    text = str(line_chart([ChartLine("x", curve)], "{:.3g}".format, from_zero=from_zero, wide=wide))
    path = text.partition('class="line a" d="M')[2].partition('"')[0]
    places = [tuple(map(float, place.split())) for place in path.split(" L")]
    assert all(40 <= x <= (860 if wide else 420) and 9.9 <= y <= 146.1 for x, y in places)
    assert len(text) < 60_000


ANY_NUMBER = st.floats() | st.sampled_from(
    [0.9, 0.9000000000000001, 1e308, -1e308, 5e-324, 1e-323, 1e300, 1e-300, -1e300, 1.0, 1.0000000000000002]
)


@given(
    curve=st.lists(st.tuples(ANY_NUMBER, ANY_NUMBER), max_size=6),
    band=st.lists(st.tuples(st.just(1.0), ANY_NUMBER, ANY_NUMBER), max_size=3),
    from_zero=st.booleans(),
    highest=st.sampled_from([1.0, math.inf]),
)
@example([(1.0, 0.9), (2.0, 0.9000000000000001)], [], False, 1.0)
@example([(1.0, -1e308), (2.0, 1e308)], [], False, math.inf)
@example([(1.0, 5e-324), (2.0, 1e-323)], [], True, math.inf)
def test_no_values_break_a_page(
    curve: list[tuple[float, float]], band: list[tuple[float, float, float]], from_zero: bool, highest: float
) -> None:
    """A client says what it likes, and two values may be as near or as far as floating point allows."""
    lines = [ChartLine("x", curve)]
    text = str(line_chart(lines, "{:.3g}".format, band=Band("b", band), from_zero=from_zero, highest=highest))
    text += str(spark(curve)) + str(histogram([y for _, y in curve], "{:.3g}".format, "x"))
    assert "nan" not in text.lower().replace("aria", "")
    assert re.search(r"\binf\b", text) is None


def test_shares_have_no_axis_above_all_of_them() -> None:
    text = str(
        line_chart([ChartLine("x", [(1, 0.914), (2, 0.989)])], MetricInfo("accuracy", unit="%").show, highest=1.0)
    )
    assert ">100%<" in text
    assert "105" not in text


def test_pictures_of_nothing_are_empty_and_unusual_values_are_left_out() -> None:
    assert line_chart([], str) == ""
    assert line_chart([ChartLine("x", [(1, math.nan)])], str) == ""
    assert histogram([math.nan, 1.0], str, "x") == ""
    assert "–" in spark([])
    assert "nan" not in line_chart([ChartLine("x", [(1, math.nan), (2, 1.0), (3, math.inf)])], str).lower()


@given(text=st.text(max_size=12))
def test_whatever_a_class_is_called_is_text_in_a_picture(text: str) -> None:
    names = [f"{text}<b>&\"'", "other"]
    for picture in (
        simplex(names, [(0.1, 0.2), None], [[], []]),
        cosine_rows([(names[0], 0.5, 0.1, names[0])]),
        line_chart([ChartLine(names[0], [(1, 1.0)])], str, label=names[0]),
    ):
        assert "<b>" not in picture
        for quoted in str(picture).split("<")[1:]:
            assert quoted.count('"') % 2 == 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.034, "0.034 s"), (12.4, "12 s"), (250, "4 min 10 s"), (7500, "2 h 5 min"), (math.nan, "–")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_numbers_as_text() -> None:
    assert bytes_text(1_234_567) == "1.23 MB"
    assert bytes_text(0) == "0 B"
    assert metric_text(math.nan, MetricInfo("x")) == "–"
    assert Role("viewer") is Role.VIEWER
