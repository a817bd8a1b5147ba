"""docs/deploy.md and the systemd units match the code: exit codes, options, keys, states, metrics."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections import Counter
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fednc.cli.main import COMMANDS, _load, exit_codes
from fednc.common import errors
from fednc.common.config.run import parse_run
from fednc.protos import operator_pb2 as op
from fednc.server.link.nodes import NodeState
from fednc.server.operations.prometheus import EventCounters, RunCollector

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "deploy.md").read_text()
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def section(title: str) -> str:
    return PAGE.partition(f"# {title}\n")[2].partition("\n## ")[0]


def table(text: str) -> list[list[str]]:
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_exit_code_has_its_class_a_cause_and_a_fix() -> None:
    rows = table(section("Exit codes"))[2:]
    assert [int(row[0]) for row in rows] == sorted(exit_codes())
    for code, name, cause, fix in rows:
        error = getattr(errors, name.strip("`"), None)
        assert error is None if int(code) in (0, errors.EXIT_INTERRUPTED) else error.exit_code == int(code)
        assert cause
        assert fix or error is None


def options_of(command: list[str]) -> set[str]:
    """All options of `fednc COMMAND [SUBCOMMAND]`."""
    found = _load(command[0])
    sub = getattr(found, "commands", {})
    return {name for each in (sub.get(command[1]) if sub else found).params for name in each.opts}


def test_every_command_on_the_page_exists_with_its_options() -> None:
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    text = "".join(blocks).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith(("$", "#"))]
    commands = [match[1] for line in lines if (match := re.search(r"(?:^\$ |/)fednc ((?:\w+ ).*)", line))]
    assert len(commands) > 10
    for command in commands:
        words = shlex.split(command, comments=True)
        assert words[0] in COMMANDS, command
        assert {word for word in words if word.startswith("--")} <= options_of(words), command


def test_options_in_tables_exist() -> None:
    named = set(re.findall(r"^\| `(--[a-z-]+)", section("Looking after a run"), re.MULTILINE))
    assert {"--drop", "--max-hours"} <= named <= options_of(["status"]) | options_of(["client"])


def test_every_run_file_on_the_page_can_be_read() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        uncommented = re.sub(r"^# (\w+ = )", r"\1", block, flags=re.MULTILINE)
        parse_run(tomllib.loads(uncommented))


def test_states_and_metrics_are_those_of_the_server() -> None:
    text = section("Looking after a run")
    states = re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE)
    assert states == [state for state in NodeState if state is not NodeState.REHEARSING]
    registry = CollectorRegistry()
    EventCounters(registry)
    counted = Counter({"Upload.x": 1}), Counter({"UNAUTHENTICATED": 1})
    status = op.RunStatus(loss=1, primary=op.MetricValue(name="accuracy", value=1), spread=op.Spread(clients=1))
    registry.register(RunCollector(lambda: (status, *counted)))
    served = {family.name for family in registry.collect()}
    assert {name.removesuffix("_total") for name in re.findall(r"`(fednc_[a-z_]+)", text)} == served


def unit(path: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_call_commands_that_exist_and_know_the_exit_codes(path: Path) -> None:
    service: Any = unit(path)["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[0].endswith("/fednc")
    assert {word for word in words if word.startswith("--")} <= options_of(words[1:])
    hopeless = [
        errors.ConfigError,
        errors.DataError,
        errors.RefusedError,
        errors.MissingExtraError,
        errors.DivergedError,
    ]
    assert service["RestartPreventExitStatus"] == " ".join(str(error.exit_code) for error in hopeless)
    assert service["SuccessExitStatus"] == str(errors.EXIT_INTERRUPTED)
    assert "leave it stopped after 2, 3, 6, 8 and 10" in PAGE
    hardened = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "CapabilityBoundingSet": "", "User": "fednc"}
    assert {key: service[key] for key in hardened} == hardened


def test_there_are_units_for_both_sides() -> None:
    assert [path.name for path in UNITS] == ["fednc-client@.service", "fednc-server.service"]
