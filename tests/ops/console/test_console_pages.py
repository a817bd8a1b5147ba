"""What the pages say: about runs on disk, a server with many clients, hostile names, and states without a run."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fednc.ops.approvals.box import ApprovalBox, Request
from fednc.ops.console.desk import Sights
from fednc.ops.operator_client import OperatorLink
from fednc.ops.pipelines.journal import Cause, Journal
from fednc.protos import operator_pb2 as pb
from support.console_browser import RunningConsole, Visitor
from support.console_states import (
    HOSTILE,
    RUN_ID,
    FakeServer,
    operator_port,
    status_with,
    write_checkpoint,
    write_run,
    write_search,
)
from support.local_servers import make_place

ALL = (
    "/",
    "/runs",
    "/compare?run=a&run=b",
    "/client?name=site-0",
    "/models",
    "/gates",
    "/pipelines",
    "/searches",
    "/login",
)


class Found(HTMLParser):
    """The elements of a page: names and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


@contextmanager
def fake_server(status: pb.RunStatus) -> Iterator[tuple[FakeServer, str]]:
    """A server that answers operators, in a thread."""
    fake, ready, loop = FakeServer(status), threading.Event(), asyncio.new_event_loop()
    address: list[str] = []

    async def serve() -> None:
        async with operator_port(fake) as at:
            address.append(at)
            ready.set()
            await asyncio.Event().wait()

    task = loop.create_task(serve())

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield fake, address[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(20)


def until(condition: Callable[[], object], wait_s: float = 15) -> None:
    give_up = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def visitor_of(console: RunningConsole) -> Visitor:
    """Logged in, once the server has said something."""
    visitor = console.logged_in()
    until(lambda: RUN_ID in visitor.get("/").text)
    return visitor


def test_no_page_loads_anything_from_elsewhere_or_runs_text_as_script(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, rounds=5)
    box = ApprovalBox(tmp_path / "approvals")
    box.request(Request("ab" * 32, "pipeline p: model m", {"value": 0.5}))
    Journal(tmp_path / "pipelines" / "p").begin(Cause("operator", "asked"), "link", ["check", "train"], {})
    sights = Sights(
        runs=[tmp_path / "runs"],
        store=str(tmp_path / "models"),
        approvals=tmp_path / "approvals",
        pipelines=tmp_path / "pipelines",
        searches=[write_search(tmp_path / "search.db")],
    )
    with RunningConsole(sights) as console:
        visitor = console.logged_in()
        for path in ALL:
            page = visitor.get(path)
            assert page.status == 200, path
            for tag, attributes in Found(page.text).elements:
                for name in ("src", "href", "action"):
                    assert (attributes.get(name) or "/").startswith(("/", "#")), (path, tag, attributes)
                    assert not (attributes.get(name) or "").startswith("//")
                assert not [key for key in attributes if key.startswith("on") or key == "style"], (path, tag)
                assert tag != "style"
                assert tag != "script" or attributes == {"src": "/static/console.js", "defer": None}
        for name in ("console.css", "console.js", "icon.svg"):
            text = visitor.get(f"/static/{name}").text.replace("http://www.w3.org/2000/svg", "")
            assert "http:" not in text
            assert "https:" not in text


def test_names_of_clients_and_classes_are_text_and_nothing_else(tmp_path: Path) -> None:
    folder = write_run(tmp_path / RUN_ID, rounds=4, clients=[HOSTILE, "b"], classes=[HOSTILE, "cup", "mug"])
    (folder / "examples").mkdir()
    (folder / "examples" / "<b>x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    status = status_with(2, names=[HOSTILE, "b"])
    status.nodes[1].problem = HOSTILE
    status.nodes[1].device = HOSTILE
    status.method = HOSTILE
    box = ApprovalBox(tmp_path / "approvals")
    box.request(Request("ab" * 32, HOSTILE, {HOSTILE: HOSTILE, "list": [HOSTILE]}))
    with fake_server(status) as (_, address):
        sights = Sights(OperatorLink(address), runs=[tmp_path], approvals=tmp_path / "approvals")
        with RunningConsole(sights) as console:
            visitor = visitor_of(console)
            parts = json.loads(visitor.get("/live").text)["parts"]
            assert len(parts) == 7
            pages = [visitor.get(path).text for path in ("/", "/runs", f"/run?at={RUN_ID}", "/gates")]
            name = "%3Cscript%3Ealert(1)%3C%2Fscript%3E%22%27%3E%3Cimg%20src%3Dx%20onerror%3Dalert(2)%3E"
            client = visitor.get(f"/client?name={name}")
            assert client.status == 200
            for text in [*pages, client.text, *(part["html"] for part in parts.values())]:
                found = Found(text).elements
                assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)", "", text)
                assert not [tag for tag, attributes in found if tag == "script" and attributes.get("src") is None]
                assert not [tag for tag, attributes in found if "onerror" in attributes]
            missing = visitor.get("/client?name=<script>alert(1)</script>")
            assert missing.status == 404
            assert "<script>alert" not in missing.text


def test_only_the_pictures_that_a_run_has_are_given_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "one", rounds=2)
    (folder / "examples").mkdir()
    (folder / "examples" / "wrong.png").write_bytes(b"picture")
    (folder / "examples" / "page.html").write_text("<script>")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "examples" / "link.png").symlink_to(tmp_path / "secret.png")
    with RunningConsole(Sights(runs=[tmp_path / "runs"])) as console:
        visitor = console.logged_in()
        answer = visitor.get("/picture?at=one&file=examples/wrong.png")
        assert (answer.body, answer.header("content-type")) == (b"picture", "image/png")
        for file in (
            "examples/page.html",
            "../../secret.png",
            "examples/link.png",
            "events.jsonl",
            "/etc/passwd",
            "",
        ):
            assert visitor.get(f"/picture?at=one&file={file}").status == 404, file
        for run in ("..", "../runs/one", "/", "two"):
            assert visitor.get(f"/picture?at={run}&file=examples/wrong.png").status == 404, run


