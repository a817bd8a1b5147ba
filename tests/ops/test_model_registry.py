"""The registry of models on a real MLflow store: all or nothing, digests, aliases, versions of the data."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("mlflow", reason="pip install 'fednc[ops]'")

import fednc
from fednc.cli.models import app
from fednc.common.errors import ConfigError, DataError
from fednc.common.security.authority import Authority
from fednc.common.security.credentials import Holder, Role
from fednc.common.security.signatures import Signer, Trust
from fednc.ops.approvals.box import ApprovalBox, Request
from fednc.ops.registry.bundle import CLIENTS, DIGESTS, FACTS, read_json
from fednc.ops.registry.lineage import approvals_of, data_changes, lineage_of
from fednc.ops.registry.registration import changes_by, register
from fednc.ops.registry.registry import ModelRegistry, TamperedError
from fednc.ops.registry.store import DATABASE, FILES, load_mlflow
from support.registered_runs import finished_run, killed_at

load_mlflow()  # before a test forks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`old` and `again` have one label map, `new` another at one client."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for seed, (name, labels) in enumerate({"old": "abc", "again": "abc", "new": "bac"}.items()):
        made[name] = finished_run(folder, name, labels, seed)
        os.utime(made[name] / "data_manifests.jsonl", (1e9 + seed, 1e9 + seed))
    return made


@pytest.fixture(scope="module")
def filled(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `old` as champion."""
    folder = tmp_path_factory.mktemp("filled") / "store"
    register(ModelRegistry(str(folder)), runs["old"], alias="champion")
    return folder


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    """A copy of the filled store: a store can be moved as a whole."""
    return Path(shutil.copytree(filled, tmp_path / "copy"))


def test_a_version_is_loaded_by_its_alias_with_the_bits_of_the_run(store: Path, runs: dict[str, Path]) -> None:
    found = ModelRegistry(str(store)).resolve("toy@champion")
    assert (found.version, found.stale, found.aliases) == (1, False, ("champion",))
    ours, theirs = fednc.load(found.folder).state_dict(), fednc.load(runs["old"]).state_dict()
    assert all(ours[key].equal(theirs[key]) for key in theirs)
    facts, clients = read_json(found.folder, FACTS), read_json(found.folder, CLIENTS)["clients"]
    summary = json.loads((runs["old"] / "summary.json").read_text())
    assert facts["frame_sha256"] == summary["frame_sha256"]
    assert facts["distributions"][0]["name"] == "fednc"
    assert len(facts["distributions"][0]["code_sha256"]) == 64
    assert set(clients) == {"anna", "bert"}
    assert clients["bert"]["examples"] == 64, "54 examples, rounded up to a power of two"


def test_the_same_run_again_changes_nothing(store: Path, runs: dict[str, Path]) -> None:
    registry = ModelRegistry(str(store))
    again = register(registry, runs["old"], alias="challenger")
    assert (again.version, again.is_new) == (1, False)
    assert registry.aliases("toy") == {"challenger": 1, "champion": 1}


def test_another_label_map_makes_older_models_stale(store: Path, runs: dict[str, Path]) -> None:
    registry = ModelRegistry(str(store))
    assert changes_by(registry, "toy", runs["again"]) == (1, False)
    assert register(registry, runs["again"]).data_version == 1
    assert not registry.is_stale("toy@champion")
    assert changes_by(registry, "toy", runs["new"]) == (2, True)
    made = register(registry, runs["new"])
    assert (made.data_version, set(made.outdated)) == (2, {"toy/1", "toy/2"})
    assert registry.is_stale("toy@champion")
    assert registry.resolve("toy@champion").stale_why
    assert not registry.is_stale("toy/3")
    assert data_changes(registry, "toy/1", "toy/3") == [
        "bert: label '0' was 'a' and is 'b'",
        "bert: label '1' was 'b' and is 'a'",
    ]


def test_a_late_registration_of_an_old_run_makes_nothing_stale(tmp_path: Path, runs: dict[str, Path]) -> None:
    registry = ModelRegistry(str(tmp_path / "store"))
    register(registry, runs["new"])
    assert register(registry, runs["old"]).outdated == ()
    assert not registry.is_stale("toy/1")
    assert registry.is_stale("toy/2")


def test_rollback_goes_back_one_move_at_a_time(store: Path, runs: dict[str, Path]) -> None:
    registry = ModelRegistry(str(store))
    for name in ("again", "new"):
        register(registry, runs[name], alias="champion")
    assert registry.aliases("toy") == {"champion": 3}
    assert registry.rollback("toy", "champion") == 2
    assert registry.rollback("toy", "champion") == 1
    with pytest.raises(ConfigError, match="nothing to roll back"):
        registry.rollback("toy", "champion")
    assert [move.after for move in registry.history("toy", "champion")] == [1, 2, 3, 2, 1]


