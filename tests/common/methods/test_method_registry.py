"""Methods by name: what is shipped fits together, what is registered is checked, and a name must be installed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from fednc.common import versions
from fednc.common.config.run import RunConfig, parse_run, parse_run_json
from fednc.common.config.tables import MethodSection, Section
from fednc.common.errors import ConfigError
from fednc.common.learning.losses import Features
from fednc.common.methods import registry
from fednc.common.methods.api import Method, ServerStep, Tensors

STEPS = [name for name in registry.SHIPPED if registry.is_step(name)]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})


class Mine(Method):
    """A method of somebody else."""

    class Options(Section):
        strength: float = Field(1.0, description="how much")

    name = "mine"
    version = 3
    options: Options


def run(**method: Any) -> RunConfig:
    return parse_run({"method": method})


def complaint(**method: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run(**method)
    return str(caught.value)


@pytest.mark.parametrize("name", registry.SHIPPED)
def test_a_shipped_method_is_the_class_of_its_name(name: str) -> None:
    method = registry.get(name)
    assert method.name == name
    assert method.mixes == (name in registry.MIXING)
    assert all(field.description for field in method.Options.model_fields.values())
    assert name in [part.name for part in run(name=name).method.parts]


def test_no_two_methods_that_work_together_have_the_same_key() -> None:
    shared = set(MethodSection.model_fields)
    for name in registry.SHIPPED:
        for other in {*registry.MIXING, *STEPS} - {name}:
            both_steps = name in STEPS and other in STEPS
            keys = set(registry.get(name).Options.model_fields)
            assert both_steps or not keys & set(registry.get(other).Options.model_fields)
            assert not keys & shared


def test_a_method_that_mixes_is_off_at_its_defaults_and_on_with_its_preset() -> None:
    for name in registry.MIXING:
        method = registry.get(name)
        assert not method(method.Options()).is_on
        assert [part.name for part in run(name="fedavg").method.parts] == ["fedavg"]
        own = {key: value for key, value in method.preset.items() if key in method.Options.model_fields}
        assert {"fedlc", name} == {part.name for part in run(name="fedlc", **own).method.parts}


def test_a_registered_method_is_announced_and_takes_its_keys() -> None:
    registry.register("mine", lambda: Mine)
    assert registry.get("mine") is Mine
    assert "mine/3" in versions.installed_methods()
    assert versions.of_run(run(name="mine"))[2] == "mine/3"
    (part,) = run(name="mine", strength=2).method.parts
    assert isinstance(part, Mine)
    assert part.options.strength == 2
    assert "method.strength" in complaint(name="fedavg", strength=2), (
        "keys of others are known under their name alone"
    )
    assert "method.strength: " in complaint(name="mine", strength="much")


def test_methods_with_terms_on_class_features_are_for_tasks_with_classes() -> None:
    class OnFeatures(Mine):
        def feature_terms(self, features: Features) -> Tensors:
            return {"size": features.feat_BD.square().mean()}

    registry.register("mine", lambda: OnFeatures)
    plain = {"head": "linear", "loss": "ce", "readout": "head"}
    assert run(name="mine", **plain).method.needs_classes
    without = {name for name in registry.SHIPPED if not run(name=name).method.needs_classes}
    assert without == {"fedavg", "fedprox", "scaffold", "scaffnew", "feddyn", "fednova", *STEPS}


@pytest.mark.parametrize("name", ["fednc", "mine"])
def test_no_name_is_given_twice(name: str) -> None:
    registry.register("mine", lambda: Mine)
    with pytest.raises(ConfigError, match="a method with this name exists"):
        registry.register(name, lambda: Mine)
    assert registry.get("fednc").__module__ == "fednc.common.methods.fednc"


class Clashing(Mine):
    class Options(Section):
        proximal: float = Field(0.0, description="")
        scale: float = Field(0.0, description="")


class Mixing(Mine):
    mixes = True


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Clashing, "proximal, scale are fednc's own"),
        (Mixing, "`mixes`"),
        (int, "derives from Method"),
        (Mine(Section()), "derives from Method"),
        (registry.get("fedavg"), "has this name"),
    ],
    ids=["keys", "mixes", "class", "object", "name"],
)
def test_a_registered_class_must_be_a_method_of_that_name_with_its_own_keys(found: Any, words: str) -> None:
    registry.register("mine", lambda: found)
    with pytest.raises(ConfigError, match=words):
        registry.get("mine")
    assert "method.name" in complaint(name="mine")


def test_a_name_that_is_not_installed_is_reported_with_those_that_are() -> None:
    text = complaint(name="fedsgd", proximal=-1, learning_rat=1)
    assert "method.name: method 'fedsgd' is not installed here; available: fedavg, " in text
    assert "method.proximal: " in text, "every mistake is reported at once"
    assert "learning_rat" not in text, "it may be a key of the method that was meant"
    assert "method.learning_rat: " in complaint(name="fedprox", learning_rat=1)
    assert "method.name" in complaint(name=3)


def test_a_step_at_the_server_can_be_added_to_any_method_without_one() -> None:
    method = run(name="fednc", server_step="fedyogi", server_lr=0.5, proximal=0.1).method
    assert [part.name for part in method.parts] == ["fednc", "fedprox", "fedyogi"]
    assert method.parts[-1].options.model_dump()["server_lr"] == 0.5
    assert "method.server_lr" in complaint(name="fednc", server_lr=0.5), "no step, no keys of one"
    assert "method.server_step: 'moon' is more than a step at the server" in complaint(server_step="moon")
    assert "method.server_step: method 'adam' is not installed" in complaint(server_step="adam")
    assert "two steps at the server" in complaint(name="fedadam", server_step="fedavgm")


@pytest.mark.parametrize("name", STEPS)
def test_clients_are_not_sent_what_only_the_server_reads(name: str) -> None:
    assert issubclass(registry.get(name), ServerStep)
    given = dict.fromkeys(registry.get(name).Options.model_fields, 0.25)
    assert given.keys() == {key for key in given if key.startswith("server_")}
    for method in ({"name": name}, {"name": "fednc", "server_step": name}):
        ours, plain = (
            run(**method, **given),
            run(**{**method, "server_step": ""} if "server_step" in method else method),
        )
        sent = parse_run_json(ours.for_clients(), source="sent")
        assert "server_" not in ours.for_clients()
        assert sent.method.name == method["name"]
        assert sent.digest == parse_run_json(plain.for_clients(), source="sent").digest
        assert ours.digest != plain.digest, "at the server they affect the result"
        assert parse_run_json(ours.model_dump_json(), source="whole").digest == ours.digest


@pytest.mark.parametrize("name", registry.SHIPPED[:8])
def test_a_run_without_such_keys_has_the_same_digest_at_clients(name: str) -> None:
    ours = run(name=name, proximal=0.3)
    assert parse_run_json(ours.for_clients(), source="sent").digest == ours.digest
