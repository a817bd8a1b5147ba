"""The checks of `verify`, without containers: each must pass a good stack and fail a bad one."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednc.bench.containers import processes, run_records, unauthorised_access, verify
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.waiting import Deadline
from fednc.server.storage.events import NodeLost, NodeReady, RunResumed
from support.container_records import FEDNC, PYTHON, add_process, over, write_records
from support.local_servers import make_place, serving

KNOCKS = [
    unauthorised_access.knock_in_plaintext,
    unauthorised_access.knock_without_certificate,
    unauthorised_access.knock_with_foreign_one,
]


# ---- getting in --------------------------------------------------------------------------------------------


def knock(folder: Path, section: dict[str, Any], how: Callable[[str], str]) -> str:
    async def scenario() -> str:
        async with serving(folder, section) as server:
            return await asyncio.to_thread(how, server.address)

    return asyncio.run(scenario())


@pytest.mark.parametrize("how", KNOCKS)
def test_a_server_with_certificates_lets_nobody_in(tmp_path: Path, how: Callable[[str], str]) -> None:
    assert knock(tmp_path, make_place(tmp_path).section(), how)


def test_a_server_without_encryption_lets_plaintext_in(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="let us in"):
        knock(tmp_path, {}, unauthorised_access.knock_in_plaintext)


@pytest.mark.parametrize("how", KNOCKS[1:])
def test_a_server_without_encryption_does_not_count_as_a_refusal(
    tmp_path: Path, how: Callable[[str], str]
) -> None:
    with pytest.raises(ValueError, match="no TLS"):
        knock(tmp_path, {}, how)


@pytest.mark.parametrize("how", KNOCKS[1:])
def test_a_server_that_asks_for_no_certificate_lets_us_in(tmp_path: Path, how: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match="let us in"):
        knock(tmp_path, make_place(tmp_path).section(auth="token"), how)


@pytest.mark.parametrize("how", KNOCKS)
def test_a_missing_server_does_not_count_as_a_refusal(how: Callable[[str], str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="refused"):
            how(f"127.0.0.1:{free.getsockname()[1]}")


# ---- processes ---------------------------------------------------------------------------------------------


def test_nodes_are_found_by_what_they_run_and_only_in_containers(tmp_path: Path) -> None:
    add_process(tmp_path, 9, "/sbin/docker-init", "--", "fednc", "server", "run.toml")  # its parent
    add_process(tmp_path, 10, PYTHON, FEDNC, "server", "run.toml")
    add_process(tmp_path, 11, PYTHON, FEDNC, "client", "--name", "a")
    add_process(tmp_path, 12, PYTHON, FEDNC, "client", "--server", "b:1", "--name", "ab")
    add_process(tmp_path, 13, PYTHON, FEDNC, "client", "--name", "c", spaces="13")  # on the host itself
    add_process(tmp_path, 14, "grep", "server")
    add_process(tmp_path, 15)  # a kernel thread
    (tmp_path / "16").mkdir()  # has ended meanwhile
    found = {name: processes.find(name, tmp_path) for name in ("server", "a", "b", "ab", "c")}
    assert {name: process.pid for name, process in found.items() if process} == {"server": 10, "a": 11, "ab": 12}
    with pytest.raises(LookupError, match="no container runs b"):
        processes.await_node("b", Deadline(0), tmp_path)


def test_our_own_process_is_read_as_the_kernel_describes_it() -> None:
    me = next(process for process in processes.running() if process.pid == os.getpid())
    assert os.getuid() in me.uids
    assert Path(me.arguments[0]).name.startswith("python")


@pytest.mark.parametrize("more", [{"uid": 0}, {"caps": 1}, {"safe": 0}], ids=str)
def test_a_process_with_any_privilege_fails_its_check(tmp_path: Path, more: dict[str, int]) -> None:
    add_process(tmp_path, 1, PYTHON, FEDNC, "server")
    add_process(tmp_path / "bad", 1, PYTHON, FEDNC, "server", **more)
    assert "no capability" in verify.confined(processes.await_node("server", Deadline(0), tmp_path))
    with pytest.raises(ValueError, match="cap_drop"):
        verify.confined(processes.await_node("server", Deadline(0), tmp_path / "bad"))


# ---- records -----------------------------------------------------------------------------------------------

NAMES = ("anna", "bert")


def config(seed: int = 1) -> RunConfig:
    return parse_run(
        {
            "seed": seed,
            "task": {"classes": [str(i) for i in range(10)], "model": "cnn", "width": 8, "size": 8, "channels": 1},
            "frame": {"dim": 16},
            "rounds": {"total": 1},
            "split": {"parts": 2, "alpha": 1.0},
        }
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as a server would leave it."""
    folder = tmp_path_factory.mktemp("served")
    run_records.run_in_process(config(), NAMES, "digits", folder)
    return folder