def _files(store: Path) -> Path:
    return next((store / FILES).glob("*/artifacts/fednc"))


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "model/model.json", "run.json", FACTS, CLIENTS, DIGESTS]
)
def test_a_changed_file_is_named_and_not_served(store: Path, name: str) -> None:
    registry = ModelRegistry(str(store))
    assert registry.resolve("toy@champion")  # also when it was verified before
    path = _files(store) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(TamperedError, match=name):
        registry.resolve("toy@champion")
    assert any(name in problem for problem in registry.verify("toy@champion"))
    with pytest.raises(TamperedError):
        registry.set_alias("toy", "challenger", 1)


def test_swapped_missing_and_additional_files_are_named(store: Path, runs: dict[str, Path]) -> None:
    registry = ModelRegistry(str(store))
    model = _files(store) / "model"
    for name in ("model.safetensors", "model.json"):  # a whole model that is consistent in itself
        shutil.copy(runs["new"] / "model" / name, model / name)
    assert len(registry.verify("toy/1")) == 2
    (model / "model.json").unlink()
    (model / "extra.py").write_text("")
    assert {problem.split()[0] for problem in registry.verify("toy/1")} == {
        "model/model.json",
        "model/model.safetensors",
        "model/extra.py",
    }


@pytest.mark.parametrize("tag", ["digest", "run", "method", "data_version", "forms", "weights_sha256"])
def test_a_changed_row_is_told(store: Path, tag: str) -> None:
    with sqlite3.connect(store / "mlflow.db") as database:
        database.execute("UPDATE model_version_tags SET value = '7' WHERE key = ?", (f"fednc.{tag}",))
    registry = ModelRegistry(str(store))
    assert any(f"fednc.{tag}" in problem for problem in registry.verify("toy/1"))
    with pytest.raises(TamperedError, match=f"fednc.{tag}"):
        registry.resolve("toy/1")


def test_hiding_that_a_model_is_stale_is_told(store: Path, runs: dict[str, Path]) -> None:
    register(ModelRegistry(str(store)), runs["new"])
    with sqlite3.connect(store / "mlflow.db") as database:
        text = json.dumps({"version": 1, "at": 1e9})
        database.execute("UPDATE registered_model_tags SET value = ? WHERE key = 'fednc.data'", (text,))
    assert any("fednc.data" in problem for problem in ModelRegistry(str(store)).verify("toy/1"))


POINTS = ["registry.run", "registry.files", "registry.observed", "registry.committed", "registry.alias"]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_registration_leaves_all_or_nothing(store: Path, runs: dict[str, Path], point: str) -> None:
    def add() -> None:
        register(ModelRegistry(str(store)), runs["again"], alias="champion")

    assert killed_at(f"{point}:1:kill", add)
    registry = ModelRegistry(str(store))
    is_there = point in ("registry.committed", "registry.alias")
    assert [row.version for row in registry.rows("toy")] == ([1, 2] if is_there else [1])
    assert registry.aliases("toy") == {"champion": 1}
    assert all(not registry.verify(str(row)) for row in registry.rows())
    assert register(registry, runs["again"], alias="champion").version == 2
    assert registry.aliases("toy") == {"champion": 2}
    assert len(list((store / FILES).iterdir())) == 2, "what the killed process left is gone"
    assert all(not registry.verify(str(row)) for row in registry.rows())
    assert registry.rollback("toy", "champion") == 1


def test_a_database_that_was_left_half_way_is_made_anew(tmp_path: Path) -> None:
    """MLflow makes it in dozens of steps and can use none that was left between two of them."""
    store = tmp_path / "store"
    assert killed_at("registry.database:1:kill", lambda: ModelRegistry(str(store)).store.client)
    assert not (store / DATABASE).exists()
    assert not ModelRegistry(str(store)).rows()
    assert ModelRegistry(str(store)).store.experiment
    assert {path.name for path in store.iterdir()} == {DATABASE, "lock"}


def test_two_processes_register_at_once(tmp_path: Path, runs: dict[str, Path]) -> None:
    place = str(tmp_path / "store")
    children = []
    for name in ("old", "again"):
        child = os.fork()
        if child == 0:
            try:
                register(ModelRegistry(place), runs[name], alias="challenger")
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    registry = ModelRegistry(place)
    assert {row.run for row in registry.rows("toy")} == {"old", "again"}
    assert [row.version for row in registry.rows("toy")] == [1, 2]
    assert all(not registry.verify(str(row)) for row in registry.rows())


