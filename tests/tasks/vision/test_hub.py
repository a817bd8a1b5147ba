"""Hugging Face data sets on disk, and inputs to predict on."""

from __future__ import annotations

import pytest

from fednc.common.errors import ConfigError, DataError
from fednc.tasks.vision.sources.select import read, read_input
from support.image_files import CLASSES, options, picture, write_folder, write_npz


def hub_dataset(label_feature, labels):
    import datasets

    pictures = [picture(10 * (i + 1), size=6) for i in range(len(labels))]
    features = datasets.Features({"img": datasets.Image(), "label": label_feature})
    return datasets.Dataset.from_dict({"img": pictures, "label": labels}, features=features)


def test_hub_dataset_from_disk(tmp_path):
    import datasets

    train = hub_dataset(datasets.ClassLabel(names=["cat", "ant"]), [0, 1, 1])
    test = hub_dataset(datasets.ClassLabel(names=["cat", "ant"]), [0])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "one")
    both = read(f"hf:{tmp_path / 'both'}", "train", options())
    assert both.label_N.tolist() == [2, 0, 0]
    assert both.pixel_NCHW[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert read(f"hf:{tmp_path / 'both'}", "test", options()).label_N.tolist() == [2]
    with pytest.raises(DataError, match=r"no test part, .*evaluate\.test_share"):
        read(f"hf:{tmp_path / 'one'}", "test", options())
    with pytest.raises(DataError, match="classes 'cat' are not in this run"):
        read(f"hf:{tmp_path / 'one'}", "train", options(classes=("ant", "bee")))


def test_hub_dataset_with_labels_as_text_or_numbers(tmp_path):
    import datasets

    hub_dataset(datasets.Value("string"), ["bee", "ant"]).save_to_disk(tmp_path / "text")
    assert read(f"hf:{tmp_path / 'text'}", "train", options()).label_N.tolist() == [1, 0]
    hub_dataset(datasets.Value("int64"), [2, 3]).save_to_disk(tmp_path / "numbers")
    with pytest.raises(DataError, match=r"labels '2', '3' have no names"):
        read(f"hf:{tmp_path / 'numbers'}", "train", options())


def test_inputs_to_predict_on(tmp_path):
    root = write_folder(tmp_path / "d", CLASSES)
    single = read_input(str(root / "cat" / "0.png"), options())
    assert (single.label_N.tolist(), single.names) == ([-1], (str(root / "cat" / "0.png"),))
    assert read_input(str(root / "cat"), options()).label_N.tolist() == [-1, -1, -1]
    labelled = read_input(str(root), options())
    assert labelled.label_N.tolist() == [0, 1, 1, 2, 2, 2]
    assert labelled.names[0] == str(root / "ant" / "0.png")
    file = write_npz(tmp_path / "a.npz", y_train=None).rename(tmp_path / "a.NPZ")
    assert read_input(str(file), options()).label_N.tolist() == [-1] * 4
    assert read_input(str(file), options()).names[3] == f"{file}[3]"
    assert read_input(str(write_npz(tmp_path / "b.npz")), options()).label_N.tolist() == [0, 1, 2, 0]
    with pytest.raises(DataError, match=r"gone\.png: not an existing file"):
        read_input("gone.png", options())


def test_options_that_do_not_fit_are_refused():
    import pydantic

    from fednc.common.config.run import parse_run
    from fednc.common.tasks import discovery

    assert options(channels=3).mean == (0.5, 0.5, 0.5)
    assert options(mean=[0.3], std=[0.2]).std == (0.2,)
    for bad in ({"classes": []}, {"classes": ["a", "a"]}, {"mean": [0.1, 0.2]}, {"std": [0.0]}, {"width": 12}):
        with pytest.raises(pydantic.ValidationError):
            options(**bad)
    with pytest.raises(ConfigError, match=r"task\.classes"):
        discovery.get(parse_run({"task": {"name": "image"}}))
    with pytest.raises(ConfigError, match="2 vertices for 3 classes"):
        discovery.get(parse_run({"task": {"name": "image", "classes": list(CLASSES)}, "frame": {"vertices": 2}}))
