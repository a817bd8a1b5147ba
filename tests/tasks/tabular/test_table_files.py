"""What is read from CSV and parquet files, and what the errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError, DataError
from fednc.common.tasks import discovery
from fednc.common.tasks.api import TaskData
from support.clinic_tables import RUN, TASK, clinic, write

SMALL: dict[str, Any] = {
    "name": "tabular",
    "target": "y",
    "classes": [0, 1],
    "numeric": ["a"],
    "boolean": ["b"],
    "categorical": {"c": ["x", "z"]},
}
LINES = ("a,b,c,y", "1.5,yes,x,0", "2,no,z,1", "-3e1,True,x,0", "4,0,z,1")


def read(path: Path, task: dict[str, Any] = SMALL, purpose: str = "train", **tables: Any) -> TaskData:
    made = discovery.get(parse_run({**RUN, "task": task, **tables}))
    if purpose == "train":
        return made.load_train(str(path), None, None)
    return made.load_test(str(path)) if purpose == "test" else made.load_input(str(path))


def written(folder: Path, *lines: str, name: str = "t.csv", encoding: str = "utf-8", end: str = "\n") -> Path:
    path = folder / name
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def rows(data: TaskData) -> list[list[float]]:
    return data.tensors[0].nan_to_num(-9).tolist()  # type: ignore[attr-defined,no-any-return]


PLAIN = [[1.5, 1, 0], [2, 0, 1], [-30, 1, 0], [4, 0, 1]]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(("encoding", "end"), [("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-8", "\r")])
def test_separators_byte_order_marks_and_line_ends(
    separator: str, encoding: str, end: str, tmp_path: Path
) -> None:
    path = written(tmp_path, *(line.replace(",", separator) for line in LINES), encoding=encoding, end=end)
    data = read(path)
    assert rows(data) == PLAIN
    assert data.tensors[1].tolist() == [0, 1, 0, 1]  # type: ignore[attr-defined]


def test_a_decimal_comma_counts_where_the_comma_separates_nothing(tmp_path: Path) -> None:
    assert rows(read(written(tmp_path, "a;b;c;y", "1,5;1;x;0", "2;0;z;1")))[0][0] == 1.5


def test_parquet_and_csv_are_the_same_table(tmp_path: Path) -> None:
    frame = pd.DataFrame({"y": [0, 1, 0], "a": [1.5, None, 3], "b": [True, False, None], "c": ["x", None, "q"]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv")  # with a nameless column of row numbers
    one, other = (read(tmp_path / name) for name in ("t.parquet", "t.csv"))
    assert rows(one) == rows(other) == [[1.5, 1, 0], [-9, 0, -9], [3, -9, -2]]
    assert torch.equal(one.tensors[1], other.tensors[1])  # type: ignore[attr-defined]


def test_the_files_of_a_folder_are_one_table_whatever_the_order_of_their_columns(tmp_path: Path) -> None:
    written(tmp_path, *LINES[:3], name="1.csv")
    written(tmp_path, "y,c,b,a", "0,x,t,-30", "1,z,F,4", name="2.csv")
    data = read(tmp_path)
    assert rows(data) == PLAIN
    assert data.names == ("1.csv:1", "1.csv:2", "2.csv:1", "2.csv:2")
    written(tmp_path, "a,y", "1,0", name="3.csv")
    with pytest.raises(DataError, match=r"3\.csv: its columns are not those of .*1\.csv; they differ in 'b', 'c'"):
        read(tmp_path)


@pytest.mark.parametrize("texts", [("0", "1"), ("0.0", "1.0"), (" 0", "1 "), ("0", "1e0")])
def test_numbers_as_classes_match_however_they_are_written(texts: tuple[str, str], tmp_path: Path) -> None:
    path = written(tmp_path, "a,b,c,y", *(f"1,1,x,{text}" for text in texts))
    assert read(path).count_K.tolist() == [1, 1]


def test_codes_with_leading_zeros_are_texts(tmp_path: Path) -> None:
    task = {**SMALL, "classes": ["007", "7"]}
    assert read(written(tmp_path, "a,b,c,y", "1,1,x,7", "1,1,x,007", "1,1,x,7.0"), task).count_K.tolist() == [1, 2]


def test_integer_labels_get_the_names_of_their_owner(tmp_path: Path) -> None:
    path = written(tmp_path, *LINES)
    task = discovery.get(parse_run({**RUN, "task": {**SMALL, "classes": ["ill", "well"]}}))
    data = task.load_train(f"csv:{path}?class-names=well,ill", None, None)
    assert data.tensors[1].tolist() == [1, 0, 1, 0]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"class-names has 1 names"):
        task.load_train(f"csv:{path}?class-names=well", None, None)


def test_columns_may_have_other_names_at_a_site(tmp_path: Path) -> None:
    path = written(tmp_path, "alter,b,c,y", *LINES[1:])
    task = discovery.get(parse_run({**RUN, "task": SMALL}))
    assert rows(task.load_train(f"csv:{path}?columns=a=alter", None, None)) == PLAIN
    with pytest.raises(DataError, match="--columns names 'age', but there are 'alter'"):
        task.load_train(f"csv:{path}?columns=a=age", None, None)


def test_missing_values_and_a_class_that_is_called_na(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b,c,y", ",?,,NA", "NA,null,N/A,0", "-99,1,x,")
    task = {**SMALL, "classes": ["0", "NA"], "missing": ["", "?", "NA", "null", "N/A", "-99"]}
    data = read(path, task)
    assert data.count_K.tolist() == [1, 1]
    assert rows(data) == [[-9, -9, -9]] * 2
    assert "1 rows have no 'y' and are left out" in data.notes


def test_rows_for_training_and_for_testing(tmp_path: Path) -> None:
    split = (
        f"{line},{part}" for line, part in zip(LINES, ("split", "train", "test", "Train", "test"), strict=True)
    )
    path = written(tmp_path, *split)
    task = {**SMALL, "split_column": "split"}
    assert rows(read(path, task)) == PLAIN[::2]
    assert rows(read(path, task, "test")) == PLAIN[1::2]
    assert rows(read(path, task, "input")) == PLAIN
    bad = written(tmp_path, "a,b,c,y,split", "1,1,x,0,train", "1,1,x,0,dev", name="bad.csv")
    with pytest.raises(DataError, match=r"column 'split': row 2 has 'dev', expected `train` or `test`"):
        read(bad, task)


def test_rows_in_messages_are_those_of_the_file(tmp_path: Path) -> None:
    lines = ("a,b,c,y,split", "1,1,x,0,test", "2,1,x,1,test", "high,1,x,0,train")
    path = written(tmp_path, *lines)
    with pytest.raises(DataError, match=r"column 'a': row 3: 'high' is not a number"):
        read(path, {**SMALL, "split_column": "split"})
    written(tmp_path, *lines[:3], name="a.csv")
    with pytest.raises(DataError, match=r"column 'a': row t\.csv:3: 'high' is not a number"):
        read(tmp_path, SMALL)


def test_a_share_for_testing_is_no_training_data(tmp_path: Path) -> None:
    table = clinic("anna", 100, 0)
    path = tmp_path / "a.csv"
    write(path, table)
    evaluate = {"test_share": 0.2}
    train, test = (read(path, TASK, purpose, evaluate=evaluate) for purpose in ("train", "test"))
    assert (train.examples, test.examples) == (80, 20)
    assert not set(train.names) & set(test.names)


def test_data_to_predict_needs_no_target_and_may_have_some(tmp_path: Path) -> None:
    data = read(written(tmp_path, "id,a,b,c", "p1,1,1,x", ",2,1,x"), {**SMALL, "id": "id"}, "input")
    assert data.names == ("p1", "t.csv:2")
    assert data.count_K.tolist() == [0, 0]
    some = read(written(tmp_path, "a,b,c,y", "1,1,x,1", "2,1,x,"), purpose="input")
    assert (some.examples, some.count_K.tolist()) == (2, [0, 1])


BAD = {
    "a missing column": (
        ("a,b,y", "1,1,0"),
        r"no column 'c', the run's input column; there are 'a', 'b', 'y'\. .*--columns c=",
    ),
    "other case": (("A,b,c,y", "1,1,x,0"), r"Is it 'A'\? Names must be equal"),
    "text in a number": (("a,b,c,y", "1,1,x,0", "high,1,x,0"), r"column 'a': row 2: 'high' is not a number"),
    "several": (("a,b,c,y", *["q,1,x,0"] * 7), r"rows 1, 2, 3, 4, 5 and 2 more: 'q' are each not a number"),
    "infinite": (("a,b,c,y", "inf,1,x,0"), r"row 1: 'inf' is not a number"),
    "thousands": (("a,b,c,y", '"1,200",1,x,0'), r"row 1: '1,200' is not a number"),
    "no boolean": (("a,b,c,y", "1,maybe,x,0"), r"column 'b': row 1: 'maybe' is neither yes nor no"),
    "an unknown class": (("a,b,c,y", "1,1,x,2"), r"column 'y': row 1: '2' is not a class of the run.*'0', '1'"),
    "a name twice": (("a,b,c,y,a", "1,1,x,0,2"), r"column 'a' occurs twice"),
    "no rows": (("a,b,c,y",), r"has no rows"),
    "no targets": (("a,b,c,y", "1,1,x,"), r"no row has a value, so no rows are left"),
    "too many cells": (("a,b,c,y", "1,1,x,0,7"), r"a row does not fit the header, which has 4 columns"),
    "only in a later row": (("a,b,c,y", "1,1,x,0", "1,1,x,0,7"), r"a row does not fit the header"),
    "two problems at once": (("a,b,c,y", "q,maybe,x,0"), r"'a': row 1(.|\n)*'b': row 1"),
}


@pytest.mark.parametrize("what", BAD)
def test_an_error_names_file_column_and_row(what: str, tmp_path: Path) -> None:
    lines, message = BAD[what]
    with pytest.raises(DataError, match=message) as caught:
        read(written(tmp_path, *lines))
    assert "t.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; the first line must name the columns"),
        (b"\n\n", "is empty"),
        ("a,b,c,y\n1,1,Köln,0\n".encode("latin-1"), r"is not UTF-8 text \(byte \d+, line 2\); save it as"),
        ("a,b,c,y\n1,1,x,0\n".encode("utf-16"), "is not UTF-8 text"),
        (b"PAR1 not a parquet file", "no column|does not fit|no rows"),
    ],
)
def test_files_that_are_no_tables(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read as a parquet file"):
        read(tmp_path / "broken.parquet")
    with pytest.raises(DataError, match="there is no "):
        read(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder has no CSV or parquet files"):
        read(tmp_path / "empty")


def test_notes_say_what_is_odd_but_usable(tmp_path: Path) -> None:
    data = read(written(tmp_path, "a,b,c,y,more", "1,1,q,0,5", "1,,x,1,6", "1,0,x,0,7"))
    assert "1 columns are not used: more" in data.notes
    assert "column 'a' has the same value in all rows here" in data.notes
    assert "column 'c': 1 rows have a category that the run file does not list; they count as other" in data.notes
    found = {row["column"]: (row["kind"], row["missing"], row["unknown"]) for row in data.column_report}
    assert found == {"a": ("numeric", 0, 0), "b": ("boolean", 1, 0), "c": ("2 categories", 0, 1)}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"numeric": [], "boolean": [], "categorical": {}}, "no input columns"),
        ({"numeric": ["a", "y"]}, "column 'y' is named twice"),
        ({"classes": ["0"]}, "at least two values of the target"),
        ({"classes": ["1", "1.0"]}, "'1' is listed twice"),
        ({"bounds": {"c": [0, 1]}}, "'c' is not a numeric column"),
        ({"bounds": {"a": [1, 0]}}, "the smaller one first"),
        ({"kind": "regression"}, "classes and class_weights are for classification"),
        ({"class_weights": [1, 2, 3]}, "3 weights for 2 classes"),
        ({"class_weights": [1, -2]}, "class_weights"),
    ],
)
def test_run_files_that_cannot_be_used(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        discovery.get(parse_run({**RUN, "task": {**SMALL, **keys}}))


def test_the_rows_of_one_owner(tmp_path: Path) -> None:
    """The server tests on a share of the whole table; no owner trains on a row of it."""
    lines = [
        f"{row},{'yes' if row % 3 else 'no'},x,{row % 2},{'north' if row < 12 else 'south'}" for row in range(20)
    ]
    path = written(tmp_path, "a,b,c,y,site", *lines)
    test = read(path, purpose="test", evaluate={"test_share": 0.25})
    parts = [read(Path(f"{path}?only=site={site}"), evaluate={"test_share": 0.25}) for site in ("north", "south")]
    numbers = [{int(row[0]) for row in rows(data)} for data in (test, *parts)]
    assert set.union(*numbers) == set(range(20))
    assert sum(map(len, numbers)) == 20
    assert numbers[1] == set(range(12)) - numbers[0]
    assert [int(row[0]) for row in rows(read(Path(f"{path}?only=site=south"), purpose="input"))] == list(
        range(12, 20)
    )
    with pytest.raises(DataError, match="no row has site = 'west'; there are north, south"):
        read(Path(f"{path}?only=site=west"))
    with pytest.raises(DataError, match="no column 'ward', the run's column for `only`"):
        read(Path(f"{path}?only=ward=west"))
