"""A person's preferences: ranked, asked for in few questions, shown by optuna-dashboard, used for new trials."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("optuna", reason="pip install 'fednc[search]'")
pytest.importorskip("optuna_dashboard", reason="pip install 'fednc[search]'")

from fednc.common.errors import ConfigError
from fednc.ops.search.plan import SearchPlan
from fednc.ops.search.preference import Preferences, rank
from fednc.ops.search.searcher import search
from fednc.ops.search.study import open_study, read_search, suggest
from support.toy_search import ToyClients, plan


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> SearchPlan:
    made = plan(tmp_path_factory.mktemp("search"), "trials = 7\nsampler = 'Random'")
    search(made, ToyClients())  # type: ignore[arg-type]
    return made


def test_nothing_can_be_preferred_before_a_trial_is_completed() -> None:
    nothing = rank([], [])
    assert nothing.next_pair() is None
    with pytest.raises(ConfigError, match="no trial of this search has been completed"):
        _ = nothing.best


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_a_trial_between_two_steps_is_refused_and_breaks_nothing_if_it_is_there(tmp_path: Path) -> None:
    made = plan(tmp_path, "trials = 3", "[space]\ntrain.lr = { low = 0.01, high = 0.1, step = 0.03 }")
    with pytest.raises(ConfigError, match=r"some steps of 0\.03"):
        suggest(made, {"train.lr": 0.055})
    assert suggest(made, {"train.lr": 0.07})
    open_study(made).enqueue_trial({"train.lr": 0.055})  # as Optuna's own tools can
    search(made, ToyClients())  # type: ignore[arg-type]
    preferences = Preferences(made)
    assert sorted(preferences.trials) == [0, 1, 2]
    off = next(number for number, one in preferences.trials.items() if one.settings["train.lr"] == 0.055)
    for other in preferences.trials:
        if other != off:
            preferences.prefer(off, other)
    assert Preferences(made).ranking().best == off
    preferences.propose(1)


@given(st.permutations(range(9)), st.integers(0, 100))
def test_a_person_who_knows_what_they_like_finds_it_in_few_questions(taste: list[int], first: int) -> None:
    """`taste[n]` is how much trial n is liked."""
    answers: list[tuple[int, int]] = []
    random.Random(first).shuffle(answers)
    while (pair := rank(range(9), answers).next_pair()) is not None:
        assert len(answers) < 12, "nearly as few as there are trials"
        answers.append((pair[0], pair[1]) if taste[pair[0]] > taste[pair[1]] else (pair[1], pair[0]))
    assert rank(range(9), answers).best == taste.index(8)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] != pair[1])))
def test_utilities_are_those_of_bradley_and_terry(answers: list[tuple[int, int]]) -> None:
    """The gradient of the log-posterior, by differences of its value, is 0 there; contradictions do no harm."""
    found = rank(range(6), answers)

    def log_posterior(utility_N: Any) -> float:
        gaps = [utility_N[better] - utility_N[worse] for better, worse in answers]
        return float(-np.log1p(np.exp(-np.array(gaps))).sum() - 0.05 * (utility_N**2).sum())

    for place in range(6):
        step_N = 1e-4 * np.eye(6)[place]
        up, down = log_posterior(found.utility_N + step_N), log_posterior(found.utility_N - step_N)
        assert abs(up - down) / 2e-4 < 1e-4
    order = [3, 1, 0, 5, 2, 4]
    renamed = rank(range(6), [(order[better], order[worse]) for better, worse in answers])
    np.testing.assert_allclose(renamed.utility_N[order], found.utility_N, atol=1e-6)


def test_a_scripted_person_finds_the_best_trial_of_a_search(searched: SearchPlan) -> None:
    """The hidden utility is the batch size, which the metric does not show."""
    hidden = {t.number: (t.settings["train.batch"], -t.number) for t in read_search(searched).trials}
    preferences = Preferences(searched)
    while (pair := preferences.ranking().next_pair()) is not None:
        better, worse = sorted(pair, key=hidden.__getitem__, reverse=True)
        preferences.prefer(better, worse)
    assert preferences.ranking().best == max(hidden, key=hidden.__getitem__)
    assert Preferences(searched).ranking().best == preferences.ranking().best, "the answers were kept"
    with pytest.raises(ConfigError, match="trial 99 has not been completed"):
        preferences.prefer(99, 0)
    with pytest.raises(ConfigError, match="better than itself"):
        preferences.prefer(0, 0)


def test_new_trials_are_proposed_from_what_is_liked(tmp_path: Path) -> None:
    made = plan(tmp_path, "trials = 8\nsampler = 'Random'")
    search(made, ToyClients())  # type: ignore[arg-type]
    preferences = Preferences(made)
    liked = {number: trial.settings["train.lr"] for number, trial in preferences.trials.items()}
    for one in liked:  # every pair: the higher rate is liked
        for other in liked:
            if liked[one] > liked[other]:
                preferences.prefer(one, other)
    proposed = preferences.propose(4)
    assert len(proposed) == 4
    assert np.median([values["train.lr"] for values in proposed]) > np.median(list(liked.values()))
    waiting = [trial for trial in read_search(made).trials if trial.state == "waiting"]
    assert [trial.settings for trial in waiting] == proposed
    assert {trial.suggested_by for trial in waiting} == {"preference"}


def test_optunas_dashboard_opens_the_study_and_the_preferences(searched: SearchPlan) -> None:
    Preferences(searched).prefer(0, 1)
    with dashboard(searched.storage) as ask:
        studies = {study["study_name"]: study for study in ask("/api/studies")["study_summaries"]}
        assert set(studies) == {"toy", "toy-preference"}
        assert studies["toy-preference"]["is_preferential"]
        shown = ask(f"/api/studies/{studies['toy']['study_id']}")
        assert (shown["name"], shown["directions"]) == ("toy", ["maximize"])
        ours = read_search(searched).trials
        for trial, mine in zip(shown["trials"], ours, strict=True):
            assert trial["state"] == "Complete"
            assert float(trial["values"][0]) == mine.values["primary"]
            assert len(trial["intermediate_values"]) == 4
            assert {one["name"] for one in trial["params"]} == set(mine.settings)
        liked = ask(f"/api/studies/{studies['toy-preference']['study_id']}")
        assert [0, 1] in liked["preferences"]
        assert "primary" in liked["trials"][0]["note"]["body"]


@contextmanager
def dashboard(storage: str) -> Iterator[Any]:
    """A running optuna-dashboard; asks its HTTP API."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "from optuna_dashboard._cli import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        storage,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--server",
        "wsgiref",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(path: str) -> Any:
        give_up = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
                    return json.loads(answer.read())
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.2)

    try:
        yield ask
    finally:
        process.kill()
        process.wait()
