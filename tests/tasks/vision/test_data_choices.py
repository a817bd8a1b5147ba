"""What only the owner of data knows (names of labels, columns, test data), and what `init` and `check` report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fednc.cli.main import app
from fednc.common.config.run import parse_run, parse_run_json, read_run_file
from fednc.common.errors import ConfigError, DataError
from fednc.common.tasks import discovery
from fednc.common.tasks.data_spec import parse_spec, with_options
from fednc.tasks.vision.sources.select import read, read_input
from support.image_files import CLASSES, options, picture, write_folder, write_npz

TASK = {"classes": list(CLASSES), "size": 8, "channels": 1, "width": 8}


def task_of(**evaluate: Any) -> Any:
    return discovery.get(parse_run({"task": TASK, "evaluate": evaluate}))


# ---- names of labels ---------------------------------------------------------------------------------------


def test_labels_without_names_are_refused_until_their_owner_names_them(tmp_path):
    spec = f"npz:{write_npz(tmp_path / 'a.npz', classes=None)}"
    with pytest.raises(DataError, match=r"labels '0', '1', '2' have no names.*'ant', 'bee', 'cat'.*--class-names"):
        read(spec, "train", options())
    named = with_options(spec, class_names="cat,ant,bee")
    assert read(named, "train", options()).label_N.tolist() == [2, 0, 1, 2]
    with pytest.raises(DataError, match="'yak' are not in this run"):
        read(with_options(spec, class_names="yak,ant,bee"), "train", options())
    with pytest.raises(DataError, match=r"label 2 is outside 0\.\.1"):
        read(with_options(spec, class_names="cat,ant"), "train", options())


def test_a_number_can_be_the_name_of_a_class(tmp_path):
    spec = f"npz:{write_npz(tmp_path / 'a.npz', y_train=np.array([1, 2, 3, 1]), classes=None)}"
    assert read(spec, "train", options(classes=("3", "2", "1"))).label_N.tolist() == [2, 1, 0, 2]
    with pytest.raises(DataError, match="labels '3' have no names"):
        read(spec, "train", options(classes=("0", "1", "2")))


def test_a_suffix_of_the_spec_equals_the_options():
    spec = with_options("hf:a/b", "a b,c%2Cd,é", "image=img,label=fine label")
    found = parse_spec(spec)
    assert (found.kind, found.place, found.class_names) == ("hf", "a/b", ("a b", "c,d", "é"))
    assert found.columns == {"image": "img", "label": "fine label"}
    assert parse_spec("npz:what?.npz").place == "what?.npz"
    assert with_options("npz:a.npz") == "npz:a.npz"


@pytest.mark.parametrize(
    "spec",
    [
        "npz:a?classnames=a,b",
        "npz:a?class-names=a,,b",
        "npz:a?class-names=",
        "hf:a?columns=img",
        "digits?columns=image=a",
        "hf:a?columns=image=a,image=b",
        "npz:a?class-names=a&class-names=b",
        "npz:a?columns=mask=y",
        "folder:a?class-names=a,b",
        "hf:a?columns=mask=a",
    ],
)
def test_invalid_suffixes_are_refused(spec):
    with pytest.raises(DataError, match="data '"):
        read(spec, "train", options())


# ---- columns -----------------------------------------------------------------------------------------------


def table(tmp_path: Path, columns: dict[str, tuple[Any, list[Any]]]) -> str:
    import datasets

    features = datasets.Features({name: kind for name, (kind, _) in columns.items()})
    values = {name: list(found) for name, (_, found) in columns.items()}
    datasets.Dataset.from_dict(values, features=features).save_to_disk(tmp_path / "t")
    return f"hf:{tmp_path / 't'}"


def test_ambiguous_columns_are_listed_with_the_option_that_decides(tmp_path):
    import datasets

    image, names = datasets.Image(), datasets.ClassLabel(names=["bee", "ant"])
    pictures = [picture(10), picture(20)]
    spec = table(
        tmp_path, {"a": (image, pictures), "b": (image, pictures), "x": (names, [0, 1]), "y": (names, [1, 0])}
    )
    with pytest.raises(
        DataError, match=r"which column is the image\? 2 columns are possible \('a', 'b'\).*--columns image="
    ):
        read(spec, "train", options())
    with pytest.raises(
        DataError, match=r"which column is the label\? 2 columns are possible \('x', 'y'\).*--columns label="
    ):
        read(with_options(spec, columns="image=a"), "train", options())
    found = read(with_options(spec, columns="image=b,label=y"), "train", options())
    assert found.label_N.tolist() == [0, 1]
    assert "images from column 'b', labels from column 'y'" in found.notes
    with pytest.raises(DataError, match="has no column 'z', only 'a', 'b', 'x', 'y'"):
        read(with_options(spec, columns="image=z"), "train", options())


def test_columns_of_strings_numbers_and_nothing(tmp_path):
    import datasets

    image, text, number = datasets.Image(), datasets.Value("string"), datasets.Value("int64")
    spec = table(
        tmp_path / "a", {"i": (image, [picture(1)] * 2), "animal": (text, ["cat", "ant"]), "n": (number, [0, 1])}
    )
    assert read(spec, "train", options()).label_N.tolist() == [2, 0]
    with pytest.raises(DataError, match="have no names"):
        read(with_options(spec, columns="label=n"), "train", options())
    by_number = with_options(spec, "bee,cat", "label=n")
    assert read(by_number, "train", options()).label_N.tolist() == [1, 2]
    spec = table(tmp_path / "b", {"i": (image, [picture(1), None, None]), "label": (text, ["cat"] * 3)})
    with pytest.raises(DataError, match=r"(?s)2 of 3 images.*image 1 of column 'i' is missing.*image 2"):
        read(spec, "train", options())
    spec = table(tmp_path / "c", {"i": (image, [picture(1)] * 2), "label": (text, ["cat", None])})
    with pytest.raises(DataError, match=r"1 rows have no label \(None\), the first is row 1"):
        read(spec, "train", options())


# ---- test data ---------------------------------------------------------------------------------------------


def data_without_test(tmp_path: Path, kind: str) -> str:
    if kind == "folder":
        return f"folder:{write_folder(tmp_path / 'd', CLASSES)}"
    x = np.arange(640, dtype=np.uint16).reshape(10, 8, 8).astype(np.uint8)
    return f"npz:{write_npz(tmp_path / 'a.npz', x_train=x, y_train=np.arange(10) % 3)}"


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_training_data_is_never_scored_and_every_client_leaves_out_the_share(tmp_path, kind):
    spec = data_without_test(tmp_path, kind)
    every = task_of().load_train(spec, None, None)
    with pytest.raises(DataError, match=r"no test part.*evaluate\.test_share"):
        task_of(test=spec).load_test(spec)
    divided = task_of(test=spec, test_share=0.3)
    train, test = divided.load_train(spec, None, None), divided.load_test(spec)
    assert test.examples >= 2
    assert train.examples + test.examples == every.examples
    assert (train.count_K + test.count_K).tolist() == every.count_K.tolist()
    if kind == "folder":
        assert set(train.names) | set(test.names) == set(every.names)
    assert any("left for the test" in note for note in train.notes)
    own = task_of(test=spec, test_share=1)
    assert own.load_test(spec).examples == own.load_train(spec, None, None).examples == every.examples


def test_a_folder_called_test_is_test_data_and_a_test_part_is_not_divided(tmp_path):
    root = write_folder(tmp_path / "test", CLASSES)
    assert task_of().load_test(f"folder:{root}").examples == 6
    both = f"npz:{write_npz(tmp_path / 'a.npz', x_test=np.zeros((2, 8, 8), np.uint8), y_test=np.array([0, 1]))}"
    assert task_of(test_share=0.5).load_train(both, None, None).examples == 4
    assert task_of(test_share=0.5).load_test(both).examples == 2
    plain = str(write_npz(tmp_path / "b.npz"))
    assert any("including those trained on" in note for note in read_input(plain, options()).notes)


# ---- init and check ----------------------------------------------------------------------------------------


def said(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


RANDOM = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"classes": np.array(3)}, "class names are"),
        ({"y_train": np.array([0, np.nan, 1, 1])}, "labels are float64"),
        ({"classes": None, "y_train": np.array([-1, 0, 1, 1])}, "label -1 is below 0"),
        ({"x_train": np.zeros((4, 8, 8), np.uint8)}, "one value everywhere"),
        ({"x_train": np.zeros((4, 3, 8, 8), np.uint8)}, "transpose"),
        ({"x_train": np.zeros((4, 9, 8), np.uint8)}, "9x8"),
        ({"x_train": RANDOM[:3]}, "3 images in x_train, 4 labels"),
        ({"x_train": RANDOM[:0], "y_train": np.zeros(0, int)}, "no images in x_train"),
        ({"x_train": RANDOM[:, :2, :2]}, "task.size"),
    ],
)
def test_init_refuses_data_that_a_client_could_not_use(here, changed, words):
    write_npz(here / "a.npz", **{"x_train": RANDOM, **changed})
    assert words in said("init", "npz", "--data", "npz:a.npz", code=DataError.exit_code)
    assert not Path("run.toml").exists()


def test_init_says_that_mean_and_std_are_those_of_the_data(here):
    write_npz(here / "a.npz", x_train=RANDOM)
    assert "measured on this site's images" in said("init", "npz", "--data", "npz:a.npz")
    assert "one site's images" in Path("run.toml").read_text()
    said("init", "--force")
    assert "one site's images" not in Path("run.toml").read_text()


def test_init_leaves_out_classes_without_examples(here):
    write_npz(here / "a.npz", x_train=RANDOM, y_train=np.array([1, 2, 3_000_002, 1]), classes=None)
    assert "the labels have no names" in said("init", "npz", "--data", "npz:a.npz")
    assert discovery.get(read_run_file(Path("run.toml"))).class_names == ("1", "2", "3000002")
    assert Path("run.toml").stat().st_size < 40_000
    said("check", "run.toml", "--data", "npz:a.npz")


def test_init_takes_names_from_the_labels_and_from_the_owner(here):
    write_npz(here / "a.npz", x_train=RANDOM, y_train=np.array(["owl", "elk", "owl", "elk"]), classes=None)
    said("init", "npz", "--data", "npz:a.npz")
    assert discovery.get(read_run_file(Path("run.toml"))).class_names == ("elk", "owl")
    write_npz(here / "a.npz", x_train=RANDOM, classes=None)
    words = said("init", "npz", "--data", "npz:a.npz", "--class-names", "owl,elk,emu,yak", "--force")
    assert "no examples for 1 of the classes: 'yak'" in words
    said("check", "run.toml", "--data", "npz:a.npz", "--class-names", "owl,elk,emu")
    assert "--class-names" in said("check", "run.toml", "--data", "npz:a.npz", code=DataError.exit_code)


def test_init_chooses_a_frame_wide_enough_for_many_classes(here):
    x = np.random.default_rng(0).integers(0, 256, (200, 8, 8), dtype=np.uint8)
    write_npz(here / "a.npz", x_train=x, y_train=np.arange(200), classes=None)
    assert "frame.dim = 256: 200 classes need at least 199" in said("init", "npz", "--data", "npz:a.npz")
    said("check", "run.toml", "--data", "npz:a.npz")


def test_init_lists_images_that_cannot_be_used(here):
    write_folder(here / "d", CLASSES)
    for name in ("0.jpg", "1.jpg"):
        (here / "d" / "bee" / name).write_bytes(b"")
    words = said("init", "folder", "--data", "folder:d", code=DataError.exit_code)
    assert "2 of 8 images cannot be used" in words
    for name in ("0.jpg", "1.jpg"):
        (here / "d" / "bee" / name).unlink()
    picture(1, mode="RGB").save(here / "d" / "bee" / "c.png")
    assert "6 images are grey" in said("init", "folder", "--data", "folder:d", code=DataError.exit_code)


def test_check_reports_everything_at_once_and_names_what_is_left_out(here):
    write_folder(here / "d", CLASSES)
    said("init", "folder", "--data", "folder:d")
    picture(1).save(here / "d" / "loose.png")
    words = said("check", "run.toml", "--data", "folder:d")
    assert "1 loose images beside the class folders (first: 'loose.png')" in words
    assert "no problems found; see 1 notes on the data above" in words
    (here / "d" / "bee" / "0.png").write_bytes(b"")
    text = Path("run.toml").read_text().replace("# dim = 128", "dim = 1")
    Path("run.toml").write_text(text)
    words = said("check", "run.toml", "--data", "folder:d", code=ConfigError.exit_code)
    assert "frame.dim = 1 is too narrow" in words
    assert "0.png: not an image" in words


# ---- run files ---------------------------------------------------------------------------------------------


def test_a_refused_run_file_is_one_line_for_each_key():
    values = '{"rounds": {"total": 0, "totl": 1}, "method": {"head": "linear", "readout": "vertex"}, "seed": "x"}'
    with pytest.raises(ConfigError) as e:
        parse_run_json(values, source="the server's run file")
    first, *lines = str(e.value).splitlines()
    assert first == "the server's run file cannot be used:"
    assert [line.split(":")[0].strip() for line in lines] == ["seed", "method", "rounds.total", "rounds.totl"]
    assert not any(word in str(e.value) for word in ("http", "pydantic", "Value error", "type="))
    with pytest.raises(ConfigError, match="the file cannot be used"):
        parse_run_json(b"no json", source="the file")
