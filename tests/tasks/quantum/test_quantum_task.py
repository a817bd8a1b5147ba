"""The task: its contract, angles on the circle, neural collapse of states, hostile class memories, data and
errors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import fednc
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError, DataError
from fednc.common.learning.frame import Frame, unit
from fednc.common.tasks import discovery
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.classifier import ClassifierModel
from fednc.common.wire import arrays
from fednc.common.wire.messages import SUMS
from fednc.server.aggregation.mean import Fold
from fednc.server.rounds.context import Surroundings
from fednc.tasks.quantum import states
from fednc.tasks.quantum.models import Circuit
from fednc.tasks.quantum.suggest import suggest
from fednc.tasks.quantum.task import QuantumTask
from fednc.testing import TaskContract, promises
from support.hostile.apps import app_with
from support.oracles import ORACLES
from support.runs_on_grids import in_one_process

PARITY: dict[str, Any] = {"name": "quantum", "classes": ["even", "odd"], "values": 4, "layers": 3}
KEY = "backbone.angle_LN3"


def _task(**options: Any) -> QuantumTask:
    task = discovery.get(parse_run({"task": {**PARITY, **options}, "method": {"name": "fedavg"}}))
    assert isinstance(task, QuantumTask)
    return task


def _model(task: QuantumTask, seed: int = 0) -> ClassifierModel:
    torch.manual_seed(seed)
    return task.build_model()


class _Contract(TaskContract):
    task, data = "quantum", "parity:5"
    options: ClassVar = {"classes": ["even", "odd"], "values": 5, "layers": 2}
    tables: ClassVar = {"method": {"name": "fednc"}, "train": {"optimizer": "adam", "lr": 0.05}}


@pytest.mark.parametrize(("name", "test"), promises(_Contract))
def test_it_keeps_every_promise(name: str, test: Any) -> None:
    """A circuit with mean states as class memory."""
    test()


# ---- averaging -------------------------------------------------------------------------------------------------


def _averaged(task: QuantumTask, before: Tensor, *clients: Tensor) -> Tensor:
    """The global angles after a round, as the server computes them."""
    fold = Fold({KEY: before}, {}, task.combining)
    fold.start({KEY: before}, [1] * len(clients))
    for client in clients:
        fold.add(arrays.to_record({KEY: client}), 1)
    return arrays.from_record(fold.mean())[KEY]


def test_angles_are_averaged_on_the_circle() -> None:
    task = _task()
    assert task.combining(KEY) == Aggregation.CIRCULAR
    degree = math.pi / 180
    model = _model(task)
    shape = model.state_dict()[KEY].shape
    turned = _averaged(task, torch.zeros(shape), torch.full(shape, 350 * degree), torch.full(shape, 10 * degree))
    assert torch.allclose(turned, torch.zeros(shape), atol=1e-6)
    opposite = _averaged(task, torch.full(shape, 0.7), torch.full(shape, 0.0), torch.full(shape, math.pi))
    assert torch.allclose(opposite, torch.full(shape, 0.7), atol=1e-6), "opposite angles keep the old value"


def test_clients_that_differ_in_whole_turns_average_to_the_same_circuit() -> None:
    """The plain mean of their angles is another circuit."""
    task = _task()
    one, other = _model(task), _model(task)
    bits = task.load_test("parity:4").tensors[0]  # type: ignore[attr-defined]
    turns = 2 * math.pi * torch.randint(-2, 3, one.state_dict()[KEY].shape)
    with torch.no_grad():
        expected = one(bits)
        angles = one.state_dict()[KEY].clone()
        assert torch.allclose(_with(other, angles + turns)(bits), expected, atol=1e-4)
        on_circle = _averaged(task, angles, angles, angles + turns)
        assert torch.allclose(_with(other, on_circle)(bits), expected, atol=1e-4)
        plain = _with(other, angles + turns / 2)(bits)
        assert float((plain - expected).abs().max()) > 0.1


def _with(model: ClassifierModel, angles: Tensor) -> ClassifierModel:
    model.load_state_dict({KEY: angles})
    return model


# ---- states of classes ------------------------------------------------------------------------------------------


def _trained(task: QuantumTask, bits: Tensor, labels: Tensor, steps: int) -> tuple[ClassifierModel, float]:
    model = _model(task, 1)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    guide: Any = None
    for step in range(steps):
        loss, _ = task.loss(model, (bits, labels), guide)
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimiser.step()
    return model, float(loss.detach())


def test_states_collapse_when_the_loss_is_small_and_their_centred_means_are_the_frame() -> None:
    """Four classes: which two bits come first."""
    task = _task(classes=["00", "01", "10", "11"], values=3, layers=2, entangler="chain")
    bits = torch.tensor([[(n >> 2) & 1, (n >> 1) & 1, n & 1] for n in range(8)]).float()
    labels = torch.arange(8) // 2
    model, loss = _trained(task, bits, labels, 300)
    assert loss < 1e-3
    with torch.no_grad():
        state_BD = model.backbone(bits)
    mean_KD = torch.stack([state_BD[labels == k].mean(dim=0) for k in range(4)])
    assert float((state_BD - mean_KD[labels]).square().sum(dim=1).mean()) < 1e-3, "variability within classes"
    overlap_KK = mean_KD @ mean_KD.T
    assert float(overlap_KK[~torch.eye(4, dtype=torch.bool)].max()) < 1e-2
    aligned_K = (unit(mean_KD) * torch.eye(4, 16)).sum(dim=1)
    assert float(aligned_K.min()) > 0.99
    centred_KD = unit(mean_KD - mean_KD.mean(dim=0))
    gram_KK = centred_KD @ centred_KD.T
    deviation = float((gram_KK - task.frame(0).etf_KD @ task.frame(0).etf_KD.T).abs().max())
    assert deviation < 10 * math.sqrt(loss) + 1e-5
    assert task.frame(0).vertices == 4
    if loss < 1e-11:  # then rounding alone is left, and the frame's own test passes
        Frame.from_tensor(centred_KD, 0)


def test_exactly_collapsed_states_pass_the_frames_own_test() -> None:
    task = _task(classes=list("abc"), values=3)
    mean_KD = torch.eye(3, 16)  # the states |k><k|
    Frame.from_tensor(unit(mean_KD - mean_KD.mean(dim=0)), 0)
    assert torch.allclose(unit(mean_KD - mean_KD.mean(dim=0)), task.frame(0).etf_KD, atol=1e-6)


def test_the_memory_of_a_run_is_a_state_of_each_class_and_is_read_out(tmp_path: Path) -> None:
    tables = {
        "task": {**PARITY, "values": 5},
        "method": {"name": "fednc"},
        "train": {"optimizer": "adam", "lr": 0.05, "epochs": 10},
        "rounds": {"total": 2, "min_clients": 2},
        "split": {"kind": "iid", "parts": 2},
        "evaluate": {"test": "parity:5"},
    }
    found = fednc.run(tables, {"a": "parity:5", "b": "parity:5"}, folder=tmp_path, val_share=0.0, progress=False)
    mean_KSS = states.matrices(found.model.mean_KD)
    assert torch.allclose(mean_KSS, mean_KSS.mH)
    assert mean_KSS.diagonal(dim1=1, dim2=2).real.sum(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert float(torch.linalg.eigvalsh(mean_KSS).min()) >= -1e-6
    (pair,) = json.loads((tmp_path / "examples" / "helstrom.json").read_text())["pairs"]
    error = pair["least_error"]
    assert error["encoded"] == pytest.approx(0, abs=1e-6), "all strings of different parity are orthogonal"
    assert error["encoded"] <= error["measured_qubits"] + 1e-6 <= error["measurement"] + 2e-6


def test_a_class_memory_that_is_no_state_is_refused_by_name() -> None:
    run = parse_run(
        {
            "task": PARITY,
            "method": {"name": "fednc"},
            "rounds": {"total": 1, "min_clients": 2},
            "split": {"kind": "iid", "parts": 3},
        }
    )

    def impossible(_: Any, reply: Any) -> None:
        """Shorter than the count, as every honest sum is, but with a negative probability."""
        if SUMS in reply.content:
            sums = arrays.from_record(reply.content[SUMS])
            sums["sum_KD"][:, 0] -= 0.4 * sums["count_K"]
            reply.content[SUMS] = arrays.to_record(sums)

    rejected: list[tuple[int, str]] = []
    clients = [ClientConfig(name=name, data="parity:4", device="cpu", val_share=0.0) for name in "abc"]
    around = Surroundings(reject=lambda node, reason: rejected.append((node, reason)))
    in_one_process(run, clients, app_with({"b": impossible}), around)
    assert len(rejected) == 1
    assert "trace" in rejected[0][1]


# ---- keys and data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"values": 0}, "task.values"),
        ({"size": 8}, "not both"),
        ({"values": 20}, "at most 12"),
        ({"qubits": 3}, "one for each"),
        ({"encoding": "amplitude", "qubits": 1}, "too few"),
        ({"model": "cnn"}, "for images"),
        ({"classes": ["a", "a"]}, "more than once"),
        ({"values": 2, "classes": list("abcdefgh")}, "need 3 measured qubits"),
    ],
)
def test_what_does_not_fit_together_is_said(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _task(**options)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"method": {"name": "fedetf"}}, "square"),
        ({"method": {"name": "moon"}}, "square"),
        ({"method": {"name": "fednc", "readout": "blend"}}, "mean states"),
        ({"method": {"name": "fednc", "anchor": 0.1}}, "mean states"),
        ({"frame": {"vertices": 5}, "method": {"name": "fedavg"}}, "its measurements"),
    ],
)
def test_methods_that_it_would_ignore_are_refused(tables: dict[str, Any], words: str) -> None:
    if tables["method"]["name"] == "fedetf":
        tables = {"method": {**tables["method"], "loss": "dot"}}
    with pytest.raises(ConfigError, match=words):
        discovery.get(parse_run({"task": PARITY, **tables}))


def test_parity_strings_are_all_there_once_and_the_same_everywhere() -> None:
    task = _task(values=6)
    train, test = task.load_train("parity:6", None, None), task.load_test("parity:6")
    assert (train.examples, test.examples) == (48, 16)
    assert len({*train.names, *test.names}) == 64
    for data in (train, test):
        bits, label_N = data.tensors  # type: ignore[attr-defined]
        assert torch.equal(bits.sum(dim=1).long() % 2, label_N)
    with pytest.raises(DataError, match="2 to 12 bits"):
        task.load_train("parity:40", None, None)
    with pytest.raises(DataError, match=r"6 values .* task.values = 4"):
        _task().load_train("parity:6", None, None)


def test_the_public_parity_table_is_ours() -> None:
    path = ORACLES / "parity" / "parity.txt"
    if not path.exists():
        pytest.skip("the oracle is not there")
    rows = np.loadtxt(path, dtype=int)
    task = _task()
    both = [task.load_train("parity:4", None, None), task.load_test("parity:4")]
    ours = {name: int(label) for data in both for name, label in zip(data.names, data.tensors[1], strict=True)}  # type: ignore[attr-defined]
    assert {"".join(map(str, row[:-1])): row[-1] for row in rows.tolist()} == ours


def test_rows_of_a_file_are_read_by_name_and_refused_with_a_reason(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (40, 4)).astype(np.uint8)
    label = (bits.sum(axis=1) % 2).astype(np.int64)
    spec = f"npz:{tmp_path / 'rows.npz'}"
    np.savez(tmp_path / "rows.npz", x_train=bits, y_train=label, classes=np.array(["even", "odd"]))
    task = _task()
    found = task.load_train(spec, None, None)
    assert torch.equal(found.tensors[1], torch.from_numpy(label))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="no test part"):
        task.load_test(spec)
    assert suggest(spec).options["encoding"] == "basis"
    np.savez(tmp_path / "rows.npz", x_train=bits / 2, y_train=label, classes=np.array(["even", "odd"]))
    with pytest.raises(DataError, match="needs values 0 and 1"):
        task.load_train(spec, None, None)
    assert _task(encoding="angle").load_train(spec, None, None).examples == 40
    assert suggest(spec).options["encoding"] == "angle"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.array(["even"] * 3)}, "x_train has 8 rows, but y_train has shape"),
        ({"x_train": np.ones((3, 4))}, "x_train has 3 rows, but y_train has shape"),
        ({"y_train": np.array("even")}, "but y_train has shape"),
        ({"x_train": np.array(1.0)}, "x_train has shape"),
        ({"x_train": np.ones((0, 4)), "y_train": np.array([], "U4")}, "x_train has shape"),
        ({"y_train": np.array([0, 1] * 4), "classes": np.array("even")}, "classes has shape"),
        ({"y_train": np.array([0, 1] * 4), "classes": np.array([b"\xff", b"b"])}, "not text in UTF-8"),
        ({"y_train": np.array([b"\xff", b"b"] * 4)}, "not text in UTF-8"),
        ({"x_train": np.full((8, 4), 1e300)}, "not finite"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_arrays_that_do_not_fit_together_are_refused(
    tmp_path: Path, change: dict[str, np.ndarray], message: str, share: float
) -> None:
    """Before rows are divided: labels that are missing must not look like a smaller file."""
    arrays = {"x_train": np.ones((8, 4)), "y_train": np.array(["even", "odd"] * 4), **change}
    np.savez(tmp_path / "rows.npz", **arrays)
    run = _task().run
    task = QuantumTask(run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"test_share": share})}))
    with pytest.raises(DataError, match=message):
        task.load_train(f"npz:{tmp_path / 'rows.npz'}", None, None)


def test_names_of_classes_may_be_bytes(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "rows.npz",
        x_train=np.ones((4, 4)),
        y_train=np.array([1, 0, 1, 0]),
        classes=np.array([b"odd", b"even"]),
    )
    found = _task().load_train(f"npz:{tmp_path / 'rows.npz'}", None, None)
    assert found.tensors[1].tolist() == [0, 1, 0, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("qubits", "uploads", "noted"), [(2, 1, "uploads to 2"), (2, 2, ""), (4, 1, ""), (3, 1, "of 4")]
)
def test_values_that_no_upload_reaches_are_noted(qubits: int, uploads: int, noted: str) -> None:
    task = _task(encoding="angle", qubits=qubits, uploads=uploads)
    notes = task.load_train("parity:4", None, None).notes
    assert bool(notes) == bool(noted)
    assert noted in " ".join(notes)
    model = _model(task).backbone
    value_BF = torch.rand(1, 4)
    changed = [not torch.equal(model(value_BF), model(value_BF + torch.eye(4)[k])) for k in range(4)]
    assert all(changed) == (not noted)


def test_images_become_grey_rows_of_the_runs_size() -> None:
    options = {"classes": list("0123456789"), "values": 0, "size": 4, "encoding": "amplitude", "layers": 1}
    task = _task(**options)
    data = task.load_test("digits")
    value_NF = data.tensors[0]  # type: ignore[attr-defined]
    assert value_NF.shape[1] == 16
    assert 0 <= float(value_NF.min()) <= float(value_NF.max()) <= 1
    for model in ("circuit", "cnn", "mlp"):
        with torch.no_grad():
            state_BD = _model(_task(**options, model=model, width=2)).backbone(value_NF[:3])
        assert state_BD.shape == (3, 256)
        assert state_BD[:, :16].sum(dim=1).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_a_classical_network_answers_with_a_diagonal_state() -> None:
    task = _task(model="mlp", width=8, classes=["a", "b", "c"])
    with torch.no_grad():
        state_BD = _model(task).backbone(torch.rand(5, 4))
    rho_BSS = states.matrices(state_BD)
    assert torch.allclose(rho_BSS, torch.diag_embed(rho_BSS.diagonal(dim1=1, dim2=2)))
    assert state_BD[:, :3].sum(dim=1).tolist() == pytest.approx([1] * 5, abs=1e-6)
    assert not isinstance(_model(task).backbone, Circuit)
