"""Plug-ins are found by their exact name among the entry points of installed distributions, and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednc.common import plugins, versions
from fednc.common.config.run import parse_run, parse_run_json
from fednc.common.distributions import distributions_of
from fednc.common.errors import ConfigError
from fednc.common.methods import registry
from fednc.common.plugins import METHODS, OURS, TASKS, Plugin
from fednc.common.tasks import discovery
from fednc.server.operations.trackers import tracked
from fednc.server.storage.event_log import EventLog
from fednc.tasks.image.task import ImageTask
from support.installed_plugins import Site, site

__all__ = ["site"]

SHIPPED = {
    "colorize",
    "fewshot",
    "image",
    "multitask",
    "panoptic",
    "pointcloud",
    "quantum",
    "segmentation",
    "signal",
    "tabular",
}
RUN = {"task": {"classes": ["a", "b"], "size": 8, "channels": 1}}


def test_ours_are_entry_points_like_any_other() -> None:
    found = plugins.installed(TASKS)
    assert {plugin.name for plugin in found} == SHIPPED
    assert {plugin.distribution for plugin in found} == {OURS}
    assert discovery.task_class("image") is ImageTask


def test_a_strangers_task_is_found_by_its_name(site: Site) -> None:
    site.install_task("clinic")
    assert discovery.names() == sorted({"clinic", *SHIPPED})
    found = plugins.find(TASKS, "clinic")
    assert (found.distribution, found.release, found.is_built_in) == ("clinic-table", "0.3.0", False)
    run = parse_run({"task": {**RUN["task"], "name": "clinic"}})
    assert discovery.get(run).name == "clinic"


def test_a_plug_in_installed_while_the_process_runs_is_found(site: Site) -> None:
    assert "clinic" not in discovery.names()
    site.install_task("clinic")
    assert discovery.task_class("clinic").name == "clinic"


def test_looking_at_what_is_installed_imports_nothing(site: Site) -> None:
    module = site.install("loud", {TASKS: {"loud": "{}:Loud"}}, "raise SystemError('imported')")
    assert plugins.find(TASKS, "loud").release == "0.3.0"
    assert "loud" in discovery.names()
    assert module not in sys.modules


def test_a_file_that_was_dropped_into_the_package_is_not_a_task(tmp_path: Path, monkeypatch) -> None:
    import fednc.tasks

    folder = tmp_path / "dropped"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "task.py").write_text("raise SystemError('imported')")
    monkeypatch.setattr(fednc.tasks, "__path__", [*fednc.tasks.__path__, str(tmp_path)])
    assert "dropped" not in discovery.names()
    with pytest.raises(
        ConfigError, match=f"'dropped' is not installed here; available: {', '.join(sorted(SHIPPED))}"
    ):
        discovery.task_class("dropped")


def test_a_plug_in_cannot_take_a_shipped_name(site: Site) -> None:
    site.install_task("image", distribution="impostor")
    with pytest.raises(ConfigError) as refused:
        discovery.get(parse_run(RUN))
    text = str(refused.value)
    assert all(word in text for word in ("'image'", "fednc ", "impostor 0.3.0", "Uninstall impostor"))
    assert "impostor" not in sys.modules
    assert set(discovery.installed()) == SHIPPED - {"image"}


def test_two_plug_ins_of_one_name_are_refused_when_it_is_used(site: Site) -> None:
    site.install_task("clinic", distribution="one")
    site.install_task("clinic", distribution="two", release="1.0")
    assert set(discovery.installed()) == SHIPPED
    with pytest.raises(ConfigError, match=r"comes from one 0\.3\.0 and two 1\.0\. Uninstall one or two"):
        discovery.task_class("clinic")
    assert discovery.get(parse_run(RUN)).name == "image"


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("import not_there_at_all", "{}:Clinic", ["ModuleNotFoundError", "not_there_at_all"]),
        ("raise KeyError('x')", "{}:Clinic", ["KeyError"]),
        ("", "{}:Clinic", ["AttributeError"]),
        ("Clinic = 3", "{}:Clinic", ["not a class that derives from fednc's Task"]),
        ("class Clinic: pass", "{}:Clinic", ["not a class that derives from fednc's Task"]),
        (
            "from fednc.tasks.image.task import ImageTask\nclass Clinic(ImageTask): name = 'other'",
            "{}:Clinic",
            ["has the name 'other'"],
        ),
    ],
)
def test_a_broken_plug_in_is_reported_when_it_is_needed_and_breaks_no_other(
    source: str, target: str, words: list[str], site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.install("clinic-table", {TASKS: {"clinic": target}}, source)
    assert set(discovery.installed()) == SHIPPED
    assert "clinic-table 0.3.0" in caplog.text
    with pytest.raises(ConfigError) as told:
        discovery.task_class("clinic")
    assert all(word in str(told.value) for word in ["'clinic'", "clinic-table 0.3.0", *words])


@pytest.mark.parametrize(
    "name",
    ["pkg.mod:Class", "pkg.mod", "fednc.tasks.image", "../image", "a/b", "a:b", "", "a" * 65, "ä", "a b", "-a"],
)
def test_no_run_file_names_a_module(name: str) -> None:
    values = {"task": {**RUN["task"], "name": name}}
    with pytest.raises(ConfigError, match="never names a module"):
        parse_run(values)
    run = parse_run(RUN)
    sent = run.model_copy(update={"task": run.task.model_copy(update={"name": name})}).model_dump_json()
    with pytest.raises(ConfigError, match="never names a module"):
        parse_run_json(sent, source="the server's run file")
    with pytest.raises(ConfigError, match="never names a module"):
        plugins.find(TASKS, name)


@given(st.text(max_size=80))
def test_only_exact_names_are_found(name: str) -> None:
    if name in SHIPPED:
        return
    with pytest.raises(ConfigError):
        plugins.find(TASKS, name)


def test_entry_points_that_no_run_file_could_name_are_left_out(site: Site) -> None:
    site.install("dotted", {TASKS: {"a.b": "{}:Clinic", "a/b": "{}:Clinic"}})
    assert discovery.names() == sorted(SHIPPED)


METHOD = """
from fednc.common.methods.api import PLAIN, Method