@pytest.mark.parametrize("clients", [0, 1, 3, 300])
def test_every_client_can_be_found(tmp_path: Path, clients: int) -> None:
    with (
        fake_server(status_with(clients)) as (_, address),
        RunningConsole(Sights(OperatorLink(address))) as console,
    ):
        visitor = visitor_of(console)
        seen: set[str] = set()
        for page in range(1, 20):
            text = visitor.get(f"/?sort=name&page={page}").text
            seen |= set(re.findall(r'class="name"><a [^>]*title="(site-\d+)"', text))
        assert seen == {f"site-{k:03d}" for k in range(clients)}
        if clients == 300:
            found = visitor.get("/?q=SITE-29").text
            assert set(re.findall(r'class="name"><a [^>]*title="(site-\d+)"', found)) == {
                f"site-29{k}" for k in range(10)
            }
            first = re.findall(r'class="name"><a [^>]*title="(site-\d+)"', visitor.get("/").text)
            assert first[:1] != ["site-000"], "those that need attention come first"
            assert len(visitor.get("/").body) < 200_000


def test_only_what_has_changed_is_sent_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", rounds=5)
    with RunningConsole(Sights(runs=[tmp_path])) as console:
        visitor = console.logged_in()
        first = json.loads(visitor.get("/live").text)["parts"]
        query = "&".join(f"{name}={part['version']}" for name, part in first.items())
        assert json.loads(visitor.get(f"/live?{query}").text)["parts"] == {}
        with (folder / "events.jsonl").open("a") as file:
            file.write(
                json.dumps({"at": 1.0, "elapsed_s": 1.0, "kind": "lost", "text": "x is lost", "node": "x"}) + "\n"
            )
        changed = json.loads(visitor.get(f"/live?{query}").text)["parts"]
        assert set(changed) == {"events"}


