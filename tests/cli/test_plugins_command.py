"""`fednc plugins` shows what is installed and where it is from; `fednc plugins check` tests it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fednc.cli.main import app
from fednc.common import plugins
from fednc.common.config.run import parse_run, read_run_file
from fednc.common.errors import ConfigError
from fednc.ops import quarantine
from support.installed_plugins import Site, site
from support.prototype_tasks import write_line

__all__ = ["site"]

RUNNER = CliRunner()
BROKEN = """
from fednc.tasks.image.task import ImageTask

class Clinic(ImageTask):
    name = "clinic"

    def check_statistics(self, stats, announced):
        raise ValueError("not today")
"""


def fednc(*args: object, code: int = 0) -> Result:
    result = RUNNER.invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def listed() -> dict[tuple[str, str], dict[str, str]]:
    rows = json.loads(fednc("plugins", "--json", "-").stdout)["plugins"]
    return {(row["kind"], row["name"]): row for row in rows}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes of checks are kept there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path: Path) -> str:
    draw = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    arrays = {"x_train": draw.integers(0, 256, (60, 8, 8), np.uint8), "y_train": np.arange(60) % 3}
    np.savez(path, **arrays, x_test=arrays["x_train"][:9], y_test=arrays["y_train"][:9])
    return f"npz:{path}"


def test_ours_are_listed_as_built_in_and_all_of_them_load() -> None:
    rows = listed()
    assert {("task", "image"), ("task", "fewshot"), ("tracker", "csv")} <= set(rows)
    assert {row["from"] for row in rows.values()} == {"built in"}
    assert {row["state"] for row in rows.values()} == {"ok"}
    assert rows["task", "image"]["version"] == "1"
    assert rows["task", "image"]["distribution"].startswith("fednc ")


def test_plug_ins_are_listed_with_what_is_wrong_with_them(site: Site) -> None:
    site.install_task("clinic", version=4)
    site.install("sad-table", {"fednc.tasks": {"sad": "{}:Sad"}}, "import not_there_at_all")
    site.install("impostor", {"fednc.trackers": {"csv": "{}:Csv"}})
    rows = listed()
    clinic, sad, csv = rows["task", "clinic"], rows["task", "sad"], rows["tracker", "csv"]
    assert (clinic["version"], clinic["distribution"], clinic["from"]) == ("4", "clinic-table 0.3.0", "plug-in")
    assert clinic["state"] == "ok"
    assert "not_there_at_all" in sad["state"]
    assert "impostor 0.3.0" in csv["state"]
    assert rows["task", "image"]["state"] == "ok"


def test_check_runs_the_contract_on_suggested_options(site: Site, images: str) -> None:
    site.install_task("clinic")
    told = fednc("plugins", "check", "clinic", "--data", images, "--json", "-")
    outcomes = json.loads(told.stdout)
    assert outcomes["failed"] == 0
    assert len(outcomes["promises"]) > 10
    assert "statistics of two parts add up" in told.stderr


def test_check_says_which_promise_is_broken_and_fails(site: Site, images: str, tmp_path: Path) -> None:
    site.install("clinic-table", {"fednc.tasks": {"clinic": "{}:Clinic"}}, BROKEN)
    run = tmp_path / "run.toml"
    run.write_text('[task]\nname = "clinic"\nclasses = ["0", "1", "2"]\nsize = 8\nchannels = 1\nwidth = 8\n')
    result = fednc("plugins", "check", "clinic", "--data", images, "--run", run, code=1)
    assert "FAILED  honest statistics pass its own check: ValueError: not today" in result.stderr
    assert "ok      the same seed gives the same model" in result.stderr
    assert "promises do not hold" in result.stderr
    row = listed()["task", "clinic"]
    assert row["state"].startswith("quarantined: honest statistics pass its own check: ValueError: not today")
    assert row["check"] == "failed"
    with pytest.raises(ConfigError, match="in quarantine"):
        quarantine.admit(read_run_file(run))


def test_check_names_what_it_needs(site: Site, tmp_path: Path) -> None:
    assert "say which data task 'image' is tested with" in fednc("plugins", "check", "image", code=2).stderr
    assert "'nothing' is not installed here" in fednc("plugins", "check", "nothing", code=2).stderr
    fednc("plugins", "check", "csv")
    site.install("sad-table", {"fednc.tasks": {"sad": "{}:Sad"}}, "import not_there_at_all")
    assert "not_there_at_all" in fednc("plugins", "check", "sad", code=1).stderr
    run = tmp_path / "run.toml"
    run.write_text('[task]\nclasses = ["0"]\n')
    told = fednc("plugins", "check", "fewshot", "--data", "digits", "--run", run, code=2)
    assert "its task is 'image', not 'fewshot'" in told.stderr


def test_check_asks_for_a_run_file_where_a_task_suggests_nothing(site: Site, tmp_path: Path) -> None:
    """Not a dozen failures that all say the same."""
    site.install(
        "line-table", {"fednc.tasks": {"line": "{}:LineTask"}}, "from support.prototype_tasks import LineTask"
    )
    told = fednc("plugins", "check", "line", "--data", "npz:line.npz", code=2).stderr
    assert "fednc plugins check line --data npz:line.npz --run RUN.toml" in told
    assert "FAILED" not in told
    run = tmp_path / "run.toml"  # with no keys of the task's own: all have defaults
    run.write_text('[task]\nname = "line"\n[method]\nname = "fedavg"\n[train]\nlr = 0.02\n')
    data = write_line(tmp_path / "line.npz", seed=1)
    assert "FAILED" not in fednc("plugins", "check", "line", "--data", data, "--run", run).stderr


STILL = """
from pydantic import Field
from fednc.common.config.tables import Section
from fednc.common.methods.api import PLAIN, Method

