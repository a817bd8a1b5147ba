"""The queue of unsure examples and the report of a run: sorted, honest, and safe to open whatever clients sent."""

from __future__ import annotations

import base64
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import fednc
from fednc.cli.main import app
from fednc.ops.review import report as reports
from fednc.ops.review.page import Page, TextTable
from fednc.ops.review.queue import least_sure

HOSTILE = '<img src=x onerror=alert(1)>|[x](http://e.vil)`$`"'
CLASSES = [str(digit) for digit in range(10)]


def cli(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review") / "run"
    tables = {
        "task": {"classes": CLASSES, "size": 8, "channels": 1, "width": 8},
        "frame": {"dim": 16},
        "rounds": {"total": 1},
        "split": {"parts": 2, "alpha": 1.0},
        "evaluate": {"test": "digits"},
    }
    fednc.run(tables, {"anna": "digits", "bert": "digits"}, folder=folder, device="cpu", progress=False)
    return folder


# ---- the queue ------------------------------------------------------------------------------------------------


def test_the_queue_has_the_smallest_margins_first(run: Path) -> None:
    """Beside margins computed at once, in another way."""
    model = fednc.load(run)
    data = model.task.load_test("digits")
    with torch.no_grad():
        scores = torch.cat([model(model.task.inputs_of(batch)) for batch in data.eval_batches(7)])
    ordered = np.sort(torch.softmax(scores.double(), dim=1).numpy(), axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    found = least_sure(model, data, 25)
    assert [each.margin for each in found] == sorted(each.margin for each in found)
    assert np.allclose([each.margin for each in found], np.sort(margin)[:25], atol=1e-5)
    for each in found:
        assert each.margin == pytest.approx(margin[each.index], abs=1e-5)
        best, second = scores[each.index].topk(2).indices.tolist()
        assert (each.predicted, each.second) == (CLASSES[best], CLASSES[second])


def test_labels_of_a_person_become_a_data_file(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "queue"
    told = json.loads(cli("queue", run, "--most", 8, "--out", out, "--json", "-").stdout)["queue"]
    rows = list(csv.DictReader((out / "queue.csv").open()))
    arrays = np.load(out / "queue.npz")
    assert [int(row["index"]) for row in rows] == arrays["index"].tolist() == [one["index"] for one in told]
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert len(pictures) == 8
    assert pictures[0] == f"0001-{rows[0]['index']}.png"
    for row, label in zip(rows, "3141", strict=False):
        row["label"] = label
    with (out / "mine.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    spec = json.loads(cli("queue", run, "--out", out, "--labels", out / "mine.csv", "--json", "-").stdout)["spec"]
    task = fednc.load(run).task
    mine, whole = task.load_test(spec), task.load_test("digits")
    order = np.argsort(arrays["index"][:4])
    assert mine.label_N.tolist() == np.array([3, 1, 4, 1])[order].tolist()  # type: ignore[attr-defined]
    assert torch.equal(mine.rows[0].float(), whole.rows[0][np.sort(arrays["index"][:4])].float())


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("index,label\n1,nine\n", "line 2: 'nine' is not a class"),
        ("index,label\n1,3\n1,4\n", "line 3: example 1 has a label already"),
        ("index,label\n-1,3\n", "line 2: index '-1' is not one of 0"),
        ("index,label\n99999,3\n", "is not one of 0"),
        ("index,label\n1,\n", "no row has a label yet"),
        ("number,label\n1,3\n", "needs the columns"),
    ],
)
def test_labels_that_cannot_be_used_are_named(run: Path, tmp_path: Path, rows: str, why: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(rows)
    assert why in cli("queue", run, "--out", tmp_path / "out", "--labels", path, code=3).output
    assert not (tmp_path / "out").exists()


# ---- the report -----------------------------------------------------------------------------------------------


def written(folder: Path, **changes: Any) -> Path:
    """A run folder as the server leaves it, with hostile text wherever a client or a plug-in chooses it."""
    folder.mkdir()
    spread = {"clients": 3, "min": 0.5, "q1": 0.6, "median": 0.9, "q3": 0.9, "max": 0.9}
    test = {"accuracy": 0.9, "examples": 100.0, f"accuracy/{HOSTILE}": 0.5, "accuracy/b": 0.95, "accuracy/c": 0.9}
    record = {"round": 1, "replies": 3, "examples": 300, "loss": 0.3, "spread": spread, "test": test, **changes}
    summary = {"metric": {"name": "accuracy", "unit": "%"}, "classes": [HOSTILE, "b", "c"], "rounds": 1}
    (folder / "rounds.json").write_text(json.dumps([record]))
    (folder / "summary.json").write_text(json.dumps(summary))
    clients = {HOSTILE: 0.5, "bert": 0.9, "carl": 0.9}
    lines = [{"round": 1, "client": name, "examples": 30.0, "accuracy": value} for name, value in clients.items()]
    (folder / "clients.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    drift = {
        "kind": "drift",
        "text": "x",
        "round": 1,
        "times": 3.0,
        "chance": 1e-9,
        "cosine": 0.2,
        "classes": ["c"],
    }
    ready = {"kind": "ready", "text": "x", "examples": 100, "class_counts": [2, 60, 38], "pid": 1, "device": "cpu"}
    events = [{**ready, "node": name} for name in (*clients, "secret")]
    events += [{**drift, "node": HOSTILE}, {**drift, "node": "secret"}, {**drift, "node": ""}]
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    (folder / "examples").mkdir()
    (folder / "examples" / "wrong.png").write_bytes(PIXEL)
    (folder / "examples" / "bad.png").write_bytes(b"<svg onload=alert(1)>")
    return folder


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Tags(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_html_is_one_file_and_runs_nothing_that_a_client_sent(tmp_path: Path) -> None:
    cli("report", written(tmp_path / "run"))
    page = Tags((tmp_path / "run" / "report.html").read_text())
    names = {tag for tag, _ in page.tags}
    assert names <= {
        *[
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "h1",
            "h2",
            "p",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "ul",
            "li",
            "figure",
            "img",
        ],
        "figcaption",
    }
    pictures = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 1, "what is no PNG is left out"
    assert all(src.startswith("data:image/png;base64,") for src in pictures)
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on") or key == "href"]
    assert page.words.count(HOSTILE) >= 3, "it is shown as text"
    assert any("default-src 'none'" in (attrs.get("content") or "") for _, attrs in page.tags)


def test_the_report_says_where_it_is_bad_and_what_to_do(tmp_path: Path) -> None:
    page = reports.report(written(tmp_path / "run", missing=["bert"]))
    sections = dict(page.sections)
    bad = [block for block in sections["Where it is bad"] if isinstance(block, TextTable)]
    assert [row[0] for row in bad[0].rows] == [HOSTILE, "c", "b"]
    assert bad[0].rows[0][1:] == ["50.0%", "8", "weak"]
    assert [row[0] for row in bad[1].rows] == [HOSTILE, "bert", "carl"]
    (table,) = (block for block in sections["What next"] if isinstance(block, TextTable))
    assert {row[2] for row in table.rows} == {
        "a drift alarm is in force",
        "a class is 10 points (or a quarter) worse than the median class",
        "a class has less than a fifth of an even share of the examples",
        "a client is 10 points (or a quarter) worse than the median client",
        "a client missed more than a fifth of the rounds",
    }
    assert {row[2] for row in table.rows} <= set(reports.RULES)


def test_a_client_that_is_not_listed_is_not_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", missing=["secret"], failures={"secret": "x"})
    cli("report", folder)
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert "secret" not in text
        assert "a client that is not listed" in text


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_no_text_becomes_markup(text: str) -> None:
    """Markdown: without the backslash and what it escapes, nothing is left that could mean something."""
    page = Page("t")
    page.section("s", [TextTable(["a"], [[text]]), text])
    _, _, rest = page.to_markdown(Path()).partition("| --- |\n")
    cell, _, paragraph = rest.partition("\n\n")
    for part in (cell.removeprefix("| ").removesuffix(" |"), paragraph.removesuffix("\n")):
        plain = re.sub(r"(?<=[^\W_])_(?=[^\W_])", "", re.sub(r"\\.", "", part))  # inside a word _ means nothing
        assert not re.search(r"[`*_\[\]<>#|~$&@\n]|://|www\.", plain)


def test_a_real_run_has_a_report(run: Path) -> None:
    cli("report", run)
    text = (run / "report.md").read_text()
    for heading in ("In short", "What", "Who", "How good", "Where it is bad", "What next"):
        assert f"## {heading}\n" in text
    assert "| anna |" in text
    assert str(cli("report", run / "model", code=3).exit_code) == "3"


def test_the_page_states_every_rule() -> None:
    page = (Path(__file__).parents[2] / "docs" / "people.md").read_text(encoding="utf-8")
    assert [rule for rule in reports.RULES if f"| {rule} |" not in page] == []
