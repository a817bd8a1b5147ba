"""The trackers that come with fednc, read back with the libraries that they are for."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fednc.common import plugins
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError
from fednc.server.operations import trackers
from fednc.server.operations.csv_tracker import CsvTracker
from fednc.server.operations.mlflow_tracker import MlflowTracker
from fednc.server.operations.tensorboard_tracker import TensorBoardTracker
from fednc.server.operations.trackers import tracked
from fednc.server.operations.wandb_tracker import WandbTracker
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, RoundCompleted, TrackerFailed
from fednc.server.storage.history import RoundRecord

KINDS = {"csv": CsvTracker, "mlflow": MlflowTracker, "tensorboard": TensorBoardTracker, "wandb": WandbTracker}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every connection beyond this machine fails the test."""
    beyond: list[Any] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
            beyond.append(address)
            raise ConnectionRefusedError(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield
    assert beyond == []


def track(
    folder: Path, name: str, rounds: range, *, settings: dict[str, Any] | None = None, fail: bool = False
) -> None:
    """A server's start that completes these rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    run = parse_run({"track": {name: settings or {}}, "task": {"classes": ["cat", "dog"]}})
    events, heard = EventLog(), list[Event]()
    events.listen(heard.append)
    try:
        with tracked(run, folder.name, folder, events):
            for number in rounds:
                record = RoundRecord(
                    round=number,
                    seconds=0.5,
                    loss=1 / number,
                    replies=2,
                    test={"accuracy": number / 10, "accuracy/a, b?": 1.0, "bad": float("nan")},
                    worst_client={"name": "bert", "accuracy": 0.25},
                    spread={"clients": 3, "min": 0.25, "median": 0.5},
                    bytes_up=100 * number,
                    bytes_down=7,
                )
                events.emit(RoundCompleted(text="", record=record))
            if fail:
                raise RuntimeError("killed")
    except RuntimeError:
        assert fail
    assert [event.text for event in heard if isinstance(event, TrackerFailed)] == []


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes by name, so that the test does not depend on when fednc was last installed."""
    find = plugins.find

    def found(group: str, name: str) -> Any:
        return name if group == plugins.TRACKERS else find(group, name)

    monkeypatch.setattr(plugins, "find", found)
    monkeypatch.setattr(trackers, "load", lambda plugin: KINDS[plugin])


EXPECTED = {
    "primary": [0.1, 0.2, 0.3, 0.4],
    "train/loss": [1.0, 0.5, 1 / 3, 0.25],
    "traffic/bytes_up": [100.0, 200.0, 300.0, 400.0],
    "round/seconds": [0.5] * 4,
    "worst_client/accuracy": [0.25] * 4,
    "clients/median": [0.5] * 4,
}


def test_tensorboard_reads_one_curve_over_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(tmp_path / "r", "tensorboard", range(1, 4), fail=True)
    track(tmp_path / "r", "tensorboard", range(2, 5))  # rounds 2 and 3 again
    read = EventAccumulator(str(tmp_path / "r" / "tensorboard")).Reload()
    for tag, values in EXPECTED.items():
        points = read.Scalars(tag)
        assert [point.step for point in points] == [1, 2, 3, 4]
        assert [point.value for point in points] == pytest.approx(values)
    assert "metrics/accuracy" in read.Tags()["scalars"]
    assert "metrics/bad" not in read.Tags()["scalars"]
    assert b"train.lr" in read.Tensors("run file")[0].tensor_proto.string_val[0]


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    track(tmp_path / "r", "mlflow", range(1, 4), settings={"experiment": "wards"}, fail=True)
    (tmp_path / "r" / "trackers" / "mlflow.json").write_text(
        (tmp_path / "r" / "trackers" / "mlflow.json").read_text().replace('"round": 3', '"round": 1')
    )  # as if the server was killed between a round and its note
    track(tmp_path / "r", "mlflow", range(2, 5), settings={"experiment": "wards"})
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("wards")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name, run.data.params["task.name"]) == ("FINISHED", "r", "image")
    for name, values in EXPECTED.items():
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == [1, 2, 3, 4]
        assert [point.value for point in points] == pytest.approx(values)
    assert run.data.metrics["metrics/accuracy/a_ b_"] == 1.0
    assert (tmp_path / "mlflow.db").stat().st_mode & 0o777 == 0o600


def test_wandb_writes_offline_and_keeps_its_id(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    track(tmp_path / "r", "wandb", range(1, 4), fail=True)
    track(tmp_path / "r", "wandb", range(2, 5))
    files = sorted((tmp_path / "r" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({path.stem for path in files}) == 1, "both starts are the same run of W&B"
    assert sorted(step for path in files for step in _steps(path)) == [1, 2, 3, 4]


def _closed(path: Path) -> list[Any]:
    """The records of an offline run, once its end is among them: W&B's helper process writes the file, and may
    close it a moment after `finish` has returned."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + 20
    while True:
        found = [Record.FromString(data) for data in _records(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < deadline, f"{path}: W&B has not written the end of the run"
        time.sleep(0.02)


def _steps(path: Path) -> list[int]:
    """The steps in a file of an offline run."""
    found = []
    for record in _closed(path):
        for item in record.history.item:
            if item.key == "round/seconds" or list(item.nested_key) == ["round/seconds"]:
                assert json.loads(item.value_json) == 0.5
                found.append(record.history.step.num)
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, which W&B uses: blocks of 32 KiB, after a header of 7 bytes."""
    block, head, place, whole = 1 << 15, 7, 7, b""
    while place + head <= len(data):
        room = block - place % block
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if room < head or kind == 0:
            place += room
            continue
        whole += data[place + head : place + head + length]
        place += head + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def test_csv_does_not_double_a_round_either(tmp_path: Path) -> None:
    track(tmp_path / "r", "csv", range(1, 4), fail=True)
    track(tmp_path / "r", "csv", range(2, 5))
    lines = (tmp_path / "r" / "metrics.csv").read_text().splitlines()
    assert [line for line in lines if ",accuracy," in line] == [f"{n},accuracy,{n / 10}" for n in range(1, 5)]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("csv", {"path": "x"}, "track.csv: this tracker has no settings"),
        ("wandb", {"mode": "onlin"}, "track.wandb.mode"),
        ("mlflow", {"url": "x"}, "track.mlflow.url: no such key; there are: uri, experiment"),
    ],
)
def test_wrong_settings_are_reported_before_the_run(
    name: str, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    if name != "csv":
        pytest.importorskip(name)
    with (
        pytest.raises(ConfigError, match=words),
        tracked(parse_run({"track": {name: settings}}), "r", tmp_path, EventLog()),
    ):
        pass


def test_clients_are_not_sent_the_table_and_it_is_not_in_the_digest() -> None:
    run = parse_run({"track": {"wandb": {"project": "secret"}}})
    assert "secret" not in run.for_clients()
    assert run.digest == parse_run({}).digest
    with pytest.raises(ConfigError, match="not the name of a plug-in"):
        parse_run({"track": {"our.module:Board": {}}})
