"""Two reconstructions of single images by a hostile server: they work, and the owner's policy stops them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fednc.client.policy.rules import OwnerRefusalError, Policy
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.initialise.messages import GRADIENT
from fednc.common.wire import arrays
from fednc.common.wire.messages import EVALUATE, MEMORY, MODEL, TRAIN
from fednc.protos import federation_pb2 as pb
from support.clients_with_policy import Site, open_but, strict_but
from support.hostile.image_server import (
    closest,
    content_of,
    gradients,
    hostile_run,
    images_from_gradients,
    images_from_sums,
    instruction,
    recovered,
    see_through,
    sums_over_seeds,
    welcome,
    write_images,
)

SEEDS = range(60)


SUMS = hostile_run()
GRADIENTS = hostile_run(method={"name": "fedavg"}, init={"kind": "nio-exact", "batch": 1})


def site_for_sums(folder: Path, policy: Policy | None) -> tuple[Site, Any]:
    """Each run holds out one of the 12 images of a class, so sums are over 11, which is not below the floor."""
    site = Site(folder, policy, min_sum_examples=10)
    return site, write_images(site.images, (18, 12))[18:]


def site_for_gradients(folder: Path, policy: Policy | None) -> tuple[Site, Any]:
    site = Site(folder, policy, val_share=0.0)
    return site, write_images(site.images, (12, 9))


# ---- sums that leave one out -----------------------------------------------------------------------------------


def test_without_a_policy_sums_over_seeds_give_every_image_of_a_class(tmp_path: Path) -> None:
    site, wanted = site_for_sums(tmp_path, None)
    found = list(sums_over_seeds(site.start, SEEDS, SUMS))
    assert {count for _, count in found} == {11}
    assert recovered(images_from_sums(found), wanted) == len(wanted) == 12
    assert len(site.log(outcome="sent", kind=MEMORY)) == len(SEEDS)


STOPPED_BY: dict[str, tuple[Policy, str]] = {
    "the strict policy": (strict_but(), "method"),
    "the strict policy with class sums": (
        strict_but(
            runs={"methods": []},
            floor={"examples": 20, "held_out": 1, "sum_examples": 10},
            allow={"class_sums": True},
        ),
        "pinned",
    ),
    "nothing but a first run": (open_but(runs={"pin_first": True}), "pinned"),
    "nothing but a floor": (open_but(floor={"sum_examples": 12}), ""),
    "nothing but a quota of runs": (open_but(quota={"runs_per_day": 1}), "runs-quota"),
    "nothing but a quota of questions": (open_but(quota={"queries": 1}), "queries-quota"),
    "nothing but what is held out": (open_but(), ""),
    "no class sums": (open_but(allow={"class_sums": False}), "class-sums"),
}


@pytest.mark.parametrize("name", STOPPED_BY)
def test_sums_over_seeds_are_stopped_by(name: str, tmp_path: Path) -> None:
    policy, code = STOPPED_BY[name]
    site, wanted = site_for_sums(tmp_path, policy)
    found = list(sums_over_seeds(site.start, SEEDS, SUMS))
    assert closest(images_from_sums(found), wanted) > 20, "grey levels; nothing resembles an image"
    assert len({tuple(sum_D.tolist()) for sum_D, _ in found}) <= 1
    sent, refused = site.log(outcome="sent", kind=MEMORY), site.log(outcome="refused", code=code)
    assert len(sent) == len(found)
    if code:
        assert len(refused) >= len(SEEDS) - 1
    else:
        assert len({line["sha256"] for line in sent}) == 1
        assert len(sent) == len(SEEDS)


CHOICES: dict[str, dict[str, Any]] = {
    "split": {"split": {"kind": "iid", "parts": 2}},
    "session": {
        "task": {"name": "fewshot", "classes": ["healthy"]},
        "method": {"readout": "memory", "loss": "dot"},
        "sessions": [{"classes": ["ill"], "shots": 5, "rounds": 1}],
    },
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_server_cannot_choose_a_part_of_the_data(choice: str, tmp_path: Path) -> None:
    site, _ = site_for_sums(tmp_path, open_but(allow={"subsets": False}))
    run = hostile_run(**CHOICES[choice])
    part = pb.Part(index=0, of=2) if run.split else None
    with pytest.raises(ConfigError, match="refused-by-owner: subset: "):
        site.start().prepare(welcome(run, "run", part))
    Site(tmp_path / "open", open_but()).images.write_bytes(site.images.read_bytes())
    assert Site(tmp_path / "open", open_but()).start().prepare(welcome(run, "run", part)).examples > 0


def test_an_instruction_of_another_run_file_is_refused(tmp_path: Path) -> None:
    """A client reloads its data if an instruction's sessions differ; it must not do so with another seed."""
    site, _ = site_for_sums(tmp_path, open_but())
    host = site.start()
    host.prepare(welcome(SUMS, "run"))
    for change in ({"seed": 1}, {"split": {"kind": "iid", "parts": 2}}, {"train": {"batch": 1}}):
        other = hostile_run(**change)
        with pytest.raises(OwnerRefusalError, match="run-changed"):
            host.work(instruction(content_of(other, 0), MEMORY))
    assert site.log(outcome="sent") == []


