"""The console's addresses: pages, the parts that a page refreshes, forms. On Starlette, which Flower brings.

Every page but the login needs a session, every form its session's CSRF value, and every action an operator.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from fednc.common.errors import FedncError
from fednc.common.peer_text import one_line
from fednc.ops.console.desk import ConsoleDesk, GateAnswer
from fednc.ops.console.logins import ByCredential, LoginRefused, Logins, Session, TooManyLogins
from fednc.ops.console.pages import fill
from fednc.ops.console.run_view import SORTS, ShownRun
from fednc.ops.console.shelf import PICTURES, pictures_of
from fednc.ops.registry.versions import VersionRow
from fednc.ops.run_folders.compare import differing_keys, labels
from fednc.ops.web.http_protocol import CERTIFICATE
from fednc.server.access.identity import Caller

log = logging.getLogger("fednc.console")
_STATIC = Path(__file__).parent / "static"
_ASSETS = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
REFRESH = "fednc-refresh"  # a header that our script sends
_FORM_BYTES = 16 * 1024
_PICTURE_BYTES = 32 << 20
_MOST_COMPARED, _MOST_DRAWN = 12, 24
PARTS = ("head", "controls", "numbers", "curves", "clients", "geometry", "events")
Handler = Callable[[Request, Session], Awaitable[Response]]


@dataclass
class Console:
    """The pages of one desk."""

    desk: ConsoleDesk
    logins: Logins
    tls: bool = False
    _drawn: dict[tuple[str, str], tuple[object, Markup]] = field(default_factory=dict)

    def app(self) -> Starlette:
        """The ASGI application."""
        pages = {
            "/": self.run,
            "/run": self.run,
            "/live": self.live,
            "/runs": self.runs,
            "/compare": self.compare,
            "/client": self.client,
            "/picture": self.picture,
            "/models": self.models,
            "/gates": self.gates,
            "/pipelines": self.pipelines,
            "/searches": self.searches,
        }
        forms = {"/act": self.act, "/decide": self.decide, "/logout": self.logout}
        return Starlette(
            routes=[
                Route("/login", self.login_page, methods=["GET"]),
                Route("/login", self.login, methods=["POST"]),
                Route("/static/{name}", asset, methods=["GET"]),
                *(Route(path, self._page(answer), methods=["GET"]) for path, answer in pages.items()),
                *(Route(path, self._form(answer), methods=["POST"]) for path, answer in forms.items()),
            ],
            exception_handlers={404: not_found, 405: not_found, 500: failed},
        )

    # ---- who ----------------------------------------------------------------------------------------------------

    def _page(self, answer: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            session = self._session(request)
            if session is None:
                if request.url.path == "/live":
                    return PlainTextResponse("log in again", 401)
                return RedirectResponse(f"/login?{_next_of(request)}", 303)
            if self.desk.watch is not None:
                self.desk.watch.look()
            return await answer(request, session)

        return guarded

    def _form(self, answer: Callable[[Request, Session, Mapping[str, str]], Awaitable[Response]]) -> Any:
        async def guarded(request: Request) -> Response:
            session = self._session(request)
            if session is None:
                return PlainTextResponse("log in first", 401)
            form = await _form_of(request)
            if form is None or not session.is_form_of(form.get("csrf", "")):
                log.warning("a form without its session's CSRF value was refused (%s)", session.name)
                return PlainTextResponse("this form is not from a page of this session: load the page again", 403)
            return await answer(request, session, form)

        return guarded

    @property
    def _cookie(self) -> str:
        return "__Host-fednc" if self.tls else "fednc_console"

    def _session(self, request: Request) -> Session | None:
        session = self.logins.find(request.cookies.get(self._cookie, ""))
        if session is not None and not _is_refresh(request):  # refreshing alone keeps nobody logged in
            session.touch()
        return session

    async def login_page(self, request: Request) -> Response:
        """The form."""
        return self._login_form(request, "")

    def _login_form(self, request: Request, problem: str, status: int = 200, wait_s: float = 0.0) -> Response:
        value = secrets.token_urlsafe(32)
        holder = _certificate_name(request)
        html = fill(
            "login.html",
            {
                "csrf": value,
                "problem": problem,
                "wanted": self.logins.entrance.wanted,
                "certificate": holder,
                "next": _local_path(request.query_params.get("next", "")),
                "offers_certificate": isinstance(self.logins.entrance, ByCredential),
            },
        )
        answer = HTMLResponse(html, status)
        if wait_s:
            answer.headers["retry-after"] = str(max(1, round(wait_s)))
        self._set_cookie(answer, f"{self._cookie}_form", value)
        return answer

    def _set_cookie(self, answer: Response, name: str, value: str) -> None:
        answer.set_cookie(name, value, httponly=True, samesite="strict", secure=self.tls, path="/")

    async def login(self, request: Request) -> Response:
        """Check a login, and begin a session."""
        form = await _form_of(request)
        sent = request.cookies.get(f"{self._cookie}_form", "")
        if form is None or not sent or not hmac.compare_digest(form.get("csrf", "").encode(), sent.encode()):
            return self._login_form(request, "that form was too old: try again", 403)
        given = form.get("secret", "").strip()
        peer = request.client.host if request.client else "?"
        certificate = request.scope.get(CERTIFICATE, b"")
        if not given and not certificate:
            return self._login_form(request, f"give the {self.logins.entrance.wanted}", 403)
        try:
            secret = self.logins.log_in(Caller(peer, certificate, f"Bearer {given}" if given else ""))
        except TooManyLogins as e:
            return self._login_form(request, str(e), 429, e.wait_s)
        except LoginRefused as e:
            return self._login_form(request, str(e), 403)
        answer = RedirectResponse(_local_path(form.get("next", "")) or "/", 303)
        self._set_cookie(answer, self._cookie, secret)
        answer.delete_cookie(f"{self._cookie}_form", path="/", secure=self.tls, httponly=True, samesite="strict")
        return answer

    async def logout(self, request: Request, session: Session, form: Mapping[str, str]) -> Response:
        """End the session."""
        del session, form
        self.logins.log_out(request.cookies.get(self._cookie, ""))
        return RedirectResponse("/login", 303)

    # ---- pages --------------------------------------------------------------------------------------------------

    async def _filled(self, request: Request, session: Session, template: str, **values: Any) -> HTMLResponse:
        notes: list[tuple[str, str]] = []
        if not _is_refresh(request):
            notes, session.notes = session.notes, []
        waiting = len((await self.desk.gates.get()).pending)
        common = self._common(request, session)
        return HTMLResponse(fill(template, {**common, "notes": notes, "waiting": waiting, **values}))

    def _common(self, request: Request, session: Session) -> dict[str, Any]:
        return {
            "who": session.name,
            "may_act": self.logins.may_act(session),
            "csrf": session.csrf,
            "path": request.url.path,
            "sections": self._sections(),
        }

    def _sections(self) -> list[tuple[str, str]]:
        """(address, label) of each page that has something to show."""
        sights = self.desk.sights
        return [
            ("/", "Run"),
            *([("/runs", "Runs")] if sights.runs else []),
            *([("/models", "Models")] if sights.store else []),
            *([("/gates", "Gates")] if sights.approvals else []),
            *([("/pipelines", "Pipelines")] if sights.pipelines else []),
            *([("/searches", "Searches")] if sights.searches else []),
        ]

    async def run(self, request: Request, session: Session) -> Response:
        """The page of one run."""
        at = request.query_params.get("at", "")
        async with self.desk.run(at) as view:
            if view is None and at:
                return await self._missing(request, session, f"no run {at[:80]!r} in the folders of this console")
            if view is None or (view.is_live and view.status is None):
                return await self._filled(request, session, "empty.html", view=view, runs=self.desk.sights.runs)
            values = self._run_values(request, session, view)
            parts = {name: self._part(name, values) for name in PARTS}
        versions = {name: _version(html) for name, html in parts.items()}
        return await self._filled(request, session, "run.html", **values, parts=parts, versions=versions)

    def _run_values(self, request: Request, session: Session, view: ShownRun) -> dict[str, Any]:
        asked = request.query_params
        clients = view.client_list(asked.get("sort", ""), asked.get("q", ""), _whole(asked.get("page", "1")))
        return {
            **self._common(request, session),
            "view": view,
            "clients": clients,
            "sorts": SORTS,
            "at": asked.get("at", ""),
            "only_warnings": asked.get("events") == "warnings",
            "pictures": pictures_of(view.folder) if view.folder else [],
        }

    def _part(self, name: str, values: dict[str, Any]) -> Markup:
        """One part of a run's page. Curves are drawn once for each round, however many look at them."""
        view: ShownRun = values["view"]
        if name not in ("curves", "geometry"):
            return Markup(fill(f"parts/{name}.html", values))
        snapshots = (view.geometry.version, view.geometry.why_not) if view.geometry else None
        state = (id(view.log), view.log.version, snapshots, view.planned, view.completed, *values["pictures"])
        kept = self._drawn.get((name, view.ref))
        if kept is None or kept[0] != state:
            kept = self._drawn[name, view.ref] = (state, Markup(fill(f"parts/{name}.html", values)))
            while len(self._drawn) > _MOST_DRAWN:
                del self._drawn[next(iter(self._drawn))]
        return kept[1]

    async def live(self, request: Request, session: Session) -> Response:
        """The parts of a run's page that have changed: `?head=VERSION&...` says which the page has."""
        shown = request.query_params
        has_parts = any(shown.get(name) for name in PARTS)
        async with self.desk.run(shown.get("at", "")) as view:
            if view is None or (view.is_live and view.status is None):
                return JSONResponse({"parts": {}, "reload": has_parts})
            values = self._run_values(request, session, view)
            parts = {name: self._part(name, values) for name in PARTS}
        found = {name: {"version": _version(html), "html": html} for name, html in parts.items()}
        news = {name: part for name, part in found.items() if shown.get(name) != part["version"]}
        return JSONResponse({"parts": news, "reload": not has_parts})

    async def client(self, request: Request, session: Session) -> Response:
        """One client."""
        name, at = request.query_params.get("name", ""), request.query_params.get("at", "")
        async with self.desk.run(at) as view:
            row = view.client(name) if view else None
            if view is None or row is None:
                return await self._missing(request, session, f"no client {name[:80]!r} in this run")
            metrics = view.log.client_metrics.get(name, {})
            return await self._filled(request, session, "client.html", view=view, row=row, metrics=metrics, at=at)

    async def runs(self, request: Request, session: Session) -> Response:
        """All runs."""
        return await self._filled(request, session, "runs.html", runs=await self.desk.runs())

    async def compare(self, request: Request, session: Session) -> Response:
        """Runs side by side."""
        known = await self.desk.runs()
        wanted = dict.fromkeys(request.query_params.getlist("run"))
        chosen = {name: known[name] for name in wanted if name in known and known[name].history.curve}
        chosen = dict(list(chosen.items())[:_MOST_COMPARED])
        metrics = {run.history.primary for run in chosen.values()}
        runs = list(chosen.values())
        return await self._filled(
            request,
            session,
            "compare.html",
            runs=dict(zip(labels(runs), runs, strict=True)) if len(runs) > 1 else {},
            keys=differing_keys(runs),
            metrics=metrics,
        )

    async def picture(self, request: Request, session: Session) -> Response:
        """A picture of a run's folder; only those that its page lists."""
        run = (await self.desk.runs()).get(request.query_params.get("at", ""))
        folder = run.path if run else None
        name = request.query_params.get("file", "")
        if folder is None or name not in pictures_of(folder):
            return await self._missing(request, session, "no such picture")
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or path.stat().st_size > _PICTURE_BYTES:
            return await self._missing(request, session, "no such picture")
        return Response(path.read_bytes(), media_type=PICTURES[path.suffix.lower()])

    async def _missing(self, request: Request, session: Session, text: str) -> Response:
        answer = await self._filled(request, session, "message.html", title="Not found", text=text)
        answer.status_code = 404
        return answer

    async def models(self, request: Request, session: Session) -> Response:
        """All versions of all models."""
        rows, problem = await self.desk.models.get(), self.desk.models.problem
        models: dict[str, list[VersionRow]] = {}
        for row in rows:
            models.setdefault(row.name, []).append(row)
        known = {Path(name).name: name for name in await self.desk.runs()}
        return await self._filled(
            request,
            session,
            "models.html",
            models=models,
            problem=problem,
            runs=known,
            store=self.desk.sights.store,
        )

    async def gates(self, request: Request, session: Session) -> Response:
        """What waits for a person, and the verdicts so far."""
        found, problem = await self.desk.gates.get(), self.desk.gates.problem
        signs = self.desk.sights.signing is not None
        return await self._filled(request, session, "gates.html", gates=found, problem=problem, signs=signs)

    async def pipelines(self, request: Request, session: Session) -> Response:
        """How each pipeline stands."""
        found, problem = await self.desk.pipelines.get(), self.desk.pipelines.problem
        return await self._filled(request, session, "pipelines.html", pipelines=found, problem=problem)

    async def searches(self, request: Request, session: Session) -> Response:
        """All searches: their trials, and the best ones."""
        found, problem = await self.desk.searches.get(), self.desk.searches.problem
        return await self._filled(request, session, "searches.html", searches=found, problem=problem)

    # ---- actions ------------------------------------------------------------------------------------------------

    async def act(self, request: Request, session: Session, form: Mapping[str, str]) -> Response:
        """Pause, resume, stop, drop, readmit, next session."""
        del request
        if not self.logins.may_act(session):
            return PlainTextResponse("you may look at this console, but not act: ask an operator", 403)
        action, node = form.get("action", ""), form.get("node", "")
        try:
            await self.desk.tell(session.name, action, node)
        except FedncError as e:
            session.notes.append(("bad", one_line(e, 400)))
        else:
            log.info("%s: %s %s", session.name, action, one_line(node, 80))
            session.notes.append(("good", _done(action, node)))
        return RedirectResponse(_local_path(form.get("back", "")) or "/", 303)

    async def decide(self, request: Request, session: Session, form: Mapping[str, str]) -> Response:
        """Approve or reject the digest that was shown."""
        del request
        if not self.logins.may_act(session):
            return PlainTextResponse("you may look at this console, but not decide: ask an operator", 403)
        said = {name: form.get(name, "") for name in ("request", "digest", "subject", "verdict")}
        reason = one_line(form.get("reason", "").strip())
        try:
            given = await self.desk.decide(GateAnswer(**said, who=session.name, reason=reason))
        except FedncError as e:
            session.notes.append(("bad", one_line(e, 400)))
        else:
            log.info("%s: %s %s (%s)", session.name, given.verdict, given.digest, given.subject)
            session.notes.append(("good", f"{given.subject}: {given.verdict}, {given.signed}"))
        return RedirectResponse("/gates", 303)


