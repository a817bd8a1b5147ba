"""What a client keeps of its training: state of optimisers, local keys; continued only from rounds that count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from flwr.app import Message, RecordDict
from torch import Tensor, nn

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.client.training.kept_optimisers import KeptOptimisers
from fednc.client.training.round_state import Past
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.config.tables import TrainSection
from fednc.common.errors import ProtocolError
from fednc.common.learning.optimisers import make_optimiser, optimiser_names
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Stepper
from fednc.common.wire import records
from fednc.common.wire.messages import RUN, Instruction
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.event_log import EventLog
from support.prototype_tasks import LINE, LineTask, installed, write_line
from support.runs_on_grids import DeafGrid, RestartingGrid


class Rivals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker, self.judge = (
            nn.Linear(3, 1),
            nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
        )

    def forward(self, x_BF: Tensor) -> Tensor:
        made: Tensor = self.maker(x_BF)
        return made


class RivalsTask(LineTask):
    """A maker that all clients share, and a judge that stays at home with its optimiser."""

    name = "rivals"

    def build_model(self) -> nn.Module:
        return Rivals()

    def aggregation(self, key: str) -> Aggregation:
        return Aggregation.LOCAL if key.startswith("judge.") else Aggregation.MEAN

    def optimiser_parts(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        assert isinstance(model, Rivals)
        return {"judge": list(model.judge.parameters()), "maker": list(model.maker.parameters())}

    def kept_optimisers(self) -> frozenset[str]:
        return frozenset({"judge"})

    def training_step(self, model: nn.Module, batch: Any, guide: Guide, trainer: Stepper) -> dict[str, Tensor]:
        assert isinstance(model, Rivals)
        real, made = model.judge(batch[1][:, None]), model.judge(model.maker(batch[0]).detach())
        trainer.descend((real - 1).square().mean() + made.square().mean(), "judge")
        loss, _ = trainer.loss(model, batch, guide)
        loss = loss + (model.judge(model.maker(batch[0])) - 1).square().mean()
        trainer.descend(loss, "maker")
        return {"loss": loss.detach()}

    def outputs(self, model: nn.Module, batch: Any, guide: Guide) -> tuple[Tensor, Tensor]:
        return model(batch[0]).squeeze(1), batch[1]


RIVALS = {
    **LINE,
    "task": {"name": "rivals"},
    "train": {"batch": 16, "lr": 0.01, "epochs": 1, "optimizer": "adam", "weight_decay": 0},
    "rounds": {"total": 4, "min_clients": 1},
}


def rivals_run(**tables: Any) -> RunConfig:
    return parse_run({**RIVALS, **tables})


def two_clients(folder: Path, state: str) -> list[ClientConfig]:
    return [
        ClientConfig(
            name=f"c{i}", data=write_line(folder / f"{i}.npz", i, 40), device="cpu", state=str(folder / state)
        )
        for i in range(2)
    ]


def finished(grid: LocalGrid, run: RunConfig) -> dict[str, Tensor]:
    with grid:
        return FederatedRun(run, EventLog()).execute(grid, Surroundings(name_of=grid.name_of)).state.model


def kept_files(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Tensors by the file's place below the folder, without the run's own number."""
    return {
        f"{path.parent.name.rpartition('-')[2]}/{path.name}": safetensors.torch.load_file(path)
        for path in sorted(folder.glob("*/*.safetensors"))
    }


@pytest.mark.parametrize("name", optimiser_names())
def test_an_optimiser_that_goes_on_elsewhere_takes_the_same_steps(name: str) -> None:
    torch.manual_seed(0)
    section = TrainSection.model_validate({"optimizer": name, "lr": 0.01, "momentum": 0.9})
    batches = torch.randn(6, 8, 3)

    def steps(model: nn.Module, optimiser: torch.optim.Optimizer, part: Tensor) -> None:
        for batch in part:
            optimiser.zero_grad()
            model(batch).square().sum().backward()
            optimiser.step()

    whole, broken = nn.Linear(3, 2), nn.Linear(3, 2)
    broken.load_state_dict(whole.state_dict())
    one, before = (make_optimiser(list(m.parameters()), section, 0.01) for m in (whole, broken))
    steps(whole, one, batches)
    steps(broken, before, batches[:3])
    state = KeptOptimisers({"": before}, broken, {""}).state()
    after = make_optimiser(list(broken.parameters()), section, 0.01)
    KeptOptimisers({"": after}, broken, {""}).restore(safetensors.torch.load(safetensors.torch.save(state)))
    steps(broken, after, batches[3:])
    assert state
    for key, value in whole.state_dict().items():
        assert torch.equal(value, broken.state_dict()[key]), key


