"""The trainer's steps: accumulated gradients, and several optimisers that do not see each other's losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fednc.client.link.work_hooks import Hooks
from fednc.client.training import trainer
from fednc.common.config.run import parse_run
from fednc.common.config.tables import TrainSection
from fednc.common.learning.round_context import Guide
from fednc.common.methods.fednova import optimiser_steps
from fednc.common.tasks.api import Stepper
from fednc.common.tasks.tensor_data import TensorData
from support.prototype_tasks import LINE, LineTask

DATA = TensorData(
    tensors=(
        torch.randn(24, 3, generator=torch.Generator().manual_seed(1)),
        torch.randn(24, generator=torch.Generator().manual_seed(2)),
    )
)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker, self.judge = nn.Linear(3, 1), nn.Linear(1, 1)

    def forward(self, x_BF: Tensor) -> Tensor:
        made: Tensor = self.maker(x_BF)
        return made


class AdversarialTask(LineTask):
    """A maker and a judge, each with a loss and a rate of its own."""

    name = "adversarial"

    def build_model(self) -> nn.Module:
        return Pair()

    def optimiser_parts(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        assert isinstance(model, Pair)
        return {"judge": list(model.judge.parameters()), "maker": list(model.maker.parameters())}

    def optimiser_section(self, part: str, section: TrainSection) -> TrainSection:
        return section.model_copy(update={"lr": 0.5}) if part == "judge" else section

    def training_step(self, model: nn.Module, batch: Any, guide: Guide, trainer: Stepper) -> dict[str, Tensor]:
        assert isinstance(model, Pair)
        judged = model.judge(model.maker(batch[0]))
        trainer.descend(judged.square().mean(), "judge")
        made = -model.judge(model.maker(batch[0])).mean()
        trainer.descend(made, "maker")
        return {"loss": made.detach()}


def trained(task: LineTask, **keys: Any) -> nn.Module:
    torch.manual_seed(0)
    model = task.build_model()
    none = torch.zeros(0, 8)
    guide = Guide(
        method=task.run.method, etf_KD=none, mean_KD=none, seen_K=none[:, 0].bool(), count_K=none[:, 0].long()
    )
    section = TrainSection.model_validate({"lr": 0.1, "momentum": 0, "weight_decay": 0, **keys})
    result = trainer.train(task, model, DATA, guide, section, 1, torch.Generator().manual_seed(3), Hooks())
    assert result.steps == optimiser_steps(DATA.examples, section)
    return model


def test_accumulated_batches_make_the_step_of_one_large_batch() -> None:
    task = LineTask(parse_run(LINE))
    small, large = trained(task, batch=8, accumulate=3), trained(task, batch=24)
    for one, other in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_last_batches_of_a_round_count_though_they_are_fewer() -> None:
    task = LineTask(parse_run(LINE))
    torch.manual_seed(0)
    fresh = task.build_model()
    few = trained(task, batch=8, accumulate=99)  # as one step with all three
    large = trained(task, batch=24)
    for one, other, start in zip(few.parameters(), large.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.equal(one, start)


def test_two_optimisers_do_not_see_each_others_losses() -> None:
    """The same as a plain loop with two optimisers and gradients that are emptied by hand."""
    run = parse_run({**LINE, "task": {"name": "adversarial"}})
    found = trained(AdversarialTask(run), batch=24)
    torch.manual_seed(0)
    model = Pair()
    judge, maker = torch.optim.SGD(model.judge.parameters(), 0.5), torch.optim.SGD(model.maker.parameters(), 0.1)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    x_BF = DATA.tensors[0][order]
    for loss, optimiser in ((lambda y: y.square().mean(), judge), (lambda y: -y.mean(), maker)):
        model.zero_grad()
        loss(model.judge(model.maker(x_BF))).backward()
        optimiser.step()
    for one, other in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
