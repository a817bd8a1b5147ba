"""The image task: models, batches, and statistics that are exact in any pooling."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.errors import ConfigError, DataError
from fednc.common.tasks.api import Part, add_stats
from fednc.tasks.image.task import ImageTask
from fednc.tasks.vision.dataset import crop_and_mirror, draw_moves
from support.image_tasks import CLASSES, make_data, make_guide, make_task


def pooled(task, model, guide, batches) -> dict[str, torch.Tensor]:
    stats: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for batch in batches:
            add_stats(stats, task.statistics(model, batch, guide))
    return stats


def test_one_image_can_be_trained_on_with_batch_norm():
    for model in ("cnn", "resnet18"):  # in the deeper model 8x8 shrinks to one value per channel
        task = make_task(model=model, norm="batch")
        net, data = task.build_model().train(), make_data(task, examples=1)
        (batch,) = data.train_batches(4, torch.Generator().manual_seed(0))
        loss, _ = task.loss(net, batch, make_guide(task))
        assert torch.isfinite(loss)


@settings(deadline=None)
@given(examples=st.integers(0, 70), batch=st.integers(1, 20), seed=st.integers(0, 99))
def test_an_epoch_has_every_image_once_and_no_batch_of_one(examples, batch, seed):
    task = make_task()
    data = make_data(task, examples)
    label_N = torch.arange(examples)  # as names
    object.__setattr__(data, "label_N", label_N)
    epochs = [list(data.train_batches(batch, torch.Generator().manual_seed(seed))) for _ in range(2)]
    sizes = [len(label_B) for _, label_B in epochs[0]]
    drawn = torch.cat([label_N[:0], *(label_B for _, label_B in epochs[0])])
    assert torch.equal(drawn.sort().values, label_N)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(*epochs, strict=True))
    assert all(size == batch for size in sizes[:-1])
    if 1 in sizes:
        assert examples == 1 or batch == 1
    for pixel_BCHW, label_B in epochs[0]:
        torch.testing.assert_close(pixel_BCHW, (data.pixel_NCHW[label_B] / 255 - 0.5) / 0.25)


def test_evaluation_keeps_the_stored_order():
    data = make_data(make_task(), 23)
    batches = list(data.eval_batches(10))
    assert [task_batch[0].shape[0] for task_batch in batches] == [10, 10, 3]
    assert torch.equal(torch.cat([label_B for _, label_B in batches]), data.label_N)
    torch.testing.assert_close(
        torch.cat([pixel_BCHW for pixel_BCHW, _ in batches]), (data.pixel_NCHW / 255 - 0.5) / 0.25
    )


def test_augmentation_moves_and_mirrors_and_follows_the_generator():
    pixel = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(400, 3, 8, 8)
    first, second, other = (
        crop_and_mirror(pixel, draw_moves(400, 8, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert first.shape == pixel.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    padded = torch.nn.functional.pad(pixel[:1], (1, 1, 1, 1))
    possible = [padded[0, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    possible += [crop.flip(-1) for crop in possible]
    found = [next(i for i, p in enumerate(possible) if torch.equal(p, image)) for image in first]
    assert set(found) == set(range(18))


def test_training_is_augmented_if_the_run_says_so_but_testing_never(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.savez(
        tmp_path / "a.npz", x_train=x, y_train=np.arange(6) % 3, x_test=x, y_test=np.arange(6) % 3, classes=CLASSES
    )
    for augment in ("none", "crop-flip"):
        task = make_task(augment=augment)
        train, test = (
            task.load_train(f"npz:{tmp_path / 'a.npz'}", None, None),
            task.load_test(f"npz:{tmp_path}/a.npz"),
        )
        assert train.augment == (augment == "crop-flip")
        assert not test.augment


@cache
def batch_statistics(method: str) -> tuple[ImageTask, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    task = make_task(method)
    model, guide = task.build_model().eval(), make_guide(task)
    return task, [pooled(task, model, guide, [batch]) for batch in make_data(task, 123).eval_batches(9)]


def total(stats_of_batches) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for stats in stats_of_batches:
        add_stats(out, stats)
    return out


@settings(deadline=None)
@given(
    order=st.permutations(range(14)), cut=st.integers(0, 14), method=st.sampled_from(["fedavg", "fedetf", "fednc"])
)
def test_federated_statistics_equal_central_ones_exactly(order, cut, method):
    task, stats = batch_statistics(method)
    central = total(stats)
    federated = total(total(stats[i] for i in client) for client in (order[:cut], order[cut:]))
    assert federated.keys() == central.keys()
    assert all(torch.equal(federated[key], central[key]) for key in central)
    assert all(value.dtype in (torch.int64, torch.float64) for value in central.values())
    assert task.measure(federated) == task.measure(central)


@pytest.mark.parametrize("method", ["fedavg", "fedetf", "fednc"])
def test_metrics_equal_their_definition(method):
    torch.manual_seed(1)
    task = make_task(method, vertices=5)
    model, data = task.build_model().eval(), make_data(task, 40)
    guide = make_guide(task)
    metrics = task.measure(pooled(task, model, guide, data.eval_batches(7)))
    (everything,) = data.eval_batches(40)
    with torch.no_grad():
        score_NK = task.scores(model, everything[0], guide)
    assert (score_NK[:, len(CLASSES) :] == -torch.inf).all()
    hit_N = score_NK.argmax(1) == data.label_N
    loss = torch.nn.functional.cross_entropy(score_NK[:, : len(CLASSES)], data.label_N)
    assert metrics["examples"] == 40
    assert metrics["accuracy"] == pytest.approx(hit_N.double().mean().item())
    assert metrics["loss"] == pytest.approx(loss.item(), abs=2e-6)
    for i, name in enumerate(CLASSES):
        assert metrics[f"accuracy/{name}"] == pytest.approx(hit_N[data.label_N == i].double().mean().item())


def test_metrics_without_examples_and_with_unlabelled_ones():
    task = make_task()
    assert np.isnan(task.measure({})["accuracy"])
    assert task.measure({})["examples"] == 0
    model, data, guide = task.build_model().eval(), make_data(task, 6), make_guide(task)
    data.label_N[:2] = -1
    stats = pooled(task, model, guide, data.eval_batches(6))
    known = pooled(task, model, guide, data.select(np.arange(2, 6)).eval_batches(6))
    assert all(torch.equal(stats[key], known[key]) for key in known)
    assert data.count_K.sum() == 4


def test_embedded_features_are_unit():
    task = make_task()
    (batch,) = make_data(task, 5).eval_batches(5)
    feat_BD, label_B = task.embed(task.build_model(), batch)
    torch.testing.assert_close(feat_BD.norm(dim=1), torch.ones(5))
    assert torch.equal(label_B, batch[1])


def test_parts_cover_the_data_and_are_shifted_alike_at_test(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    split = {"kind": "iid", "parts": 3, "shift": {"colour": 0.5}}
    task = make_task(split=split)
    x = np.full((30, 8, 8), 100, dtype=np.uint8)
    np.savez(
        tmp_path / "a.npz",
        x_train=x,
        y_train=np.arange(30) % 3,
        x_test=x,
        y_test=np.arange(30) % 3,
        classes=CLASSES,
    )
    spec = f"npz:{tmp_path / 'a.npz'}"
    parts = [task.load_train(spec, Part(k, 3), task.run.split) for k in range(3)]
    assert sum(part.examples for part in parts) == 30
    levels = [part.pixel_NCHW.unique() for part in parts]
    assert len({level.item() for level in levels}) == 3
    test = task.load_test(spec)
    assert [test.pixel_NCHW[i, 0, 0, 0].item() for i in range(6)] == [levels[i % 3].item() for i in range(6)]
    assert (task.load_train(spec, None, task.run.split).pixel_NCHW == 100).all()
    plain = make_task()
    for part, given_split, match in [
        (Part(0, 4), task.run.split, "split has parts 0 to 2 of 3"),
        (Part(3, 3), task.run.split, "part 3 of 3 does not exist"),
        (Part(0, 3), None, r"no \[split\]"),
    ]:
        with pytest.raises(DataError, match=match):
            plain.load_train(spec, part, given_split)


def test_held_out_images_keep_their_labels_and_names():
    data = make_data(make_task(), 20, names=tuple(f"img{i}" for i in range(20)))
    rest, held = data.hold_out(0.25, seed=3)
    assert (rest.examples, held.examples) == (15, 5)
    for half in (rest, held):
        index = [int(name[3:]) for name in half.names]
        assert torch.equal(half.label_N, data.label_N[index])
        assert torch.equal(half.pixel_NCHW, data.pixel_NCHW[index])
    nothing = data.hold_out(0.0, seed=3)[1]
    assert nothing.examples == 0
    assert list(nothing.eval_batches(4)) == []
    assert list(nothing.train_batches(4, torch.Generator())) == []
    assert nothing.count_K.tolist() == [0, 0, 0]


def test_task_refuses_too_few_vertices_and_unknown_keys():
    with pytest.raises(ConfigError, match="2 vertices for 3 classes"):
        make_task(vertices=2)
    with pytest.raises(ConfigError, match=r"task\.colour.*no such key"):
        make_task(colour=1)


def test_preprocessing_is_plain_json_and_complete():
    import json

    task = make_task(channels=3, mean=[0.1, 0.2, 0.3])
    told = json.loads(json.dumps(task.preprocessing()))
    assert (told["size"], told["channels"], told["mean"], told["std"]) == (8, 3, [0.1, 0.2, 0.3], [0.5, 0.5, 0.5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_are_the_same_on_a_gpu():
    data = make_data(make_task(), 20, augment=True)
    on_gpu = data.to(torch.device("cuda"))
    for here, there in zip(
        data.train_batches(6, torch.Generator().manual_seed(0)),
        on_gpu.train_batches(6, torch.Generator().manual_seed(0)),
        strict=True,
    ):
        assert there[0].is_cuda
        torch.testing.assert_close(here[0], there[0].cpu())
        assert torch.equal(here[1], there[1].cpu())


def test_the_sheet_shows_wrong_predictions_and_is_left_out_if_there_are_none():
    task = make_task()
    data, model, guide = make_data(task, 40), task.build_model().eval(), make_guide(task)
    with torch.no_grad():
        (name, content), *more = task.examples(model, data, guide).items()
        guess = task.scores(model, data._normalised(data.pixel_NCHW), guide).argmax(dim=1)
    assert (name, content[:8], more) == ("wrong.png", b"\x89PNG\r\n\x1a\n", [])
    object.__setattr__(data, "label_N", guess)
    with torch.no_grad():
        assert task.examples(model, data, guide) == {}
