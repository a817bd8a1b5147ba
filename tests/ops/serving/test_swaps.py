"""An alias moves under load: every request is answered exactly once, none fails, and the version only goes forward."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fednc.common.errors import DataError
from fednc.common.model_export import FOLDER, WEIGHTS, load
from fednc.ops.serving.models import WantedModel, draw
from fednc.ops.serving.sources import FolderSource
from support.command_processes import wait_for
from support.served_models import SIZE, Aliases, RunningServer, export_model, json_request

REFERENCE, CHALLENGER = "digits@champion", "digits@challenger"
INFER = "/v2/models/digits/infer"
INPUTS = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
SWAP_S = 2.0


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Three versions of a model."""
    return {str(seed): export_model(tmp_path / str(seed), seed) for seed in (1, 2, 3)}


def version(server: RunningServer) -> str:
    answer = server.ask(INFER, json_request(INPUTS))
    assert answer.status == 200, answer.body
    found: str = answer.json["model_version"]
    return found


class Load:
    """Callers that ask without a pause, each over its own connection, and note every answer."""

    def __init__(self, server: RunningServer, folders: dict[str, Path]) -> None:
        with torch.no_grad():
            self._expected = {name: load(path)(INPUTS).softmax(1).numpy() for name, path in folders.items()}
        self._server, self._stop = server, threading.Event()
        self.answers: list[tuple[float, float, str]] = []  # asked at, answered at, version
        self.failures: list[Any] = []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(8)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _ask(self, caller: int) -> None:
        connection = http.client.HTTPConnection(self._server.http, timeout=20)
        number = 0
        while not self._stop.is_set():
            number += 1
            asked_at = time.monotonic()
            try:
                connection.request("POST", INFER, json.dumps(json_request(INPUTS, id=f"{caller}-{number}")))
                response = connection.getresponse()
                found = json.loads(response.read())
                assert response.status == 200, found
                assert found["id"] == f"{caller}-{number}"
                given = {each["name"]: each["data"] for each in found["outputs"]}["probabilities"]
                expected = self._expected[found["model_version"]]
                assert np.allclose(np.reshape(given, expected.shape), expected, atol=1e-5)
            except Exception as e:
                self.failures.append(e)
                return
            self.answers.append((asked_at, time.monotonic(), found["model_version"]))
        connection.close()


def test_no_request_is_lost_when_the_alias_moves(folders: dict[str, Path]) -> None:
    aliases = Aliases()
    aliases.move(REFERENCE, "1", folders["1"])
    moved: list[float] = []
    with (
        RunningServer(aliases, WantedModel("digits", REFERENCE), poll_s=0.2) as server,
        Load(server, folders) as load_,
    ):
        for name in ("2", "3", "1"):  # the last is a rollback
            time.sleep(0.3)
            aliases.move(REFERENCE, name, folders[name])
            moved.append(time.monotonic())
            wait_for(lambda name=name: load_.answers and load_.answers[-1][2] == name, timeout_s=10)
        time.sleep(0.2)
    assert load_.failures == []
    order = ["2", "3", "1"]
    # Callers that ask at the same moment may be answered by either version, but never once it was replaced.
    for place, name in enumerate(order):
        answers = [each for each in load_.answers if each[2] == name and each[1] > moved[place]]
        first = min(answered for _, answered, _ in answers)
        assert first - moved[place] < SWAP_S
        until = moved[place + 1] if place + 1 < len(moved) else float("inf")
        after = {each[2] for each in load_.answers if first < each[0] < until}
        assert after == {name}
    assert len(load_.answers) > 50