def test_mlflow_itself_opens_the_store(store: Path) -> None:
    mlflow = load_mlflow()
    uri = f"sqlite:///{store / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    version = client.get_model_version_by_alias("toy", "champion")
    assert (version.version, version.status) in ((1, "READY"), ("1", "READY"))
    run = client.get_run(version.run_id)
    assert run.data.params["method"] == "fednc"
    assert run.info.status == "FINISHED"


def test_lineage_names_run_clients_and_verdicts(store: Path) -> None:
    registry = ModelRegistry(str(store))
    digest = registry.resolve("toy@champion").digest
    registry.add_approval("toy@champion", {"who": "mara", "verdict": "approve", "digest": digest})
    with pytest.raises(ConfigError, match="the verdict is about digest"):
        registry.add_approval("toy@champion", {"who": "mara", "verdict": "approve", "digest": "0" * 64})
    found = lineage_of(registry, "toy/1")
    assert found["run"] == "old"
    assert [client["name"] for client in found["clients"]] == ["anna", "bert"]
    assert [(one["who"], one["valid"]) for one in found["approvals"]] == [("mara", True)]
    assert found["moves"]["champion"][0]["after"] == 1
    json.dumps(found, allow_nan=False)


def test_a_signed_verdict_is_part_of_the_lineage(store: Path, tmp_path: Path) -> None:
    """From the gate to the version: what was signed can be checked there, and a change to it is told."""
    made = Authority.create(tmp_path / "ca", "test")
    made.issue_certificate(Holder(Role.OPERATOR, "mara"), timedelta(days=1))
    trust = Trust.from_folder(tmp_path / "ca")
    registry = ModelRegistry(str(store))
    digest = registry.resolve("toy@champion").digest
    box = ApprovalBox(tmp_path / "approvals", trust)
    box.request(Request(digest, "toy: release", {}, signed=True))
    signer = Signer.from_folder(made.holder_folder(Holder(Role.OPERATOR, "mara")))
    given = box.decide(digest, "approved", "mara", "fine", signer)
    registry.add_approval("toy@champion", given.to_json())
    registry.add_approval("toy@champion", {**given.to_json(), "reason": "another"})
    kept = approvals_of(registry.resolve("toy@champion"), trust)
    assert [(one["signed"], one["valid"]) for one in kept] == [
        ("operator 'mara'", True),
        ("operator 'mara'", False),
    ]
    assert kept[1]["problem"] == "the signature does not belong to this statement"
    assert [one["valid"] for one in lineage_of(registry, "toy/1")["approvals"]] == [True, False]
    made.revoke("mara")
    assert "revoked" in approvals_of(registry.resolve("toy@champion"), trust)[0]["problem"]


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.json; give the folder of a finished run"):
        register(ModelRegistry(str(tmp_path / "store")), tmp_path)


def test_what_does_not_exist_is_told_with_what_does(store: Path, tmp_path: Path) -> None:
    registry = ModelRegistry(str(store))
    with pytest.raises(ConfigError, match="toy has version 1, champion -> 1"):
        registry.resolve("toy@challenger")
    with pytest.raises(ConfigError, match="it has the models toy"):
        registry.resolve("other")
    with pytest.raises(ConfigError, match="there is no store"):
        ModelRegistry(str(tmp_path / "nowhere")).resolve("toy")
    assert not (tmp_path / "nowhere").exists()


def test_the_commands_register_move_roll_back_and_verify(store: Path, runs: dict[str, Path]) -> None:
    """The way of a person: each command with what it says, and exit code 3 for a store that was changed."""

    def models(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*arguments, "--store", str(store)])
        assert getattr(done.exception, "exit_code", done.exit_code) == code, done.output
        return done.output + done.stderr

    assert "toy@challenger -> 2" in models("register", str(runs["new"]), "--name", "toy", "--alias", "challenger")
    assert "toy/1" in models("stale")
    listed = models("list")
    assert "champion" in listed
    assert "challenger" in listed
    models("alias", "toy", "champion", "2")
    assert "toy/2" in models("show", "toy@champion")
    models("rollback", "toy", "champion")
    assert "toy/1" in models("show", "toy@champion")
    assert "run" in models("lineage", "toy@champion")
    models("verify")
    path = _files(store) / "model" / "model.json"
    path.write_text(path.read_text() + " ")
    assert "model.json" in models("verify", code=DataError.exit_code)
