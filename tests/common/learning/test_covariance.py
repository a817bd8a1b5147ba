"""The metric of the class memory, compared with the plain covariance and scikit-learn's discriminant.

Legend: N examples, D feature width, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.flower_app import app
from fednc.client.app.host import ClientConfig
from fednc.common.config.tables import MethodSection
from fednc.common.learning.class_memory import ClassMemory, ClassSums
from fednc.common.learning.covariance import FLOOR, inverse_covariance
from fednc.common.learning.frame import unit
from fednc.common.learning.heads import FrameHead
from fednc.common.learning.readout import readout_logits
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Part
from fednc.common.wire import messages
from fednc.server.link.reply_schema import ReplySchema
from support.contract_run import config
from support.fewshot_rounds import run_until
from support.fewshot_run import DISCRIMINANT, DOT, NEAREST, carry_out, clients, prepare
from support.fewshot_run import config as in_sessions
from support.runs_on_grids import in_one_process

D, K = 12, 4
CLIENTS = [ClientConfig(name=name, data="digits", device="cpu", val_share=0) for name in ("anna", "bert", "carl")]


def covariance(seed: int, rank: int = D) -> torch.Tensor:
    root_DR = torch.randn(D, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root_DR @ root_DR.T / D


@given(st.integers(0, 10**6))
def test_with_many_examples_it_is_the_plain_inverse(seed: int) -> None:
    found_DD = covariance(seed) + torch.eye(D)
    torch.testing.assert_close(
        inverse_covariance(found_DD, 10**9) @ found_DD.float(), torch.eye(D), rtol=0, atol=1e-4
    )


@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_it_does_not_depend_on_the_axes_and_scales_inversely(seed: int, factor: float) -> None:
    found_DD, turn_DD = covariance(seed) + torch.eye(D), torch.linalg.qr(covariance(seed + 1))[0]
    inverse_DD = inverse_covariance(found_DD, 50)
    turned_DD = inverse_covariance(turn_DD @ found_DD @ turn_DD.T, 50)
    torch.testing.assert_close(turned_DD.double(), turn_DD @ inverse_DD.double() @ turn_DD.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        inverse_covariance(factor * found_DD, 50) * factor, inverse_DD, rtol=1e-5, atol=1e-5
    )


def test_with_fewer_examples_it_is_closer_to_a_sphere() -> None:
    spreads = []
    for freedom in (-3, 0, 1, 10, 100, 10**6):
        value_D = torch.linalg.eigvalsh(inverse_covariance(covariance(0), freedom))
        spreads.append((value_D.max() / value_D.min()).item())
    assert spreads == sorted(spreads)
    assert spreads[0] == pytest.approx(1.0, abs=1e-5)
    assert spreads[-1] > 100


@pytest.mark.parametrize(
    "impossible_DD",
    [torch.zeros(D, D), -torch.eye(D), torch.full((D, D), -1.0), covariance(1, rank=2).float()],
    ids=["one place", "negative", "no features have it", "flat"],
)
@pytest.mark.parametrize("freedom", [-1, 0, 10**9])
def test_any_accepted_sums_give_a_finite_metric(impossible_DD: torch.Tensor, freedom: int) -> None:
    value_D = torch.linalg.eigvalsh(inverse_covariance(impossible_DD.double(), freedom))
    assert value_D.isfinite().all()
    assert (value_D > 0).all()
    assert value_D.max() <= 1.001 / FLOOR


def test_the_read_out_is_scikit_learns_linear_discriminant() -> None:
    """The same classes and the same likelihood ratios, from the sums of three clients."""
    draw = torch.Generator().manual_seed(5)
    label_N = torch.arange(4000) % K
    skewed_DD = torch.eye(D) + 0.2 * torch.randn(D, D, generator=draw)
    centre_KD = 2 * torch.randn(K, D, generator=draw)
    feat_ND = unit(centre_KD[label_N] + torch.randn(4000, D, generator=draw) @ skewed_DD)
    pooled = ClassSums.zeros(K, D, moment=True)
    for client in range(3):
        mine = slice(client, None, 3)
        sums = ClassSums.zeros(K, D, moment=True).add_batch(feat_ND[mine], label_N[mine])
        pooled.merge(ClassSums.from_tensors(sums.to_tensors()))
    memory = ClassMemory.empty(K, D).update(pooled, 0.0)
    guide = Guide(
        method=MethodSection(readout="discriminant"),
        etf_KD=torch.zeros(K, D),
        mean_KD=memory.mean_KD,
        seen_K=memory.seen_K,
        metric_DD=memory.metric_DD,
        count_K=torch.zeros(K),
    )
    score_NK = readout_logits(feat_ND, FrameHead(4.0, False), guide, K)
    judge = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(K, 1 / K)).fit(feat_ND, label_N)
    likelihood_NK = torch.from_numpy(judge.predict_log_proba(feat_ND))
    assert (score_NK.argmax(1) == likelihood_NK.argmax(1)).double().mean() > 0.999
    assert (
        score_NK.log_softmax(1) - likelihood_NK
    ).abs().mean() < 0.3  # of about 15; scikit-learn does not shrink


def test_a_runs_metric_is_that_of_the_pooled_data() -> None:
    """In features of the final model."""
    run = config(rounds={"total": 1, "min_clients": 3})
    result = in_one_process(run, CLIENTS, app)
    model = result.task.build_model()
    model.load_state_dict(result.state.model)
    model.eval()
    parts = [result.task.load_train("digits", Part(index, 3), run.split) for index in range(3)]
    batches = [result.task.aligned(model, batch) for part in parts for batch in part.eval_batches(256)]
    feat_ND, label_N = (torch.cat(found).detach() for found in zip(*batches, strict=True))
    centred_ND = (feat_ND - torch.stack([feat_ND[label_N == c].mean(dim=0) for c in range(10)])[label_N]).double()
    covariance_DD, metric_DD = centred_ND.T @ centred_ND / len(centred_ND), result.state.memory.metric_DD
    assert metric_DD is not None
    error_DD = metric_DD.double() @ covariance_DD - torch.eye(16)
    assert (
        torch.linalg.matrix_norm(error_DD) < 0.15 * 4
    )  # 4 is the norm of the identity; part of the difference is shrinkage


@pytest.mark.parametrize("floor", [1, 40])
def test_withheld_classes_are_in_no_moment(floor: int) -> None:
    """The squares of unit features sum to their number, so to the number of examples whose sums were sent."""
    run, sent = config(rounds={"total": 1, "min_clients": 3}), []

    def watching(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == messages.MEMORY:
            sent.append(messages.sums_of(reply.content))
        return reply

    in_one_process(run, [replace(client, min_sum_examples=floor) for client in CLIENTS], watching)
    counts = torch.stack([sums.count_K for sums in sent])
    assert ((counts == 0) | (counts >= floor)).all()
    for sums in sent:
        assert sums.moment_DD is not None
        assert not sums.sum_KD[sums.count_K == 0].any()
        assert sums.moment_DD.trace().item() == pytest.approx(int(sums.count_K.sum()), rel=1e-2)
    assert (counts.sum() < 1400) == (floor > 1)


# ---- sessions -------------------------------------------------------------------------------------------------


def test_the_metric_is_that_of_the_base() -> None:
    """Sessions bring few examples of each class; the covariance around five of them says little."""
    run = in_sessions(method=DISCRIMINANT)
    prepared, _ = prepare(run)
    with LocalGrid(run, clients(run)) as grid:
        begun = run_until(prepared, grid, rounds=2).tensors["memory.metric_DD"]
    result, _ = carry_out(run)
    assert begun.shape == (result.task.memory_dim, result.task.memory_dim)
    assert result.state.memory.metric_DD is not None
    assert torch.equal(result.state.memory.metric_DD, begun)


@pytest.mark.parametrize("method", [NEAREST, DISCRIMINANT], ids=["nearest", "discriminant"])
def test_without_a_memory_the_head_is_the_read_out(method: dict[str, Any]) -> None:
    run = in_sessions(method=method, rounds={"evaluate_every": 1})
    first = carry_out(run)[0].history.rounds[0].test["accuracy"]
    by_vertex = (
        carry_out(in_sessions(method=DOT, rounds={"evaluate_every": 1}))[0].history.rounds[0].test["accuracy"]
    )
    assert first == by_vertex


@pytest.mark.parametrize("is_first", [True, False])
def test_moments_are_agreed_on_for_the_first_stage(is_first: bool) -> None:
    prepared, _ = prepare(in_sessions(method=DISCRIMINANT))
    state = prepared.state
    agreement = ReplySchema.of(prepared.task, state.model, is_first=is_first)
    assert ("moment_T" in agreement.forms[messages.MEMORY].required[messages.SUMS]) == is_first
    assert "moment_T" not in agreement.forms[messages.TRAIN].optional[messages.SUMS]
