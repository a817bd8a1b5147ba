"""Credentials that change while client and server run: a half-finished renewal ends neither."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednc.client.link.channel import Credentials
from fednc.client.link.credential_renewal import RenewableCredentials
from fednc.client.link.link import Link, LinkConfig
from fednc.common.errors import ConfigError, RefusedError
from fednc.common.security import credentials as cred
from fednc.common.security.credentials import Holder, Role
from support.local_servers import YEAR, IdleHost, Place, attending, is_ready, serving, until
from support.working_nodes import WorkingHost, hand_out


def reissued(place: Place, name: str) -> Path:
    """A folder with a new certificate and key for `name`; its old files are put back unchanged."""
    return place.authority.issue_certificate(Holder(Role.NODE, name), YEAR, renew=True)


def copied(files: Credentials, target: Path) -> Credentials:
    """The files copied to another folder, as to another machine."""
    shutil.copytree(files.ca.parent, target)
    return Credentials.from_folder(target)


def only_the_certificate(folder: Path, new: Path) -> None:
    shutil.copy(new / cred.CERT, folder / cred.CERT)


def no_folder(folder: Path, _new: Path) -> None:
    shutil.rmtree(folder)


def half_a_file(folder: Path, new: Path) -> None:
    (folder / cred.KEY).write_bytes((new / cred.KEY).read_bytes()[:40])


@pytest.mark.parametrize("half", [only_the_certificate, no_folder, half_a_file])
def test_a_client_reconnects_in_the_middle_of_a_renewal(
    half: Callable[[Path, Path], None], place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fednc.client")
    mine = copied(place.certificate("a"), tmp_path / "machine")
    folder, new = mine.ca.parent, reissued(place, "a")

    async def trial() -> None:
        async with serving(tmp_path / "server", place.section()) as server, attending(server, "a", mine) as link:
            await until(is_ready(server, "a"))
            half(folder, new)
            for _ in range(2):
                (node,) = server.federation.roster.nodes()
                attendance = node.attendance
                server.federation.lose(node)  # it reconnects with the files as they are
                await until(lambda node=node, attendance=attendance: node.attendance not in (b"", attendance))
                await until(is_ready(server, "a"))
            shutil.copytree(new, folder, dirs_exist_ok=True)
            (node,) = server.federation.roster.nodes()
            server.federation.lose(node)
            await until(lambda: "the renewed credentials are valid" in caplog.text)
            await until(is_ready(server, "a"))
            serial = cred.read_certificate((new / cred.CERT).read_bytes()).serial
            assert node.identity.serial == serial
            assert not link.done()

    (tmp_path / "server").mkdir()
    asyncio.run(trial())
    assert caplog.text.count("The previous credentials are used") == 1
    assert "Traceback" not in caplog.text


def test_credentials_that_were_never_valid_are_an_error(place: Place, tmp_path: Path) -> None:
    mine = copied(place.certificate("a"), tmp_path / "machine")
    only_the_certificate(mine.ca.parent, reissued(place, "a"))
    with pytest.raises(ConfigError, match="belong together"):
        RenewableCredentials(mine).for_channel()
    assert RenewableCredentials(None).for_channel() is None


def shorten(place: Place, name: str) -> None:
    """Let the token of `name` expire a second ago in the server's list."""
    path = place.authority.server_folder / cred.TOKENS
    entries = cred.TOKEN_LIST.validate_json(path.read_bytes())
    found = [e.model_copy(update={"expires": time.time() - 1}) if e.name == name else e for e in entries]
    path.write_bytes(cred.TOKEN_LIST.dump_json(found))


@pytest.mark.parametrize("at_work", [False, True])
def test_a_token_that_expires_in_a_run_ends_its_client_and_the_round_continues(
    at_work: bool, place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host: Any = WorkingHost() if at_work else IdleHost()

    async def trial() -> None:
        async with serving(tmp_path, place.section(auth="token")) as server:
            config = LinkConfig(server=server.address, name="a", credentials=place.token("a"))
            link = asyncio.create_task(Link(config, host).run())
            await until(is_ready(server, "a"))
            batch = hand_out(server, "a") if at_work else None
            if at_work:
                await until(lambda: host.batches > 3)
            shorten(place, "a")
            await until(link.done, 10)
            with pytest.raises(RefusedError, match="expired"):
                link.result()
            if batch:
                reply = await asyncio.to_thread(batch.replies.get, timeout=5)
                assert "expired" in reply.failure.reason
                host.done.set()

    asyncio.run(trial())
    assert "Traceback" not in caplog.text
