"""`import fednc`: a run in this process has the bits of one over the link; callbacks; what an interrupt leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fednc
from fednc.client.app.flower_app import app as fednc_app
from fednc.common.errors import ConfigError
from fednc.common.files import write_atomically
from fednc.common.tasks.api import Stats, add_stats
from fednc.server.storage.history import RoundRecord
from support.contract_run import CLIENTS, config
from support.runs_on_grids import over_the_link

DATA = {client.name: client.data for client in CLIENTS}


def run(*callbacks: fednc.Callback, rounds: int = 3, folder: Path | None = None, **changes: Any) -> fednc.Result:
    values = config(rounds={"total": rounds}, **changes)
    return fednc.run(values, DATA, callbacks, folder, device="cpu", val_share=0.2, progress=False)


def test_import_is_quick_and_loads_neither_torch_nor_flower() -> None:
    program = (
        "import sys, time; begin = time.perf_counter(); import fednc; took = time.perf_counter() - begin;"
        "heavy = [name for name in ('torch', 'flwr', 'numpy', 'grpc', 'pydantic') if name in sys.modules];"
        "assert 'run' in dir(fednc); print(took); sys.exit(heavy or 0)"
    )
    took = []
    for _ in range(3):  # another process may take the machine for a moment
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        took.append(float(done.stdout))
    assert min(took) < 0.05


def test_every_public_name_exists() -> None:
    for name in fednc.__all__:
        assert getattr(fednc, name) is not None
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'; available: .*run"):
        _ = fednc.nothing
    from fednc import server

    assert server.__name__ == "fednc.server"


@pytest.mark.parametrize("method", ["fednc", "scaffold"])
def test_it_gives_the_bits_of_the_link(method: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method": {"name": method}}
    ours = run(rounds=2, folder=tmp_path / "ours", **changes)
    linked = over_the_link(config(rounds={"total": 2}, **changes), CLIENTS, fednc_app, tmp_path)
    state = ours.model.model.state_dict()
    assert state.keys() == linked.state.model.keys()
    for key, value in linked.state.model.items():
        assert torch.equal(value, state[key]), key
    assert ours.metrics == linked.history.rounds[-1].test
    assert ours.summary["config_sha256"] == linked.run.digest
    loaded = fednc.load(tmp_path / "ours").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in ours.model.state_dict().items())


def test_a_run_file_a_dict_and_a_config_are_the_same_run(tmp_path: Path) -> None:
    text = """
        seed = 5
        [task]
        classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
        size = 8
        channels = 1
        width = 8
        [frame]
        dim = 16
        [rounds]
        total = 1
    """
    (tmp_path / "run.toml").write_text(text)
    import tomllib

    values = tomllib.loads(text)
    clients = {"anna": "digits", "bert": "digits"}
    results = [
        fednc.run(given, clients, device="cpu", progress=False)
        for given in (tmp_path / "run.toml", str(tmp_path / "run.toml"), values)
    ]
    one, *others = (result.model.state_dict() for result in results)
    assert all(torch.equal(value, other[key]) for other in others for key, value in one.items())
    assert all(result.metrics == result.history.rounds[-1].pooled for result in results)
    assert results[0].ended == "finished"


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(rounds=1)
    assert result.folder is None
    assert list(tmp_path.iterdir()) == []


def test_trackers_of_the_run_file_hear_it(tmp_path: Path) -> None:
    run(rounds=2, folder=tmp_path, server={"trackers": ["csv"]})
    assert (tmp_path / "metrics.csv").read_text().count("accuracy,") == 2


class Scripted(fednc.Callback):
    """Does something after one round."""

    def __init__(self, at: int, does: Any) -> None:
        self.at, self.does, self.ends = at, does, list[str]()

    def on_round(self, run: fednc.Running, record: RoundRecord) -> None:
        if record.round == self.at:
            self.does(run)

    def on_end(self, run: fednc.Running, result: fednc.Result) -> None:
        self.ends.append(result.ended)


def test_a_callback_stops_the_run_and_the_last_round_is_evaluated() -> None:
    stops = Scripted(2, lambda run: run.stop("enough"))
    result = run(stops, rounds=6, method={"name": "fedavg"})
    assert (result.ended, result.rounds, stops.ends) == ("enough", 2, ["enough"])
    assert result.metrics == run(rounds=2, method={"name": "fedavg"}).metrics
    unevaluated = config(rounds={"total": 6, "evaluate_every": 4})
    late = fednc.run(unevaluated, DATA, [stops], device="cpu", val_share=0.2, progress=False)
    assert late.rounds == 2
    assert late.history.rounds[0].metrics == {}
    assert late.metrics["accuracy"] > 0


def test_ctrl_c_leaves_the_model_of_the_last_round(tmp_path: Path) -> None:
    def ctrl_c(_: fednc.Running) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    watching = Scripted(2, ctrl_c)
    cut = run(watching, rounds=6, folder=tmp_path)
    whole = run(rounds=2)
    assert (cut.ended, cut.rounds, watching.ends) == ("interrupted", 2, ["interrupted"])
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in cut.model.state_dict().items())
    assert fednc.load(tmp_path).class_names == whole.model.class_names
    assert cut.summary["ended"] == "interrupted"


def test_ctrl_c_during_round_1_raises_keyboard_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fednc.server.rounds.strategy.FrameStrategy.run_round", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()


class Broken(fednc.Callback):
    """Ends the run with an error after a round."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_round(self, run: fednc.Running, record: RoundRecord) -> None:
        if record.round == self.after:
            raise ArithmeticError


