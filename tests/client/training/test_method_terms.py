"""What the baselines add to plain local training: losses, control variates, and the state of clients.

Legend: B batch, K label space, D feature width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor
from torch.autograd import gradcheck

from fednc.client.app.flower_app import app as fednc_app
from fednc.client.training.round_state import Past
from fednc.common.config.tables import MethodSection, TrainSection
from fednc.common.errors import ConfigError
from fednc.common.learning.frame import draw_frame
from fednc.common.learning.heads import LinearHead
from fednc.common.learning.losses import View, calibration, cross_entropy, objective
from fednc.common.learning.round_context import GLOBAL, PREVIOUS, Guide
from fednc.common.methods.api import LocalRound
from fednc.common.methods.fedntd import not_true_distillation
from fednc.common.methods.moon import model_contrast
from fednc.common.methods.scaffold import ControlVariates, control_key
from fednc.common.wire.messages import EXAMPLES, HELLO, METRICS
from support.contract_run import CLIENTS, assert_same_bits, config, run_on_local

B, K, D = 6, 5, 7
LABEL_B = torch.tensor([0, 1, 2, 3, 3, 0])
COUNT_K = torch.tensor([40, 3, 1, 10, 0])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LOSSES = {
    "distillation": lambda z: not_true_distillation(z, normal(B, K, seed=1), LABEL_B, 2.0),
    "contrast": lambda h: model_contrast(h, normal(B, K, seed=2), normal(B, K, seed=3), 0.5),
    "calibrated": lambda z: cross_entropy(z, LABEL_B, calibration(COUNT_K, 0.7)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    assert gradcheck(LOSSES[name], normal(B, K, seed=0).requires_grad_())


def one_step(loss: Any, start: Tensor, lr: float = 0.05) -> Tensor:
    moving = start.clone().requires_grad_()
    loss(moving).backward()
    assert moving.grad is not None
    return (moving - lr * moving.grad).detach()


def test_distillation_keeps_the_global_models_scores_of_the_other_classes() -> None:
    wanted_BK, start_BK = normal(B, K, seed=1), normal(B, K, seed=0)
    true_B = (torch.arange(B), LABEL_B)
    after_BK = one_step(LOSSES["distillation"], start_BK)
    assert torch.equal(after_BK[true_B], start_BK[true_B]), "the label is learnt freely"
    assert LOSSES["distillation"](after_BK) < LOSSES["distillation"](start_BK)
    free_BK = wanted_BK.clone()
    free_BK[true_B] += 100  # whatever the label's own score is
    assert not_true_distillation(free_BK, wanted_BK, LABEL_B, 1.0).abs() < 1e-12


def test_contrast_moves_features_to_the_global_models_and_away_from_the_previous_ones() -> None:
    start_BD = normal(B, K, seed=0)
    after_BD = one_step(LOSSES["contrast"], start_BD)
    cosine = torch.nn.functional.cosine_similarity
    near, far = normal(B, K, seed=2), normal(B, K, seed=3)
    gain_B = cosine(after_BD, near) - cosine(start_BD, near) - cosine(after_BD, far) + cosine(start_BD, far)
    assert (gain_B > 0).all()


def test_calibration_gives_rarer_classes_larger_margins_and_leaves_absent_ones_out() -> None:
    margin_K = calibration(COUNT_K, 1.0)
    assert torch.isneginf(margin_K[4])
    assert margin_K[[2, 1, 3, 0]].diff().gt(0).all(), "ordered by count"
    logit_BK = normal(B, K, seed=0).requires_grad_()
    cross_entropy(logit_BK, LABEL_B, margin_K).backward()
    assert logit_BK.grad is not None
    assert (logit_BK.grad[:, 4] == 0).all()


def test_calibration_without_margins_still_leaves_absent_classes_out() -> None:
    assert torch.equal(torch.isneginf(calibration(COUNT_K, 0.0)), COUNT_K == 0)
    assert not calibration(COUNT_K, 0.0)[COUNT_K > 0].any()


def guide(**method: Any) -> Guide:
    etf_KD = draw_frame(K, D, seed=0).etf_KD
    seen_K = torch.zeros(K, dtype=torch.bool)
    return Guide(method=MethodSection(**method), etf_KD=etf_KD, mean_KD=etf_KD * 0, seen_K=seen_K, count_K=COUNT_K)


@pytest.mark.parametrize("name", ["moon", "fedntd"])
def test_objective_weighs_each_comparison_and_refuses_a_task_without(name: str) -> None:
    head, feat_BD = LinearHead(D, K), normal(B, D, seed=4).float()
    views = {
        key: View(normal(B, D, seed=i).float(), normal(B, K, seed=i).float())
        for i, key in enumerate([GLOBAL, PREVIOUS])
    }
    key, part = {"moon": ("contrast", "contrast"), "fedntd": ("distil", "distillation")}[name]
    once, twice = (objective(feat_BD, LABEL_B, head, guide(name=name, **{key: w}), views=views) for w in (1, 2))
    assert once[1][part] > 0
    torch.testing.assert_close(twice[1][part], 2 * once[1][part])
    torch.testing.assert_close(twice[0] - once[0], once[1][part])
    with pytest.raises(ConfigError, match=f"method {name} compares models"):
        objective(feat_BD, LABEL_B, head, guide(name=name))


def test_control_variates_are_option_ii_of_the_paper_for_plain_sgd() -> None:
    """c_k' = c_k - c + (w_global - w) / (steps lr), over three steps from a c_k of an earlier round."""
    torch.manual_seed(0)
    model, lr, steps = torch.nn.Linear(3, 2).double(), 0.1, 3
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    own = {n: torch.randn_like(p) for n, p in start.items()}
    control = {control_key(n): torch.randn_like(p) for n, p in start.items()}
    past = Past(RecordDict(), 1)
    past.write("control", own)
    added = ControlVariates(
        LocalRound(
            model=model,
            stepped=frozenset(start),
            received=control,
            state=Past(past._state, 2),
            train=TrainSection(),
            number=2,
            lr=lr,
        )
    )
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(steps):
        sgd.zero_grad()
        model(normal(4, 3, seed=step)).square().mean().backward()
        added.on_gradients()
        sgd.step()
    change = added.finish()
    for name, param in model.named_parameters():
        c, key = control[control_key(name)], control_key(name)
        wanted = own[name] - c + (start[name] - param.detach()) / (steps * lr)
        torch.testing.assert_close(own[name] + change[key], wanted)


