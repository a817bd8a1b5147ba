"""The registry of models: finds and checks versions, and moves aliases. Adding a version is in `registration.py`.

Called by `fednc models`, `fednc serve` and pipelines. MLflow holds the rows and the files; what a version consists
of, and whether it is still what was registered, is decided here.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from uuid import uuid4

from fednc.common import fault_injection
from fednc.common.errors import ConfigError, DataError
from fednc.common.files import private_folder
from fednc.ops.registry.bundle import TAG, problems_of
from fednc.ops.registry.names import Reference, check_alias, check_name, parse_reference
from fednc.ops.registry.store import DEFAULT_STORE, FILES, Store, answering
from fednc.ops.registry.versions import ModelVersion, VersionRow

PATH = "fednc"  # of our files among the artifacts of an MLflow run
DATA = f"{TAG}data"  # tag of a model: version of its data, and when that was heard
HISTORY = f"{TAG}history."  # tag of a model, followed by an alias: where it pointed
APPROVAL = f"{TAG}approval."  # tag of a version, followed by an id: somebody's verdict, as JSON
KEPT_MOVES = 50
_PAGE = 200


class TamperedError(DataError):
    """A version that is not what was registered."""


@dataclass(frozen=True)
class Move:
    """One move of an alias. `before` is 0 if it pointed nowhere."""

    before: int
    after: int
    at: float
    who: str
    is_rollback: bool = False


class ModelRegistry:
    """The versions of models in one store."""

    def __init__(self, store: Store | str = DEFAULT_STORE) -> None:
        """Name the store: a folder, or the URI of an MLflow server. Opens nothing yet."""
        self.store = store if isinstance(store, Store) else Store(store)
        self._verified: dict[tuple[str, int], tuple[Any, str]] = {}  # version: state of its files and tags, digest

    # ---- reading ---------------------------------------------------------------------------------------------

    def current(self, reference: str) -> tuple[int, str]:
        """(version, digest) that a reference means now. Cheap: reads no file. Raises ConfigError, AddressError."""
        row = self._row(parse_reference(reference))
        return int(row.version), str(row.tags.get(f"{TAG}digest", ""))

    def resolve(self, reference: str) -> ModelVersion:
        """The version that `NAME@ALIAS` or `NAME/VERSION` means now, checked against its digest.

        Files that have not changed since they were last checked by this object are not read again.

        Raises:
            ConfigError: there is none.
            TamperedError: a file or a row of the store is not what was registered.
            AddressError: the store does not answer.
        """
        row = self._row(parse_reference(reference))
        folder = self._files_of(row)
        self._verify(row, folder)
        model = self._model(str(row.name))
        why = _why_stale(row.tags, model.tags)
        return ModelVersion(
            name=str(row.name),
            version=int(row.version),
            folder=folder,
            digest=str(row.tags[f"{TAG}digest"]),
            tags=dict(row.tags),
            aliases=_aliases_of(model, int(row.version)),
            stale=bool(why),
            stale_why=why,
        )

    def is_stale(self, reference: str) -> bool:
        """Whether label map, columns or classes have changed since this version was trained."""
        row = self._row(parse_reference(reference))
        return bool(_why_stale(row.tags, self._model(str(row.name)).tags))

    def verify(self, reference: str) -> list[str]:
        """What is not as it was registered, one sentence each. Reads all files."""
        row = self._row(parse_reference(reference))
        try:
            problems = problems_of(self._files_of(row), row.tags)
        except (DataError, ValueError, KeyError) as e:
            problems = [str(e)]
        return [*problems, *self._data_problems(str(row.name))]

    def aliases(self, name: str) -> dict[str, int]:
        """The version of each alias. Raises ConfigError: there is no such model."""
        return {alias: int(version) for alias, version in sorted(self._model(check_name(name)).aliases.items())}

    def models(self) -> list[str]:
        """Names of all models with at least one version of ours."""
        if not self.store.exists:
            return []
        return sorted({row.name for row in self.rows()})

    def rows(self, name: str = "") -> list[VersionRow]:
        """All versions of a model, or of all models, the oldest first. Their files are not checked."""
        if not self.store.exists:
            return []
        if name:
            check_name(name)
        found, token = [], None
        models: dict[str, Any] = {}
        with answering(self.store):
            while True:
                page = self.store.client.search_model_versions(
                    f"name = '{name}'" if name else None, max_results=_PAGE, page_token=token
                )
                found += [row for row in page if f"{TAG}digest" in row.tags]
                token = page.token
                if not token:
                    break
            for row in found:
                if row.name not in models:
                    models[row.name] = self.store.client.get_registered_model(row.name)
        rows = [_listed(row, models[row.name]) for row in found]
        return sorted(rows, key=lambda row: (row.name, row.version))

    def data_tags(self, name: str) -> dict[str, str]:
        """Tags of a model, for `data_of`. Raises ConfigError: there is no such model."""
        return dict(self._model(check_name(name)).tags)

    # ---- aliases ---------------------------------------------------------------------------------------------

    def set_alias(self, name: str, alias: str, version: int, *, who: str = "") -> None:
        """Let an alias point to a version; its digest is checked first.

        Raises:
            ConfigError: there is no such version, or the alias has an impossible name.
            TamperedError: the version is not what was registered.
        """
        self._move(name, alias, version, who, is_rollback=False)

    def rollback(self, name: str, alias: str, *, who: str = "") -> int:
        """Let an alias point where it pointed before its last move; the version it points to then.

        A second rollback goes one further back. Raises ConfigError: it never pointed anywhere else.
        """
        now = self.aliases(name).get(check_alias(alias), 0)
        moves = [move for move in self.history(name, alias) if move.after == now and not move.is_rollback]
        if not now or not moves or not moves[-1].before:
            raise ConfigError(
                f"{name}@{alias}: it has not pointed to another version before; nothing to roll back"
            )
        self._move(name, alias, moves[-1].before, who, is_rollback=True)
        return moves[-1].before

    def history(self, name: str, alias: str) -> list[Move]:
        """The last moves of an alias, the oldest first."""
        text = self._model(check_name(name)).tags.get(f"{HISTORY}{check_alias(alias)}", "[]")
        return [Move(**move) for move in json.loads(text)]

    def _move(self, name: str, alias: str, version: int, who: str, *, is_rollback: bool) -> None:
        checked = self.resolve(f"{check_name(name)}/{version}")
        check_alias(alias)
        with self.store.locked(), answering(self.store):
            before = self.aliases(name).get(alias, 0)
            if before == version:
                return
            move = Move(before, checked.version, round(time.time(), 3), who or getpass.getuser(), is_rollback)
            moves = [*self.history(name, alias), move][-KEPT_MOVES:]
            text = json.dumps([vars(each) for each in moves])
            # The history first: killed in between, it has a move that did not happen, and none is missing.
            self.store.client.set_registered_model_tag(name, f"{HISTORY}{alias}", text)
            fault_injection.at("registry.alias")
            self.store.client.set_registered_model_alias(name, alias, str(checked.version))

    # ---- approvals -------------------------------------------------------------------------------------------

    def add_approval(self, reference: str, approval: Mapping[str, Any]) -> None:
        """Keep somebody's verdict on a version with it. Who may give one, and its signature, are up to the caller.

        Args:
            approval: JSON values; `digest` is the digest that the person saw.

        Raises:
            ConfigError: the verdict is about another digest.
        """
        found = self.resolve(reference)
        if approval.get("digest") != found.digest:
            raise ConfigError(
                f"{reference}: the verdict is about digest {str(approval.get('digest'))[:16]}, this version has "
                f"{found.digest[:16]}: look at it again"
            )
        key = f"{APPROVAL}{time.time_ns()}-{uuid4().hex[:8]}"
        with answering(self.store):
            self.store.client.set_model_version_tag(
                found.name, str(found.version), key, json.dumps(dict(approval), sort_keys=True)
            )

    # ---- rows and files --------------------------------------------------------------------------------------

    def _row(self, reference: Reference) -> Any:
        """MLflow's row of a version. Raises ConfigError: there is none of ours."""
        if not self.store.exists:
            raise ConfigError(
                f"{reference}: there is no store at {self.store} yet; `fednc models register` makes it"
            )
        mlflow = self.store.client
        row = None
        with answering(self.store):
            try:
                if reference.alias:
                    row = mlflow.get_model_version_by_alias(reference.name, reference.alias)
                else:
                    row = mlflow.get_model_version(reference.name, str(reference.version))
            except Exception as e:
                if getattr(e, "error_code", "") not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        if row is None or f"{TAG}digest" not in row.tags:
            raise ConfigError(f"{reference}: not in the store {self.store}; {self._known(reference.name)}")
        return row

    def _known(self, name: str) -> str:
        rows = self.rows(name)
        if not rows:
            models = ", ".join(self.models()[:20])
            return f"it has the models {models}" if models else "`fednc models register RUN` adds a version"
        aliases = "".join(f", {alias} -> {version}" for alias, version in self.aliases(name).items())
        return (
            f"{name} has version{'s' * (len(rows) > 1)} {', '.join(str(r.version) for r in rows[-20:])}{aliases}"
        )

    def _model(self, name: str) -> Any:
        with answering(self.store):
            try:
                return self.store.client.get_registered_model(name)
            except Exception as e:
                if getattr(e, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    raise
        raise ConfigError(f"{name}: there is no such model in the store {self.store}")

    def _files_of(self, row: Any) -> Path:
        """The folder with a version's files; those of a server are downloaded once. Raises DataError."""
        if self.store.folder is not None:
            return self.folder_of_run(str(row.run_id))
        place = Path(unquote(urlparse(row.source).path))
        if urlparse(row.source).scheme in ("", "file") and place.is_dir():
            return place
        return self._downloaded(row)

    def folder_of_run(self, mlflow_run: str) -> Path:
        """Where a store on this machine keeps the files of an MLflow run. It may have been moved as a whole."""
        assert self.store.folder is not None
        if not mlflow_run.isalnum():
            raise TamperedError(f"the store names {mlflow_run!r:.80} as an MLflow run")
        return self.store.folder / FILES / mlflow_run / "artifacts" / PATH

    def _downloaded(self, row: Any) -> Path:
        digest = str(row.tags[f"{TAG}digest"])
        if not digest.isalnum():
            raise TamperedError(f"the store's tag {TAG}digest is {digest!r:.80}")
        place = _cache() / digest
        if place.is_dir() and not problems_of(place, row.tags):
            return place
        private_folder(place.parent)
        temporary = place.with_name(f"{digest}.{uuid4().hex}")
        private_folder(temporary)
        try:
            with answering(self.store):
                self.store.client.download_artifacts(row.run_id, PATH, str(temporary))
            problems = problems_of(temporary / PATH, row.tags)
            if problems:
                raise _tampered(row, problems)
            shutil.rmtree(place, ignore_errors=True)
            (temporary / PATH).replace(place)
        except OSError:
            if not place.is_dir():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return place

    def _verify(self, row: Any, folder: Path) -> None:
        """Raises TamperedError."""
        key, state = (str(row.name), int(row.version)), (_state_of(folder), dict(row.tags))
        known = self._verified.get(key)
        if known is not None and known[0] == state:
            return
        try:
            problems = problems_of(folder, row.tags)
        except (ValueError, KeyError, TypeError) as e:
            problems = [f"its files cannot be read ({type(e).__name__})"]
        if problems:
            raise _tampered(row, problems)
        self._verified[key] = (state, str(row.tags[f"{TAG}digest"]))

    def _data_problems(self, name: str) -> list[str]:
        """Whether the model's tag that tells stale versions is what its versions say."""
        rows = self.rows(name)
        latest = max(rows, key=lambda row: row.data_at, default=None)
        number, at = data_of(self._model(name).tags)
        if latest is None or at > latest.data_at or (number, at) == (latest.data_version, latest.data_at):
            return []
        return [
            f"the store's tag {DATA} of {name} says data version {number}; the newest data is version "
            f"{latest.data_version}, of {latest}"
        ]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fednc" / "models"


def data_of(tags: Mapping[str, str]) -> tuple[int, float]:
    """(version, when it was heard) of a model's newest data, from the model's tags; (0, 0) if there is none."""
    try:
        values = json.loads(tags[DATA])
        return int(values["version"]), float(values["at"])
    except (KeyError, ValueError, TypeError):
        return 0, 0.0


def _why_stale(tags: Mapping[str, str], of_model: Mapping[str, str]) -> str:
    own, (newest, _) = tags.get(f"{TAG}data_version", ""), data_of(of_model)
    if not newest or own == str(newest):
        return ""
    return f"trained on data version {own}; label map, columns or classes have changed since, to version {newest}"


def _aliases_of(model: Any, version: int) -> tuple[str, ...]:
    return tuple(sorted(alias for alias, at in model.aliases.items() if int(at) == version))


def _listed(row: Any, model: Any) -> VersionRow:
    tags = dict(row.tags)
    number = tags.get(f"{TAG}data_version", "")
    return VersionRow(
        name=str(row.name),
        version=int(row.version),
        run=tags.get(f"{TAG}run", ""),
        method=tags.get(f"{TAG}method", ""),
        digest=tags[f"{TAG}digest"],
        data_version=int(number) if number.isdecimal() else 0,
        data_at=float(tags.get(f"{TAG}data_at", 0)),
        aliases=_aliases_of(model, int(row.version)),
        stale=bool(_why_stale(tags, model.tags)),
        created_at=row.creation_timestamp / 1000,
        mlflow_run=str(row.run_id),
        tags=tags,
    )


def _state_of(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Changes when a file of the folder is written or replaced."""
    found = []
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found.append((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns + stat.st_ctime_ns))
    return tuple(found)


def _tampered(row: Any, problems: list[str]) -> TamperedError:
    return TamperedError(
        f"{row.name}/{row.version} is not what was registered: {'; '.join(problems)}. Do not use it: restore the "
        "store from a backup, or register the run again"
    )
