"""Text from others is one line wherever it is shown; files and connections of strangers are limited."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import socket
import stat
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from fednc.cli import output
from fednc.client.link import resource_limits
from fednc.client.link.resource_limits import DownloadBounds, DownloadTooLargeError, OutOfReserveError
from fednc.common.errors import ConfigError, DataError, ProtocolError
from fednc.common.files import private_folder, write_atomically
from fednc.common.peer_text import markdown_code, markdown_text, one_line
from fednc.common.process.log_format import OneLineFormatter
from fednc.common.tasks.data_spec import parse_spec
from fednc.common.wire import failure_reasons
from fednc.server.storage.event_log import EventLog, NodeEvents, older_first
from fednc.server.storage.events import DataNote, NodePaused, NodeUnfit, RunResumed
from fednc.tasks.vision.sources import files
from fednc.tasks.vision.sources.arrays import load_arrays

NASTY = ["a\nb", "\x1b[2J", "\x9b2J", "[link=file:///x]y[/link]", "[/x]", "\u202egpj", "\u2028x", "\ud800", "\r\t"]
ANY = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=()), max_size=60))


@contextlib.contextmanager
def shown(*, terminal: bool):
    """What the block prints to the console that all commands share."""
    file, before = io.StringIO(), output.console
    output.console = Console(
        file=file, highlight=False, emoji=False, width=200, force_terminal=terminal, color_system=None
    )
    try:
        yield file
    finally:
        output.console = before


@given(ANY)
def test_any_text_becomes_one_line_and_plain_text_stays_the_same(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert line == text or not text.isprintable()
    assert len(one_line(text, 10)) <= 10


@given(ANY, st.booleans())
def test_a_line_and_an_error_show_any_text_in_one_line_each(text: str, terminal: bool) -> None:
    with shown(terminal=terminal) as file:
        output.say(f"<{text}>")
    assert file.getvalue() == f"<{one_line(text)}>\n"
    with shown(terminal=terminal) as file:
        output.say_error(DataError(text))
    first, *more = file.getvalue().split("\n")[:-1]
    assert first.startswith("error: ")
    assert all(line.startswith("  ") and line.isprintable() for line in more)


@given(ANY, ANY, st.booleans())
def test_a_table_shows_any_cell_and_title_as_text(title: str, cell: str, terminal: bool) -> None:
    with shown(terminal=terminal) as file:
        output.show_table(title, ["name"], [[cell], ["end"]])
    written = file.getvalue()
    assert written.replace("\n", "").isprintable()
    if cell in ("[/x]", "[link=file:///x]y[/link]"):
        assert cell in written, "it was read as markup"


@given(ANY)
def test_json_for_programs_holds_no_control_characters_and_the_same_text(text: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as file:
        output.write_json("-", {text: [text]})
    assert file.getvalue().replace("\n", "").isprintable()
    assert json.loads(file.getvalue()) == {text: [text]}


@given(ANY)
def test_the_log_has_one_line_per_record_and_marks_those_of_a_traceback(text: str) -> None:
    form = OneLineFormatter("%(message)s")
    record = logging.LogRecord("x", logging.INFO, "f", 1, "said: %s", (text,), None)
    assert form.format(record) == f"said: {one_line(text)}"
    try:
        raise ValueError(text)
    except ValueError:
        record.exc_info = sys.exc_info()
    _, *more = form.format(record).split("\n")
    assert more
    assert all(line.startswith("    | ") and line.isprintable() for line in more)


@given(ANY)
def test_an_event_is_one_line_for_people(text: str) -> None:
    log, heard = EventLog(), []
    log.listen(heard.append)
    log.emit(DataNote(text=f"from a: {text}"))
    assert heard[0].text == f"from a: {one_line(text)}"


@given(ANY, st.sampled_from([DataError, ConfigError, ProtocolError, OSError, MemoryError, ValueError]))
def test_only_the_code_of_an_error_travels(text: str, kind: type[Exception]) -> None:
    error = kind(f"/home/ann/hiv-positive{text}")
    code, sentence = failure_reasons.failure_of(error)
    assert failure_reasons.SENTENCES[code] == sentence
    assert failure_reasons.refusal_of(error) == f"{code}: {sentence}"
    name, sentence = failure_reasons.failure_of(error, foreign=text or "KeyError")
    assert name.isidentifier()
    assert sentence == failure_reasons.SENTENCES["app-failed"]


def test_events_are_bounded_by_bytes_and_the_newest_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, file_mib=1, kept_files=2)
    for number in range(60):
        log.emit(RunResumed(text="x" * 100_000, round=number))
    log.close()
    files = [file for file in [*older_first(path, 2), path] if file.exists()]
    assert {file.name for file in tmp_path.iterdir()} == {"events.jsonl", "events.jsonl.1", "events.jsonl.2"}
    assert all(file.stat().st_size <= 1 << 20 for file in files)
    numbers = [json.loads(line)["round"] for file in files for line in file.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 60))
    assert len(numbers) > 20


def test_long_events_of_a_node_count_as_several() -> None:
    log, heard = EventLog(), []
    log.listen(heard.append)
    restrained = NodeEvents(log, at_once=20, per_s=0)
    for _ in range(50):
        restrained.emit(NodeUnfit(text="x" * 4000, node="a", problem=""))
        restrained.emit(NodePaused(text="b is paused", node="b"))
    assert sum(len(event.text) for event in heard if event.node == "a") < 20 * 512 + 4000
    assert sum(event.node == "b" for event in heard) == 20


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_folders_and_files_of_a_run(umask: int, tmp_path: Path) -> None:
    import os

    before = os.umask(umask)
    try:
        private_folder(tmp_path / "runs" / "a")
        write_atomically(tmp_path / "runs" / "a" / "x", b"1")
        EventLog(tmp_path / "runs" / "a" / "events.jsonl").close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "runs" / "a").stat().st_mode) == 0o700
    for file in (tmp_path / "runs" / "a").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_download_is_refused_by_its_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_limits, "free_bytes", lambda: {"memory": 3 << 30})
    DownloadBounds(max_gib=4, min_free_gib=1).admit(2 << 30)
    with pytest.raises(OutOfReserveError, match="--min-free-gib"):
        DownloadBounds(max_gib=4, min_free_gib=1).admit((2 << 30) + 1)
    with pytest.raises(DownloadTooLargeError, match="--max-download-gib"):
        DownloadBounds(max_gib=1).admit((1 << 30) + 1)


def test_an_npz_that_unpacks_to_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x_train.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "|u1", "fortran_order": False, "shape": (200 << 20,)}
        )
        for _ in range(200):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match="would take 200 MiB"):
        load_arrays(parse_spec(f"npz:{path}"))
    lies = tmp_path / "lies.npz"
    with zipfile.ZipFile(lies, "w") as archive, archive.open("x_train.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    with pytest.raises(DataError, match="would take"):
        load_arrays(parse_spec(f"npz:{lies}"))
    np.savez_compressed(tmp_path / "fine.npz", x_train=np.zeros((1000, 8, 8), np.uint8))
    assert load_arrays(parse_spec(f"npz:{tmp_path / 'fine.npz'}"))["x_train"].shape == (1000, 8, 8)


def test_postscript_is_refused_under_any_suffix(tmp_path: Path) -> None:
    place = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(place, format="EPS")
    with pytest.raises(OSError, match="cannot identify"):
        files.open_image(place)


def test_the_metrics_port_serves_few_at_once_and_each_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    import time
    from wsgiref.simple_server import make_server

    from prometheus_client import CollectorRegistry, make_wsgi_app

    from fednc.server.operations import scrape_server

    monkeypatch.setattr(scrape_server, "CONNECTION_S", 1.0)
    server = make_server(
        "127.0.0.1", 0, make_wsgi_app(CollectorRegistry()), scrape_server.BoundedServer, scrape_server.QuietHandler
    )
    serving = threading.Thread(target=server.serve_forever, args=(0.05,))
    serving.start()
    threads = threading.active_count()
    try:
        held = [socket.create_connection(server.server_address) for _ in range(40)]
        time.sleep(0.4)
        # a thread and a timer for each connection that is served
        assert threading.active_count() - threads <= 2 * scrape_server.MOST_CONNECTIONS
        for end in held:
            end.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert end.recv(1) == b"", "it was not closed"
            end.close()
        time.sleep(0.2)
        with socket.create_connection(server.server_address, 5) as scraper:
            scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert scraper.recv(100).startswith(b"HTTP/1.0 200")
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


MARKUP = st.one_of(ANY, st.text(st.sampled_from("`*_[](){}<>#|~$&@!:/.\\\\\n\t +-=19)wax\"'"), max_size=40))
RENDERER = MarkdownIt("js-default", {"html": True, "linkify": False})


@given(MARKUP)
def test_text_in_markdown_is_that_text_and_nothing_else(text: str) -> None:
    line = one_line(text).strip()
    inline = [one for block in RENDERER.parse(markdown_text(text)) for one in block.children or []]
    assert {one.type for one in inline} <= {"text"}
    assert "".join(one.content for one in inline) == line
    for before in ("* ", "# ", "It is `weak`: "):
        found = [one for block in RENDERER.parse(before + markdown_text(text)) for one in block.children or []]
        assert {one.type for one in found} <= {"text", "code_inline"}
        assert "".join(one.content for one in found).endswith(line)


@given(MARKUP, MARKUP)
def test_a_cell_of_a_markdown_table_stays_one_cell(first: str, second: str) -> None:
    table = f"| a | b |\n|---|---|\n| {markdown_text(first)} | {markdown_text(second)} |"
    cells = [block.children or [] for block in RENDERER.parse(table) if block.type == "inline"]
    assert {one.type for cell in cells for one in cell} <= {"text"}
    shown = ["".join(one.content for one in cell) for cell in cells]
    assert shown == ["a", "b", one_line(first).strip(), one_line(second).strip()]


@given(MARKUP)
def test_code_in_markdown_ends_where_the_text_ends(text: str) -> None:
    (block,) = [one for one in RENDERER.parse(f"so {markdown_code(text)} it") if one.type == "inline"]
    first, code, last = block.children or []
    assert (first.content, code.type, last.content) == ("so ", "code_inline", " it")
    assert code.content.strip() == one_line(text).strip()