@pytest.mark.parametrize("method", ["fednc", "scaffold"])  # scaffold: what clients remember must survive too
def test_a_run_that_is_resumed_has_the_bits_of_one_that_was_not_interrupted(method: str, tmp_path: Path) -> None:
    values = config(rounds={"total": 3}, method={"name": method})
    options: dict[str, Any] = {"device": "cpu", "val_share": 0.2, "progress": False, "resume": True}
    whole = fednc.run(values, DATA, folder=tmp_path / "whole", **options)
    with pytest.raises(ArithmeticError):
        fednc.run(values, DATA, [Broken(after=2)], tmp_path / "cut", **options)
    rounds: list[int] = []

    class Count(fednc.Callback):
        def on_round(self, run: fednc.Running, record: RoundRecord) -> None:
            rounds.append(record.round)

    resumed = fednc.run(values, DATA, [Count()], tmp_path / "cut", **options)
    assert rounds == [3]
    assert [record.test for record in resumed.history.rounds] == [record.test for record in whole.history.rounds]
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.model.state_dict().items())


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="name the folder"):
        fednc.run(config(), DATA, resume=True)


def test_an_exception_of_a_callback_ends_the_run() -> None:
    def broken(_: fednc.Running) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Scripted(1, broken))


def test_the_best_checkpoint_is_the_model_of_the_best_round(tmp_path: Path) -> None:
    best = fednc.BestCheckpoint(tmp_path / "best", "loss")
    result = run(best, rounds=4, train={"batch": 64, "lr": 0.3})
    losses = [record.test["loss"] for record in result.history.rounds]
    assert best.round == 1 + losses.index(min(losses))
    model = fednc.load(tmp_path / "best")
    stats: Stats = {}
    with torch.no_grad():
        for batch in model.task.load_test("digits").eval_batches(result.run.evaluate.batch):
            add_stats(stats, model.task.statistics(model.model, batch, model.guide))
    assert model.task.measure(stats)["loss"] == min(losses)


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ConfigError, match="'auroc' is not measured in this run; available: accuracy"):
        run(fednc.EarlyStop("auroc"))
    with pytest.raises(ConfigError, match="patience: 0"):
        fednc.EarlyStop(patience=0)


class Ended:
    """A run that only knows its metrics and how to stop."""

    primary = "accuracy"
    reason = ""

    def rises(self, metric: str) -> bool:
        return metric != "loss"

    def stop(self, reason: str) -> None:
        self.reason = self.reason or reason


