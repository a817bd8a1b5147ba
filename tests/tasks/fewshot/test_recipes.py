"""What few-shot sessions are compared with: the usual network, nearest raw means, fine-tuning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.bench.compare.class_sessions import SessionCosts
from fednc.bench.local_grid import LocalGrid
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.tasks import discovery
from fednc.common.tasks.splits import at_first_site
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import RunResult
from fednc.server.storage.events import RoundCompleted
from fednc.tasks.fewshot.models import LONGEST, Lengthened, Shortened
from support.fewshot_run import DISCRIMINANT, SESSIONS, carry_out, clients, config, prepare

PLAIN = {"name": "fedavg"}
RAW = {"features": "raw"}


def recipe(fit: str, readout: str, **changes: Any) -> RunConfig:
    """One round of each stage; all later classes are at the first client."""
    sessions = [{**one, "rounds": 1} for one in SESSIONS]
    return config(
        task={**RAW, "fit": fit},
        method={**PLAIN, "readout": readout},
        split={"sites": "first"},
        sessions=sessions,
        rounds={"total": 1},
        **changes,
    )


class Watched:
    """A run, its models at the end of each stage, and what each stage cost."""

    def __init__(self, run: RunConfig) -> None:
        prepared, events = prepare(run)
        self.models: list[dict[str, torch.Tensor]] = []
        with LocalGrid(run, clients(run)) as grid:
            costs = SessionCosts(grid.traffic)

            def on_event(event: Any) -> None:
                if isinstance(event, RoundCompleted):
                    self.models.append({k: v.clone() for k, v in prepared.state.model.items()})
                costs.take(event)

            prepared.events.listen(on_event)
            self.result: RunResult = prepared.execute(grid, Surroundings(name_of=grid.name_of))
            self.sent = grid.traffic()[0]
        self.costs, self.kinds = costs.figures()["session_costs"], {event.kind for event in events}

    @property
    def moved(self) -> set[str]:
        """The parts of the model that the first session changed."""
        base, later = self.models[:2]
        return {key.partition(".")[0] for key in base if not torch.equal(base[key], later[key])}


@pytest.mark.parametrize(
    ("fit", "readout", "moved"),
    [("nothing", "cosine", set()), ("head", "head", {"head"}), ("all", "head", {"backbone", "head"})],
)
def test_a_session_trains_what_the_run_file_says(fit: str, readout: str, moved: set[str]) -> None:
    seen = Watched(recipe(fit, readout))
    model, task = seen.models[0], seen.result.task
    assert seen.moved == moved
    trained = [key for key in model if key.startswith(tuple(moved) or "nothing")]
    payload = sum(model[key].numel() * 4 for key in trained if model[key].is_floating_point())
    sums = 4 * 2 * task.label_space * task.memory_dim if fit == "nothing" else 0  # float64
    for cost in seen.costs[1:]:  # only the first client has examples of new classes
        assert payload + sums <= cost["bytes_up"] <= 1.2 * (payload + sums) + 500
        assert cost["seconds"] > 0
    assert sum(cost["bytes_up"] for cost in seen.costs) == seen.sent
    memory = seen.result.state.memory
    assert int(memory.seen_K.sum()) == (10 if fit == "nothing" else 0)
    assert "no-memory" not in seen.kinds, "a run that keeps no memory warns of none"
    assert not any(key.startswith("projection") for key in model)


def test_a_read_out_by_the_memory_needs_no_training_in_sessions() -> None:
    trained, untrained = (
        carry_out(config(method=DISCRIMINANT, task={"fit": fit}))[0] for fit in ("clients", "nothing")
    )
    figures, again = (run.history.summary()["session_acc"] for run in (trained, untrained))
    assert figures == again
    for name, value in trained.state.memory.to_tensors().items():
        assert torch.equal(value, untrained.state.memory.to_tensors()[name])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_nearest_means_of_bounded_features_are_those_of_raw_ones(width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    feat_BC = torch.rand(30, width, generator=draw, dtype=torch.float64) * LONGEST
    mean_KC = feat_BC.reshape(3, 10, width).mean(dim=1)
    bounded_BC = Shortened()(feat_BC)
    assert (bounded_BC.norm(dim=1) <= 1 + 1e-12).all()
    assert torch.allclose(Lengthened()(bounded_BC), feat_BC)
    near_B = torch.cdist(feat_BC, mean_KC)
    again_B = torch.cdist(bounded_BC, bounded_BC.reshape(3, 10, width).mean(dim=1))
    assert torch.allclose(near_B / near_B.max(), again_B / again_B.max())


def test_features_beyond_the_bound_keep_their_direction() -> None:
    feat_BC = torch.randn(8, 5) * 100
    bounded_BC = Shortened()(feat_BC)
    assert torch.allclose(bounded_BC, feat_BC / feat_BC.norm(dim=1, keepdim=True), atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_the_first_site_has_all_later_classes_and_loses_nothing(parts: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels, owner = draw.integers(0, 6, 200), draw.integers(0, parts, 200)
    before = [np.flatnonzero(owner == part) for part in range(parts)]
    after = at_first_site(labels, before, first=4)
    assert np.array_equal(np.sort(np.concatenate(after)), np.arange(200))
    assert all((labels[part] < 4).all() for part in after[1:])
    for had, has in zip(before, after, strict=True):
        assert np.array_equal(had[labels[had] < 4], has[labels[has] < 4])
        assert (np.diff(has) > 0).all()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"task": {"fit": "all"}}, "fine-tunes a trained head"),
        ({"task": {"fit": "head"}, "method": {**PLAIN, "readout": "memory"}}, "fine-tunes a trained head"),
        ({"task": {"fit": "all", "settle": 3}, "method": PLAIN}, "task.settle to 0"),
        ({"task": {"fit": "nothing"}}, "would never predict"),
        ({"task": {**RAW, "fit": "nothing"}, "method": {"loss": "dot", "spread": 4}}, "set it to 0"),
        ({"task": RAW, "method": {"loss": "dot"}}, "would train nothing"),
        ({"task": {**RAW, "fit": "server"}, "method": {"loss": "dot"}}, "would train nothing"),
        ({"task": {**RAW, "fit": "nothing", "settle": 3}, "method": {"loss": "dot"}}, "would train nothing"),
    ],
)
def test_parts_without_their_other_half_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        discovery.get(config(**changes))