class Quiet(Method):
    name = "{name}"
    version = 2
    preset = PLAIN
"""


def test_our_methods_are_entry_points_like_any_other() -> None:
    assert {plugin.name for plugin in plugins.installed(METHODS)} == set(registry.SHIPPED)
    assert {plugin.distribution for plugin in plugins.installed(METHODS)} == {OURS}


def test_a_strangers_method_is_named_in_a_run_file_and_offered(site: Site) -> None:
    site.install("quiet-method", {METHODS: {"quiet": "{}:Quiet"}}, METHOD.format(name="quiet"))
    run = parse_run({**RUN, "method": {"name": "quiet"}})
    assert [part.name for part in run.method.parts] == ["quiet"]
    assert versions.of_run(run)[2] == "quiet/2 quiet-method==0.3.0"
    assert "quiet/2 quiet-method==0.3.0" in versions.installed_methods()


def test_a_method_with_a_shipped_name_is_refused_and_others_built_on_it_go_on(site: Site) -> None:
    site.install("impostor", {METHODS: {"moon": "{}:Quiet"}}, METHOD.format(name="moon"))
    with pytest.raises(ConfigError, match=r"'moon' comes from fednc .* and impostor 0\.3\.0"):
        parse_run({**RUN, "method": {"name": "moon"}})
    assert parse_run({**RUN, "method": {"name": "fedlc", "contrast": 0.5}}).method.compares_models
    assert "impostor" not in sys.modules


def test_a_broken_method_breaks_no_other(site: Site) -> None:
    site.install("sad-method", {METHODS: {"sad": "{}:Sad"}}, "import not_there_at_all")
    assert set(registry.installed()) == set(registry.SHIPPED)
    with pytest.raises(ConfigError, match="not_there_at_all"):
        parse_run({**RUN, "method": {"name": "sad"}})
    assert parse_run(RUN).method.name == "fednc"


@pytest.mark.parametrize("name", ["pkg.mod:Class", "fednc.common.methods.moon", "../moon"])
def test_no_run_file_names_a_methods_module(name: str) -> None:
    with pytest.raises(ConfigError, match="never names a module"):
        parse_run({**RUN, "method": {"name": name}})


TRACKER = """
from fednc.common.trackers import Tracker

class Quiet(Tracker):
    pass
"""
STEP = METHOD.replace("Method\n", "ServerStep\n").replace("(Method)", "(ServerStep)").replace("preset = PLAIN", "")


def test_everything_that_a_run_loads_is_in_the_lineage(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run imports of strangers is what `distributions_of` has: no key that names a plug-in is left out."""
    site.install_task("clinic")
    site.install("quiet-method", {METHODS: {"quiet": "{}:Quiet"}}, METHOD.format(name="quiet"))
    site.install("quiet-step", {METHODS: {"calm": "{}:Quiet"}}, STEP.format(name="calm"))
    for name in ("heard", "told"):
        site.install(f"{name}-tracker", {plugins.TRACKERS: {name: "{}:Quiet"}}, TRACKER)
    loaded: list[Plugin] = []
    load = Plugin.load
    monkeypatch.setattr(Plugin, "load", lambda plugin: (loaded.append(plugin), load(plugin))[1])
    run = parse_run(
        {
            "task": {**RUN["task"], "name": "clinic"},
            "method": {"name": "quiet", "server_step": "calm"},
            "server": {"trackers": ["heard"]},
            "track": {"told": {}},
        }
    )
    discovery.get(run)
    assert [part.name for part in run.method.parts] == ["quiet", "calm"]
    with tracked(run, "run", None, EventLog()):
        pass
    strangers = {plugin for plugin in loaded if not plugin.is_built_in}
    assert len(strangers) == 5
    listed = {one["name"]: one["provides"] for one in distributions_of(run)}
    assert listed == {"fednc": [], **{each.distribution: [f"{each.kind} {each.name}"] for each in strangers}}


@pytest.mark.parametrize("method", sorted(registry.SHIPPED))
def test_what_the_lineage_lists_is_named_as_the_run_file_names_it(method: str) -> None:
    run = parse_run({**RUN, "method": {"name": method}, "server": {"trackers": ["csv"]}, "track": {"csv": {}}})
    (ours,) = distributions_of(run)
    assert ours["provides"] == ["task image", f"method {method}", "tracker csv"]
