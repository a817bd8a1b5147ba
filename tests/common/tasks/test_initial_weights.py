"""Weights that a run starts from: what is read, how names are matched, and what an error says."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fednc.common.errors import ConfigError
from fednc.common.tasks import adapters, initial_weights


class Model(nn.Module):
    """A body with blocks, and a head of its own."""

    def __init__(self, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 6))
        self.projection = nn.Linear(6, classes)


def body_of(model: Model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.backbone.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(value, others[key]) for key, value in mine.items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod.", "model.backbone."])
def test_a_body_is_found_under_the_prefixes_that_wrappers_add(prefix):
    source, target = Model(seed=1), Model(seed=2)
    before = target.projection.weight.clone()
    given = {f"{prefix}{key}": value for key, value in body_of(source).items()}
    notes = initial_weights.put(target, "backbone.", given)
    assert same(source.backbone, target.backbone)
    assert torch.equal(target.projection.weight, before)
    assert notes[0].startswith("9 tensors loaded")


def test_the_whole_model_is_taken_if_the_file_has_it():
    source, target = Model(seed=1), Model(seed=2)
    initial_weights.put(target, "backbone.", source.state_dict())
    assert same(source, target)


def test_parts_outside_the_body_are_left_out_and_said():
    source = Model(seed=1)
    given = {f"model.backbone.{key}": value for key, value in body_of(source).items()}
    given["frame.etf_KD"] = torch.zeros(2, 2)
    target = Model(seed=2)
    notes = initial_weights.put(target, "backbone.", given)
    assert same(source.backbone, target.backbone)
    assert notes[1] == "left out 1 tensors of other parts of the file's model"


@pytest.mark.parametrize("head", ["fc", "head", "head.fc", "classifier", "last_linear"])
def test_a_classifier_of_another_size_is_left_out_and_said(head):
    given = {**body_of(Model(seed=1)), f"{head}.weight": torch.zeros(1000, 6), f"{head}.bias": torch.zeros(1000)}
    notes = initial_weights.put(Model(), "backbone.", given)
    assert f"{head}.weight, {head}.bias" in notes[1]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.pop("0.weight"), "1 missing (0.weight)"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 not in the model (extra)"),
        (lambda t: t.update({"0.weight": torch.zeros(8, 5)}), "0.weight is [8, 5], expected [8, 4]"),
        (lambda t: t.update({"0.weight": torch.full((8, 4), torch.nan)}), "not finite in 0.weight"),
    ],
)
def test_what_does_not_fit_is_named(spoil, words):
    given = body_of(Model())
    spoil(given)
    target = Model(seed=3)
    before = body_of(target)
    with pytest.raises(ConfigError) as caught:
        initial_weights.put(target, "backbone.", given)
    assert words in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in body_of(target).items())  # nothing was changed


def test_counters_of_batch_normalisation_may_be_missing_and_half_precision_is_widened():
    given = {k: v.half() if v.is_floating_point() else v for k, v in body_of(Model(seed=1)).items()}
    del given["1.num_batches_tracked"]
    target = Model()
    initial_weights.put(target, "backbone.", given)
    assert target.backbone[0].weight.dtype is torch.float32
    assert torch.equal(target.backbone[0].weight, given["0.weight"].float())


def test_weights_find_their_place_under_adapters():
    source, target = Model(seed=1), Model(seed=2)
    adapters.add(target, 1, ["backbone."])
    initial_weights.put(target, "backbone.", body_of(source))
    merged = adapters.merged(target)
    assert same(source.backbone, merged.backbone)


@pytest.mark.parametrize("nested", [None, "state_dict", "model", "state_dict_ema"])
def test_both_kinds_of_file_are_read(tmp_path, nested):
    state = body_of(Model(seed=1))
    save_file(state, tmp_path / "w.safetensors")
    torch.save({nested: state, "epoch": 3} if nested else state, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        found, digest = initial_weights.read(tmp_path / name)
        assert len(digest) == 64
        assert all(torch.equal(found[key], value) for key, value in state.items())


class Attack:
    """Runs code when it is unpickled by an ordinary reader."""

    def __reduce__(self):
        return print, ("this must not run",)


def test_a_file_never_runs_code(tmp_path, capsys):
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"0.weight": Attack()}))
    torch.save({"0.weight": Attack()}, tmp_path / "w2.pt")
    for name in ("w.pt", "w2.pt"):
        with pytest.raises(ConfigError, match="neither safetensors"):
            initial_weights.read(tmp_path / name)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x08" + b"\x00" * 7 + b"{}"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"task\.weights"):
        initial_weights.put(Model(), "backbone.", initial_weights.read(path)[0])
    with pytest.raises(ConfigError, match="cannot be read"):
        initial_weights.read(tmp_path / "missing.pt")
