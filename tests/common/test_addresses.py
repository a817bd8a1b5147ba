"""Addresses are checked where they are given, for every command and key; the error names the fix."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fednc.cli.main import app
from fednc.common.address import Address, is_wildcard, parse_address, parse_host, without_secrets
from fednc.common.config.server import ServerSection
from fednc.common.errors import ConfigError

BAD = {
    "https://host:8440": "write host:8440",
    "127.0.0.1:8540/": "write 127.0.0.1:8540",
    "127.0.0.1:99999": "from 1 to 65535",
    "127.0.0.1:-1": "from 1 to 65535",
    "::1:8540": "write [::1]:8540",
    "fe80::1": "write [fe80::1]:8440",
    "[::1]": "port is missing",
    "[1.2.3.4]:80": "not an IPv6 address",
    "host": "write host:8440",
    "host:": "from 1 to 65535",
    ":8440": "not a DNS name",
    "a b:8440": "not a DNS name",
    "10.0.0.300:8440": "not an IP address",
    "unix:/tmp/socket": "HOST:PORT",
    "user@host:8440": "not a DNS name",
    "": "port is missing",
}
HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z][a-z0-9]{0,10}(\.[a-z][a-z0-9-]{0,10}[a-z0-9]){0,3}", fullmatch=True),
)


@given(host=HOSTS, port=st.integers(1, 65535))
def test_a_valid_address_is_read_back_as_it_was_written(host: str, port: int) -> None:
    address = Address(host, port)
    assert parse_address(str(address), "--server") == address
    assert parse_host(host, "--host") == host


@given(st.text(max_size=40))
def test_any_other_text_is_a_clear_error(text: str) -> None:
    problem, address = "", Address("", 0)
    try:
        address = parse_address(text, "--server")
    except ConfigError as e:
        problem = str(e)
    assert problem.startswith("--server ") or (
        1 <= address.port <= 65535 and not set(address.host) & set(" /@[]\n")
    )


@pytest.mark.parametrize("text", BAD)
def test_every_command_that_dials_refuses_it_at_once(text: str, tmp_path: Path) -> None:
    commands = (["client", "--data", "digits", "--insecure"], ["status"], ["session", "next"])
    for command in commands:
        result = CliRunner().invoke(app, [*command, "--server", text])
        assert result.exit_code == ConfigError.exit_code, result.output
        assert BAD[text] in result.output
        assert "--server" in result.output


@pytest.mark.parametrize("text", [text for text in BAD if text])
def test_a_server_refuses_to_listen_on_an_invalid_address(text: str, tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text('[task]\nclasses = ["a", "b"]\nsize = 8\nchannels = 1\n')
    result = CliRunner().invoke(app, ["server", str(run), "--folder", str(tmp_path / "r"), "--listen", text])
    assert result.exit_code == ConfigError.exit_code, result.output
    assert "--listen" in result.output
    assert not (tmp_path / "r").exists()
    with pytest.raises(ValueError, match="listen"):
        ServerSection(listen=text)


def test_a_server_may_let_the_system_choose_a_port_and_listen_everywhere() -> None:
    for text in ("127.0.0.1:0", "0.0.0.0:8440", "[::]:8440", "localhost:8440"):
        assert ServerSection(listen=text).listen == text


@pytest.mark.parametrize("host", ["host:8440", "https://host", "[::1]", "a b", "", "10.0.0.300"])
def test_a_certificate_is_made_only_for_hosts(host: str, tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["certs", "init", str(tmp_path / "ca")]).exit_code == 0
    result = runner.invoke(app, ["certs", "server", str(tmp_path / "ca"), "--host", host])
    assert result.exit_code == ConfigError.exit_code, result.output
    assert "--host" in result.output
    good = [word for name in ("fl.example.org", "10.0.0.5", "::1", "*.example.org") for word in ("--host", name)]
    assert runner.invoke(app, ["certs", "server", str(tmp_path / "ca"), *good]).exit_code == 0


SECRETS = st.from_regex(r"[A-Za-z0-9:/@?&=+!#]{4,16}[A-Z]{4}", fullmatch=True)


@given(SECRETS, st.sampled_from(["cannot open {}", "{}: no password {}", "{}"]), st.booleans())
def test_no_text_shows_the_password_of_a_storage(secret: str, said: str, quoted: bool) -> None:
    secret = secret if quoted else secret.replace("@", "").replace("?", "")
    given = quote(secret, safe="") if quoted else secret
    for url in (
        f"postgresql://mara:{given}@db.example:5432/searches",
        f"postgresql://mara@db.example/searches?password={quote(secret, safe='')}",
        f"https://mara:{given}@mlflow.example",
    ):
        text = without_secrets(said.format(url, secret), url)
        assert secret not in text
        assert given not in text
        assert "db.example" in text or "mlflow.example" in text
        assert "mara" in text, "who it was is worth knowing"


@pytest.mark.parametrize(
    "url", ["sqlite:////data/a@b/study.db", "journal:/data/x.log", "models", "http://host:5000"]
)
def test_the_address_of_a_storage_without_secrets_is_shown_as_it_is(url: str) -> None:
    assert without_secrets(url, url) == url


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]"])
def test_a_wildcard_is_no_host_to_call(host: str) -> None:
    assert is_wildcard(host)
    assert not is_wildcard("127.0.0.1")
    assert not is_wildcard("example.org")
