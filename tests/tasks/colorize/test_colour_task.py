"""The colouring task: its data and their errors, what stays at home, training, the variant with regions."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fednc import testing
from fednc.bench.local_grid import LocalGrid
from fednc.cli.main import app as command
from fednc.client.app.host import ClientConfig
from fednc.client.link.work_hooks import Hooks
from fednc.client.training import trainer
from fednc.client.training.gradient_report import branch_gradients
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError, DataError
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.classifier import ClassifierTask
from fednc.common.tasks.round_guide import first_guide
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.event_log import EventLog
from fednc.tasks.colorize.characters import REGIONS
from fednc.tasks.colorize.sources.pairs import NO_REGION
from support.colour_tasks import SMALL, TRAIN, colour_run, colour_task
from support.runs_on_grids import RestartingGrid

DATA = "characters:images=12,test=6,seed=2,artist=0/3"


# ---- data ----------------------------------------------------------------------------------------------------


def write_pictures(folder: Path, count: int = 3, size: tuple[int, int] = (20, 24)) -> None:
    random = np.random.default_rng(0)
    for name in ("colour", "line", "region"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        colour = random.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(colour).save(folder / "colour" / f"{number}.png")
        Image.fromarray(colour[..., 0]).save(folder / "line" / f"{number}.png")
        Image.fromarray((colour[..., 1] % 6).astype(np.uint8)).save(folder / "region" / f"{number}.png")
    (folder.parent / "classes.txt").write_text("\n".join(REGIONS))


def test_folders_and_arrays_give_the_same_batches(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train")
    task = colour_task(size=[20, 24])
    data = task.load_train(f"folder:{tmp_path}", None, None)
    path = tmp_path / "packed.npz"
    np.savez(path, **task.pack(data, data))
    for one, other in zip(
        data.eval_batches(2), task.load_test(task.packed_spec(path)).eval_batches(2), strict=True
    ):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)
    inputs, truth, region, other_region = next(data.eval_batches(3))
    assert torch.equal(inputs[:, 1:], truth.roll(-1, dims=0))  # the reference is another picture
    assert torch.equal(other_region, region.roll(-1, dims=0))


def test_pictures_alone_get_line_art_and_say_so(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train")
    for name in ("line", "region"):
        for path in (tmp_path / "train" / name).iterdir():
            path.unlink()
        (tmp_path / "train" / name).rmdir()
    data = colour_task(classes=[]).load_train(f"folder:{tmp_path}", None, None)
    assert "line art is made" in data.notes[0]
    assert float(next(data.eval_batches(3))[0][:, 0].min()) < 0


def other_size(folder: Path) -> None:
    Image.fromarray(np.zeros((10, 24), np.uint8)).save(folder / "line" / "1.png")


def no_partner(folder: Path) -> None:
    (folder / "line" / "1.png").unlink()


def grey(folder: Path) -> None:
    Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24).astype(np.uint8)).save(
        folder / "colour" / "1.png"
    )


def strange_region(folder: Path) -> None:
    Image.fromarray(np.full((20, 24), 77, np.uint8)).save(folder / "region" / "1.png")


def damaged(folder: Path) -> None:
    (folder / "colour" / "1.png").write_bytes(b"nonsense")


def grey_reference(folder: Path) -> None:
    shutil.copytree(folder / "colour", folder / "reference")
    Image.fromarray(np.arange(480).reshape(20, 24).astype(np.uint8)).save(folder / "reference" / "1.png")


def two_of_one_name(folder: Path) -> None:
    shutil.copy(folder / "colour" / "1.png", folder / "colour" / "1.BMP")


def region_of_another_run(folder: Path) -> None:
    (folder.parent / "classes.txt").write_text("\n".join([*REGIONS[:5], "tail"]))


def no_regions(folder: Path) -> None:
    for path in (folder / "region").iterdir():
        Image.fromarray(np.full((20, 24), NO_REGION, np.uint8)).save(path)


FAULTS = [
    (other_size, ["line/1.png", "10x24", "20x24", "one size"]),
    (no_partner, ["line/", "no picture for 1", "same name"]),
    (grey, ["1 should be coloured", "grey"]),
    (strange_region, ["region value 77", "in 1", "background"]),
    (damaged, ["colour/1.png", "not a picture"]),
    (grey_reference, ["reference/1 should be coloured", "grey"]),
    (two_of_one_name, ["1.BMP", "1.png", "one name"]),
    (region_of_another_run, ["region value 5", "'tail'", "not in this run", "background"]),
    (no_regions, ["not one pixel has a region"]),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_check_names_what_is_wrong_with_a_pair(fault, words: list[str], tmp_path: Path) -> None:
    write_pictures(tmp_path / "data" / "train")
    fault(tmp_path / "data" / "train")
    run = tmp_path / "run.toml"
    names = ", ".join(f'"{name}"' for name in REGIONS)
    run.write_text(f'[task]\nname = "colorize"\nclasses = [{names}]\n[method]\nname = "fedavg"\n')
    said = CliRunner().invoke(command, ["check", str(run), "--data", f"folder:{tmp_path / 'data'}"])
    text = " ".join((said.output + said.stderr).split())
    assert said.exit_code == DataError.exit_code, text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"colour": (4, 20, 20)}, "is grey"),
        ({"colour": (4, 20, 20, 3), "line": (4, 20, 22)}, "one size"),
        ({"colour": (4, 20, 20, 3), "line": (3, 20, 20)}, "no partner"),
        ({"colour": (4, 20, 20, 4)}, r"expected uint8 \[N, H, W, 3\]"),
        ({"line": (4, 20, 20)}, "columns=line=NAME"),
    ],
)
def test_arrays_that_are_no_pairs_are_refused(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", **{k: random.integers(0, 255, s, dtype=np.uint8) for k, s in arrays.items()})
    with pytest.raises(DataError, match=said):
        colour_task(classes=[]).load_train(f"npz:{tmp_path / 'x.npz'}", None, None)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"artist_train": np.array(["a", "b", "c"])}, "artist_train has shape"),
        ({"artist": np.array("a")}, "artist has shape"),
        ({"classes": np.array("a"), "region": np.zeros((4, 20, 20), np.uint8)}, "classes has shape"),
        ({"reference": np.full((4, 20, 20, 3), 80, np.uint8)}, r"the reference of .* should be coloured"),
        (
            {"classes": np.array(["tail", "wing"]), "region": np.zeros((4, 20, 20), np.uint8)},
            "'tail', which is not",
        ),
        ({"region": np.full((4, 20, 20), NO_REGION, np.uint8)}, "not one pixel has a region"),
    ],
)
def test_arrays_beside_the_colours_are_never_dropped_in_silence(
    arrays: dict[str, Any], said: str, tmp_path: Path
) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (4, 20, 20, 3), dtype=np.uint8)
    region = np.zeros((4, 20, 20), np.uint8)
    np.savez(tmp_path / "x.npz", **{"colour": colour, "region": region, **arrays})
    with pytest.raises(DataError, match=said):
        colour_task().load_train(f"npz:{tmp_path / 'x.npz'}", None, None)


def test_names_may_be_bytes_and_regions_are_counted(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (4, 20, 20, 3), dtype=np.uint8)
    region = np.full((4, 20, 20), NO_REGION, np.uint8)
    region[:3], region[0, :9] = 1, 0
    names, artists = np.array([b"hair", b"face"]), np.array([b"a", b"b", b"b", b"b"])
    np.savez(tmp_path / "x.npz", colour=colour, region=region, classes=names, artist=artists)
    data = colour_task().load_train(f"npz:{tmp_path / 'x.npz'}", None, None)
    assert data.pairs.artists == ("a", "b", "b", "b")
    counted = "pictures with each region: background 0, clothes 0, hair 1, face 3, eyes 0, mouth 0"
    assert counted in data.notes


@pytest.mark.parametrize("artists", [["a", "b", "c"], ["a", "b", "b"], ["b", "b", "a"], ["a", "a", "a"]])
def test_no_picture_is_its_own_reference_while_there_are_others(tmp_path: Path, artists: list[str]) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", colour=colour, artist=np.array(artists))
    task = colour_task(classes=[])
    data = task.load_train(f"npz:{tmp_path / 'x.npz'}", None, None)
    pictures, references = data.pairs.colour_N3HW, data.pairs.reference_N3HW
    for number, who in enumerate(artists):
        (chosen,) = [i for i in range(3) if torch.equal(references[number], pictures[i])]
        assert chosen != number
        assert artists[chosen] == who or artists.count(who) == 1
    assert not any("its own reference" in note for note in data.notes)
    np.savez(tmp_path / "one.npz", colour=colour[:1])
    assert any(
        "its own reference" in note for note in task.load_train(f"npz:{tmp_path / 'one.npz'}", None, None).notes
    )


def test_arrays_with_other_names_and_without_a_test_part_are_divided(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    photo, edge = (
        random.integers(0, 255, (10, 20, 20, 3), np.uint8),
        random.integers(0, 255, (10, 20, 20), np.uint8),
    )
    np.savez(tmp_path / "x.npz", photo=photo, edge=edge, artist=np.array(["a", "b"] * 5))
    spec = f"npz:{tmp_path / 'x.npz'}?columns=line=edge,colour=photo"
    with pytest.raises(DataError, match=r"evaluate\.test_share"):
        colour_task(classes=[]).load_test(spec)
    task = colour_task({"evaluate": {"test_share": 0.3}}, classes=[])
    train, test = task.load_train(spec, None, None), task.load_test(spec)
    assert (train.examples, test.examples) == (7, 3)
    assert set(train.names).isdisjoint(test.names)
    assert task.load_train(f"{spec}&only=artist=a", None, None).names == tuple(
        f"{tmp_path / 'x.npz'}[{i}]" for i in (0, 2, 4)
    )


@pytest.mark.parametrize(
    "spec", ["characters:images=0", "characters:artist=3/3", "characters:x=1", "nothing:x", "npz:no"]
)
def test_specs_that_cannot_be_read_say_what_is_expected(spec: str) -> None:
    with pytest.raises(DataError, match=r"expected|must be|KEY=VALUE|no such file"):
        colour_task().load_train(spec, None, None)


def test_artists_differ_in_colours_and_a_character_follows_from_its_number_alone() -> None:
    task = colour_task()
    few, many = (task.load_train(f"characters:images={n},seed=2,artist=0/3", None, None).pairs for n in (3, 9))
    assert torch.equal(few.line_N1HW, many.line_N1HW[:3])
    assert torch.equal(few.colour_N3HW, many.colour_N3HW[:3])
    means = [
        task.load_train(f"characters:images=40,seed=2,artist={a}/3", None, None)
        .pairs.colour_N3HW.float()
        .mean(dim=(0, 2, 3))
        for a in range(3)
    ]
    assert min(float((means[a] - means[b]).norm()) for a, b in ((0, 1), (0, 2), (1, 2))) > 15


# ---- options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"classes": ["a", "a"]}, "more than once"),
        ({"classes": ["a"]}, "at least two"),
        ({"classes": [], "region_weight": 0.1}, "name the regions"),
        ({"size": [16, 16], "widths": [4, 4, 4, 4, 4]}, "too small"),
        ({"l1": 0, "style": 0, "perceptual": 0, "adversarial": 0}, "at least one"),
    ],
)
def test_options_that_contradict_each_other_are_refused(task: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        colour_task(**task)


def test_a_method_on_the_gradients_of_one_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match="several optimisers"):
        colour_task({"method": {"name": "scaffold"}, "train": {"optimizer": "sgd"}})


# ---- what stays at home --------------------------------------------------------------------------------------


def test_the_adversary_and_its_optimiser_are_local_and_statistics_of_references_if_asked() -> None:
    task = colour_task()
    model = task.build_model()
    sent = task.shared_keys(model)
    assert not [key for key in sent if key.startswith("adversary.")]
    assert any(key.endswith("running_mean") for key in sent)
    assert task.kept_optimisers() == {"adversary"}
    own = colour_task(local_statistics=True)
    lost = set(sent) - set(own.shared_keys(model))
    assert lost
    assert all(key.startswith("generator.reference.") and not key.endswith("weight") for key in lost)
    averaged = colour_task(adversary="averaged")
    assert set(averaged.shared_keys(model)) == set(model.state_dict())
    assert averaged.kept_optimisers() == frozenset()
    assert averaged.aggregation("adversary.0.bias") == Aggregation.MEAN


def test_the_exported_model_has_no_adversary_and_predicts_the_same() -> None:
    task = colour_task()
    model = task.build_model().eval()
    exported = task.inference_model(model)
    assert not [key for key in exported.state_dict() if "adversary" in key]
    assert [key for key in model.state_dict() if "adversary" in key]
    inputs = next(task.load_test(DATA).eval_batches(2))[0]
    guide = first_guide(task, torch.zeros(0))
    assert torch.equal(task.predict(exported, inputs, guide), task.predict(model, inputs, guide))


def clients(folder: str) -> list[ClientConfig]:
    return [
        ClientConfig(
            name=f"c{i}",
            data=f"characters:images=8,seed=2,artist={i}/3",
            device="cpu",
            state=folder,
            val_share=0.25,
        )
        for i in range(2)
    ]


def executed(grid: LocalGrid, run: RunConfig) -> RunResult:
    with grid:
        return FederatedRun(run, EventLog()).execute(grid, Surroundings(name_of=grid.name_of))


ROUNDS: Mapping[str, Any] = {"rounds": {"total": 3, "min_clients": 2, "evaluate_every": 3}}


def test_a_client_restarted_in_the_middle_goes_on_with_its_own_adversary_bit_for_bit(tmp_path: Path) -> None:
    run = colour_run(ROUNDS)
    whole = executed(LocalGrid(run, clients(str(tmp_path / "a"))), run)
    restarted = executed(RestartingGrid(run, clients(str(tmp_path / "b"))), run)
    assert all(torch.equal(value, restarted.state.model[key]) for key, value in whole.state.model.items())
    assert not [key for key in whole.state.model if key.startswith("adversary.")]
    one, other = (
        {path.parent.name[-16:] + path.name: path.read_bytes() for path in folder.glob("*/*.safetensors")}
        for folder in (tmp_path / "a", tmp_path / "b")
    )
    assert one == other
    assert {name[16:].partition(".")[0] for name in one} == {"kept", "optimisers"}
    assert {"l1", "ssim", "fd_rand", "colour_error"} <= set(whole.history.rounds[-1].pooled)


# ---- training, evaluation, pictures --------------------------------------------------------------------------


def trained(task, epochs: int, data: str = DATA) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, examples = task.build_model(), task.load_train(data, None, None)
    guide = first_guide(task, examples.count_K)
    section = task.run.train.model_copy(update={"epochs": epochs})
    trainer.train(task, model, examples, guide, section, 1, torch.Generator().manual_seed(0), Hooks())
    return model, guide


@pytest.mark.parametrize("attention", ["sga", "sga-gradient", "scft"])
def test_every_attention_trains_both_networks_apart(attention: str) -> None:
    task = colour_task(attention=attention)
    torch.manual_seed(0)
    fresh = {key: value.clone() for key, value in task.build_model().state_dict().items()}
    model, _ = trained(task, 1)
    moved = {
        key.partition(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, fresh[key])
    }
    assert moved == {"generator", "adversary"}


def test_without_an_adversarial_weight_the_adversary_does_not_change_the_generator() -> None:
    one, _ = trained(colour_task(adversarial=0), 1)
    other, _ = trained(colour_task(adversarial=0, adversary_rate=9), 1)
    for name, value in one.generator.state_dict().items():
        assert torch.equal(value, other.generator.state_dict()[name])
    assert not torch.equal(one.adversary[0].bias, other.adversary[0].bias)


def test_changing_the_reference_changes_the_colours() -> None:
    task = colour_task()
    model, guide = trained(task, 10)
    inputs = next(task.load_test(DATA).eval_batches(6))[0]
    model.eval()
    red, blue = inputs.clone(), inputs.clone()
    red[:, 1:] = torch.tensor([1.0, -1, -1])[:, None, None]
    blue[:, 1:] = torch.tensor([-1.0, -1, 1])[:, None, None]
    with torch.no_grad():
        change = (task.predict(model, red, guide) - task.predict(model, blue, guide)).mean(dim=(0, 2, 3))
    assert change[0] > 0.05 > -0.05 > change[2]  # more red and less blue


def test_pictures_show_line_reference_result_and_truth() -> None:
    task = colour_task()
    model, guide = task.build_model().eval(), first_guide(task, torch.zeros(0))
    data = task.load_test(DATA)
    with torch.no_grad():
        (content,) = task.examples(model, data, guide).values()
        batch = next(data.eval_batches(2))
        files = task.prediction_files(batch, model(batch[0]), data.names[:2])
    with Image.open(io.BytesIO(content)) as image:
        assert image.width > 5 * 96
    sizes = [Image.open(io.BytesIO(each)).size for each in files.values()]
    assert len(sizes) == 4
    assert sizes[0] == (16, 16)
    assert task.described(torch.ones(1, 3, 2, 2)) == [{"mean colour": "#ffffff"}]


def test_pictures_without_known_colours_are_coloured_but_not_judged(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {"line": (3, 16, 16), "reference": (3, 16, 16, 3)}
    np.savez(tmp_path / "x.npz", **{k: random.integers(0, 255, s, dtype=np.uint8) for k, s in arrays.items()})
    task = colour_task()
    data = task.load_input(str(tmp_path / "x.npz"))
    (batch,) = data.eval_batches(3)
    model = task.build_model().eval()
    with torch.no_grad():
        assert bool(task.predict(model, batch[0], first_guide(task, torch.zeros(0))).isfinite().all())
        stats = task.statistics(model, batch, first_guide(task, torch.zeros(0)))
    assert int(stats["examples"]) == 0
    assert int((batch[2] != NO_REGION).sum()) == 0


# ---- regions -------------------------------------------------------------------------------------------------


def test_the_region_head_learns_regions_and_pools_a_memory() -> None:
    run = colour_run({**ROUNDS, "frame": {"dim": 8}}, region_weight=1.0)
    result = executed(LocalGrid(run, clients("")), run)
    task = FederatedRun(run, EventLog()).task
    assert isinstance(task, ClassifierTask)
    assert task.class_names == REGIONS
    assert result.history.rounds[-1].pooled["region_accuracy"] > 0.4
    assert not isinstance(colour_task(), ClassifierTask)


def test_the_region_head_changes_no_colour_at_weight_zero() -> None:
    """The run without the head has the same losses as one with it, apart from the head's own."""
    task, plain = colour_task({"frame": {"dim": 8}}, region_weight=0.5), colour_task()
    torch.manual_seed(0)
    model, other = task.build_model(), plain.build_model()
    other.generator.load_state_dict(model.generator.state_dict())
    other.adversary.load_state_dict(model.adversary.state_dict())
    data = task.load_train(DATA, None, None)
    guide = first_guide(task, data.count_K)
    batch = next(data.train_batches(4, torch.Generator().manual_seed(0)))
    _, one = task.loss(model, batch, guide)
    total, two = plain.loss(other, batch, first_guide(plain, torch.zeros(0)))
    assert {name for name in one if name not in two} == {name for name in one if name.startswith("region ")}
    torch.testing.assert_close(torch.stack([one[name] for name in two]).sum(), total.detach())


# ---- the instrument and the contract -------------------------------------------------------------------------


def test_on_scft_the_value_pulls_with_the_total_and_the_key_does_not() -> None:
    task = colour_task(attention="scft", self_attention=False)
    model, guide = trained(task, 3)
    found = {one.branch: one for one in branch_gradients(task, model, task.load_train(DATA, None, None), guide, 2)}
    assert set(found) == {"query", "key", "value", "skip"}
    value, key = found["value"].summary(), found["key"].summary()
    assert value["token"] > 0.8 > key["token"] + 0.2
    assert 0.05 < key["against"] < 1


class TestColours(testing.TaskContract):
    task = "colorize"
    data = DATA
    options: ClassVar = {**SMALL, "classes": list(REGIONS)}
    tables: ClassVar = {"method": {"name": "fedavg"}, "train": {**TRAIN, "epochs": 1}}
    exports = False  # it can, but takes long: tests/tasks_long/colorize
