"""A third reconstruction, from ordinary updates: many rounds of one model with batches in a known order.

With a small learning rate an update is the sum of all examples' gradients, each weighted by its batch's size.
The order differs from round to round, so enough rounds are a linear system for single examples.

Legend: R rounds, N training examples, P pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fednc.client.policy.rules import Policy
from fednc.common import seeds
from fednc.common.initialise.messages import GRADIENT
from fednc.common.wire import arrays, messages
from fednc.common.wire.messages import MEMORY, MODEL, SUMS, TRAIN
from support.clients_with_policy import Site, open_but, strict_but
from support.hostile.image_server import (
    PIXELS,
    REFUSALS,
    as_image,
    closest,
    content_of,
    hostile_run,
    instruction,
    recovered,
    see_through,
    welcome,
    write_images,
)

ROUNDS, EXAMPLES, BATCH, LR = 40, 21, 8, 2.0**-20
NOTHING_LIKE = 20.0  # grey levels of mean error
ROW = PIXELS + 1  # weights of the projection: zero, so that floats show the smallest change
RUN = hostile_run(
    method={"name": "fedavg", "readout": "head"},
    frame={"dim": PIXELS + 2},
    train={"batch": BATCH, "lr": LR, "momentum": 0.0, "weight_decay": 0.0, "epochs": 1},
    rounds={"total": ROUNDS},
)


def weights_of(server_round: int) -> Tensor:
    """float64 [N]: the weight of each example in a round's update, as the server computes it."""
    order_N = torch.randperm(EXAMPLES, generator=seeds.generator(RUN.seed, "batches", server_round, "site"))
    weight_N = torch.zeros(EXAMPLES, dtype=torch.float64)
    for rows in order_N.split(BATCH):
        weight_N[rows] = 1 / len(rows)
    return weight_N


def images_from_rounds(site: Site) -> list[np.ndarray[Any, Any]]:
    """One image per example: solves for its gradient, whose weights divided by its bias are the image."""
    host, model = site.start(), see_through(RUN)
    moved, weights = [], []
    try:
        host.prepare(welcome(RUN, "run"))
        for server_round in range(1, ROUNDS + 1):
            reply = host.work(instruction(content_of(RUN, server_round, model=model), TRAIN))
            update = arrays.from_record(reply.content[MODEL])
            moved.append(torch.cat([update["projection.weight"][ROW], update["projection.bias"][ROW : ROW + 1]]))
            weights.append(weights_of(server_round))
    except REFUSALS:
        pass
    if not moved:
        return []
    grad_NP = torch.linalg.lstsq(torch.stack(weights), torch.stack(moved).double(), driver="gelsd").solution
    return [as_image(grad_P[:PIXELS] / grad_P[PIXELS]) for grad_P in grad_NP]


def test_without_a_policy_many_rounds_of_one_model_give_every_image(tmp_path: Path) -> None:
    site = Site(tmp_path, None, val_share=0.0)
    wanted = write_images(site.images, (12, 9))
    assert recovered(images_from_rounds(site), wanted) == EXAMPLES


@pytest.mark.parametrize(
    ("policy", "answers"),
    [
        (open_but(), ROUNDS),  # only the client's secret order of batches protects it
        (open_but(floor={"batch": BATCH}), ROUNDS),  # 21 examples are one batch of 21, each with the same weight
        (open_but(quota={"queries": EXAMPLES - 1}), EXAMPLES - 1),
        (strict_but(floor={"examples": EXAMPLES, "held_out": 0, "batch": 1, "steps": 1}), ROUNDS),
        (strict_but(), 0),
    ],
)
def test_with_the_policy_many_rounds_of_one_model_cannot_be_solved(
    policy: Policy, answers: int, tmp_path: Path
) -> None:
    site = Site(tmp_path, policy, val_share=0.0)
    wanted = write_images(site.images, (12, 9))
    assert closest(images_from_rounds(site), wanted) > NOTHING_LIKE
    assert len(site.log(outcome="sent", kind=TRAIN)) == answers


def test_above_all_floors_the_strict_policy_allows_an_update_and_nothing_else(tmp_path: Path) -> None:
    site = Site(tmp_path, strict_but())
    write_images(site.images, (90, 60))
    run = hostile_run(method={"name": "fedavg", "readout": "head"}, train={"batch": 32, "lr": 0.05})
    host = site.start()
    host.prepare(welcome(run, "run"))
    update = host.work(instruction(content_of(run, wants_sums=True), TRAIN)).content
    sums = messages.sums_of(update)
    assert not sums.count_K.any()
    assert not sums.sum_KD.any()
    assert set(update) == {MODEL, SUMS, "metrics"}
    for kind in (MEMORY, GRADIENT):
        with pytest.raises(REFUSALS):
            host.work(instruction(content_of(run), kind))
    assert {line["code"] for line in site.log(outcome="refused")} == {"class-sums", "gradients"}
