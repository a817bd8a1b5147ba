"""The pictures of a comparison: which are drawn, and that a variant looks the same in all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex

from fednc.bench.compare import plots
from fednc.bench.compare.pictures import draw, looks_of
from fednc.bench.compare.plan import Comparison
from fednc.bench.compare.report import Compared
from support.small_comparison import reduced

OTHERS = [f"v{place}" for place in range(12)]
BY_ROUND = ("accuracy", "rounds")


def comparison(**changes: Any) -> Comparison:
    variants = [{"name": name, "method": {"name": "fedavg"}} for name in (*OTHERS, "fedavg", "fednc")]
    return reduced(variants=variants, settings=[{"name": "one"}, {"name": "two"}], **changes)


def row(setting: str, variant: str, seed: int, best: float, **more: Any) -> dict[str, Any]:
    rounds = [{"round": n, "accuracy": best * n / 3, "drift": 0.0, "nc1": best / n} for n in (1, 2, 3)]
    summary = {"last5": best, "best": best, **more}
    config = {"task": {"classes": ["a", "b"]}}
    alignment = {"alignment": ["1.0 0.5", "0.5 1.0"], "digest": f"{setting} {variant} {seed}", "config": config}
    names = {"setting": setting, "variant": variant, "seed": seed, "failed": ""}
    return {**names, "summary": summary, "rounds": rounds, **alignment}


def compared(plan: Comparison, variants: dict[str, list[str]], **more: Any) -> Compared:
    """Rows of these variants of each setting; the plan has only those that were run, as a folder's has."""
    rows = [
        row(setting, name, seed, 0.5 + seed / 10 + place / 99, **more)
        for setting, names in variants.items()
        for place, name in enumerate(names)
        for seed in plan.seeds
    ]
    run = {name for names in variants.values() for name in names}
    shown = plan.model_copy(update={"variants": tuple(one for one in plan.variants if one.name in run)})
    return Compared(plan=shown, tuning=[], rates={}, final=rows)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The colours that each variant has in the pictures drawn so far."""
    found: dict[str, set[str]] = {}
    new = plots.new_figure

    def record(size_inch: tuple[float, float]) -> Any:
        figure = new(size_inch)
        save = figure.savefig

        def read(*args: Any, **keys: Any) -> None:
            for axes in figure.axes:
                for line in axes.lines:
                    found.setdefault(line.get_label(), set()).add(to_hex(line.get_color()))
                for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=False):
                    found.setdefault(label.get_text(), set()).add(to_hex(bar.get_facecolor()))
            save(*args, **keys)

        figure.savefig = read
        return figure

    monkeypatch.setattr(plots, "new_figure", record)
    return found


@pytest.mark.parametrize("pictured", [(), ("v3", "v7", "v11", "fedavg", "fednc")])
def test_a_variant_has_one_colour_in_all_pictures_also_when_others_were_not_run(
    tmp_path: Path, colours: dict[str, set[str]], pictured: tuple[str, ...]
) -> None:
    plan = comparison(pictured=pictured)
    some = compared(plan, {"one": ["v3", "v11", "fedavg", "fednc"], "two": ["v7", "v11", "fedavg"]})
    every = compared(plan, {setting: [*OTHERS, "fedavg", "fednc"] for setting in ("one", "two")})
    for one in (some, every):
        draw(one, tmp_path, looks_of(plan))
    named = {name: colours[name] for name in pictured or (*OTHERS, "fedavg", "fednc")}
    assert all(len(found) == 1 for found in named.values()), named
    assert len({*map(frozenset, named.values())}) == min(len(named), 11)


def test_variants_that_share_models_stand_together_and_fednc_keeps_its_colour(
    tmp_path: Path, colours: dict[str, set[str]]
) -> None:
    plan = comparison()
    one = compared(plan, {"one": ["v0", "v1", "fedavg", "fednc"], "two": ["fedavg"]})
    final = [
        {**found, "training": f"shared {found['seed']}"} if found["variant"] in ("v1", "fednc") else found
        for found in one.final
    ]
    draw(replace(one, final=final), tmp_path, looks_of(plan))
    assert colours["v1 = fednc"] == {looks_of(plan)["fednc"].colour.lower()}


def test_with_sessions_nothing_is_drawn_by_round_and_earlier_pictures_go(tmp_path: Path) -> None:
    plan = comparison()
    names = {"one": ["v0", "fedavg", "fednc"], "two": ["v0", "fedavg"]}
    draw(compared(plan, names), tmp_path, looks_of(plan))
    assert all((tmp_path / f"one-{kind}.png").exists() for kind in (*BY_ROUND, "geometry", "alignment"))
    sessions = [{"session": place, "round": number} for place, number in enumerate((1, 3))]
    draw(compared(plan, names, sessions=sessions), tmp_path, looks_of(plan))
    assert not any((tmp_path / f"one-{kind}.png").exists() for kind in BY_ROUND)
    assert (tmp_path / "one-geometry.png").exists()


def test_geometry_with_sessions_is_after_each_session_and_equal_values_have_no_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "bands", lambda _, panels, __, across="round": drawn.append((panels, across)))
    plan = comparison(seeds=[1])
    sessions = [{"session": place, "round": number} for place, number in enumerate((1, 3))]
    draw(compared(plan, {"one": ["fedavg"], "two": []}, sessions=sessions), tmp_path, looks_of(plan))
    panels, across = drawn[0]
    assert across == "session"
    assert list(panels) == ["NC1"], "drift is 0 everywhere"
    assert [number for number, _ in panels["NC1"]["fedavg"][0]] == [0, 1]
