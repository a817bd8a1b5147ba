"""Registers a finished run as a new version: all of it or nothing, whenever the process is killed.

The files go into an MLflow run first, which is marked as unfinished. Then one transaction makes the version, with
all of its tags. What a killed process left behind is invisible in every listing, and the next one removes it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednc.common import fault_injection
from fednc.common.errors import ConfigError
from fednc.ops.registry.bundle import TAG, tags_of, write_bundle
from fednc.ops.registry.data_versions import KnownData, number_for
from fednc.ops.registry.names import check_alias, check_name
from fednc.ops.registry.registry import DATA, PATH, ModelRegistry, data_of
from fednc.ops.registry.run_files import RunFiles
from fednc.ops.registry.store import answering
from fednc.ops.registry.versions import VersionRow

STATE, UNFINISHED, REGISTERED = f"{TAG}state", "unfinished", "registered"  # tag of an MLflow run
_ABANDONED_S = 24 * 3600  # on a server, nobody knows whether the process that left something still runs


@dataclass(frozen=True)
class Registered:
    """The outcome of a registration.

    Attributes:
        is_new: False: this run was registered before, and that version stays.
        outdated: versions that are stale because of this run's data.
    """

    name: str
    version: int
    digest: str
    data_version: int
    is_new: bool
    outdated: tuple[str, ...] = ()


def register(
    registry: ModelRegistry, run_folder: Path, name: str = "", alias: str = "", *, digest: str = ""
) -> Registered:
    """Register the run in `run_folder` as a version of the model `name`, by default the run file's name.

    Registering the same run again changes nothing, except that it sets the alias.

    Args:
        digest: that the version must have, since it was approved; empty: any. See `digest_before`.

    Raises:
        DataError: the run is not finished, or its model cannot be loaded.
        ConfigError: the name or the alias cannot be used, or the version would have another digest.
    """
    run = RunFiles.read(run_folder)
    name = check_name(name or run.model.run.name)
    if alias:
        check_alias(alias)
    store = registry.store
    with store.locked():
        _clean(registry)
        found = _same_run(registry.rows(name), run)
        is_new, stale = found is None, list[str]()
        if found is None:
            before = {str(row) for row in registry.rows(name) if row.stale}
            found = _add(registry, run, name, digest)
            stale = [str(row) for row in registry.rows(name) if row.stale and str(row) not in before]
        _check_digest(str(found), found.digest, digest)
        if alias:
            registry.set_alias(name, alias, found.version)
    outdated = tuple(row for row in stale if row != str(found))
    return Registered(name, found.version, found.digest, found.data_version, is_new, outdated)


def _same_run(rows: list[VersionRow], run: RunFiles) -> VersionRow | None:
    """The version that was made of this run, if it has not been trained further since."""
    known = {f"{TAG}run": run.run_id, f"{TAG}weights_sha256": run.model.weights_sha256}
    return next((row for row in rows if all(row.tags.get(key) == value for key, value in known.items())), None)


def digest_before(registry: ModelRegistry, run_folder: Path, name: str = "") -> str:
    """The digest that registering this run would give its version, so that a person can approve it before.

    It changes if the run's folder does, or if another run makes a new version of the data.

    Raises:
        DataError: the run is not finished, or its model cannot be loaded.
    """
    run = RunFiles.read(run_folder)
    name = check_name(name or run.model.run.name)
    rows = registry.rows(name)
    if found := _same_run(rows, run):
        return found.digest
    with tempfile.TemporaryDirectory() as temporary:
        return write_bundle(run, name, number_for(run.forms, map(_known, rows)), Path(temporary))[1]


def _check_digest(what: str, digest: str, wanted: str) -> None:
    """Raises ConfigError if a version is not the one that was approved."""
    if wanted and digest != wanted:
        raise ConfigError(
            f"{what}: has digest {digest[:16]}, but {wanted[:16]} was approved: the run's folder or the "
            "version of the data has changed since. Look at it again"
        )


def _add(registry: ModelRegistry, run: RunFiles, name: str, wanted: str) -> VersionRow:
    client = registry.store.client
    number = number_for(run.forms, (_known(row) for row in registry.rows(name)))
    with tempfile.TemporaryDirectory() as temporary, answering(registry.store):
        folder = Path(temporary) / PATH
        folder.mkdir()
        facts, digest = write_bundle(run, name, number, folder)
        _check_digest(f"{run.folder} as a version of {name}", digest, wanted)
        tags = tags_of(facts, run.forms, digest)
        mlflow_run = client.create_run(registry.store.experiment, run_name=run.run_id, tags={STATE: UNFINISHED})
        run_id = mlflow_run.info.run_id
        fault_injection.at("registry.run")
        _log(client, run_id, facts)
        _store_files(registry, run_id, folder)
        fault_injection.at("registry.files")
        _observe(registry, name, number, facts["data_at"])
        client.set_terminated(run_id)
        fault_injection.at("registry.observed")
        source = f"{mlflow_run.info.artifact_uri}/{PATH}"
        made = client.create_model_version(name, source, run_id=run_id, tags=tags, await_creation_for=0)
        fault_injection.at("registry.committed")
        client.set_tag(run_id, STATE, REGISTERED)
    return next(row for row in registry.rows(name) if row.version == int(made.version))


def _known(row: VersionRow) -> KnownData:
    return KnownData(row.data_version, row.data_at, json.loads(row.tags[f"{TAG}forms"]))


def _log(client: Any, run_id: str, facts: Mapping[str, Any]) -> None:
    """What people compare in MLflow's own pages."""
    for key in ("run", "method", "task", "readout", "data_version", "frame_sha256"):
        client.log_param(run_id, key, facts[key])
    for key, value in facts["summary"].items():
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            client.log_metric(run_id, key, value)