def test_a_client_that_restarts_goes_on_with_its_own_judge_and_optimiser_bit_for_bit(tmp_path: Path) -> None:
    with installed({"rivals": RivalsTask}):
        run = rivals_run()
        whole = finished(LocalGrid(run, two_clients(tmp_path, "a")), run)
        restarted = finished(RestartingGrid(run, two_clients(tmp_path, "b")), run)
    assert set(whole) == {"maker.weight", "maker.bias"}
    assert all(torch.equal(whole[key], restarted[key]) for key in whole)
    one, other = kept_files(tmp_path / "a"), kept_files(tmp_path / "b")
    assert one.keys() == other.keys()
    assert {name.partition("/")[2] for name in one} == {
        f"{kind}.{number}.safetensors" for kind in ("kept", "optimisers") for number in (3, 4)
    }
    for name, tensors in one.items():
        assert all(torch.equal(value, other[name][key]) for key, value in tensors.items()), name
    steps = [
        value for name, t in one.items() if "optimisers.4" in name for key, value in t.items() if "step" in key
    ]
    assert {int(step) for step in steps} == {12}  # 3 batches in each of 4 rounds: never new


def test_a_round_that_does_not_count_leaves_no_trace_in_what_a_client_keeps(tmp_path: Path) -> None:
    with installed({"rivals": RivalsTask}):
        run = rivals_run(rounds={"total": 3, "min_clients": 1})
        finished(DeafGrid(run, two_clients(tmp_path, "deaf"), "c1", 2), run)
    by_client = [
        {int(value) for key, value in tensors.items() if "step" in key}
        for name, tensors in kept_files(tmp_path / "deaf").items()
        if name.endswith("optimisers.3.safetensors")
    ]
    assert sorted(map(sorted, by_client)) == [[6], [9]]  # of 3 steps a round: c1 took those of round 1 and 3


def test_a_server_that_starts_again_still_knows_which_round_last_counted_each_client(tmp_path: Path) -> None:
    with installed({"rivals": RivalsTask}):
        run = rivals_run(rounds={"total": 3, "min_clients": 1})
        checkpoints = Checkpoints(tmp_path / "server", keep=2)
        with DeafGrid(run, two_clients(tmp_path, "state"), "c1", 2) as grid:
            around = Surroundings(name_of=grid.name_of, checkpoints=checkpoints)
            FederatedRun(run, EventLog()).execute(grid, around)
            (tmp_path / "server" / "checkpoints" / "round-000003.json").unlink()
            again = FederatedRun(run, EventLog())
            again.restore(checkpoints.latest(run.digest))
            assert again.state.accepted is not None
            assert {grid.name_of(node): last for node, last in again.state.accepted.items()} == {"c0": 2, "c1": 1}


@pytest.mark.parametrize("odd", [-1, "1", 1.5, [1]])
def test_an_instruction_with_an_impossible_last_round_is_refused(odd: Any) -> None:
    record = Instruction(run_json="{}", server_round=2).to_record()
    record["accepted"] = odd
    message = Message(RecordDict({RUN: record}), dst_node_id=1, message_type="train")
    with pytest.raises(ProtocolError, match="last accepted round"):
        Instruction.of(message)


def test_past_reads_the_last_round_that_counts() -> None:
    state = RecordDict()
    for number in (1, 2, 3):
        Past(state, number, accepted=number - 1).write("kept", {"a": torch.tensor(float(number))})
    assert float(Past(state, 4).read("kept")["a"]) == 3
    assert float(Past(state, 4, accepted=2).read("kept")["a"]) == 2
    assert Past(state, 4, accepted=0).read("kept") == {}


class ListeningGrid(LocalGrid):
    """Keeps every byte that clients send."""

    heard: list[bytes]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for reply in super().send_and_receive(messages, timeout=timeout):
            manifest = records.to_manifest(reply.content, with_digests=False).SerializeToString()
            self.heard += [manifest, *(bytes(array.data) for array in records.arrays_of(reply.content))]
            yield reply


def test_nothing_of_what_a_client_keeps_is_in_any_byte_that_leaves(tmp_path: Path) -> None:
    with installed({"rivals": RivalsTask}):
        run = rivals_run(rounds={"total": 2, "min_clients": 2})
        grid = ListeningGrid(run, two_clients(tmp_path, "state"))
        grid.heard = []
        finished(grid, run)
    left = b"".join(grid.heard)
    assert b"maker.weight" in left
    assert b"judge" not in left
    kept = [value for tensors in kept_files(tmp_path / "state").values() for value in tensors.values()]
    large = [value.contiguous().numpy().tobytes() for value in kept if value.numel() > 1]
    assert len(large) > 20
    assert not [value for value in large if value in left and any(value)]
