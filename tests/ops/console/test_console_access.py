"""Who may open the console, and what strangers, other sites and viewers cannot do."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fednc.common.address import Address
from fednc.common.errors import ConfigError
from fednc.common.security.credentials import Role
from fednc.ops.console import logins, routes
from fednc.ops.console.desk import Sights
from fednc.ops.console.guard import POLICY
from fednc.ops.console.logins import ByKey, LoginRefused, Logins
from fednc.server.access.identity import Caller
from support.console_browser import RunningConsole, Visitor
from support.console_states import write_run
from support.local_servers import Place, make_place

PAGES = (
    "/",
    "/run",
    "/runs",
    "/compare",
    "/client?name=a",
    "/picture?at=x&file=y",
    "/models",
    "/gates",
    "/pipelines",
)
FORMS = ("/act", "/decide", "/logout")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "one", rounds=3)
    return folder


@pytest.fixture(scope="module")
def console(runs: Path) -> Iterator[RunningConsole]:
    with RunningConsole(Sights(runs=[runs])) as running:
        yield running


@pytest.mark.parametrize("path", PAGES)
def test_without_a_login_every_page_leads_to_it(console: RunningConsole, path: str) -> None:
    answer = console.visitor().get(path)
    assert answer.status == 303
    assert answer.header("location").startswith("/login")
    assert answer.body == b""


def test_without_a_login_there_are_no_parts_and_no_actions(console: RunningConsole) -> None:
    stranger = console.visitor()
    assert stranger.get("/live").status == 401
    assert {stranger.post(path, csrf="x", action="stop").status for path in FORMS} == {401}


def test_the_key_logs_in_and_another_does_not(console: RunningConsole) -> None:
    stranger = console.visitor()
    assert stranger.log_in("wrong").status == 403
    assert stranger.get("/").status == 303
    friend = console.logged_in()
    assert "one" in friend.get("/").text
    friend.post("/logout", csrf=friend.get("/").csrf)
    assert friend.get("/").status == 303


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(console: RunningConsole) -> None:
    visitor = console.visitor()
    answer = visitor.log_in(console.key)
    cookie, _ = [v for k, v in answer.headers if k.lower() == "set-cookie" and v.startswith("fednc_console_")]
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}


def test_two_consoles_on_one_machine_do_not_log_each_other_out(console: RunningConsole, runs: Path) -> None:
    with RunningConsole(Sights(runs=[runs])) as second:
        one, other = console.logged_in(), second.visitor()
        other.cookies = one.cookies  # browsers send cookies to every port of a host
        assert other.log_in(second.key).status == 303
        assert (one.get("/").status, other.get("/").status) == (200, 200)


def test_the_link_of_a_console_that_listens_everywhere_can_be_opened(runs: Path) -> None:
    with RunningConsole(Sights(runs=[runs]), listen=Address("0.0.0.0", 0), insecure=True) as everywhere:
        assert everywhere.address.startswith("http://localhost:")
        assert everywhere.logged_in().get("/").status == 200


def test_a_form_that_does_not_arrive_is_not_waited_for(
    console: RunningConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_FORM_S", 0.2)
    place = console.address.removeprefix("http://")
    with socket.create_connection(tuple(place.split(":")), timeout=10) as slow:
        head = f"POST /login HTTP/1.1\r\nHost: {place}\r\nContent-Length: 9\r\n"
        slow.sendall(f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\ncsrf".encode())
        with slow.makefile("rb") as answer:
            assert b" 408 " in answer.readline()
            answer.read()  # until the console closes the connection


@pytest.mark.parametrize(
    "path", ["/login", "/", "/runs", "/live", "/static/console.css", "/nowhere", "/static/../x"]
)
def test_every_answer_carries_the_policy(console: RunningConsole, path: str) -> None:
    for visitor in (console.visitor(), console.logged_in()):
        answer = visitor.get(path)
        assert answer.header("content-security-policy") == POLICY
        assert answer.header("x-content-type-options") == "nosniff"
        assert answer.header("x-frame-options") == "DENY"
    assert "unsafe" not in POLICY
    assert "http" not in POLICY


def test_a_form_without_the_sessions_own_value_is_refused(console: RunningConsole) -> None:
    one, other = console.logged_in(), console.logged_in()
    for path in FORMS:
        for value in ("", "x" * 43, other.get("/").csrf):
            assert one.post(path, csrf=value, action="pause").status == 403
    assert one.get("/").status == 200, "it was not logged out either"


def test_a_login_form_of_another_site_is_refused(console: RunningConsole) -> None:
    visitor = console.visitor()
    assert visitor.post("/login", csrf="", secret=console.key).status == 403
    assert visitor.post("/login", csrf="guessed", secret=console.key).status == 403
    form = visitor.get("/login")
    foreign = {"header_origin": "https://evil.example"}
    assert visitor.post("/login", csrf=form.csrf, secret=console.key, **foreign).status == 403
    cross = {"header_sec_fetch_site": "cross-site"}
    assert visitor.post("/login", csrf=form.csrf, secret=console.key, **cross).status == 403
    own = {"header_origin": console.address, "header_sec_fetch_site": "same-origin"}
    assert visitor.post("/login", csrf=form.csrf, secret=console.key, **own).status == 303


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "",
        "[::1",
        "a@b",
        "localhost:x",
        "localhost:99999",
    ],
)
def test_a_name_that_was_pointed_at_us_is_refused(console: RunningConsole, host: str) -> None:
    assert console.logged_in().get("/", host=host).status == 421


@pytest.mark.parametrize(
    "place", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/\tx", "\\x"]
)
def test_a_login_leads_nowhere_else(console: RunningConsole, place: str) -> None:
    answer = console.visitor().log_in(console.key, next=place)
    assert answer.header("location") == "/"


def test_failed_logins_are_slowed_down_for_their_sender_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entrance = ByKey(read_only=False)
    doors = Logins(entrance)
    guess, right = (Caller("10.0.0.1", authorization=f"Bearer {text}") for text in ("guess", entrance.key))
    for _ in range(5):
        with pytest.raises(LoginRefused):
            doors.log_in(guess)
    with pytest.raises(logins.TooManyLogins):
        doors.log_in(right)  # even the right key
    assert doors.log_in(Caller("10.0.0.2", authorization=right.authorization))
    later = time.monotonic() + 61
    monkeypatch.setattr(logins, "_now", lambda: later)
    assert doors.log_in(right)


def test_one_machine_of_ipv6_cannot_guess_from_all_its_addresses() -> None:
    doors = Logins(ByKey(read_only=False))
    for k in range(5):
        with pytest.raises(LoginRefused):
            doors.log_in(Caller(f"2001:db8::{k + 1:x}", authorization="Bearer x"))
    with pytest.raises(logins.TooManyLogins):
        doors.log_in(Caller("2001:db8::ffff", authorization="Bearer x"))


@pytest.mark.parametrize("prefix", ["", "::ffff:"])
def test_addresses_of_ipv4_are_told_apart_however_a_port_names_them(prefix: str) -> None:
    entrance = ByKey(read_only=False)
    doors = Logins(entrance)
    for _ in range(5):
        with pytest.raises(LoginRefused):
            doors.log_in(Caller(f"{prefix}10.0.0.1", authorization="Bearer x"))
    right = f"Bearer {entrance.key}"
    for same in ("10.0.0.1", "::ffff:10.0.0.1"):
        with pytest.raises(logins.TooManyLogins):
            doors.log_in(Caller(same, authorization=right))
    assert doors.log_in(Caller(f"{prefix}10.0.0.2", authorization=right))


def test_a_login_ends_when_nobody_uses_it(console: RunningConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = console.logged_in()
    begun = time.monotonic()
    monkeypatch.setattr(logins, "_now", lambda: begun + logins.IDLE_S * 0.9)
    assert visitor.get("/live").status == 200  # refreshing is no use
    monkeypatch.setattr(logins, "_now", lambda: begun + logins.IDLE_S * 1.1)
    assert visitor.get("/live").status == 401


def test_a_read_only_console_refuses_actions_of_its_own_operator(runs: Path) -> None:
    with RunningConsole(Sights(runs=[runs]), read_only=True) as console:
        visitor = console.logged_in()
        assert "read-only" in visitor.get("/").text
        assert visitor.act("stop").status == 403
        assert visitor.post("/decide", csrf=visitor.get("/").csrf, verdict="approved").status == 403


def test_forms_that_are_too_large_or_no_forms_are_refused(console: RunningConsole) -> None:
    visitor = console.logged_in()
    csrf = visitor.get("/").csrf
    assert visitor.post("/act", csrf=csrf, action="x" * 20_000).status == 403
    assert visitor.ask("POST", "/act", f"csrf={csrf}", Content_Type="text/plain").status == 403
    assert visitor.ask("POST", "/act", "&".join(f"a{k}=1" for k in range(50)) + f"&csrf={csrf}").status == 403


# ---- with certificates -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def trusting(place: Place, folder: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(place.authority.server_folder / "ca.pem"))
    if folder:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def secret_of(place: Place, name: str, role: Role) -> str:
    token = place.token(name, role).token
    assert token is not None
    return token.read_text()


def test_tokens_and_certificates_of_operators_and_viewers_log_in_and_those_of_nodes_do_not(
    place: Place, runs: Path
) -> None:
    with RunningConsole(Sights(runs=[runs]), access=place.authority.server_folder) as console:
        assert console.address.startswith("https://")
        assert console.key == ""
        operator, viewer, node = (Visitor(console.address, trusting(place)) for _ in range(3))
        assert operator.log_in(secret_of(place, "mara", Role.OPERATOR)).status == 303
        assert viewer.log_in(secret_of(place, "guest", Role.VIEWER)).status == 303
        assert node.log_in(secret_of(place, "edge", Role.NODE)).status == 403
        assert "read-only" not in operator.get("/").text
        assert "read-only" in viewer.get("/").text
        assert viewer.act("stop").status == 403
        assert viewer.post("/decide", csrf=viewer.get("/").csrf, verdict="approved").status == 403
        assert all(name.startswith("__Host-") for name in operator.cookies)
        assert "max-age" in operator.get("/").header("strict-transport-security")

        cert = place.certificate("ida", Role.OPERATOR).cert
        assert cert is not None
        by_certificate = Visitor(console.address, trusting(place, cert.parent))
        assert "operator &#39;ida&#39;" in by_certificate.get("/login").text
        assert by_certificate.log_in().status == 303
        assert "ida" in by_certificate.get("/").text

        place.authority.revoke("ida")
        place.authority.revoke("mara")
        assert by_certificate.get("/").status == 303, "a revoked credential ends its sessions"
        assert operator.get("/").status == 303
        assert viewer.get("/").status == 200


def test_a_certificate_of_a_stranger_is_not_even_heard(place: Place, runs: Path, tmp_path: Path) -> None:
    other = make_place(tmp_path / "other")
    cert = other.certificate("mara", Role.OPERATOR).cert
    assert cert is not None
    with RunningConsole(Sights(runs=[runs]), access=place.authority.server_folder) as console:
        visitor = Visitor(console.address, trusting(place, cert.parent))
        with pytest.raises(OSError):  # noqa: PT011  (an alert or a reset, by timing)
            visitor.get("/login")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7"])
def test_plaintext_beyond_this_machine_must_be_asked_for(runs: Path, host: str) -> None:
    with (
        pytest.raises(ConfigError, match="--access DIR"),
        RunningConsole(Sights(runs=[runs]), listen=Address(host, 0)),
    ):
        pass


def test_insecure_and_certificates_contradict_each_other(place: Place, runs: Path) -> None:
    folder = place.authority.server_folder
    with (
        pytest.raises(ConfigError, match="contradicts"),
        RunningConsole(Sights(runs=[runs]), access=folder, insecure=True),
    ):
        pass
