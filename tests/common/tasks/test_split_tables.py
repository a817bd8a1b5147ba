"""`[split]` may have tables that the task declares: checked, kept and digested with the rest of the run file."""

from __future__ import annotations

import pytest

from fednc.cli.config_docs import sections
from fednc.cli.init import run_file
from fednc.common.config.run import RunConfig, parse_run, parse_run_json
from fednc.common.config.tables import Section, SplitSection
from fednc.common.errors import ConfigError
from fednc.common.tasks import discovery
from fednc.tasks.image.task import ImageTask

SHIFTED = {"split": {"parts": 3, "shift": {"rotation_deg": 30}}}


class Drift(Section):
    """How much."""

    amount: float = 1.0


class DriftSplit(SplitSection):
    """`[split]` of a task whose parts drift."""

    drift: Drift = Drift()


class DriftTask(ImageTask):
    """Any task with a table of its own."""

    Split = DriftSplit


@pytest.fixture
def drifting(monkeypatch: pytest.MonkeyPatch) -> None:
    real = discovery.task_class
    monkeypatch.setattr(discovery, "task_class", lambda name: DriftTask if name == "drifting" else real(name))


def test_a_tasks_tables_are_kept_whichever_way_the_run_travels() -> None:
    run = parse_run(SHIFTED)
    again = parse_run_json(run.model_dump_json(), source="x")
    assert again == run
    assert type(again.split) is type(run.split)
    assert again.digest == run.digest != parse_run({"split": {"parts": 3}}).digest
    assert RunConfig(split=SplitSection(parts=3)) == parse_run({"split": {"parts": 3}})
    assert run.decisive()["split"]["shift"] == {"rotation_deg": 30.0, "colour": 0.0, "noise": 0.0}


def test_their_mistakes_are_reported_with_all_others() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run({"train": {"lr": -1}, "split": {"parts": 0, "shift": {"colour": 2, "blur": 1}}})
    lines = str(caught.value).splitlines()
    for key in ("train.lr", "split.parts", "split.shift.colour", "split.shift.blur"):
        assert any(line.startswith(f"  {key}: ") for line in lines), key
    with pytest.raises(ConfigError, match=r"task\.name") as caught:
        parse_run({"task": {"name": 3}, **SHIFTED})
    assert "split" not in str(caught.value)


@pytest.mark.usefixtures("drifting")
def test_each_task_has_its_own() -> None:
    run = parse_run({"task": {"name": "drifting"}, "split": {"drift": {"amount": 2}}})
    assert isinstance(run.split, DriftSplit)
    assert run.split.drift.amount == 2
    with pytest.raises(ConfigError, match=r"split\.shift: no such key"):
        parse_run({"task": {"name": "drifting"}, **SHIFTED})
    assert "split.drift" in dict(sections(splits=[DriftSplit]))
    assert "split.shift" not in dict(sections(splits=[DriftSplit]))


def test_tables_of_a_task_that_is_not_installed_are_not_an_error_of_the_split() -> None:
    run = parse_run({"task": {"name": "elsewhere"}, **SHIFTED})
    with pytest.raises(ConfigError, match="'elsewhere' is not installed"):
        discovery.get(run)


def test_a_new_run_file_has_them_as_comments(tmp_path) -> None:
    values = {"task": {"classes": ["a", "b"]}}
    text = run_file(values, tmp_path / "run.toml")
    assert "# [split.shift]\n" in text
    assert "# rotation_deg = 0.0" in text