_SAID = {
    "pause": "The run pauses after the current round.",
    "resume": "The run continues.",
    "stop": "The run stops after the current round; its files are written.",
    "drop": "Dropped {node}: it is refused until it is readmitted.",
    "readmit": "Readmitted {node}.",
    "next_session": "The next session starts.",
}


def _done(action: str, node: str) -> str:
    return _SAID[action].format(node=one_line(node, 80))


async def asset(request: Request) -> Response:
    """A file of the console itself. Needs no login: the login page uses them."""
    name = request.path_params["name"]
    if name not in _ASSETS:
        return PlainTextResponse("not found", 404)
    return Response(
        (_STATIC / name).read_bytes(), media_type=_ASSETS[name], headers={"cache-control": "max-age=600"}
    )


async def not_found(request: Request, error: Exception) -> Response:
    """An address that does not exist."""
    del request, error
    return PlainTextResponse("there is no such page", 404)


async def failed(request: Request, error: Exception) -> Response:
    """An error of our own: said without its details."""
    log.error("%s %s failed: %s: %s", request.method, request.url.path, type(error).__name__, error)
    return PlainTextResponse("the console failed to answer; its log says why", 500)


async def _form_of(request: Request) -> dict[str, str] | None:
    """The fields of a form; None: it is too large, or no form."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return None
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _FORM_BYTES:
            return None
    try:
        found = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return None
    return {name: values[-1] for name, values in found.items()}


def _is_refresh(request: Request) -> bool:
    """Whether our script asks, not a person."""
    return request.url.path == "/live" or REFRESH in request.headers


def _certificate_name(request: Request) -> str:
    """Whom the browser's certificate names, for the login page."""
    from fednc.common.security.credentials import read_certificate

    pem = request.scope.get(CERTIFICATE, b"")
    try:
        return str(read_certificate(pem).holder or "") if pem else ""
    except ValueError:
        return ""


def _next_of(request: Request) -> str:
    from urllib.parse import urlencode

    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return urlencode({"next": here}) if here != "/" else ""


def _local_path(text: str) -> str:
    """A path on this console; empty if the text is an address elsewhere."""
    parts = urlsplit(text) if text.startswith("/") and not text.startswith(("//", "/\\")) else None
    is_plain = text.isprintable() and "\\" not in text
    return text if parts and not parts.netloc and not parts.scheme and is_plain and len(text) < 1000 else ""


def _version(html: str) -> str:
    return hashlib.sha256(html.encode()).hexdigest()[:16]


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 7 else 1