def test_a_run_without_a_folder_is_followed_by_what_the_server_says(tmp_path: Path) -> None:
    with (
        fake_server(status_with(3, completed=5)) as (fake, address),
        RunningConsole(Sights(OperatorLink(address), runs=[tmp_path])) as console,
    ):
        visitor = visitor_of(console)
        for completed in (6, 7):
            fake.status.completed = completed
            until(lambda wanted=completed: f"round <b>{wanted}</b>" in visitor.get("/").text)
        curves = json.loads(visitor.get("/live").text)["parts"]["curves"]["html"]
        assert {found[0] for found in re.findall(r":([567]):(87)", curves)} == {"5", "6", "7"}
        assert "Give <code>--runs DIR</code>" in visitor.get("/").text


def test_many_who_look_cost_the_server_one_stream(tmp_path: Path) -> None:
    with fake_server(status_with(3)) as (fake, address), RunningConsole(Sights(OperatorLink(address))) as console:
        visitors = [visitor_of(console) for _ in range(4)]
        before = fake.watches
        for _ in range(5):
            assert {visitor.get("/live").status for visitor in visitors} == {200}
        assert fake.watches == before


def test_a_server_that_does_not_answer_is_named_and_shown_once_it_does(tmp_path: Path) -> None:
    with RunningConsole(Sights(OperatorLink("127.0.0.1:9"))) as console:
        visitor = console.logged_in()
        until(lambda: "The server does not answer" in visitor.get("/").text)
        assert "connection refused" in visitor.get("/").text
        assert visitor.act("stop").status == 303
        assert "127.0.0.1:9" in visitor.get("/").text


