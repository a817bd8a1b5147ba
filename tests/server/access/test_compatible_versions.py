"""Versions that do not match are refused when a client joins, and by the client if the server does not check."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link.link import Link, LinkConfig
from fednc.client.policy.guard import Guard
from fednc.common import flower_adapter, plugins, versions
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError, ProtocolError, RefusedError
from fednc.common.peer_text import SHORT_TEXT
from fednc.common.plugins import TASKS
from fednc.common.tasks import discovery
from fednc.common.wire import messages
from fednc.common.wire.messages import Instruction
from fednc.protos import federation_pb2 as pb
from support.installed_plugins import Site, site
from support.local_servers import IdleHost, serving, until

__all__ = ["site"]

RUN = {"task": {"classes": ["a", "b"], "size": 8, "channels": 1}}
PACKAGE = versions.package()


def attend(folder: Path, run: dict[str, Any] | None = None, **announced: Any) -> str:
    """Why the server refuses a client that announces this; empty: it joins."""

    async def trial() -> str:
        async with serving(folder, {}, **(run or {})) as server:
            config = LinkConfig(server=server.address, name="anna", **announced)
            link = asyncio.create_task(Link(config, IdleHost()).run())
            await until(lambda: link.done() or server.names())
            link.cancel()
            (outcome,) = await asyncio.gather(link, return_exceptions=True)
            return str(outcome) if isinstance(outcome, RefusedError) else ""

    return asyncio.run(trial())


def test_the_server_says_whom_it_refused_and_why_once(tmp_path: Path) -> None:
    """An operator sees it in the log, and in the message when too few clients came."""

    async def trial() -> tuple[list[str], dict[str, str], dict[str, str]]:
        async with serving(tmp_path, {}, **RUN) as server:
            told: list[str] = []
            server.federation.events.listen(lambda event: told.append(f"{event.kind} {event.text}"))
            old = LinkConfig(server=server.address, name="anna", tasks=("image/2",))
            for _ in range(2):  # as a service manager restarts it
                await asyncio.gather(Link(old, IdleHost()).run(), return_exceptions=True)
            refused = dict(server.federation.door.turned_away)
            right = asyncio.create_task(Link(LinkConfig(server=server.address, name="anna"), IdleHost()).run())
            await until(lambda: server.names())
            joined = dict(server.federation.door.turned_away)
            right.cancel()
            await asyncio.gather(right, return_exceptions=True)
            return [text for text in told if text.startswith("turned-away")], refused, joined

    told, refused, joined = asyncio.run(trial())
    assert len(told) == 1
    assert "refused anna: task 'image'" in told[0]
    assert "version 2" in refused["anna"]
    assert joined == {}, "a client that has joined is no longer listed as refused"


def test_a_client_with_the_same_versions_attends(tmp_path: Path) -> None:
    assert attend(tmp_path, tasks=versions.installed_tasks(), methods=versions.installed_methods()) == ""
    assert (
        attend(tmp_path, tasks=("other/7", "image/1"), methods=("fednc", "fedavg")) == ""
    )  # from before methods had versions


@pytest.mark.parametrize(
    ("announced", "words"),
    [
        ({"tasks": ("image/2",)}, ["task 'image'", "version 1 at the server", "version 2"]),
        ({"tasks": ("other/1",)}, ["task 'image'", "version 1", "not installed"]),
        ({"methods": ("fednc/2", "fedavg/1")}, ["method 'fednc'", "version 1 at the server", "version 2"]),
        ({"methods": ("fedavg/1",)}, ["method 'fednc'", "not installed"]),
    ],
)
def test_another_version_is_refused_with_both_named(
    announced: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    refusal = attend(tmp_path, **announced)
    assert all(word in refusal for word in [*words, "anna", "install the same version"]), refusal


@pytest.mark.parametrize("software", ["0.0.9", "0.2.0", "1.1.0", "99"])
def test_another_series_of_the_package_is_refused(
    software: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fednc.client.link.link.version", lambda _: software)
    refusal = attend(tmp_path)
    assert PACKAGE in refusal
    assert software in refusal


def test_another_patch_of_the_package_attends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fednc.client.link.link.version", lambda _: PACKAGE.rpartition(".")[0] + ".99")
    assert attend(tmp_path) == ""


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9), st.integers(0, 3), st.integers(0, 3))
def test_minor_versions_count_while_the_major_is_0(
    major: int, minor: int, patch: int, major2: int, minor2: int
) -> None:
    differs = versions.package_differs(f"{major}.{minor}.{patch}", f"{major2}.{minor2}.0", "x")
    assert bool(differs) == ((major, minor) != (major2, minor2) if 0 in (major, major2) else major != major2)


def instruct(order: Instruction) -> None:
    content = messages.instruction_content(order)
    message = flower_adapter.instruction(content, run_id="r", dst=5, message_type=messages.HELLO, group_id="1")
    context = Context(run_id=1, node_id=5, node_config={"data": "nowhere"}, state=RecordDict(), run_config={})
    app(message, context)


@pytest.mark.parametrize(
    ("place", "told", "words"),
    [(0, "0.99.1", "fednc 0.99.1"), (1, "image/2", "task 'image'"), (2, "fednc/5", "method 'fednc'")],
)
def test_a_client_refuses_the_instruction_of_another_version_on_any_link(
    place: int, told: str, words: str
) -> None:
    run = parse_run(RUN)
    server = list(versions.of_run(run))
    server[place] = told
    with pytest.raises(ProtocolError, match="the server has") as refused:
        instruct(Instruction(run_json=run.model_dump_json(), server_round=1, versions=tuple(server)))
    assert words.split()[-1].strip("'") in str(refused.value)


def test_an_instruction_names_the_versions_that_are_installed_and_no_path_of_the_server() -> None:
    run = parse_run({**RUN, "server": {"certs": "/secret/place"}})
    order = Instruction.under(run, 3)
    message = flower_adapter.instruction(
        messages.instruction_content(order), run_id="r", dst=5, message_type=messages.TRAIN, group_id="3"
    )
    assert Instruction.of(message) == order
    assert order.versions == (PACKAGE, f"image/{discovery.task_class('image').version}", "fednc/1")
    assert "/secret/place" not in order.run_json


CLINIC = {"task": {"name": "clinic", "classes": ["a", "b"], "size": 8, "channels": 1}}


def test_a_plug_in_from_the_same_distribution_attends(site: Site, tmp_path: Path) -> None:
    site.install_task("clinic", version=2)
    assert "clinic/2 clinic-table==0.3.0" in versions.installed_tasks()
    assert attend(tmp_path, CLINIC, tasks=versions.installed_tasks(), methods=versions.installed_methods()) == ""


@pytest.mark.parametrize(
    ("announced", "words"),
    [
        (
            "clinic/3 clinic-table==0.3.0",
            ["version 2 of clinic-table 0.3.0 at the server", "version 3 of clinic-table 0.3.0"],
        ),
        (
            "clinic/2 clinic-table==0.4.0",
            ["version 2 of clinic-table 0.4.0", "the server has clinic-table==0.3.0"],
        ),
        ("clinic/2 other-table==0.3.0", ["version 2 of other-table 0.3.0", "the server has clinic-table==0.3.0"]),
        ("clinic/2", ["client 'anna' has version 2", "the server has clinic-table==0.3.0"]),
        ("image/1", ["not installed at client 'anna'", "clinic-table==0.3.0"]),
        ("clinic/2 clinic-table==", ["of clinic-table"]),
        ("clinic/2 \x1b[31m", ["task 'clinic'"]),
    ],
)
def test_the_same_task_of_another_version_or_distribution_is_refused(
    announced: str, words: list[str], site: Site, tmp_path: Path
) -> None:
    site.install_task("clinic", version=2)
    refusal = attend(tmp_path, CLINIC, tasks=(announced,))
    assert refusal
    assert "\x1b" not in refusal
    if "\x1b" not in announced:
        assert all(word in refusal for word in [*words, "install the same version on both sides"]), refusal


def test_a_client_is_not_told_to_install_what_its_owner_has_not_chosen(site: Site) -> None:
    site.install_task("clinic")
    run = parse_run(CLINIC)
    server = (PACKAGE, "clinic/1 evil-table==6.6.6", "fednc/1")
    with pytest.raises(ProtocolError, match="agree with the server's operator") as refused:
        instruct(Instruction(run_json=run.model_dump_json(), server_round=1, versions=server))
    assert "evil-table==" not in str(refused.value)


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
    st.integers(0, 99),
    st.sampled_from(["fednc", "clinic-table"]),
    st.from_regex(r"[0-9]+(\.[0-9]+){0,3}", fullmatch=True),
)
def test_an_offer_reads_as_it_was_written(name: str, version: int, distribution: str, release: str) -> None:
    offer = versions.Offer(name, str(version), distribution, "" if distribution == "fednc" else release)
    assert versions.Offer.parse(str(offer)) == offer


def test_no_offer_is_longer_than_what_a_server_reads() -> None:
    assert versions.MOST_CHARACTERS == SHORT_TEXT


def test_a_client_offers_and_runs_only_what_its_owner_allows(tmp_path: Path) -> None:
    offered = versions.installed_tasks(("fewshot",))
    assert [versions.Offer.parse(text).name for text in offered] == ["fewshot"]
    assert "not allowed there" in attend(tmp_path, tasks=offered)


def test_an_instruction_of_a_task_that_its_owner_does_not_allow_is_refused_unloaded(site: Site) -> None:
    """A server that welcomed with an allowed task may still instruct with another; nothing of that is imported."""
    module = site.install_task("clinic")
    settings = {"data": "digits", "name": "anna", "allowed-tasks": "image fewshot"}
    context = Context(run_id=1, node_id=5, node_config=settings, state=RecordDict(), run_config={})
    run = parse_run(CLINIC)
    order = Instruction(run_json=run.model_dump_json(), server_round=1, versions=("", "clinic/1", "fednc/1"))
    content = messages.instruction_content(order)
    message = flower_adapter.instruction(content, run_id="r", dst=5, message_type=messages.HELLO, group_id="1")
    with pytest.raises(ConfigError, match="--allow-task clinic"):
        app(message, context)
    assert module not in sys.modules
    host = AppHost(ClientConfig(name="anna", data="digits", allowed_tasks=("image",)), app)
    with pytest.raises(ConfigError, match="--allow-task clinic"):
        host.prepare(pb.Welcome(node_id=1, run_id="r", run_json=run.model_dump_json()))
    assert module not in sys.modules


def test_a_client_limited_to_some_tasks_never_imports_another_whatever_the_run_file_has(site: Site) -> None:
    """Keys of `[split]` belong to the task, so reading the run file alone would import it."""
    module = site.install_task("clinic")
    sent = json.dumps({**CLINIC, "split": {"parts": 2}})
    host = Guard(AppHost(ClientConfig(name="anna", data="digits", allowed_tasks=("image",)), app), audit=None)
    with plugins.allowing_only(TASKS, ["image"]):
        with pytest.raises(ConfigError, match="--allow-task clinic"):
            host.prepare(pb.Welcome(node_id=1, run_id="r", run_json=sent))
        with pytest.raises(ConfigError, match="'clinic' is not allowed here; allowed: image"):
            discovery.task_class("clinic")
        assert module not in sys.modules
        assert discovery.task_class("image").name == "image"
    with pytest.raises(ConfigError, match="--allow-task clinic"):
        host.prepare(pb.Welcome(node_id=1, run_id="r", run_json=sent))
    assert module in sys.modules  # so the limit made the difference