class Still(Method):
    class Options(Section):
        part: float = Field(description="of the way")
    name, preset = "still", PLAIN

    def step(self, reached):
        for name, mean in reached.mean.items():
            mean.mul_(self.options.part)
        return reached
"""


def test_check_holds_a_method_to_its_promises(site: Site, tmp_path: Path) -> None:
    site.install("still-methods", {"fednc.methods": {"still": "{}:Still"}}, STILL)
    assert "needs a value for part" in fednc("plugins", "check", "still", code=2).stderr
    run = tmp_path / "run.toml"
    run.write_text('[task]\nname = "image"\nclasses = ["a"]\n[method]\nname = "still"\npart = 0.5\n')
    told = fednc("plugins", "check", "still", "--run", run, code=1).stderr
    assert "step() changes `mean` in place" in told
    assert "ok      a run gives the same bits twice" in told
    assert (
        "its method is 'still', not 'fedavg'" in fednc("plugins", "check", "fedavg", "--run", run, code=2).stderr
    )


def test_a_client_is_narrowed_to_installed_tasks_only() -> None:
    refused = fednc(
        "client", "--server", "127.0.0.1:1", "--data", "digits", "--allow-task", "clinic", "--once", code=2
    )
    assert "--allow-task clinic" in refused.stderr
    assert "not installed here; available: colorize, fewshot, image" in refused.stderr


def test_what_failed_is_refused_until_its_code_changes(site: Site) -> None:
    """Another hash means: check again. The old build stays in quarantine."""
    module = site.install("clinic-table", {"fednc.tasks": {"clinic": "{}:Clinic"}}, BROKEN)
    run = parse_run({"task": {"name": "clinic", "classes": ["a", "b"]}})
    assert [each.outcome for each in quarantine.admit(run)] == ["not checked"]
    with pytest.raises(ConfigError, match="has not been tested"):
        quarantine.admit(run, unchecked=False)
    broken = quarantine.keep(plugins.find(plugins.TASKS, "clinic"), {"it loads": "", "it works": "not today"})
    with pytest.raises(ConfigError, match=r"in quarantine.*it works: not today"):
        quarantine.admit(run)
    source = site.folder / f"{module}.py"
    source.write_text(BROKEN.replace("not today", "another day"))
    (changed,) = quarantine.admit(run)
    assert (changed.outcome, changed.distribution, changed.version) == ("not checked", "clinic-table", "0.3.0")
    assert changed.code_sha256 != broken.code_sha256
    source.write_text(BROKEN)
    with pytest.raises(ConfigError, match="in quarantine"):
        quarantine.admit(run)


def test_what_passed_is_admitted_with_licence_and_hash(site: Site, tmp_path: Path) -> None:
    site.install("our-board", {"fednc.trackers": {"board": "{}:Board"}}, BOARD)
    info = next(site.folder.glob("*.dist-info")) / "METADATA"
    info.write_text(info.read_text() + "License-Expression: MIT\n")
    fednc("plugins", "check", "board")
    run = parse_run({"task": {"classes": ["a", "b"]}, "server": {"trackers": ["board"]}})
    (board,) = quarantine.admit(run, unchecked=False)
    assert (board.outcome, board.licence, len(board.code_sha256)) == ("passed", "MIT", 64)
    assert listed()["tracker", "board"]["licence"] == "MIT"
    assert quarantine.admit(parse_run({"task": {"classes": ["a", "b"]}}), unchecked=False) == []
    next((tmp_path / "cache").rglob("*.json")).write_bytes(b"{")
    with pytest.raises(ConfigError, match="has not been tested"):
        quarantine.admit(run, unchecked=False)


BOARD = """
from fednc.common.trackers import Tracker

class Board(Tracker):
    pass
"""
