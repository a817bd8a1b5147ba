"""The space of a search: read, checked, written back, turned into trials."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("optuna", reason="pip install 'fednc[search]'")

from fednc.common.errors import ConfigError
from fednc.common.toml_text import to_toml
from fednc.ops.search.space import Dimension, Space
from support.toy_search import SPACE, plan

DEEP: dict[str, Any] = {
    "a": {"choices": ["x", "y", 1, True, [64, 32]]},
    "b": {"low": 1, "high": 9, "step": 2, "when": {"a": ["x", 1]}},
    "c": {"choices": ["p", "q"], "when": {"a": [True]}},
    "d": {"low": 0.1, "high": 10.0, "log": True, "when": {"c": ["q"]}},
    "e.f": {"low": 0.0, "high": 1.0, "step": 0.25},
    "e.g": {"low": 0, "high": 1, "type": "float"},
}


def test_a_space_survives_being_written_and_read() -> None:
    space = Space.parse(DEEP)
    assert Space.parse(space.to_plain()) == space
    plain = {key: values for key, values in space.to_plain().items() if key != "a"}
    del plain["b"], plain["c"], plain["d"]
    assert Space.parse(tomllib.loads(to_toml({"space": plain}))["space"]).to_plain() == plain


def test_nested_tables_and_dotted_keys_are_the_same() -> None:
    one = tomllib.loads("[train]\nlr = {low = 0.1, high = 1.0}\nbatch = {choices = [1, 2]}")
    other = tomllib.loads('"train.lr" = {low = 0.1, high = 1.0}\n"train.batch" = {choices = [1, 2]}')
    assert Space.parse(one) == Space.parse(other)
    when = tomllib.loads('x.y = {choices = [1]}\n"z" = {low = 1, high = 2, when = {x.y = 1}}')
    assert Space.parse(when).dimensions["z"].when == {"x.y": (1,)}


@given(st.data())
def test_a_key_is_set_exactly_when_its_condition_holds(data: st.DataObject) -> None:
    space = Space.parse(dict(reversed(DEEP.items())))  # whatever the order in the file

    def ask(key: str, distribution: Any) -> Any:
        return data.draw(
            st.sampled_from([space.dimensions[key].label(c) for c in space.dimensions[key].corners()])
        )

    values = space.choose(ask)
    for key, dimension in space.dimensions.items():
        holds = all(
            parent in values and any(type(values[parent]) is type(v) and values[parent] == v for v in allowed)
            for parent, allowed in dimension.when.items()
        )
        assert (key in values) == holds
    assert space.values(space.labels(values)) == values


@pytest.mark.filterwarnings("ignore:The distribution is specified by")
@given(st.floats(0.001, 10), st.floats(0.001, 3), st.integers(1, 40), st.data())
def test_what_a_person_may_name_is_what_optuna_can_store(
    low: float, step: float, steps: int, data: st.DataObject
) -> None:
    dimension = Dimension(low=low, high=low + step * steps * 1.0001, step=step, type="float")
    distribution = dimension.distribution()
    value = low + step * data.draw(st.integers(0, steps))
    assert distribution._contains(distribution.to_internal_repr(dimension.label(value)))
    between = low + step * (data.draw(st.integers(0, steps - 1)) + 0.5)
    with pytest.raises(ValueError, match="some steps of"):
        dimension.label(between)


def test_numbers_become_the_distribution_that_was_meant() -> None:
    found = {key: dimension.distribution() for key, dimension in Space.parse(DEEP).dimensions.items()}
    kinds = {key: type(value).__name__.removesuffix("Distribution") for key, value in found.items()}
    assert kinds == {
        "a": "Categorical",
        "b": "Int",
        "c": "Categorical",
        "d": "Float",
        "e.f": "Float",
        "e.g": "Float",
    }
    assert found["b"].step == 2
    assert found["d"].log
    assert found["e.f"].step == 0.25


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("train.lr = { low = 1.0, high = 0.1 }", "space.train.lr.*must be the smaller one"),
        ("train.lr = { low = 0.0, high = 1.0, log = true }", "`log` needs a `low` above 0"),
        ("train.lr = { low = 0.1, high = 1.0, choices = [1] }", "either `choices`"),
        ("train.lr = { hihg = 1 }", "space.train.lr"),
        ("train.lr = { choices = [] }", "at least one value"),
        ("train.lr = { choices = [0.1, 0.1] }", "each only once"),
        ("train.lr = { low = 1, high = 2 }", "key takes decimals.*write 1.0 and 2.0"),
        ("train.lr = { low = -1.0, high = 1.0 }", "space.train.lr with train.lr = -1.0"),
        ("train.rate = { low = 0.1, high = 1.0 }", "train.rate.*no such key"),
        ("method.name = { choices = ['fednc', 'fedmagic'] }", "method.name = fedmagic"),
        (
            "method.proximal = { low = 0.1, high = 1.0, when = { method.name = 'x' } }",
            "must be a key of this space",
        ),
        (
            "method.name = { choices = ['fednc'] }\ntrain.lr = "
            "{ low = 0.1, high = 1.0, when = { method.name = 'x' } }",
            "never 'x'",
        ),
        (
            "a = { choices = [1], when = { b = 1 } }\nb = { choices = [1], when = { a = 1 } }",
            "go in a circle: .*a",
        ),
        ("server.listen = { choices = ['x:1'] }", "server is the same for all trials"),
        ("task.name = { choices = ['image'] }", "data of one task"),
        ("split.parts = { low = 1, high = 3 }", "part of the data"),
        ("train = { low = 1, high = 3 }", "space.train"),
    ],
)
def test_a_space_that_cannot_be_used_is_refused_before_the_start(space: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        plan(tmp_path, space=f"[space]\n{space}\n")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("objectives = ['primary', 'speed']", "'speed' is no objective; there are primary, worst_client"),
        ("objectives = ['loss', 'loss']", "only once"),
        ("trials = 0", "trials"),
        ("trails = 3", "trails: no such key"),
        ("run = 'other.toml'", "cannot read run file of .*other.toml"),
    ],
)
def test_a_search_file_that_cannot_be_used_is_refused(head: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        plan(tmp_path, head)


def test_a_trials_run_has_its_settings_and_not_those_of_other_methods(tmp_path: Path) -> None:
    found = plan(tmp_path, space=SPACE)
    run = found.trial_run({"train.lr": 0.5, "train.batch": 16, "method.name": "fednc"})
    assert (run.train.lr, run.train.batch, run.method.name, run.rounds.total) == (0.5, 16, "fednc", 4)
    other = found.trial_run({"train.lr": 0.5, "train.batch": 16, "method.name": "fedprox", "method.proximal": 0.5})
    assert other.method.model_dump()["proximal"] == 0.5
    with pytest.raises(ConfigError, match=r"train\.lr: 7 is not a number"):
        found.space.labels({"train.lr": 7})
    with pytest.raises(ConfigError, match=r"train\.batch: 'big' is not"):
        found.space.labels({"train.batch": "big"})
    with pytest.raises(ConfigError, match=r"not in the space.*train.lr"):
        found.space.labels({"train.rate": 7})