def test_a_store_that_cannot_be_read_costs_no_other_page(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one", rounds=2)
    ApprovalBox(tmp_path / "approvals").request(Request("ab" * 32, "g", {}))
    (tmp_path / "approvals" / "approvals.jsonl").write_text("{}")
    (tmp_path / "search.db").write_text("no database")
    (tmp_path / "pipelines" / "p" / "runs" / "1").mkdir(parents=True)
    (tmp_path / "pipelines" / "p" / "runs" / "1" / "state.json").write_text("[]")
    sights = Sights(
        runs=[tmp_path / "runs"],
        approvals=tmp_path / "approvals",
        pipelines=tmp_path / "pipelines",
        searches=[f"sqlite:///{tmp_path / 'search.db'}"],
    )
    with RunningConsole(sights) as console:
        visitor = console.logged_in()
        assert "one" in visitor.get("/").text
        for path in ("/gates", "/pipelines", "/searches"):
            page = visitor.get(path)
            assert page.status == 200
            assert re.search("cannot be (used|read)", page.text), path


def test_states_without_a_run_say_what_to_do(tmp_path: Path) -> None:
    with RunningConsole(Sights(runs=[tmp_path / "runs"])) as console:
        visitor = console.logged_in()
        assert "No run yet" in visitor.get("/").text
        assert json.loads(visitor.get("/live").text) == {"parts": {}, "reload": False}
        write_run(tmp_path / "runs" / "first", rounds=0)
        until(lambda: json.loads(visitor.get("/live").text)["reload"])
        assert "No round is complete yet" in visitor.get("/").text
    with RunningConsole(Sights()) as console:
        assert "started without a server" in console.logged_in().get("/").text


def test_a_damaged_or_failed_run_is_shown_as_such(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "broken", rounds=2)
    (folder / "events.jsonl").open("a").write(
        '{"kind": "round", "round": "x", "test": [1], "spread": 7}\nnot json\n{"kin'
    )
    (folder / "rounds.json").write_text("{")
    write_run(tmp_path / "failed", rounds=0, clients=[])
    with RunningConsole(Sights(runs=[tmp_path])) as console:
        text = console.logged_in().get("/runs").text
        assert "damaged" in text
        assert "failed" in text
        for name in ("broken", "failed"):
            assert console.logged_in().get(f"/run?at={name}").status == 200


def test_runs_side_by_side(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, rounds=6, done=True)
    write_checkpoint(tmp_path / "b", 7, ["mug", "cup"], total=77)
    with RunningConsole(Sights(runs=[tmp_path])) as console:
        visitor = console.logged_in()
        text = visitor.get("/compare?run=a&run=b").text
        assert "rounds.total" in text
        assert "77" in text
        assert "Choose two" in visitor.get("/compare?run=a&run=../a").text


def test_a_search_shows_its_trials_and_the_best_first(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    url = write_search(tmp_path / "search.db", trials=12)
    with RunningConsole(Sights(searches=[url, f"sqlite:///{tmp_path / 'none.db'}"])) as console:
        assert "there is no study" in console.logged_in().get("/searches").text
    with RunningConsole(Sights(searches=[url])) as console:
        text = console.logged_in().get("/searches").text
        assert len(re.findall("<tr>", text)) == 13
        rows = re.findall(r"<tr>\s*<td class=\"num\">(.*?)</td>.*?<td class=\"num\">([^<]*)</td>", text, re.S)
        shown = [float(value) for _, value in rows if value != "–"]
        assert shown == sorted(shown, reverse=True)
        assert "★" in rows[0][0]
        assert "<script>alert" not in text


# ---- the gate ---------------------------------------------------------------------------------------------------


def test_a_verdict_is_about_the_digest_that_was_shown_and_signed_for_the_login(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    box = ApprovalBox(tmp_path / "approvals")
    box.request(Request("ab" * 32, "pipeline p: model m", {"value": 0.5}, signed=True))
    (tmp_path / "runs").mkdir()
    sights = Sights(runs=[tmp_path / "runs"], approvals=box.folder, signing=place.authority.server_folder)
    with RunningConsole(sights) as console:
        visitor = console.logged_in()
        page = visitor.get("/gates").text
        assert "ab" * 32 in page
        (shown,) = re.findall(r'name="request" value="([0-9a-f]+)"', page)
        csrf = visitor.get("/").csrf
        fields = {"subject": "pipeline p: model m", "verdict": "approved"}
        for wrong in ({"request": shown, "digest": "cd" * 32}, {"request": "0" * 64, "digest": "ab" * 32}):
            assert visitor.post("/decide", csrf=csrf, **fields, **wrong).status == 303
            assert box.verdict("ab" * 32) is None
        box.request(Request("ef" * 32, "pipeline p: model m", {"value": 0.6}, signed=True))  # newer than the page
        visitor.post("/decide", csrf=csrf, **fields, request=shown, digest="ab" * 32)
        assert "does not wait for a verdict any more" in visitor.get("/").text
        assert box.verdicts() == []

        until(lambda: "ef" * 32 in visitor.get("/gates").text)
        (shown,) = re.findall(r'name="request" value="([0-9a-f]+)"', visitor.get("/gates").text)
        visitor.post("/decide", csrf=csrf, **fields, request=shown, digest="ef" * 32, reason="seen it")
        (given,) = box.verdicts()
        assert (given.digest, given.verdict, given.how, given.reason) == (
            "ef" * 32,
            "approved",
            "console",
            "seen it",
        )
        assert given.who in given.signed
        assert given.signed.startswith("server for")
        given.check_alone()


def test_a_rejection_needs_a_reason(tmp_path: Path) -> None:
    box = ApprovalBox(tmp_path / "approvals")
    box.request(Request("ab" * 32, "g", {}))
    with RunningConsole(Sights(approvals=box.folder)) as console:
        visitor = console.logged_in()
        (shown,) = re.findall(r'name="request" value="([0-9a-f]+)"', visitor.get("/gates").text)
        fields = {
            "csrf": visitor.get("/").csrf,
            "request": shown,
            "digest": "ab" * 32,
            "subject": "g",
            "verdict": "rejected",
        }
        visitor.post("/decide", **fields)
        assert "reason" in visitor.get("/gates").text
        assert box.verdicts() == []
        visitor.post("/decide", **fields, reason="worse")
        assert [v.verdict for v in box.verdicts()] == ["rejected"]
        assert box.verdicts()[0].signed == "unsigned"
