"""`fednc client --policy --dry-run` against a real server: what a person sees, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fednc.cli.main import app
from support.clients_with_policy import STRICT
from support.hostile.image_server import hostile_run, write_images
from support.local_servers import Serving, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    """A server in another thread, because the command needs the main one."""
    found: list[Serving] = []
    up, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving(tmp_path, {"auth": "none"}) as listening:
            found.append(listening)
            up.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert up.wait(30)
        yield found[0]
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("method", ["fedavg", "fednc"])
def test_a_dry_run_shows_what_the_policy_refuses(method: str, server: Serving, tmp_path: Path) -> None:
    run = hostile_run(method={"name": method, "readout": {"fedavg": "head"}.get(method, "memory")})
    server.federation.run = run
    images, rules = tmp_path / "images.npz", tmp_path / "mine.toml"
    write_images(images, (90, 60))
    rules.write_bytes(STRICT.read_bytes())
    arguments = ["client", "--server", server.address, "--data", f"npz:{images}", "--policy", str(rules)]
    shown = tmp_path / "shown.json"
    result = CliRunner().invoke(app, [*arguments, "--name", "a", "--dry-run", "--json", str(shown)])
    assert result.exit_code == 0, result.output
    told = json.loads(shown.read_text())
    assert told["digest"] == run.digest
    assert run.digest in result.output
    assert [one["code"] for one in told["coming"]] == ["class-sums"]
    assert [one["code"] for one in told["barring"]] == ([] if method == "fedavg" else ["method"])
    assert ("no part in the run" in result.output) == (method == "fednc")
    assert server.names() == []
    assert sorted(path.name for path in tmp_path.glob("mine.toml.state/*")) == ["lock", "state.json"]
