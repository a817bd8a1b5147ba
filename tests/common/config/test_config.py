"""The run file: every mistake is named with its path, and every change changes the digest."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from fednc.cli.config_docs import keys, page, sections
from fednc.common.config.run import RunConfig, parse_run, read_run_file
from fednc.common.config.tables import LATER, MethodSection, Section
from fednc.common.errors import ConfigError
from fednc.common.methods import registry
from fednc.common.tasks import discovery

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
TABLES = [path for path, _ in sections() if path]
NUMBERS = [
    (path, key, schema)
    for path, model in sections()
    for key, schema in keys(model).items()
    if schema.get("type") in ("integer", "number")
]


def with_value(path: str, key: str, value: Any) -> dict[str, Any]:
    """Plain values of a run file that sets only `path.key`."""
    values: dict[str, Any] = {key: value}
    if path.startswith("["):  # a table that may be repeated
        *outer, last = path[1:-1].split(".")
        values = {last: [values]}
    else:
        outer = list(filter(None, path.split(".")))
    for name in reversed(outer):
        values = {name: values}
    return values


def dotted(path: str, key: str) -> str:
    path = f"{path[1:-1]}.0" if path.startswith("[") else path
    return f"{path}.{key}".lstrip(".")


def complaint(values: dict[str, Any]) -> str:
    """The error message about `values`; the task's own options are checked too."""
    with pytest.raises(ConfigError) as caught:
        discovery.get(parse_run(values))
    return str(caught.value)


@pytest.mark.parametrize("path", ["", *TABLES])
def test_unknown_key_is_named_with_its_path(path: str) -> None:
    assert f"  {dotted(path, 'learning_rat')}:" in complaint(with_value(path, "learning_rat", 1))


@pytest.mark.parametrize(
    ("path", "key", "schema"), NUMBERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_wrong_type_and_wrong_range_are_named(path: str, key: str, schema: dict[str, Any]) -> None:
    assert f"  {dotted(path, key)}: " in complaint(with_value(path, key, "many"))
    below = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1) - 1
    message = complaint(with_value(path, key, below))
    assert f"  {dotted(path, key)}: " in message
    assert f"(given: {below!r})" in message


def test_every_mistake_is_reported_at_once() -> None:
    message = complaint({"train": {"lr": -1, "epoch": 2}, "rounds": {"total": 0}})
    assert all(f"  {key}:" in message for key in ("train.lr", "train.epoch", "rounds.total"))


def test_a_wrong_method_name_is_reported_once() -> None:
    """Its own keys are not mistakes: they are right once the name is."""
    with pytest.raises(ConfigError) as caught:
        parse_run({"method": {"name": "acme:Method", "strength": 1, "server_part": 0.5}})
    _, line = str(caught.value).splitlines()
    assert line.startswith("  method.name: 'acme:Method' is not the name of a plug-in")
    assert line.count("acme:Method") == 1


def test_an_unknown_task_key_is_reported_with_the_known_ones() -> None:
    """Only the task can know them: no page of ours lists the keys of other people's tasks."""
    with pytest.raises(ConfigError, match=r"task\.widht: no such key; there are: .*classes.*, width"):
        discovery.get(parse_run({"task": {"classes": ["a"], "widht": 8}}))


@pytest.mark.parametrize("name", registry.SHIPPED)
def test_a_preset_fills_only_the_keys_that_are_not_set(name: str) -> None:
    resolved = MethodSection.model_validate({"name": name}).model_dump()
    others = {*registry.MIXING, name}
    own = {key: value for each in others for key, value in registry.get(each).Options().model_dump().items()}
    plain = MethodSection.model_construct().model_dump()
    assert resolved == {**plain, **own, "name": name, **registry.get(name).preset}
    assert MethodSection.model_validate({"name": name, "proximal": 0.25}).model_dump()["proximal"] == 0.25


def test_head_loss_and_readout_must_fit_together() -> None:
    assert "no vertices" in complaint({"method": {"name": "fedavg", "loss": "dot"}})
    assert "no trained head" in complaint({"method": {"name": "fednc", "readout": "head"}})


def test_a_prior_that_fades_does_not_fit_sessions() -> None:
    fading = {"method": {"prior_fade": 0.5}}
    assert "without the prior" in complaint({**fading, "sessions": [{"classes": ["late"]}]})
    parse_run(fading)


@pytest.mark.parametrize(
    ("path", "key", "schema"), NUMBERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_digest_depends_on_every_number_that_affects_the_result(
    path: str, key: str, schema: dict[str, Any]
) -> None:
    base: dict[str, Any] = {"split": {"shift": {}}, "sessions": [{"classes": ["late"]}], "personal": {}}
    if key in ("stop_after", "prior_fade") or path.startswith("probe"):  # not with sessions
        del base["sessions"]
    if path.startswith("probe"):
        base["probe"] = {"families": [{"name": "one", "axis": "width", "values": [8, 16]}]}
    resolved = parse_run(base).model_dump()
    changed = copy.deepcopy(resolved)
    table = changed
    for name in filter(None, path.strip("[]").split(".")):
        table = table[name][0] if path.startswith("[") else table[name]
    table[key] += 1 if schema["type"] == "integer" else -table[key] / 2 if table[key] else 0.5
    same, other = parse_run(resolved), RunConfig.model_validate(changed)
    assert same.digest == parse_run(base).digest
    assert (other.digest != same.digest) == (path != "server")


@pytest.mark.parametrize(
    ("values", "digest"),
    [
        ({}, "be7581b2e294ec98da4ef3bac63e6b010dee420c0e88b70401419374afc30310"),
        (
            {"method": {"name": "scaffold"}, "split": {"shift": {}}, "seed": 4},
            "bcc50c7f1af033df7e605a5bfc190a278e5e6dab5bfd51d7cb4c14017a38206d",
        ),
    ],
    ids=["defaults", "scaffold"],
)
def test_later_keys_do_not_change_older_digests(values: dict[str, Any], digest: str) -> None:
    """Checkpoints and results identify their run by the digest, so a new key is marked `LATER`."""
    assert parse_run({"method": {"name": "fedavg"}, **values}).digest == digest


def test_a_later_key_counts_as_soon_as_it_is_used() -> None:
    class Inner(Section):
        key: Annotated[int, LATER] = 3

    class WithLater(RunConfig):
        inner: Inner = Field(default_factory=Inner)
        whole: Annotated[Inner, LATER] = Field(default_factory=Inner)

    plain = WithLater()
    assert plain.decisive() == {**RunConfig().decisive(), "inner": {}}
    assert plain.digest == WithLater(inner=Inner(key=3), whole=Inner()).digest
    assert len({plain.digest, WithLater(inner=Inner(key=4)).digest, WithLater(whole=Inner(key=4)).digest}) == 3


def test_run_files_that_cannot_be_read_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml.*fednc init"):
        read_run_file(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[train\nlr = 1")
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML: .*line 1"):
        read_run_file(broken)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid_and_their_models_fit(path: Path) -> None:
    run = read_run_file(path)
    task = discovery.get(run)
    assert len(task.class_names) >= 2
    assert task.label_space - 1 <= run.frame.dim
    model = task.build_model()
    assert set(task.shared_keys(model)) <= set(model.state_dict())


def test_the_config_page_matches_the_code() -> None:
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == page(), "run `make docs`"