def stopped_after(callback: fednc.EarlyStop, values: list[float | None], metric: str) -> int:
    """Rounds until it stops; all of them if it never does."""
    ended: Any = Ended()
    callback.on_start(ended)
    for number, value in enumerate(values, start=1):
        measured = {} if value is None else {metric: value}
        callback.on_round(ended, RoundRecord(round=number, test=measured))
        if ended.reason:
            return number
    return len(values)


@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=30),
    st.integers(1, 5),
    st.sampled_from(["accuracy", "loss", "auroc"]),
)
def test_early_stop_waits_for_so_many_evaluated_rounds_without_a_new_best(
    values: list[float | None], patience: int, metric: str
) -> None:
    sign = -1 if metric == "loss" else 1
    evaluated = [(number, sign * value) for number, value in enumerate(values, start=1) if value is not None]
    expected = len(values)
    for place in range(patience, len(evaluated)):
        earlier = [value for _, value in evaluated[: place - patience + 1]]
        if max(value for _, value in evaluated[: place + 1]) == max(earlier):
            expected = evaluated[place][0]
            break
    callback = fednc.EarlyStop(metric, patience)
    assert stopped_after(callback, values, metric) == expected
    assert stopped_after(callback, values, metric) == expected, "a second run starts from scratch"


def test_early_stop_takes_a_direction_and_a_smallest_improvement() -> None:
    rising: list[float | None] = [0.1, 0.2, 0.3, 0.4]
    assert stopped_after(fednc.EarlyStop("error", 2, higher_is_better=False), rising, "error") == 3
    assert stopped_after(fednc.EarlyStop("accuracy", 2, min_delta=0.5), rising, "accuracy") == 3
    assert stopped_after(fednc.EarlyStop(patience=2), rising, "accuracy") == 4
    assert stopped_after(fednc.EarlyStop(patience=2), rising[::-1], "accuracy") == 3


def test_directions_are_those_that_the_task_declares() -> None:
    told: list[tuple[str, bool, bool, bool]] = []

    class Look(fednc.Callback):
        def on_start(self, run: fednc.Running) -> None:
            told.append((run.primary, run.rises("accuracy"), run.rises("loss"), run.rises("train_loss")))

    run(Look(), rounds=1)
    assert told == [("accuracy", True, False, False)]


@pytest.mark.parametrize(
    ("clients", "changes", "words"),
    [
        (["a"], {"split": None}, r"got 1, but rounds\.min_clients is 2"),
        (["a", "b"], {}, r"got 2, but split\.parts is 3"),
        (["a", "b"], {"split": None, "sessions": [{"start": "operator"}]}, "waits for `fednc session next`"),
    ],
)
def test_a_run_that_would_wait_for_ever_is_refused(
    clients: list[str], changes: dict[str, Any], words: str
) -> None:
    values = {**config().model_dump(mode="json"), **changes}
    with pytest.raises(ConfigError, match=words):
        fednc.run(values, dict.fromkeys(clients, "digits"), progress=False)


def test_clients_without_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="give data specs by name"):
        fednc.run(config(), ["digits", "digits"], progress=False)  # type: ignore[arg-type]


def test_progress_is_one_line_for_each_round(capfd: pytest.CaptureFixture[str]) -> None:
    fednc.run(config(rounds={"total": 2}), DATA, device="cpu", val_share=0.2)
    told = capfd.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["run: 2 rounds", "round 1/2", "round 2/2"]
    assert "accuracy 0." in lines[-1]


def test_one_folder_one_run_at_a_time(tmp_path: Path) -> None:
    from fednc.common.errors import AddressError
    from fednc.server.storage.folder_lock import claimed

    with claimed(tmp_path), pytest.raises(AddressError, match="in use"):
        run(folder=tmp_path)
    write_atomically(tmp_path / "summary.json", b"{}")
    assert run(folder=tmp_path, rounds=1).folder == tmp_path
