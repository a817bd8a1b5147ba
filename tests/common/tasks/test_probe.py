"""What the probe picks from sums of losses, which sums it refuses, and that a pick stays within its run file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fednc.common.config.probe import ProbePick
from fednc.common.config.run import RunConfig, parse_run, parse_run_json
from fednc.common.errors import ConfigError, ProtocolError
from fednc.common.tasks import discovery, probe
from fednc.common.tasks.metrics import Stats

TASK = {"classes": ["a", "b"], "size": 8, "channels": 1}
NARROW = {"name": "norms", "axis": "width", "values": [8, 16, 24, 32, 64], "task": {"norm": "batch"}}
PLAIN = {"name": "plain", "axis": "width", "values": [8, 16], "task": {"model": "plain"}}


def run_with(*families: Any, **keys: Any) -> RunConfig:
    return parse_run({"task": TASK, "probe": {"families": list(families) or [NARROW, PLAIN], **keys}})


def sums(held_out: list[float], train: list[float] | None = None, *, trained: int = 30, held: int = 10) -> Stats:
    """As from clients with so many examples and these mean losses, over three seeds."""
    return {
        probe.TRAIN: torch.tensor(train or held_out, dtype=torch.float64) * trained * 3,
        probe.HELD_OUT: torch.tensor(held_out, dtype=torch.float64) * held * 3,
        probe.TRAINED: torch.tensor(trained),
        probe.HELD: torch.tensor(held),
    }


def picked(run: RunConfig, held_out: list[float]) -> tuple[str, float]:
    verdict = probe.judged(sums(held_out), run)
    assert verdict is not None
    return verdict.pick.family, verdict.pick.value


def test_the_first_family_must_win_by_the_margin() -> None:
    run = run_with(margin=0.05)
    assert picked(run, [0.5, 0.3, 0.2, 0.3, 0.5, 0.4, 0.3]) == ("norms", 24)
    assert picked(run, [0.5, 0.4, 0.26, 0.4, 0.5, 0.4, 0.3]) == ("plain", 16), "better, but not by the margin"
    assert picked(run_with(NARROW), [0.5, 0.4, 0.3, 0.4, 0.5]) == ("norms", 24), "alone it needs to beat nobody"


def test_figures_are_means_over_examples_and_seeds() -> None:
    verdict = probe.judged(sums([0.5, 0.4, 0.3, 0.4, 0.5, 1, 1], [0.1] * 7), run_with())
    assert verdict is not None
    first = verdict.curves[0]
    assert first.held_out == pytest.approx((0.5, 0.4, 0.3, 0.4, 0.5))
    assert first.train == pytest.approx((0.1,) * 5)
    assert (verdict.trained, verdict.held_out) == (30, 10)
    assert "'norms', width = 24" in verdict.text


def test_a_parabola_evens_out_noise_and_gives_way_where_it_does_not_fit() -> None:
    values = [1, 2, 4, 8, 16]
    bowl = [0.5 + 0.05 * (i - 2) ** 2 for i in range(5)]
    assert probe.fit(values, bowl) == pytest.approx(bowl)
    noisy = [bowl[0], bowl[1] - 0.07, bowl[2], bowl[3], bowl[4]]
    assert probe.best_place(noisy, probe.fit(values, noisy), margin=0.1) == 2
    cliff = [0.9, 0.1, 0.9, 0.9, 0.9]
    assert probe.best_place(cliff, probe.fit(values, cliff), margin=0.1) == 1
    assert probe.fit([1, 2, 4], [3, 1, 2]) == []


@given(st.lists(st.floats(0, 10), min_size=4, max_size=8), st.floats(0, 1))
def test_no_pick_is_worse_than_the_best_by_more_than_the_margin(losses: list[float], margin: float) -> None:
    place = probe.best_place(losses, probe.fit(range(1, len(losses) + 1), losses), margin)
    assert losses[place] <= min(losses) + margin


def test_nobody_held_anything_out() -> None:
    assert probe.judged(probe.no_losses(run_with()), run_with()) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({probe.HELD: torch.tensor(12)}, "42 and|30 and 12"),
        ({probe.TRAINED: torch.tensor(-1)}, "-1"),
        ({probe.HELD_OUT: torch.full((7,), 1e9, dtype=torch.float64)}, "larger than"),
        ({probe.HELD: torch.tensor(0)}, "larger than"),
    ],
)
def test_sums_that_no_client_can_have_are_refused(changes: dict[str, Any], words: str) -> None:
    run, honest = run_with(), sums([0.5] * 7)
    probe.check_losses(honest, run, 40)
    with pytest.raises(ProtocolError, match=words):
        probe.check_losses({**honest, **changes}, run, 40)


def test_training_that_diverged_counts_as_bad_and_not_as_an_error() -> None:
    assert probe.bounded(torch.tensor(float("nan"))) == probe.MOST_LOSS
    assert probe.bounded(torch.tensor(float("inf"))) == probe.MOST_LOSS
    assert probe.bounded(torch.tensor(-1e9)) == -probe.MOST_LOSS


# ---- the run file -----------------------------------------------------------------------------------------------


def test_a_pick_changes_the_model_but_not_the_digest_and_travels_with_the_run_file() -> None:
    run = run_with()
    chosen = probe.with_pick(run, ProbePick(family="plain", value=16))
    assert chosen.digest == run.digest
    arrived = parse_run_json(chosen.for_clients(), source="the server's run file")
    for each in (chosen, arrived):
        options: Any = discovery.get(each).options
        assert (options.model, options.width) == ("plain", 16)
    assert discovery.get(run).options.width == 32  # type: ignore[attr-defined]
    assert run_with(NARROW).digest != run.digest, "all candidates are in the digest"
    assert "picked" not in str(run.decisive())


@pytest.mark.parametrize("pick", [{"family": "plain", "value": 24}, {"family": "other", "value": 8}])
def test_only_candidates_of_the_run_file_can_be_picked(pick: dict[str, Any]) -> None:
    """A server cannot send a client another model than those in the run file that the client agreed to."""
    with pytest.raises(ConfigError, match="no candidate has"):
        run_with(picked=pick)
    text = probe.with_pick(run_with(), ProbePick(family="plain", value=16)).for_clients()
    with pytest.raises(ConfigError, match="no candidate has"):
        parse_run_json(text.replace('"value":16', '"value":17'), source="the server's run file")
    with pytest.raises(ConfigError, match="no candidate has"):
        probe.with_pick(run_with(), ProbePick(family="plain", value=24))


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ({**PLAIN, "values": [16, 8]}, "ascending"),
        ({**PLAIN, "values": []}, "at least 1"),
        ({**PLAIN, "axis": "weights"}, "own keys only"),
        ({**PLAIN, "task": {"name": "other"}}, "own keys only"),
        ({**PLAIN, "task": {"width": 8}}, "axis already"),
        ({**PLAIN, "values": list(range(8, 8 + 65))}, "at most 64"),
        ({**PLAIN, "name": "norms"}, "more than once"),
    ],
)
def test_families_that_cannot_be_tried_are_refused(family: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_with(NARROW, family)


def test_every_candidate_is_built_before_any_client_is_asked() -> None:
    run = run_with({**NARROW, "values": [8, 12]})
    with pytest.raises(ConfigError, match=r"(?s)probe, norms 12: .*width"):
        probe.check_candidates(run, discovery.get(run))
    weights = run_with({**NARROW, "task": {"class_weights": "balanced"}})
    with pytest.raises(ConfigError, match="other sums of the data"):
        probe.check_candidates(weights, discovery.get(weights))
    larger = run_with({**NARROW, "axis": "size", "values": [8, 16]})
    with pytest.raises(ConfigError, match=r"(?s)probe, norms 16: .*other inputs"):
        probe.check_candidates(larger, discovery.get(larger))
    with pytest.raises(ConfigError, match="drawn weights"):
        parse_run({"task": {**TASK, "weights": "w.pt"}, "probe": {"families": [NARROW]}})
