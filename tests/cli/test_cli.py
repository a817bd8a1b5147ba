"""The command: output, exit codes and streams. Without a server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from fednc.cli.main import COMMANDS, app, exit_codes
from fednc.cli.output import show_table, write_json
from fednc.common import errors
from fednc.common.config.run import parse_run, read_run_file
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import draw_frame
from fednc.common.model_export import export, load
from fednc.common.tasks import discovery
from fednc.common.tasks.api import add_stats
from fednc.common.tasks.metrics import Stats

RUNNER = CliRunner()
ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "examples" / "digits.toml")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fednc(*args: object, code: int = 0) -> Result:
    """Run the command in this process; an exit code other than `code` fails the test."""
    result = RUNNER.invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def public_errors() -> list[type[errors.FedncError]]:
    """The error classes of errors.py; those that other modules derive stay inside them."""
    return [error for error in errors.FedncError.__subclasses__() if error.__module__ == errors.__name__]


def every_error() -> list[errors.FedncError]:
    plain = [error for error in public_errors() if error is not errors.MissingExtraError]
    return [error("it broke") for error in plain] + [errors.MissingExtraError("it broke", "demo", "drawing")]


def test_help_and_version_answer_without_loading_torch_or_flower() -> None:
    program = (
        "import sys; from fednc.cli.main import app; app(sys.argv[1:], standalone_mode=False);"
        "sys.exit([name for name in ('torch', 'flwr', 'numpy', 'pydantic') if name in sys.modules] or 0)"
    )
    done = [
        subprocess.run([sys.executable, "-c", program, flag], capture_output=True)
        for flag in ("--help", "--version")
    ]
    assert [(each.returncode, each.stderr) for each in done] == [(0, b""), (0, b"")]
    assert re.fullmatch(rb"fednc \d+\.\d+\S*\n", done[1].stdout)


def test_help_lists_every_command_and_exit_code() -> None:
    text = fednc("--help").stdout
    assert all(name in text for name in COMMANDS)
    assert all(f"{code}  {meaning[:40]}" in text for code, meaning in exit_codes().items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_in_the_table_can_be_loaded(name: str) -> None:
    assert f"fednc {name}" in re.sub(r"\s+", " ", RUNNER.invoke(app, [name, "--help"], prog_name="fednc").stdout)


def test_unknown_command_is_a_usage_error() -> None:
    assert "inti" in fednc("inti", code=2).stderr


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_errors_end_with_their_code_and_one_message(
    error: errors.FedncError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr("fednc.cli.init.command", broken)
    result = fednc("init", code=type(error).exit_code)
    assert result.stderr == f"error: {error}\n"
    assert result.stdout == ""


def test_exit_codes_are_all_different() -> None:
    codes = [error.exit_code for error in public_errors()]
    assert len({0, 1, *codes, errors.EXIT_INTERRUPTED}) == len(codes) + 3 == len(exit_codes())


def test_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fednc.cli.init.command", interrupted)
    fednc("init", code=130)


@pytest.mark.parametrize("kind", ["digits", "npz", "folder"])
def test_init_comments_show_the_defaults(kind: str) -> None:
    fednc("init", kind)
    text = Path("run.toml").read_text()
    run = read_run_file(Path("run.toml"))
    optional = re.compile(r"^# \[(\[sessions\]|split|personal)\].*?(?=^\[)", re.MULTILINE | re.DOTALL)
    spelled_out = re.sub(r"^# (\w+ = )", r"\1", optional.sub("", text), flags=re.MULTILINE)
    assert len(tomllib.loads(spelled_out)["train"]) > len(tomllib.loads(text)["train"])
    given, full = (discovery.get(parse_run(tomllib.loads(each))) for each in (text, spelled_out))
    assert given.options == full.options
    assert run.method == full.run.method
    assert run.model_copy(update={"task": None}).digest == full.run.model_copy(update={"task": None}).digest


def test_init_overwrites_only_with_force() -> None:
    Path("run.toml").write_text("mine")
    assert "--force" in fednc("init", code=errors.ConfigError.exit_code).stderr
    assert Path("run.toml").read_text() == "mine"
    fednc("init", "--force")
    assert read_run_file(Path("run.toml")).name == "digits"


def colour_npz(path: Path, classes: list[str], images: int = 12, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (images, size, size, 3), dtype=np.uint8), np.arange(images) % len(classes)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, classes=classes)
    return x, y


def test_init_reads_classes_and_shape_from_the_data() -> None:
    colour_npz(Path("a.npz"), ["ape", 'bat "fruit"', "çat"])
    fednc("init", "npz", "--data", "npz:a.npz")
    options = discovery.get(read_run_file(Path("run.toml"))).options.model_dump()
    assert (options["classes"], options["size"], options["channels"]) == (("ape", 'bat "fruit"', "çat"), 8, 3)
    fednc("check", "run.toml", "--data", "npz:a.npz")
    for name in ("dog", "eel"):
        Path("train", name).mkdir(parents=True)
        Image.new("L", (20, 30)).save(Path("train", name, "1.png"))
    fednc("init", "folder", "--data", "folder:.", "--force")
    options = discovery.get(read_run_file(Path("run.toml"))).options.model_dump()
    assert (options["classes"], options["size"], options["channels"]) == (("dog", "eel"), 20, 1)
    fednc("check", "run.toml", "--data", "folder:.")


def test_init_refuses_another_kind_of_data() -> None:
    assert "npz:x" in fednc("init", "folder", "--data", "npz:x", code=errors.ConfigError.exit_code).stderr


def test_check_accounts_for_every_example_of_the_split() -> None:
    result = fednc("check", DIGITS, "--data", "digits", "--json", "-")
    found = json.loads(result.stdout)
    parts = found["parts"]
    assert len(parts) == read_run_file(Path(DIGITS)).split.parts
    assert found["used"] + found["dropped"] == found["data"]["examples"] == 1437
    for name in found["classes"]:
        assert sum(part["count"][name] for part in parts) == found["data"]["count"][name]
    one = json.loads(fednc("check", DIGITS, "--data", "digits", "--partition", "1/2", "--json", "-").stdout)
    assert one["parts"] == [parts[1]]
    assert "1,437 of 1,437 examples used, 0 dropped" in result.stderr


def test_check_counts_the_parameters_of_the_model_and_reads_the_test_data() -> None:
    fednc("check", DIGITS, "--json", "found.json")
    found = json.loads(Path("found.json").read_text())
    model = discovery.get(read_run_file(Path(DIGITS))).build_model()
    assert found["model_parameters"] == sum(value.numel() for value in model.parameters())
    assert found["test"]["examples"] == sum(found["test"]["count"].values()) == 360


@pytest.mark.parametrize(
    ("change", "args", "error", "words"),
    [
        (("[train]", "[trian]"), [], errors.ConfigError, "trian: "),
        (("size = 8", "size = 9"), ["--data", "digits"], errors.DataError, "task.size"),
        (("size = 8", "seize = 8"), [], errors.ConfigError, "task.seize"),
        (('"9"]', '"nine"]'), ["--data", "digits"], errors.DataError, "nine"),
        (("[train]", "[frame]\ndim = 8\n[train]"), [], errors.ConfigError, "frame.dim"),
        (("", ""), ["--data", "npz:nowhere.npz"], errors.DataError, "nowhere.npz"),
        (("", ""), ["--data", "digits", "--partition", "2/2"], errors.ConfigError, "2/2"),
        (("", ""), ["--data", "digits", "--partition", "1/3"], errors.DataError, "split.parts"),
        (("", ""), ["--json", "no/such/folder.json"], errors.ConfigError, "--json"),
    ],
)
def test_check_names_every_problem(
    change: tuple[str, str], args: list[str], error: type[errors.FedncError], words: str
) -> None:
    Path("run.toml").write_text(Path(DIGITS).read_text().replace(*change))
    assert words in fednc("check", "run.toml", *args, code=error.exit_code).stderr


def finished_run(folder: Path, classes: list[str], readout: str = "blend") -> None:
    """The folder of a finished run, with random weights."""
    run = parse_run(
        {
            "task": {"name": "image", "classes": classes, "size": 8, "width": 8},
            "method": {"readout": readout},
            "evaluate": {"batch": 5},
        }
    )
    task = discovery.get(run)
    torch.manual_seed(0)
    frame = draw_frame(task.label_space, run.frame.dim, seed=0)
    memory = ClassMemory.empty(task.label_space, run.frame.dim)
    export(folder, task.build_model(), task, frame, memory, run)


def test_predict_repeats_the_runs_own_evaluation() -> None:
    finished_run(Path("run"), ["ape", "bat", "cat"])
    _, label_N = colour_npz(Path("a.npz"), ["cat", "ape", "bat"], images=33)
    result = fednc("predict", "run", "a.npz", "--json", "-")
    found = json.loads(result.stdout)
    model = load("run")
    stats: Stats = {}
    with torch.no_grad():
        for batch in model.task.load_test("npz:a.npz").eval_batches(5):
            add_stats(stats, model.task.statistics(model.model, batch, model.guide))
    assert found["metrics"] == model.task.measure(stats)
    named = [["cat", "ape", "bat"][label] for label in label_N]
    right = [row["class"] == name for row, name in zip(found["predictions"], named, strict=True)]
    assert found["metrics"]["accuracy"] == sum(right) / 33
    assert "13 more of 33" in result.stderr


def test_predict_takes_an_image_or_a_folder_without_labels() -> None:
    finished_run(Path("run"), ["ape", "bat"])
    Path("loose").mkdir()
    x, _ = colour_npz(Path("a.npz"), ["ape", "bat"], images=3)
    for place, pixels in enumerate(x):
        Image.fromarray(pixels).save(f"loose/{place}.png")
    folder = json.loads(fednc("predict", "run", "loose", "--json", "-").stdout)
    single = json.loads(fednc("predict", "run", "loose/1.png", "--json", "-").stdout)
    assert [row["name"] for row in folder["predictions"]] == ["loose/0.png", "loose/1.png", "loose/2.png"]
    assert single["predictions"][0]["class"] == folder["predictions"][1]["class"]
    assert single["predictions"][0]["confidence"] == pytest.approx(
        folder["predictions"][1]["confidence"], abs=1e-6
    )
    assert "metrics" not in folder
    assert all(0.5 <= row["confidence"] <= 1 for row in folder["predictions"])


def test_predict_names_what_is_missing() -> None:
    assert "model.json" in fednc("predict", ".", "x.png", code=errors.DataError.exit_code).stderr
    finished_run(Path("run"), ["ape", "bat"])
    assert "x.png" in fednc("predict", "run", "x.png", code=errors.DataError.exit_code).stderr
    assert "tpu" in fednc("predict", "run", "x.png", "--device", "tpu", code=errors.ConfigError.exit_code).stderr
    assert (
        "cuda:99"
        in fednc("predict", "run", "x.png", "--device", "cuda:99", code=errors.ConfigError.exit_code).stderr
    )


def test_tables_are_plain_aligned_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("[split]", ["class", "n"], [["[bold]ant", 12], ["bee", 0.123456]])
    assert capsys.readouterr().err == "[split]\n  class      n\n  [bold]ant  12\n  bee        0.1235\n"


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json("-", {"accuracy": float("nan")})
