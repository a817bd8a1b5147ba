"""`fednc serve` as a process: killed, ended and started again, and what it refuses before it starts."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from fednc.cli.serve import _wanted
from fednc.common.errors import ConfigError, DataError
from fednc.ops.serving.models import WantedModel
from support.command_processes import ends, fednc
from support.served_models import FOLDER, SIZE, ask, export_model, json_request, serve_process

INFER = "/v2/models/digits/infer"
BODY = json_request(torch.zeros(1, 1, SIZE, SIZE))


def test_a_killed_server_starts_again_and_one_that_ends_answers_first(tmp_path: Path) -> None:
    folder = export_model(tmp_path / "run")
    with serve_process(f"digits={folder}", cwd=tmp_path) as (process, _, address):
        before = ask(f"http://{address}{INFER}", BODY).json
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run"}, "a killed server leaves nothing behind"
    # One that waits for a batch to fill up has open requests for as long.
    with serve_process(f"digits={folder}", "--max-delay-ms", 1500, cwd=tmp_path) as (process, lines, address):
        answers: list[int] = []
        callers = [
            threading.Thread(target=lambda: answers.append(ask(f"http://{address}{INFER}", BODY).status))
            for _ in range(4)
        ]
        for each in callers:
            each.start()
        time.sleep(0.7)
        assert answers == []
        process.terminate()
        for each in callers:
            each.join(20)
        assert answers == [200] * 4
        assert process.wait(20) == 0
        assert any("finishing open requests" in line for line in lines())
        assert not any("Traceback" in line for line in lines())
    with serve_process(f"digits={folder}", cwd=tmp_path) as (_, _, address):
        after = ask(f"http://{address}{INFER}", BODY).json
    assert after["outputs"] == before["outputs"]
    assert after["model_version"] == before["model_version"]


def test_a_tampered_model_is_not_served(tmp_path: Path) -> None:
    folder = export_model(tmp_path / "run")
    weights = folder / FOLDER / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    code, output = ends(
        fednc("serve", f"digits={folder}", "--listen", "127.0.0.1:0", "--grpc", "off", cwd=tmp_path)
    )
    assert code == DataError.exit_code
    assert "sha256" in output
    assert "Traceback" not in output


def test_models_and_canaries_are_read_from_the_command(tmp_path: Path) -> None:
    runs = str(tmp_path / "runs" / "digits-1")
    assert _wanted(["digits", "b=cats@old", runs], ["digits@challenger=0.1"]) == (
        WantedModel("digits", "digits@champion", "digits@challenger", 0.1),
        WantedModel("b", "cats@old"),
        WantedModel("digits-1", runs),
    )
    assert _wanted(["d=./a"], ["d=./b=0.5"]) == (WantedModel("d", "./a", "./b", 0.5),)


@pytest.mark.parametrize(
    ("models", "canaries", "why"),
    [
        (["digits"], ["digits@challenger"], "expected MODEL@ALIAS=SHARE"),
        (["digits"], ["digits@challenger=2"], "above 0 and up to 1"),
        (["digits"], ["digits@challenger=nan"], "above 0 and up to 1"),
        (["digits"], ["other@challenger=0.1"], "no such model is served"),
        (["a/b=./x"], [], "cannot be a name in an address"),
    ],
)
def test_what_cannot_be_meant_is_refused(models: list[str], canaries: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        _wanted(models, canaries)
