"""`fednc inspect gradients`: the table, the picture, JSON, and models without attention."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from fednc.cli.main import app as command
from fednc.common.errors import ConfigError

RUN = """
[task]
name = "colorize"
size = [16, 16]
widths = [4, 8]
adversary_widths = [4]
perceptual_width = 4
self_attention = false
attention = "{attention}"
[method]
name = "fedavg"
[train]
batch = 4
"""
DATA = "characters:images=8"


def inspected(folder: Path, attention: str, *more: str) -> tuple[dict[str, dict[str, float]], str]:
    run = folder / "run.toml"
    run.write_text(RUN.format(attention=attention))
    arguments = [
        "inspect",
        "gradients",
        str(run),
        "--data",
        DATA,
        "--batches",
        "2",
        "--json",
        str(folder / "x.json"),
    ]
    said = CliRunner().invoke(command, [*arguments, *more])
    assert said.exit_code == 0, said.output
    found = json.loads((folder / "x.json").read_text())["branches"]
    return {f"{one['input']}/{one['branch']}": one for one in found}, said.output


def test_branches_are_listed_with_shares_and_cosines(tmp_path: Path) -> None:
    picture = tmp_path / "branches.png"
    found, said = inspected(tmp_path, "scft", "--steps", "2", "--picture", str(picture))
    assert set(found) == {"target/query", "target/skip", "source/key", "source/value"}
    assert abs(found["source/key"]["share"] + found["source/value"]["share"] - 1) < 1e-6
    assert all(-1 <= one["token"] <= 1 for one in found.values())
    assert "generator.cross" in said
    with Image.open(picture) as image:
        assert image.height > 4 * 60
    alone, _ = inspected(tmp_path, "sga")
    assert "source/key" not in alone
    assert alone["source/value"]["against"] is None  # there is nothing that it could pull against
    assert abs(alone["source/value"]["token"] - 1) < 1e-9


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text(
        '[task]\nclasses = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]\nsize = 8\nchannels = 1\n'
    )
    said = CliRunner().invoke(command, ["inspect", "gradients", str(run), "--data", "digits"])
    assert said.exit_code == ConfigError.exit_code
    assert "no attention block" in " ".join((said.output + said.stderr).split())
