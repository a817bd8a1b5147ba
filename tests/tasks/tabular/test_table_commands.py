"""Three clinics that have never used fednc: from CSV files to predictions over mTLS, with commands alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fednc.cli.main import app as command
from fednc.client.app import flower_app
from fednc.client.app.host import ClientConfig
from fednc.client.link.channel import Credentials
from fednc.common import errors
from fednc.common.config.run import read_run_file
from fednc.common.model_export import load
from fednc.common.tasks import discovery
from fednc.server.rounds.result_files import summary_of, write_files
from support import runs_on_grids
from support.clinic_tables import RARE, clinic, write, write_clinics
from support.runs_on_grids import over_the_link


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fednc(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def options_in(path: str = "run.toml") -> dict[str, Any]:
    return discovery.get(read_run_file(Path(path))).options.model_dump()


def test_from_three_files_to_predictions_over_mtls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = write_clinics(tmp_path)
    test = write(tmp_path / "test.csv", clinic("test", 120, 1))
    said = fednc("init", "csv", "--data", "anna.csv").stderr
    assert "the target is guessed to be column 'readmitted'" in said
    assert "add the ones that only other sites have" in said
    for spec in specs.values():
        fednc("check", "run.toml", "--data", spec)
    fednc("certs", "init", "certs", "--name", "Clinics")
    fednc("certs", "server", "certs", "--host", "127.0.0.1")
    for name in specs:
        fednc("certs", "node", "certs", name)
    text = Path("run.toml").read_text().replace("[server]\n", '[server]\ncerts = "certs/server"\n')
    text = text.replace('# test = ""', f'test = "{test}"').replace("total = 20", "total = 3")
    Path("run.toml").write_text(text.replace("min_clients = 2", "min_clients = 3"))
    plain = runs_on_grids.LinkConfig

    def with_certificate(**keys: Any) -> Any:
        return plain(**keys, credentials=Credentials.from_folder(Path("certs/nodes", keys["name"])))

    monkeypatch.setattr(runs_on_grids, "LinkConfig", with_certificate)
    clients = [ClientConfig(name=name, data=spec, device="cpu") for name, spec in specs.items()]
    result = over_the_link(read_run_file(Path("run.toml")), clients, flower_app.app, tmp_path, agreed=True)
    last = result.history.rounds[-1]
    assert last.replies == 3
    assert last.test["auroc"] > 0.85
    Path("r").mkdir()
    write_files(Path("r"), result, summary_of("r", result))
    assert json.loads(Path("r/summary.json").read_text())["metric"]["name"] == "auroc"

    new = clinic("new", 30, 2)
    del new["readmitted"]
    write(tmp_path / "new.csv", {key: new[key] for key in reversed(new)})
    fednc("predict", "r", "new.csv", "--csv", "out.csv")
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == new["patient"]
    for row in rows:
        shares = {name: float(row[f"probability of {name}"]) for name in ("no", "yes")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
        assert row["class"] == max(shares, key=shares.__getitem__)
        assert float(row["confidence"]) == max(shares.values())
    known = json.loads(fednc("predict", "r", "test.csv", "--json", "-").stdout)
    assert known["metrics"]["auroc"] == last.test["auroc"]
    assert load("r").task.preprocessing()["columns"][:3] == ["age", "pressure", "crp"]


def test_init_writes_no_text_of_the_rows_but_the_classes(tmp_path: Path) -> None:
    specs = write_clinics(tmp_path)
    fednc("init", "csv", "--data", specs["bert"], "--target", "readmitted")
    text = Path("run.toml").read_text()
    for private in (RARE, "surgery", "bert-1"):
        assert private not in text
    options = options_in()
    assert options["categorical"] == {"ward": (), "sex": ()}
    assert (options["numeric"], options["boolean"]) == (("crp", "pressure", "age"), ("smoker",))
    assert (options["id"], options["target"], options["classes"]) == ("patient", "readmitted", ("no", "yes"))
    fednc(
        "init",
        "csv",
        "--data",
        specs["bert"],
        "--force",
        "--target",
        "readmitted",
        "--list-categories",
        "sex",
        "--ignore",
        "ward,crp",
    )
    options = options_in()
    assert options["categorical"] == {"sex": ("f", "m")}
    assert options["numeric"] == ("pressure", "age")


def test_init_of_a_number_to_predict(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.csv", clinic("a", 60, 0))
    said = fednc("init", "csv", "--data", spec, "--target", "pressure").stderr
    assert "'pressure' has" in said
    assert "a regression" in said
    assert (options_in()["kind"], read_run_file(Path("run.toml")).method.name) == ("regression", "fedavg")
    fednc("check", "run.toml", "--data", spec)
    fednc("init", "csv", "--data", spec, "--target", "age", "--regression", "--force")
    assert options_in()["kind"] == "regression"
    wrong = fednc("init", "csv", "--data", spec, "--target", "ward", "--regression", "--force", code=3)
    assert "has text, so it cannot be predicted as a number" in wrong.stderr


def test_init_warns_of_rare_classes_and_takes_given_ones(tmp_path: Path) -> None:
    table = clinic("a", 60, 0)
    table["readmitted"][0] = "moved to Ulm"
    spec = write(tmp_path / "a.csv", table)
    said = fednc("init", "csv", "--data", spec).stderr
    assert "classes with fewer than 10 rows here: moved to Ulm" in said
    fednc("init", "csv", "--data", spec, "--force", "--class-names", "no,yes,dead")
    assert options_in()["classes"] == ("no", "yes", "dead")


def test_init_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", clinic("a", 60, 0))
    config = errors.ConfigError.exit_code
    assert "--data csv:PATH" in fednc("init", "csv", code=config).stderr
    assert (
        "expected one of coco, csv, digits, folder, npz, parity, parquet, parts, shapes, streets"
        in fednc("init", "excel", code=config).stderr
    )
    assert "--target is not for task 'image'" in fednc("init", "digits", "--target", "x", code=config).stderr
    assert (
        "no column 'x', the run's target"
        in fednc("init", "csv", "--data", "a.csv", "--target", "x", code=3).stderr
    )
    assert "no column 'x'" in fednc("init", "csv", "--data", "a.csv", "--ignore", "x", code=3).stderr


def test_check_shows_what_is_in_each_column(tmp_path: Path) -> None:
    specs = write_clinics(tmp_path)
    fednc("init", "csv", "--data", specs["anna"], "--list-categories", "ward")
    found = json.loads(fednc("check", "run.toml", "--data", specs["bert"], "--json", "-").stdout)
    columns = {row["column"]: row for row in found["data"]["columns"]}
    assert columns["ward"]["unknown"] == 2
    assert columns["crp"]["missing"] > 0
    said = fednc("check", "run.toml", "--data", specs["bert"]).stderr
    assert "columns of csv:" in said
    assert "2 rows have a category that the run file does not list" in said


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_comments_of_a_written_run_file_show_the_defaults(kind: str, tmp_path: Path) -> None:
    import re

    spec = write(tmp_path / "a.csv", clinic("a", 60, 0))
    fednc("init", "csv", "--data", spec, *(["--target", "age", "--regression"] if kind == "regression" else []))
    text = Path("run.toml").read_text()
    table = re.search(r"^\[task\]\n.*?(?=^\[)", text, re.MULTILINE | re.DOTALL)
    assert table
    spelled_out = re.sub(r"^# (\w+ = )", r"\1", table[0], flags=re.MULTILINE)
    Path("full.toml").write_text(text.replace(table[0], spelled_out))
    assert options_in("full.toml") == options_in()
