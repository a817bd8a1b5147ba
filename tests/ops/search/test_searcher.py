"""The search: samplers and pruners by name, same seed same trials, kills, several searchers, a person's guess."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="pip install 'fednc[search]'")

from fednc.common.config.run import RunConfig
from fednc.common.errors import AddressError, ConfigError, DivergedError, MissingExtraError, QuorumError
from fednc.ops.search.plan import SearchPlan
from fednc.ops.search.searcher import Searcher, search
from fednc.ops.search.strategies import load_optuna, names
from fednc.ops.search.study import (
    IDENTITY,
    METRIC,
    SearchView,
    TrialView,
    open_storage,
    read_search,
    read_studies,
    suggest,
)
from support.toy_search import SPACE, ToyClients, accuracy, plan

PLAIN = """
[space]
train.lr = { low = 1e-4, high = 1.0, log = true }
train.batch = { low = 8, high = 64, step = 8 }
"""
GRID = """
[space]
train.lr = { choices = [0.001, 0.01] }
train.batch = { low = 16, high = 48, step = 16 }
"""
OPTIONS = {"PartialFixed": "fixed = { train.batch = 24 }\nbase = 'Random'", "TPE": "n_startup_trials = 3"}


def done(plan: SearchPlan, clients: ToyClients | None = None) -> SearchView:
    return search(plan, clients or ToyClients())  # type: ignore[arg-type]


def tried(view: SearchView) -> list[dict[str, Any]]:
    """The settings of the trials that count, in the order in which they were chosen."""
    return [trial.settings for trial in view.trials if not trial.superseded]


@pytest.mark.parametrize("sampler", names("Sampler"))
def test_every_sampler_of_optuna_searches_and_repeats_itself(sampler: str, tmp_path: Path) -> None:
    space = GRID if sampler in ("Grid", "BruteForce") else PLAIN
    head = f"trials = 6\nsampler.name = '{sampler}'\n"
    table = OPTIONS.get(sampler, "").replace("\n", "\nsampler.")
    head += f"sampler.{table}\n" if table else ""
    views = [done(plan(tmp_path / place, head, space)) for place in ("one", "two")]
    assert tried(views[0]) == tried(views[1])
    assert len({str(settings) for settings in tried(views[0])}) > 4, "the trials differ"
    best = views[0].best_trial
    assert best
    assert best.values["primary"] == max(trial.values["primary"] for trial in views[0].trials)
    if sampler == "PartialFixed":
        assert {settings["train.batch"] for settings in tried(views[0])} == {24}


def test_another_seed_gives_other_trials(tmp_path: Path) -> None:
    views = [done(plan(tmp_path / str(seed), f"seed = {seed}")) for seed in range(2)]
    assert tried(views[0]) != tried(views[1])


def test_conditional_keys_are_tried_only_where_they_count(tmp_path: Path) -> None:
    clients = ToyClients()
    view = done(plan(tmp_path, "trials = 12\nsampler = 'Random'"), clients)
    for settings, (run, _) in zip(tried(view), clients.runs, strict=True):
        assert ("method.proximal" in settings) == (settings["method.name"] == "fedprox")
        assert run.method.model_dump().get("proximal", 0.0) == settings.get("method.proximal", 0.0)
    assert {settings["method.name"] for settings in tried(view)} == {"fednc", "fedprox"}


def test_a_grid_is_done_when_all_of_it_is(tmp_path: Path) -> None:
    view = done(plan(tmp_path, "trials = 50\nsampler = 'Grid'", GRID))
    combinations = {(settings["train.lr"], settings["train.batch"]) for settings in tried(view)}
    assert len(combinations) == len(tried(view)) == 6
    assert len(tried(done(plan(tmp_path, "trials = 50\nsampler = 'Grid'", GRID)))) == 6


@pytest.mark.parametrize(
    ("head", "space", "said"),
    [
        ("sampler = 'TPEE'", PLAIN, "there are .*TPE"),
        ("sampler = { name = 'TPE', startup = 3 }", PLAIN, "no option 'startup'; it has:.*n_startup_trials"),
        ("pruner = { name = 'Median', n_startup = 3 }", PLAIN, "no option 'n_startup'"),
        ("pruner = { name = 'Percentile', percentile = 300.0 }", PLAIN, "pruner Percentile"),
        ("sampler = 'Grid'", SPACE, "BruteForce"),
        ("sampler = 'Grid'", PLAIN, "space.train.lr: give a `step`"),
        ("sampler = 'CMA-ES'\nobjectives = ['primary', 'bytes_up']", PLAIN, "one objective"),
        ("pruner = 'Hyperband'\nobjectives = ['primary', 'bytes_up']", PLAIN, "there are Median, Nop, Percentile"),
    ],
)
def test_a_strategy_that_cannot_be_used_is_refused_by_name(
    head: str, space: str, said: str, tmp_path: Path
) -> None:
    clients = ToyClients()
    with pytest.raises(ConfigError, match=said):
        done(plan(tmp_path, head.replace("CMA-ES", "CmaEs"), space), clients)
    assert not clients.runs


def test_a_sampler_whose_package_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def missing(name: str, *rest: str) -> object:
        return None if name == "cmaes" else find(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", missing)
    with pytest.raises(MissingExtraError, match=r"cmaes, which is not installed: pip install 'fednc\[search\]'"):
        done(plan(tmp_path, "sampler = 'CmaEs'", PLAIN))


# ---- pruning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pruner",
    [
        "pruner = { name = 'Median', n_startup_trials = 2 }",
        "pruner = { name = 'Percentile', percentile = 40.0, n_startup_trials = 2 }",
        "pruner = { name = 'SuccessiveHalving', reduction_factor = 2 }",
        "pruner = { name = 'Hyperband', min_resource = 1, max_resource = 4, reduction_factor = 2 }",
        "pruner = { name = 'Threshold', lower = 0.3 }",
        "pruner = { name = 'Patient', patience = 0, wrapped = 'Median' }",
    ],
)
def test_a_pruned_trial_stops_in_the_middle(pruner: str, tmp_path: Path) -> None:
    clients = ToyClients()
    view = done(plan(tmp_path, f"trials = 14\nsampler = 'Random'\n{pruner}"), clients)
    pruned = [trial for trial in view.trials if trial.state == "pruned"]
    if "Patient" not in pruner:
        assert pruned
    for trial, (_, rounds) in zip(view.trials, clients.runs, strict=True):
        assert rounds == max(trial.curve) == (4 if trial.state == "complete" else rounds)
        assert (rounds < 4) == (trial.state == "pruned")
    assert all("pruned after round" in trial.reason for trial in pruned)
    best = max(view.trials, key=lambda trial: accuracy_of(trial))
    assert best.state == "complete"


def accuracy_of(trial: TrialView) -> float:
    return max(trial.curve.values(), default=0.0) * (1 if trial.state == "complete" else 0.5)


def test_with_several_objectives_the_primary_metric_prunes_as_with_one(tmp_path: Path) -> None:
    head = "trials = 12\nsampler = 'Random'\npruner = { name = 'Median', n_startup_trials = 2 }\n"
    one = done(plan(tmp_path / "one", head))
    several = done(plan(tmp_path / "several", f"{head}objectives = ['primary', 'worst_client', 'bytes_up']"))
    assert [(t.settings, t.state, t.curve) for t in one.trials] == [
        (t.settings, t.state, t.curve) for t in several.trials
    ]
    assert any(trial.state == "pruned" for trial in several.trials)
    assert several.objectives == {"primary": "maximize", "worst_client": "maximize", "bytes_up": "minimize"}
    complete = [trial for trial in several.trials if trial.state == "complete"]
    front = {trial.number for trial in complete if not any(beats(other, trial) for other in complete)}
    assert set(several.best) == front
    assert several.best_trial == max(complete, key=lambda trial: trial.values["primary"])


def beats(one: TrialView, other: TrialView) -> bool:
    mine, theirs = [
        (trial.values["primary"], trial.values["worst_client"], -trial.values["bytes_up"])
        for trial in (one, other)
    ]
    return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


# ---- what goes wrong --------------------------------------------------------------------------------------------


def test_settings_that_diverge_end_their_trial_only(tmp_path: Path) -> None:
    def diverges(run: RunConfig) -> None:
        if run.train.lr > 0.1:
            raise DivergedError("not finite")

    view = done(plan(tmp_path, "trials = 10\nsampler = 'Random'"), ToyClients(diverges))
    bad = [trial for trial in view.trials if trial.settings["train.lr"] > 0.1]
    assert bad
    assert {(trial.state, trial.reason) for trial in bad} == {("pruned", "not finite")}
    assert all(trial.state == "complete" for trial in view.trials if trial not in bad)


def test_too_few_clients_end_the_search_and_refused_settings_their_trial(tmp_path: Path) -> None:
    def refused(run: RunConfig) -> None:
        if run.method.name == "fedprox":
            raise QuorumError("refused by the owners")

    head = "trials = 8\nsampler = 'Random'"
    view = done(plan(tmp_path / "refused", head), ToyClients(refused))
    failed = {trial.settings["method.name"] for trial in view.trials if trial.state == "failed"}
    assert failed == {"fedprox"}
    missing = plan(tmp_path / "missing", head)
    with pytest.raises(QuorumError):
        done(missing, ToyClients(refused, enough=False))
    [first, *_] = [trial for trial in read_search(missing).trials if trial.superseded]
    assert "tried again" in first.reason
    again = done(missing, ToyClients())
    assert tried(again) == [trial.settings for trial in view.trials], "nothing was lost"


def test_a_killed_search_is_continued_as_if_it_had_not_been(tmp_path: Path) -> None:
    head = "trials = 9\nsampler = { name = 'TPE', n_startup_trials = 4 }"
    whole = done(plan(tmp_path / "whole", head))
    killed = plan(tmp_path / "killed", head)
    for after in (2, 3):  # rounds of killing, in real processes
        child = os.fork()
        if child == 0:
            left = [after]

            def kill(_run: RunConfig, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            done(killed, ToyClients(kill))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert any(trial.state == "running" for trial in read_search(killed).trials)
    view = done(killed)
    assert tried(view)[:4] == tried(whole)[:4]
    assert sorted(map(str, tried(view))) == sorted(map(str, tried(whole)))
    assert sum(trial.superseded for trial in view.trials) == 2
    assert all(trial.state == "complete" for trial in view.trials if not trial.superseded)
    assert view.best_trial
    assert whole.best_trial
    assert view.best_trial.settings == whole.best_trial.settings


def test_settings_are_not_lost_if_the_searcher_is_killed_before_it_has_queued_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SearcherKilled(BaseException):
        pass

    def interrupt(_run: RunConfig) -> None:
        raise KeyboardInterrupt

    def dies(*_: object) -> None:
        raise SearcherKilled

    made = plan(tmp_path, "trials = 2")
    suggest(made, {"train.batch": 16}, who="mara")
    with monkeypatch.context() as patch:
        patch.setattr(Searcher, "_enqueue_after", dies)
        with pytest.raises(SearcherKilled):
            done(made, ToyClients(interrupt))
        with pytest.raises(SearcherKilled):
            done(made)
    view = done(made)
    guesses = [trial for trial in view.trials if trial.suggested_by == "mara"]
    assert [(trial.state, trial.superseded) for trial in guesses] == [("failed", True), ("complete", False)]
    assert guesses[0].settings == guesses[1].settings


def test_settings_that_end_the_searcher_each_time_fail_in_the_end(tmp_path: Path) -> None:
    def ends(run: RunConfig) -> None:
        if run.train.batch == 8:
            raise MemoryError

    made = plan(tmp_path, "trials = 2")
    suggest(made, {"train.batch": 8})
    for _ in range(3):
        with pytest.raises(MemoryError):
            done(made, ToyClients(ends))
    view = done(made, ToyClients(ends))
    counted = [trial for trial in view.trials if not trial.superseded]
    assert [trial.state for trial in counted] == ["failed", "complete"]
    assert "3 times" in counted[0].reason


def test_an_interrupted_trial_is_queued_again_at_once(tmp_path: Path) -> None:
    def interrupt(_run: RunConfig) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        done(plan(tmp_path), ToyClients(interrupt))
    states = [(trial.state, trial.superseded) for trial in read_search(plan(tmp_path)).trials]
    assert states == [("failed", True), ("waiting", False)]


@pytest.mark.parametrize("storage", ["sqlite:///{0}/shared.db", "journal:{0}/shared.log"])
def test_several_searchers_share_a_storage(storage: str, tmp_path: Path) -> None:
    head = f"trials = 16\nstorage = '{storage.format(tmp_path)}'\nfolder = '{{}}'\nsampler = 'Random'"
    plans = [plan(tmp_path, head.format(place), name=f"{place}.toml") for place in ("a", "b")]
    both = threading.Barrier(2)
    clients = [ToyClients(lambda _run, seen=[]: seen or (seen.append(1), both.wait(30))) for _ in plans]  # type: ignore
    threads = [threading.Thread(target=done, args=pair) for pair in zip(plans, clients, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    view = read_search(plans[0])
    assert all(len(one.runs) > 0 for one in clients), "each did some"
    assert sum(len(one.runs) for one in clients) == len(tried(view)) == 16
    assert len({str(settings) for settings in tried(view)}) == 16
    assert [one.name for one in read_studies(plans[0].storage)] == ["toy"]


def test_a_folder_has_one_searcher_at_a_time(tmp_path: Path) -> None:
    def second(_run: RunConfig) -> None:
        with pytest.raises(AddressError, match="in use"):
            done(plan(tmp_path))

    done(plan(tmp_path, "trials = 1"), ToyClients(second))


def test_a_study_of_another_space_is_not_continued(tmp_path: Path) -> None:
    done(plan(tmp_path, "trials = 1"))
    with pytest.raises(ConfigError, match=r"another space.*Choose another `name`"):
        done(plan(tmp_path, "trials = 1", PLAIN))
    with pytest.raises(ConfigError, match="there is no study"):
        read_search(plan(tmp_path, "folder = 'elsewhere'"))


@pytest.mark.parametrize("kept", [[], [IDENTITY], [METRIC]])
def test_a_searcher_that_is_killed_while_it_makes_the_study_spoils_nothing(
    kept: list[str], tmp_path: Path
) -> None:
    made = plan(tmp_path / "one", 'objectives = ["primary", "bytes_up"]')
    storage = open_storage(made.storage)
    begun = load_optuna().create_study(storage=storage, study_name=made.name, directions=list(made.directions))
    values = {IDENTITY: made.identity(), METRIC: made.primary.name}
    for key in kept:
        begun.set_user_attr(key, values[key])
    assert read_studies(made.storage) == [], "it has no names for its figures yet"
    assert set(done(made).objectives) == {"primary", "bytes_up"}
    (view,) = read_studies(made.storage)
    assert set(view.objectives) == {"primary", "bytes_up"}


@pytest.mark.parametrize("url", ["postgresql://mara:s3cret@127.0.0.1:1/x", "nothing://mara:s3cret@host/x"])
def test_the_password_of_a_storage_is_in_no_message(url: str, tmp_path: Path) -> None:
    made = plan(tmp_path, f'storage = "{url}"')
    assert "s3cret" not in made.shown_storage
    for ask in (lambda: read_studies(url), lambda: read_search(made), lambda: suggest(made, {"train.batch": 8})):
        with pytest.raises(AddressError) as refused:
            ask()
        assert "s3cret" not in str(refused.value)
        assert "mara" in str(refused.value)


def test_a_persons_guess_is_tried_next(tmp_path: Path) -> None:
    made = plan(tmp_path, "trials = 3")
    assert suggest(made, {"train.lr": 0.01, "train.batch": 32, "method.name": "fednc"}, "mara")
    assert not suggest(made, {"train.lr": 0.01, "train.batch": 32, "method.name": "fednc"}, "mara")
    assert suggest(made, {"train.batch": 8}, "mara")
    view = done(made)
    assert view.trials[0].settings == {"train.lr": 0.01, "train.batch": 32, "method.name": "fednc"}
    assert view.best == [0], "the guess was the optimum"
    assert view.trials[1].settings["train.batch"] == 8
    assert [trial.suggested_by for trial in view.trials] == ["mara", "mara", ""]
    assert accuracy(made.trial_run(view.trials[0].settings)) == view.trials[0].values["primary"]
    with pytest.raises(ConfigError, match="not in the space"):
        suggest(made, {"train.momentum": 0.1})


def test_an_operators_stop_ends_the_search_and_no_trial_is_lost(tmp_path: Path) -> None:
    clients = ToyClients()
    clients.before = lambda _run: clients.control.stop() if len(clients.runs) == 2 else None
    view = done(plan(tmp_path), clients)
    assert [trial.state for trial in view.trials] == ["complete", "complete", "failed", "waiting"]
    assert len(tried(done(plan(tmp_path)))) == 8