def broken(folder: Path) -> None:
    """One byte of the weights is another."""
    path = folder / FOLDER / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_tampered_version_is_not_served_and_the_old_one_stays(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    aliases = Aliases()
    aliases.move(REFERENCE, "1", folders["1"])
    with RunningServer(aliases, WantedModel("digits", REFERENCE)) as server, caplog.at_level(logging.INFO):
        broken(folders["2"])
        aliases.move(REFERENCE, "2", folders["2"])
        wait_for(lambda: "cannot be served" in caplog.text, timeout_s=10)
        assert "sha256" in caplog.text
        assert "version 1 goes on serving" in caplog.text
        time.sleep(0.3)  # several more looks: it is told once
        assert caplog.text.count("cannot be served") == 1
        assert version(server) == "1"
        assert (
            'fednc_serve_swaps_total{model="digits",result="failed"} 1.0' in server.ask("/metrics").body.decode()
        )
        aliases.move(REFERENCE, "3", folders["3"])
        wait_for(lambda: version(server) == "3", timeout_s=10)


def test_a_version_that_cannot_compute_is_not_served(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fednc.common.model_export import ExportedModel

    aliases = Aliases()
    aliases.move(REFERENCE, "1", folders["1"])
    with RunningServer(aliases, WantedModel("digits", REFERENCE)) as server:
        real = ExportedModel.forward

        def forward(model: ExportedModel, inputs: torch.Tensor) -> torch.Tensor:
            if model.run.name == "run-2":
                raise RuntimeError("out of order")
            return real(model, inputs)

        monkeypatch.setattr(ExportedModel, "forward", forward)
        aliases.move(REFERENCE, "2", folders["2"])
        wait_for(lambda: "cannot be served" in caplog.text, timeout_s=10)
        assert version(server) == "1"


def test_an_alias_that_disappears_keeps_the_old_version(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    aliases = Aliases()
    aliases.move(REFERENCE, "1", folders["1"])
    with RunningServer(aliases, WantedModel("digits", REFERENCE)) as server:
        del aliases.versions[REFERENCE]
        wait_for(lambda: "no such alias" in caplog.text, timeout_s=10)
        assert version(server) == "1"


def test_a_tampered_model_stops_the_start(folders: dict[str, Path]) -> None:
    broken(folders["1"])
    with (
        pytest.raises(DataError, match="sha256"),
        RunningServer(FolderSource(), WantedModel("d", str(folders["1"]))),
    ):
        pass


def test_a_folder_that_is_exported_again_is_a_new_version(tmp_path: Path) -> None:
    folder = export_model(tmp_path, 1)
    with RunningServer(FolderSource(), WantedModel("digits", str(folder))) as server:
        first = version(server)
        export_model(tmp_path, 2)
        wait_for(lambda: (now := version(server)) != first and now, timeout_s=10)
        assert version(server) == FolderSource().find(str(folder)).version


@pytest.mark.parametrize("refuse", [False, True])
def test_a_stale_model_is_told_and_can_be_refused(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture, refuse: bool
) -> None:
    aliases = Aliases()
    aliases.move(REFERENCE, "1", folders["1"])
    with RunningServer(aliases, WantedModel("digits", REFERENCE), refuse_stale=refuse) as server:
        assert "model_stale" not in server.ask(INFER, json_request(INPUTS)).json["parameters"]
        aliases.move(REFERENCE, "1", folders["1"], stale="the label map has changed")
        wait_for(lambda: "is stale: the label map has changed" in caplog.text, timeout_s=10)
        assert 'fednc_serve_stale{model="digits"} 1.0' in server.ask("/metrics").body.decode()
        answer = server.ask(INFER, json_request(INPUTS))
        assert server.ask("/v2/health/ready").status == (503 if refuse else 200)
        if refuse:
            assert answer.status == 503
            assert "stale" in answer.json["error"]
        else:
            assert answer.json["parameters"]["model_stale"] == "the label map has changed"
            assert answer.headers["fednc-model-stale"] == '"the label map has changed"'
            assert server.ask("/v2/models/digits").json["properties"]["stale"] == "the label map has changed"
        aliases.move(REFERENCE, "2", folders["2"])
        wait_for(lambda: server.ask(INFER, json_request(INPUTS)).json.get("model_version") == "2", timeout_s=10)


def test_a_share_of_the_requests_goes_to_the_canary(folders: dict[str, Path]) -> None:
    aliases = Aliases()
    aliases.move(REFERENCE, "1", folders["1"])
    aliases.move(CHALLENGER, "2", folders["2"])
    share = 0.25
    with RunningServer(aliases, WantedModel("digits", REFERENCE, CHALLENGER, share)) as server:

        def answered_by(number: int) -> str:
            found: str = server.ask(INFER, json_request(INPUTS, id=f"q{number}")).json["model_version"]
            return found

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(answered_by, range(120)))
            assert found == list(pool.map(answered_by, range(120)))  # the id alone decides
        assert found == ["2" if draw(f"q{number}") < share else "1" for number in range(120)]
        page = server.ask("/metrics").body.decode()
        for name, part in (("1", "champion"), ("2", "canary")):
            counted = f'fednc_serve_requests_total{{model="digits",share="{part}",version="{name}"}}'
            assert f"{counted} {2.0 * Counter(found)[name]}" in page
        assert server.ask("/v2/models/digits").json["versions"] == ["1", "2"]
        assert server.ask("/v2/models/digits/versions/2/infer", json_request(INPUTS)).json["model_version"] == "2"


@given(st.integers(0, 10**6))
def test_shares_are_even(start: int) -> None:
    drawn = [draw(f"{start}-{number}") for number in range(400)]
    assert all(0 <= each < 1 for each in drawn)
    assert abs(sum(each < 0.3 for each in drawn) / 400 - 0.3) < 0.12