# ---- gradients of one example ----------------------------------------------------------------------------------


def test_without_a_policy_gradients_give_every_image(tmp_path: Path) -> None:
    site, wanted = site_for_gradients(tmp_path, None)
    host = site.start()
    host.prepare(welcome(GRADIENTS, "run"))
    images = images_from_gradients(gradients(host, GRADIENTS, range(120)), GRADIENTS)
    assert recovered(images, wanted) == len(wanted) == 21
    assert {"init", "metrics"} == set(site.log(outcome="sent", kind=GRADIENT)[0]["records"])


@pytest.mark.parametrize("method", ["fedavg", "fednc"])
def test_the_strict_policy_refuses_the_run(method: str, tmp_path: Path) -> None:
    site, _ = site_for_gradients(tmp_path, strict_but())
    run = GRADIENTS.model_copy(update={"method": hostile_run(method={"name": method}).method})
    with pytest.raises(ConfigError, match="refused-by-owner: "):
        site.start().prepare(welcome(run, "run"))
    assert {line["outcome"] for line in site.log()} == {"refused"}


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (strict_but(floor={"examples": 21}), "gradients"),
        (open_but(allow={"gradients": False}), "gradients"),
        (open_but(floor={"batch": 2}), "batch"),
        (open_but(quota={"queries_per_day": 1}), "queries-quota"),
    ],
)
def test_gradients_are_stopped(policy: Policy, code: str, tmp_path: Path) -> None:
    site, wanted = site_for_gradients(tmp_path, policy)
    host = site.start()
    host.prepare(welcome(GRADIENTS, "run"))
    images = images_from_gradients(gradients(host, GRADIENTS, range(30)), GRADIENTS)
    allowed = policy.quota.queries_per_day if code == "queries-quota" else 0
    assert recovered(images, wanted) == allowed == len(site.log(outcome="sent", kind=GRADIENT))
    assert len(site.log(outcome="refused", code=code, kind=GRADIENT)) == 30 - allowed


def update_of_one(run: RunConfig, site: Site) -> dict[str, Any]:
    host = site.start()
    host.prepare(welcome(run, "run"))
    reply = host.work(instruction(content_of(run), TRAIN))
    host.leave()
    return arrays.from_record(reply.content[MODEL])


HURRIED: dict[str, tuple[dict[str, Any], str]] = {
    "a batch of one": ({"batch": 1, "epochs": 1}, "batch"),
    "one step": ({"batch": 64, "epochs": 1}, "steps"),
    "the first step": ({"lr": 1e6}, "rate"),
    "the last step": ({"lr": 0.01, "weight_decay": 100.0, "momentum": 0.0}, "rate"),
    "many batches in one step": ({"batch": 16, "epochs": 4, "accumulate": 100}, "steps"),
    "steps that the rate does not bound": ({"batch": 16, "epochs": 4, "optimizer": "rprop"}, "optimizer"),
    "keys that replace those of SGD": (
        {"batch": 16, "epochs": 4, "optimizer_options": {"momentum": 0.999}},
        "optimizer",
    ),
}


@pytest.mark.parametrize("hurry", HURRIED)
def test_no_update_is_the_gradient_of_one_batch(hurry: str, tmp_path: Path) -> None:
    keys, code = HURRIED[hurry]
    site, _ = site_for_gradients(tmp_path, strict_but(floor={"examples": 21, "held_out": 0}))
    run = hostile_run(method={"name": "fedavg"}, train=keys)
    with pytest.raises(ConfigError, match=f"refused-by-owner: {code}: "):
        site.start().prepare(welcome(run, "run"))


def test_with_full_decay_an_update_is_the_last_batch_alone(tmp_path: Path) -> None:
    """Why `forgetting` has a ceiling: if lr * weight_decay = 1, an update does not depend on its start."""
    keys = {"lr": 2**-10, "weight_decay": 2.0**10, "momentum": 0.0, "batch": 1, "epochs": 1}
    forgets = hostile_run(method={"name": "fedavg"}, train=keys)
    site, _ = site_for_gradients(tmp_path, None)
    left = update_of_one(forgets, site)["projection.weight"].abs().max()
    assert left < 2**-8, "one gradient times the learning rate; the server's own weights were 1"
    run = hostile_run(method={"name": "fedavg"}, train={**keys, "weight_decay": 0.0})
    assert update_of_one(run, site)["projection.weight"].abs().max() > 0.9


def test_a_repeated_instruction_gets_the_same_answer_and_is_counted_once(tmp_path: Path) -> None:
    site, _ = site_for_sums(tmp_path, open_but(quota={"queries": 2}))
    host = site.start()
    host.prepare(welcome(SUMS, "run"))
    for server_round in range(5):
        host.work(instruction(content_of(SUMS, server_round), MEMORY))
    digests = {line["sha256"] for line in site.log(outcome="sent", kind=MEMORY)}
    assert len(digests) == 1
    host.work(instruction(content_of(SUMS, 1), EVALUATE))
    other = see_through(SUMS)
    other.state_dict()["projection.bias"].add_(1e-7)
    with pytest.raises(OwnerRefusalError, match="queries-quota"):
        host.work(instruction(content_of(SUMS, 1, model=other), MEMORY))
