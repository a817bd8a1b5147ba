"""Making credentials, and reading them from `[server]` and the client's options. No server here."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from fednc.cli.main import app
from fednc.client.link.channel import credentials_from
from fednc.common.address import is_loopback
from fednc.common.config.server import ServerSection
from fednc.common.errors import ConfigError
from fednc.common.security.authority import Authority
from fednc.common.security.certificates import issue_to_holder, make_authority
from fednc.common.security.credentials import (
    NAME,
    Holder,
    Role,
    holder_of_token,
    new_token,
    read_certificate,
    read_revoked,
)
from fednc.server.access.identity import WatchedFile
from fednc.server.access.setup import security_of
from fednc.server.storage.event_log import EventLog

YEAR = timedelta(days=365)
HOLDERS = st.builds(Holder, st.sampled_from(Role), st.from_regex(NAME, fullmatch=True))
CA = make_authority("test", YEAR)
BEYOND = ["0.0.0.0:8440", "[::]:8440", "192.168.0.7:8440", "gpu-7.lab:8440", "localhost.evil.org:8440"]
WITHIN = ["127.0.0.1:8440", "127.3.2.1:8440", "[::1]:8440", "localhost:8440"]


def certs(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["certs", *map(str, args)])
    assert result.exit_code == code, result.output
    return result


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the holder of a credential ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HOLDERS)
def test_the_holder_of_a_credential_can_be_read_back(holder: Holder) -> None:
    assert read_certificate(issue_to_holder(CA, holder, YEAR).cert_pem).holder == holder
    assert holder_of_token(new_token(holder)) == holder


@given(st.text())
def test_an_invalid_token_has_no_name_or_a_valid_one(text: str) -> None:
    holder = holder_of_token(text)
    assert holder is None or NAME.fullmatch(holder.name)


def test_certificates_start_a_day_ago_and_end_before_their_authority(tmp_path: Path) -> None:
    place = Authority.create(tmp_path, "test").issue_certificate(Holder(Role.NODE, "a"), 100 * YEAR)
    made = x509.load_pem_x509_certificate((place / "cert.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    assert made.not_valid_before_utc <= datetime.now(UTC) - timedelta(hours=23)
    assert made.not_valid_after_utc <= authority.not_valid_after_utc
    made.verify_directly_issued_by(authority)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "é", "a b", "a" * 65, "a\n"])
def test_a_name_that_could_leave_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    authority = Authority.create(tmp_path, "test")
    for issue in (authority.issue_certificate, authority.issue_token):
        with pytest.raises(ConfigError, match="not a valid name for a credential"):
            issue(Holder(Role.NODE, name), YEAR)
    assert authority.issued() == []


# ---- the command -------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    makers: list[tuple[object, ...]] = [
        ("server", tmp_path, "--host", "h"),
        ("node", tmp_path, "a"),
        ("token", tmp_path, "a"),
    ]
    certs("init", tmp_path)
    for maker in makers:
        certs(*maker)
    before = contents(tmp_path)
    for maker in [("init", tmp_path), *makers]:
        certs(*maker, code=2)
    assert contents(tmp_path) == before
    for maker in makers:
        certs(*maker, "--renew")
    changed = {path.name for path, data in contents(tmp_path).items() if before[path] != data}
    assert changed == {"cert.pem", "key.pem", "token", "tokens.json", "issued.json"}


def test_list_shows_what_is_in_force(tmp_path: Path) -> None:
    certs("init", tmp_path)
    certs("node", tmp_path, "a")
    certs("node", tmp_path, "ops", "--operator")
    certs("node", tmp_path, "old", "--days", "0")
    token = certs("token", tmp_path, "b", "--print").stdout.strip()
    certs("revoke", tmp_path, "a")
    certs("revoke", tmp_path, "nobody", code=2)
    listed = json.loads(certs("list", tmp_path, "--json", "-").stdout)["issued"]
    assert {(each["name"], each["role"], each["kind"], each["state"]) for each in listed} == {
        ("a", "node", "certificate", "revoked"),
        ("ops", "operator", "certificate", "in force"),
        ("old", "node", "certificate", "expired"),
        ("b", "node", "token", "in force"),
    }
    assert holder_of_token(token) == Holder(Role.NODE, "b")
    assert all(token.encode() not in data for data in contents(tmp_path).values())
    assert not (tmp_path / "nodes" / "a" / "key.pem").exists()


@pytest.mark.parametrize("host", ["", "bücher.example", "a" * 70 + "é"])
def test_a_host_that_a_certificate_cannot_hold_is_refused(tmp_path: Path, host: str) -> None:
    certs("init", tmp_path)
    assert "not a DNS name" in certs("server", tmp_path, "--host", host, code=2).output


def test_a_folder_without_an_authority_says_how_to_make_one(tmp_path: Path) -> None:
    assert "fednc certs init" in certs("node", tmp_path, "a", code=2).output


# ---- the list of revocations ---------------------------------------------------------------------------------


def test_with_a_damaged_list_the_last_good_one_stays_in_force(tmp_path: Path) -> None:
    path, problems = tmp_path / "revoked.json", list[str]()
    entry = {"serial": "1", "name": "a", "when": "now"}
    path.write_text(json.dumps([entry]))
    watched = WatchedFile(path, read_revoked, problems.append)
    path.write_text("[{")
    assert [watched.value, watched.value] == [{"1"}, {"1"}]
    path.unlink()
    assert watched.value == {"1"}
    assert len(problems) == 2
    path.write_text(json.dumps([entry, entry | {"serial": "2"}]))
    assert watched.value == {"1", "2"}


# ---- no unprotected port by accident -------------------------------------------------------------------------


@pytest.mark.parametrize("address", BEYOND)
def test_plaintext_beyond_loopback_needs_an_option_on_both_sides(address: str) -> None:
    with pytest.raises(ConfigError, match="insecure"):
        security_of(ServerSection(), address, EventLog())
    with pytest.raises(ConfigError, match="--insecure"):
        credentials_from(address)
    events = list[dict[str, Any]]()
    log = EventLog()
    log.listen(events.append)
    assert security_of(ServerSection(insecure=True), address, log).credentials is None
    assert "can attend under any name" in events[0].text
    assert credentials_from(address, insecure=True) is None


@pytest.mark.parametrize("address", WITHIN)
def test_loopback_needs_no_credentials(address: str) -> None:
    assert is_loopback(address)
    assert security_of(ServerSection(), address, EventLog()).credentials is None
    assert credentials_from(address) is None


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A server's folder, together with that of node `a`."""
    authority = Authority.create(tmp_path / "ca", "test")
    authority.issue_certificate(Holder(Role.NODE, "a"), YEAR)
    return authority.issue_server(["h"], YEAR)