@pytest.mark.parametrize("method", ["scaffold", "moon", "scaffnew"])
def test_a_repeated_round_starts_from_the_round_before_it(method: str, tmp_path: Path) -> None:
    """Below quorum the round does not count although most clients have trained; nobody may train from that."""
    failed: list[Any] = []

    def fails_once(message: Message, context: Context) -> Message:
        reply = fednc_app(message, context)
        name, meta = context.node_config["name"], message.metadata
        if (meta.group_id, meta.message_type) == ("2", "train") and name != "anna" and failed.count(name) < 1:
            failed.append(name)
            raise OSError("no answer after all that work")
        return reply

    run = config(method={"name": method}, rounds={"total": 3})
    flaky = run_on_local(run, fails_once, tmp_path)
    assert len(failed) == 2
    assert_same_bits(flaky, run_on_local(run, fednc_app, tmp_path))


def test_the_federations_control_variate_is_the_mean_of_the_clients(tmp_path: Path) -> None:
    """Weighted by examples, over all clients, some of them absent in each round."""
    contexts: dict[str, Context] = {}
    examples: dict[str, int] = {}

    def remember(message: Message, context: Context) -> Message:
        reply, name = fednc_app(message, context), str(context.node_config["name"])
        if message.metadata.message_type == HELLO:
            contexts[name], examples[name] = context, reply.content.metric_records[METRICS][EXAMPLES]
        return reply

    run = config(method={"name": "scaffold"}, rounds={"total": 3, "clients_per_round": 2})
    result = run_on_local(run, remember, tmp_path)
    own = {name: Past(context.state, 99).read("control") for name, context in contexts.items()}
    assert len(own) == len(CLIENTS)
    for key, value in result.state.extra.items():
        name = key.removeprefix(control_key(""))
        total = sum(n * own[k][name].double() for k, n in examples.items() if own[k])
        torch.testing.assert_close(value.double(), total / sum(examples.values()), atol=1e-6, rtol=1e-5)
        assert value.abs().max() > 0
