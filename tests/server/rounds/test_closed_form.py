"""`train.epochs = 0`: one round of sums, the same result for any split, and settings that make no sense."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fednc.client.app.flower_app import app
from fednc.client.app.host import ClientConfig
from fednc.client.policy import objections
from fednc.client.policy.rules import Policy
from fednc.common.config.run import RunConfig, parse_run, parse_run_json
from fednc.common.errors import ConfigError, QuorumError
from fednc.common.model_export import load
from fednc.common.tasks import discovery
from fednc.protos import federation_pb2 as pb
from fednc.server.link.reply_schema import ReplySchema
from fednc.server.rounds.result_files import summary_of, write_files
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.event_log import EventLog
from support.contract_run import assert_same_bits
from support.fewshot_run import config as session_config
from support.runs_on_grids import in_one_process, over_the_link

NAMES = [str(i) for i in range(10)]


def closed(parts: int = 3, readout: str = "ridge", **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "seed": 5,
        "task": {"classes": NAMES, "model": "cnn", "width": 8, "size": 8, "channels": 1},
        "method": {"name": "fedavg", "readout": readout},
        "train": {"epochs": 0},
        "rounds": {"min_clients": parts},
        "split": {"parts": parts, "alpha": 0.1, "seed": 3},
        "evaluate": {"test": "digits"},
    }
    return parse_run({**values, **{k: {**values.get(k, {}), **v} for k, v in changes.items()}})


def clients(count: int, share: float = 0.0) -> list[ClientConfig]:
    return [ClientConfig(name=f"c{i}", data="digits", device="cpu", val_share=share) for i in range(count)]


def done(run: RunConfig, share: float = 0.0) -> RunResult:
    assert run.split
    return in_one_process(run, clients(run.split.parts, share), app)


@pytest.mark.parametrize("readout", ["ridge", "discriminant"])
def test_any_split_gives_the_read_out_of_all_examples_together(readout: str) -> None:
    """One client with everything is the central solution; then few and many clients, most without some classes."""
    central = done(closed(1, readout, split={"kind": "iid"})).state.memory
    for parts, split in (
        (4, {"alpha": 0.05}),
        (9, {"kind": "shards", "classes_per_part": 1}),
        (2, {"kind": "iid"}),
    ):
        memory = done(closed(parts, readout, split=split)).state.memory
        for name, value in central.to_tensors().items():
            other = memory.to_tensors()[name]
            assert (value.double() - other.double()).abs().max() <= 1e-6 * value.double().abs().max(), name


def test_it_is_one_round_without_training_and_the_link_gives_the_same_bits(tmp_path: Path) -> None:
    run = closed(3)
    local = done(run, 0.2)
    remote = over_the_link(run, clients(3, 0.2), app, tmp_path, agreed=True)
    assert_same_bits(local, remote)
    assert torch.equal(local.state.memory.ridge_KD, remote.state.memory.ridge_KD)  # type: ignore[arg-type]
    assert run.all_rounds == 1
    (record,) = local.history.rounds
    assert record.replies == 3
    assert record.loss is None
    assert record.test["accuracy"] > 0.6  # drawn features of a narrow model
    assert record.pooled["accuracy"] > 0.6
    before = FederatedRun(run, EventLog()).state.model
    assert all(torch.equal(value, before[key]) for key, value in local.state.model.items())


def test_the_exported_model_has_the_read_out(tmp_path: Path) -> None:
    result = done(closed(2))
    write_files(tmp_path, result, summary_of("x", result))
    model = load(tmp_path)
    data = result.task.load_test("digits")
    inputs, labels = next(iter(data.eval_batches(2000)))
    with torch.no_grad():
        accuracy = float((model(inputs).argmax(dim=1) == labels).float().mean())
    assert accuracy == pytest.approx(result.history.rounds[-1].test["accuracy"], abs=1e-6)


def test_features_are_those_of_the_backbone() -> None:
    task = discovery.get(closed())
    model = task.build_model()
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model(x), model.backbone(x))  # type: ignore[operator]
    assert task.memory_dim == task.frame(0).dim == 9 * 16


def test_more_rounds_are_possible_if_asked_for() -> None:
    run = closed(rounds={"total": 2})
    result = done(run)
    first, second = result.history.rounds
    assert first.test == second.test


def test_clients_read_the_same_run_and_send_exact_sums() -> None:
    run = closed()
    assert parse_run_json(run.for_clients(), source="test").all_rounds == 1
    prepared = FederatedRun(run, EventLog())
    schema = ReplySchema.of(prepared.task, {}, is_first=True)
    expected = schema.forms["query.memory"].required["sums"]["moment_T"]
    assert "float64" in str(expected)


def test_too_few_clients_end_the_run() -> None:
    run = closed(3, rounds={"min_clients": 3, "wait_s": 0.2, "deadline_s": 1})
    with pytest.raises(QuorumError):
        in_one_process(run, clients(3)[:2], app)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"name": "fedavg", "readout": "head"}}, "readout = 'head' needs a trained model"),
        ({"method": {"name": "fedetf", "readout": "blend"}}, "readout = 'blend' needs a trained model"),
        ({"method": {"name": "scaffold", "readout": "ridge"}}, "'scaffold' acts on training"),
        ({"method": {"name": "fedprox", "readout": "ridge"}}, "'fedprox' acts on training"),
        (
            {"method": {"name": "fedavg", "server_step": "fedadam", "readout": "ridge"}},
            "'fedadam' acts on updates",
        ),
        ({"method": {"name": "fednc", "readout": "memory", "anchor": 0.1}}, "anchor, centre, rehearsal"),
        ({"method": {"name": "fednc", "readout": "memory", "memory_model": "local"}}, "memory_model"),
        ({"task": {"adapter_rank": 2}}, "adapter_rank"),
        ({"init": {"kind": "nio"}}, r"\[init\] prepares training"),
        ({"rounds": {"robust": "clip"}}, "rounds.robust"),
    ],
)
def test_settings_that_only_act_on_training_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        closed(**changes)


def test_tasks_with_class_sessions_are_refused() -> None:
    values = session_config(method={"readout": "memory"}).model_dump()
    values["train"]["epochs"] = 0
    with pytest.raises(ConfigError, match=r"\[\[sessions\]\] train"):
        parse_run(values)
    with pytest.raises(ConfigError, match="later class sessions"):
        discovery.get(parse_run({**values, "sessions": ()}))
    values["train"]["epochs"], values["method"]["readout"] = 1, "ridge"
    with pytest.raises(ConfigError, match="later class sessions"):
        discovery.get(parse_run(values))


def test_ridge_does_not_combine_with_stand_ins_for_the_memory() -> None:
    with pytest.raises(ConfigError, match="does not use the vectors"):
        parse_run({"method": {"name": "fedavg", "readout": "ridge", "memory_source": "random"}})


def test_an_owner_who_limits_steps_of_updates_is_not_in_the_way() -> None:
    """There is no update; what leaves are class sums, which have a key of their own."""
    held = pb.Declaration(examples=100, held_out=10, class_counts=[10] * 10)
    found = [one.code for one in objections.to_data(Policy(), closed(), held)]
    assert found == []
    coming = [one.code for one in objections.to_coming(Policy(), closed())]
    assert "class-sums" in coming


def test_ridge_also_reads_out_a_trained_model() -> None:
    result = done(closed(3, train={"epochs": 2, "lr": 0.05}, rounds={"total": 2, "min_clients": 3}))
    assert result.history.rounds[-1].test["accuracy"] > 0.85
    assert result.state.memory.ridge_KD is not None
    assert result.state.memory.ridge_KD.shape == (10, 128)


def test_the_regularisation_is_part_of_the_digest_only_if_set() -> None:
    plain, same, other = closed(), closed(method={"name": "fedavg", "ridge": 0.01}), closed(method={"ridge": 0.1})
    assert "ridge" not in plain.decisive()["method"] or re.fullmatch("ridge", plain.method.readout)
    assert same.digest == closed(method={"name": "fedavg"}).digest
    assert other.digest != plain.digest