Keys = dict[str, Any]
CONTRADICTIONS: dict[str, tuple[Callable[[Path], Keys], str]] = {
    "insecure": (lambda f: {"certs": str(f), "insecure": True}, "contradicts"),
    "plaintext with certificates": (lambda f: {"certs": str(f), "auth": "none"}, "plaintext"),
    "mtls without files": (lambda f: {"auth": "mtls"}, "server.key is missing"),
    "no such folder": (lambda f: {"certs": str(f / "x")}, r"x/revoked.json"),
    "key of another": (lambda f: {"certs": str(f), "key": str(f.parent / "nodes/a/key.pem")}, "do not belong"),
    "not a certificate": (lambda f: {"certs": str(f), "cert": str(f / "key.pem")}, "cannot be used"),
    "no list of tokens": (
        lambda f: {"auth": "token", "cert": str(f / "cert.pem"), "key": str(f / "key.pem")},
        "list of tokens",
    ),
    "damaged list": (lambda f: {"certs": str(f), "revoked": str(f / "key.pem")}, "certs init"),
}


@pytest.mark.parametrize(("keys", "said"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_settings_that_cannot_protect_the_port_end_the_server_at_once(
    made: Path, keys: Callable[[Path], Keys], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        security_of(ServerSection(**keys(made)), "127.0.0.1:0", EventLog())


def test_certificates_in_the_run_file_mean_mutual_tls(made: Path) -> None:
    security = security_of(ServerSection(certs=str(made)), "0.0.0.0:8440", EventLog())
    assert (security.mode, security.credentials is None) == ("mtls", False)


@pytest.mark.parametrize(("lifetime", "warned"), [(timedelta(days=20), True), (timedelta(days=40), False)])
def test_an_expiring_server_certificate_is_announced(made: Path, lifetime: timedelta, warned: bool) -> None:
    Authority(made.parent).issue_server(["h"], lifetime, renew=True)
    log, events = EventLog(), list[dict[str, Any]]()
    log.listen(events.append)
    security_of(ServerSection(certs=str(made)), "0.0.0.0:8440", log)
    assert [event.kind for event in events] == ["credentials"] * warned


def test_an_expired_server_certificate_ends_the_server_at_once(made: Path) -> None:
    Authority(made.parent).issue_server(["h"], timedelta(0), renew=True)
    with pytest.raises(ConfigError, match="has expired"):
        security_of(ServerSection(certs=str(made)), "0.0.0.0:8440", EventLog())


CLIENT_CONTRADICTIONS: dict[str, tuple[Callable[[Path], Keys], str]] = {
    "insecure": (lambda f: {"certs": f, "insecure": True}, "plaintext"),
    "no authority": (lambda f: {"cert": f / "cert.pem", "key": f / "key.pem"}, "--ca"),
    "no key": (lambda f: {"ca": f / "ca.pem", "cert": f / "cert.pem"}, "go together"),
    "empty folder": (lambda f: {"certs": f.parent}, "has neither"),
}


@pytest.mark.parametrize(("options", "said"), CLIENT_CONTRADICTIONS.values(), ids=CLIENT_CONTRADICTIONS)
def test_contradictory_client_options_are_refused(made: Path, options: Callable[[Path], Keys], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        credentials_from("h:1", **options(made.parent / "nodes" / "a"))


def test_a_folder_gives_the_client_its_name(made: Path) -> None:
    credentials = credentials_from("h:1", certs=made.parent / "nodes" / "a")
    assert credentials is not None
    assert credentials.holder == Holder(Role.NODE, "a")