def _store_files(registry: ModelRegistry, run_id: str, folder: Path) -> None:
    """Put the files of a version into the store; on this machine also flush them to disk."""
    if registry.store.folder is None:
        registry.store.client.log_artifacts(run_id, str(folder), PATH)
        return
    place = registry.folder_of_run(run_id)
    shutil.copytree(folder, place, copy_function=shutil.copyfile)
    for path in [*place.rglob("*"), place, place.parent, place.parent.parent]:
        path.chmod(0o700 if path.is_dir() else 0o600)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _observe(registry: ModelRegistry, name: str, number: int, at: float) -> None:
    """Note the newest version of a model's data. From then on, models of other versions are stale."""
    client = registry.store.client
    try:
        tags = client.get_registered_model(name).tags
    except Exception as e:
        if getattr(e, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
        tags = client.create_registered_model(name).tags
    if at > data_of(tags)[1]:
        client.set_registered_model_tag(name, DATA, json.dumps({"version": number, "at": at}))


def _clean(registry: ModelRegistry) -> None:
    """Finish or remove what killed processes left. The caller holds the lock, so nobody is at work on it here."""
    client, store = registry.store.client, registry.store
    with answering(store):
        left = client.search_runs([store.experiment], f"tags.`{STATE}` = '{UNFINISHED}'")
        for run in left:
            run_id = run.info.run_id
            if client.search_model_versions(f"run_id = '{run_id}'"):
                client.set_tag(run_id, STATE, REGISTERED)
            elif store.folder is not None:
                shutil.rmtree(registry.folder_of_run(run_id).parent.parent, ignore_errors=True)
                client.delete_run(run_id)
            elif time.time() - run.info.start_time / 1000 > _ABANDONED_S:
                client.delete_run(run_id)


def changes_by(registry: ModelRegistry, name: str, run_folder: Path) -> tuple[int, bool]:
    """(version that the data of a run would get, whether models of other versions would be stale by it)."""
    run, rows = RunFiles.read(run_folder), registry.rows(name)
    if not rows:
        raise ConfigError(f"{name}: has no version in the store {registry.store} yet")
    number = number_for(run.forms, (_known(row) for row in rows))
    current, at = data_of(registry.data_tags(name))
    return number, number != current and run.data_at > at
