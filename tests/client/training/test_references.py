"""Every method against an independent reference: plain PyTorch, at most 60 lines, without fednc.

Two clients with 24 and 20 handwritten digits train three steps of 8 per round, for two rounds.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from references import fednc as fednc_reference
from references import frame, plain, readout
from sklearn.datasets import load_digits
from torch import Tensor

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.methods import registry
from fednc.common.tasks.round_guide import guide_at
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.event_log import EventLog

FOLDER = Path(__file__).parents[2] / "references"
ROUNDS, SEED = 2, 11
Client = tuple[str, Tensor, Tensor]


@pytest.fixture(scope="module")
def clients() -> list[Client]:
    """Different label distributions with some classes missing, all present in the union; pixels from -1 to 1."""
    found = load_digits()
    images, labels = torch.from_numpy(found.images / 8 - 1).float().unsqueeze(1), torch.from_numpy(found.target)
    index = {"anna": torch.where(labels < 7)[0][:24], "bert": torch.where(labels > 3)[0][100:120]}
    chosen = [(name, images[rows], labels[rows]) for name, rows in index.items()]
    assert len(torch.cat([y for _, _, y in chosen]).unique()) == 10
    return chosen


def config(method: dict[str, Any], rounds: int = ROUNDS) -> RunConfig:
    return parse_run(
        {
            "seed": SEED,
            "task": {"classes": [str(i) for i in range(10)], "width": 8, "size": 8, "channels": 1},
            "frame": {"dim": 16},
            "method": method,
            "train": {"batch": 8, "lr": 0.1},
            "rounds": {"total": rounds},
        }
    )


def federate(run: RunConfig, clients: list[Client], folder: Path) -> RunResult:
    """The run in fednc, each client with its own .npz."""
    for name, x, y in clients:
        pixels = (x.squeeze(1).numpy() + 1) / 2
        np.savez(folder / f"{name}.npz", x_train=pixels, y_train=y.numpy())
    local = [ClientConfig(name=n, data=f"npz:{folder / n}.npz", device="cpu", val_share=0) for n, _, _ in clients]
    with LocalGrid(run, local) as grid:
        return FederatedRun(run, EventLog()).execute(grid)


def assert_close(result: RunResult, reference: torch.nn.Module, off: float = 1e-6) -> None:
    ours, theirs = list(result.state.model.values()), [p.detach() for p in reference.parameters()]
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=off, rtol=off)


def code_lines(name: str, seen: set[str]) -> list[str]:
    """Lines of a reference and its imports from that folder, without blank lines, comments and docstrings."""
    seen.add(name)
    tree = _without_docstrings(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    lines = [line for line in ast.unparse(tree).splitlines() if line.strip() and "from references" not in line]
    for node in ast.walk(tree):
        other = (getattr(node, "module", None) or "").removeprefix("references.")
        if (FOLDER / f"{other}.py").exists() and other not in seen:
            lines += code_lines(other, seen)
    return lines


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return tree


@pytest.mark.parametrize("method", registry.SHIPPED)
def test_references_are_short_and_independent(method: str) -> None:
    lines = code_lines(method, set())
    assert 20 < len(lines) <= 60
    imports = [line for line in lines if line.startswith(("import", "from"))]
    assert {line.split()[1].split(".")[0] for line in imports} <= {"copy", "hashlib", "torch"}


@pytest.mark.parametrize("method", [name for name in registry.SHIPPED if name != "fednc"])
def test_method_equals_its_reference(method: str, clients: list[Client], tmp_path: Path) -> None:
    reference = import_module(f"references.{method}").run(clients, ROUNDS, SEED)
    # Its first step divides the change by its own size plus 0.001, which makes 100 times as much of rounding.
    off = 1e-5 if method == "fedadagrad" else 1e-6
    assert_close(federate(config({"name": method}), clients, tmp_path), reference, off)


FEDNC = [
    {},  # the unchanged preset
    {"loss": "ce", "readout": "memory"},
    *({"loss": "balanced-ce", "prior_tau": 0.5, "readout": kind} for kind in ("vertex", "memory", "blend")),
]


@pytest.mark.parametrize("method", FEDNC, ids=str)
def test_fednc_equals_its_reference(method: dict[str, Any], clients: list[Client], tmp_path: Path) -> None:
    """Compares model, class memory and the predictions from both."""
    run = config({"name": "fednc", **method})
    kind, scale, tau = run.method.readout, run.method.scale, run.method.prior_tau
    result = federate(run, clients, tmp_path)
    reference = fednc_reference.run(clients, ROUNDS, SEED, 0 if run.method.loss == "ce" else tau, scale)
    assert_close(result, reference)
    mean_KD = readout.memory(reference, clients)
    if kind != "vertex":
        torch.testing.assert_close(result.state.memory.mean_KD, mean_KD, atol=1e-6, rtol=0)
    model = result.task.build_model()
    model.load_state_dict(result.state.model)
    inputs = torch.cat([x for _, x, _ in clients])
    with torch.no_grad():
        ours = result.task.scores(
            model, inputs, guide_at(result.task, result.frame.etf_KD, result.state.memory, ROUNDS)
        )
        metric_DD = readout.metric(reference, clients)
        theirs = readout.scores(reference(inputs), frame.frame(SEED), mean_KD, kind, scale, metric_DD)
    # The metric amplifies the rounding of float32 and of the grid of the sums.
    off = 0.01 * theirs.abs().max().item() if kind == "discriminant" else 2e-5
    torch.testing.assert_close(ours, theirs.to(ours.dtype), atol=off, rtol=0)
    assert torch.equal(ours.argmax(dim=1), theirs.argmax(dim=1))


@pytest.mark.parametrize(
    ("method", "same_as"),
    [
        (
            {
                "name": "fednc",
                "loss": "balanced-ce",
                "prior_tau": 1,
                "scale": 16,
                "train_scale": True,
                "readout": "vertex",
            },
            "fedetf",
        ),
        ({"name": "fednc", "head": "linear", "loss": "ce", "readout": "head"}, "fedavg"),
        ({"name": "fedprox", "proximal": 0}, "fedavg"),
    ],
    ids=str,
)
def test_methods_reduce_to_each_other(
    method: dict[str, Any], same_as: str, clients: list[Client], tmp_path: Path
) -> None:
    one, other = (federate(config(m), clients, tmp_path).state.model for m in (method, {"name": same_as}))
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_dot_regression_alone_equals_its_formula(clients: list[Client], tmp_path: Path) -> None:
    etf_KD = frame.frame(SEED)

    def loss(local: Any, global_: Any, name: str, x: Tensor, y: Tensor) -> Tensor:
        cosine_B = (torch.nn.functional.normalize(local(x)) * etf_KD[y]).sum(dim=1)
        return 10 * 0.5 * (cosine_B - 1).square().mean()

    run = config({"name": "fednc", "loss": "dot", "readout": "vertex"})
    reference = plain.federate(plain.start(SEED, head=False), clients, ROUNDS, SEED, loss)
    assert_close(federate(run, clients, tmp_path), reference)