def test_the_same_run_has_the_same_digest(served: Path) -> None:
    digest = run_records.digest_of_model(served)
    assert run_records.check_model(served, config(), NAMES, "digits") == f"sha256 {digest}"


def test_another_run_has_another(served: Path) -> None:
    with pytest.raises(ValueError, match=r"served .*, in process"):
        run_records.check_model(served, config(seed=2), NAMES, "digits")
    with pytest.raises(ValueError, match=r"served .*, in process"):
        run_records.check_model(served, config(), NAMES[::-1], "digits")


def test_weights_that_differ_from_the_manifest_are_reported(served: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in (served / "model").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="manifest says"):
        run_records.digest_of_model(tmp_path)


def test_records_with_other_names_or_missing_replies_are_reported(tmp_path: Path) -> None:
    good = write_records(tmp_path / "good", NAMES, over(1), over(2))
    assert run_records.check_names(good, NAMES, Deadline(0)) == "anna (1 examples), bert (1 examples)"
    stranger = write_records(tmp_path / "stranger", ("anna", "eve"), over(1))
    with pytest.raises(ValueError, match="expected anna, bert; found anna, eve"):
        run_records.check_names(stranger, NAMES, Deadline(0))
    missing = write_records(tmp_path / "missing", NAMES, over(1), over(2, replies=1))
    with pytest.raises(ValueError, match=r"\[2, 1\], expected 2"):
        run_records.check_names(missing, NAMES, Deadline(0))
    with pytest.raises(ValueError, match="did not end in time"):
        run_records.check_names(tmp_path / "never", NAMES, Deadline(0))


def test_kills_count_only_in_the_round_they_were_meant_for(tmp_path: Path) -> None:
    lost = NodeLost(text="", node="anna")
    back = NodeReady(text="", node="anna", examples=1, class_counts=(), pid=1, device="cpu")
    resumed = RunResumed(text="", round=1)
    hit = write_records(tmp_path / "hit", NAMES, over(1), lost, resumed, back, over(2))
    assert run_records.check_lost(hit, "anna", 1)
    assert run_records.check_resumed(hit, 1)
    early = write_records(tmp_path / "early", NAMES, lost, back, resumed, over(1), over(2))
    gone = write_records(tmp_path / "gone", NAMES, over(1), lost, over(2))
    for folder in (early, gone):
        with pytest.raises(ValueError, match="in round 2"):
            run_records.check_lost(folder, "anna", 1)
        with pytest.raises(ValueError, match="in round 2"):
            run_records.check_resumed(folder, 1)


# ---- the whole ---------------------------------------------------------------------------------------------


def expected(**changes: Any) -> verify.Expected:
    values = {
        "run": config(),
        "folder": Path("/nowhere"),
        "server": "127.0.0.1:1",
        "clients": NAMES,
        "data": "digits",
        "lost": "",
        "resumed": 0,
        "deadline": Deadline(0),
    }
    return verify.Expected(**{**values, **changes})


def test_one_failed_check_fails_the_stack_and_all_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify, "DOOR_TRIED", tmp_path / "tried")
    lines: list[str] = []
    assert not verify.check_all(expected(), lines.append)
    titles = verify.titles(NAMES)
    assert {line[8:].partition(":")[0] for line in lines[:-1]} == titles
    assert all(line.startswith("FAILED  ") for line in lines[:-1])
    assert lines[-1] == f"0 of {len(titles)} checks hold"
    assert (tmp_path / "tried").exists(), "the last client must start, so that the other checks can be made"


def test_chaos_adds_its_checks() -> None:
    more = verify.titles(NAMES, lost="anna@1", resumed=3) - verify.titles(NAMES)
    assert more == {"a client was killed in mid-round", "the server was killed in mid-round"}
