"""The top of docs/results.md: all methods in the base cell, the distance to central training, and the claims."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
from PIL import Image

from fednc.bench.compare import plots
from fednc.bench.compare.pictures import draw as draw_settings
from fednc.bench.compare.pictures import looks_of
from fednc.bench.compare.results_folder import read_folder
from fednc.bench.compare.results_page import draw
from support.written_results import SMALL, Place

FILE = f"""
# The long one:
#   fednc compare small.toml --settings base
#   fednc compare small.toml --settings other,third
name = "small"
tier = "long"
title = "Shapes (9 images)"
seeds = [1, 2]
{SMALL}[[settings]]
name = "base"
title = "all skewed"
[[settings]]
name = "other"
run.split.alpha = 0.05
[[variants]]
name = "fedavg"
method.name = "fedavg"
[[variants]]
name = "fedavg+discriminant"
method.name = "fedavg"
method.readout = "discriminant"
[[variants]]
name = "scaffold"
method.name = "scaffold"
settings = ["base"]
[[variants]]
name = "fednc+vertex"
method.name = "fednc"
method.readout = "vertex"
settings = ["base"]
[[variants]]
name = "fednc"
method.name = "fednc"
[[variants]]
name = "central-fedavg"
clients = "pooled"
method.name = "fedavg"
settings = ["base"]
[[variants]]
name = "central-fednc"
clients = "pooled"
method.name = "fednc"
settings = ["base"]
[[parts]]
name = "the read-out for fedavg"
variant = "fedavg+discriminant"
against = ["fedavg"]
"""
ACCURACY = {
    "fedavg": 0.5,
    "fedavg+discriminant": 0.7,
    "scaffold": 0.6,
    "fednc+vertex": 0.55,
    "fednc": 0.72,
    "central-fedavg": 0.8,
    "central-fednc": 0.78,
}

CLAIMS = {  # the best other method is scaffold in the base cell, and fedavg in the other setting
    "fednc against the best other method": "**Leads**: +12.0 ± 0.0 in base, +22.0 elsewhere",
    "fednc against fedavg with fednc's read-out": "**Leads**: +2.0 ± 0.0 in base, +2.0 elsewhere",
    "fednc against the best central training": "**Trails**: -8.0 ± 0.0 in base",
    "the read-out for fedavg": "**Pays**: +20.0 ± 0.0 in base, +20.0 elsewhere",
}


@pytest.fixture
def full(tmp_path: Path) -> Place:
    place = Place(tmp_path, FILE, ACCURACY)
    place.fill()
    return place


def accuracies(variant: str) -> list[float]:
    """Of the seeds, in per cent, at the rate 0.1; see `Place.put`."""
    return [100 * (ACCURACY[variant] + seed / 100 + 0.01) for seed in (1, 2)]


def cell(variant: str) -> str:
    return f"{fmean(accuracies(variant)):.1f} ± {stdev(accuracies(variant)):.1f}"


def below(variant: str) -> str:
    return f"{100 * (ACCURACY['central-fedavg'] - ACCURACY[variant]):.1f} ± 0.0"


def test_the_page_opens_with_all_methods_in_the_base_cell_the_best_first(full: Place) -> None:
    lines = full.page().splitlines()
    head = lines.index("| method | own read-out | fednc's read-out | below central training |")
    assert lines[0] == "# Results"
    assert not [line for line in lines[:head] if line.startswith(("|", "##"))]
    assert head <= 10
    assert lines[head + 2 : lines.index("", head)] == [
        f"| central-fedavg | {cell('central-fedavg')} | - | - |",
        f"| central-fednc | - | {cell('central-fednc')} | - |",
        f"| **fednc** | {cell('fednc+vertex')} | {cell('fednc')} | {below('fednc')} |",
        f"| fedavg | {cell('fedavg')} | {cell('fedavg+discriminant')} | {below('fedavg+discriminant')} |",
        f"| scaffold (twice the bytes) | {cell('scaffold')} | - | {below('scaffold')} |",
    ]


def test_every_claim_has_its_gain_its_verdict_its_commands_and_one_picture(full: Place) -> None:
    draw(full.configs, full.results)
    top = full.page().partition("\n## One factor at a time\n")[0]
    claims = re.split(r"^### ", top, flags=re.MULTILINE)[1:]
    assert [claim.splitlines()[0] for claim in claims] == [*CLAIMS]
    commands = [f"    fednc compare small.toml --settings {names}" for names in ("base", "other,third")]
    before = top.partition("\n### ")[0].partition("\n## ")[2]
    assert [before.count(command) for command in commands] == [1, 1]
    for claim, told in zip(claims, CLAIMS.values(), strict=True):
        assert f"\n{told}; ahead in " in claim
        (picture,) = re.findall(r"!\[[^\]]+\]\(\.\./results/(claims/[^)]+\.png)\)", claim)
        with Image.open(full.results / picture) as image:
            assert image.width > 400


def test_rivals_are_told_where_they_were_run(full: Place) -> None:
    said = " ".join(full.page().partition("\n## One factor at a time\n")[0].split())
    assert "rivals: fedavg, scaffold in base, fedavg elsewhere." in said
    assert "rivals: central-fedavg, central-fednc. " in said, "there is no other setting"


def test_a_claim_that_repeats_another_is_shown_once(tmp_path: Path) -> None:
    again = FILE.replace('name = "the read-out for fedavg"', 'name = "the same under another name"')
    again += FILE[FILE.index("[[parts]]") :]
    place = Place(tmp_path, again, ACCURACY)
    place.fill()
    draw(place.configs, place.results)
    said = place.page()
    assert ("### the same under another name" in said) != ("### the read-out for fedavg" in said)
    assert len(list((place.results / "claims").glob("*.png"))) == len(CLAIMS)


def test_one_factor_at_a_time_has_a_row_for_each_setting(full: Place) -> None:
    section = full.page().partition("\n## One factor at a time\n")[2].partition("\n## ")[0]
    four = " | ".join(cell(variant) for variant in ("fedavg", "fedavg+discriminant"))
    top = f"{cell('fednc')} | {cell('central-fedavg')} | {below('fednc')}"
    assert f"| all skewed (`base`) | {four} | not run | {top} |" in section
    assert f"| other (`other`) | {four} | not run | {cell('fednc')} | - | - |" in section
    assert "    fednc compare small.toml --settings base\n    fednc compare small.toml --settings other" in section


def test_a_base_cell_without_central_training_has_no_distance_to_it(full: Place) -> None:
    for path in (full.results / "small").glob("final-base-central-*"):
        path.unlink()
    said = full.page()
    assert f"| fedavg | {cell('fedavg')} | {cell('fedavg+discriminant')} | - |" in said
    assert "| base: 4 runs | `fednc compare small.toml --settings base` |" in said


def test_before_the_long_comparisons_have_run_the_page_says_so(tmp_path: Path) -> None:
    said = Place(tmp_path, FILE, ACCURACY).page()
    assert "The long comparisons: nothing has been measured yet." in said
    assert (
        "`fednc compare small.toml --settings base`<br>`fednc compare small.toml --settings other,third`" in said
    )


def filled_without(missing: set[tuple[str, int]], folder: Path) -> str:
    """The page without the results of these variants and seeds."""
    place = Place(folder, FILE, ACCURACY)
    for row in place.rows():
        if (row.variant, row.seed) not in missing:
            place.put(row)
    return place.page()


def test_the_distance_to_central_training_is_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    """Parts of a comparison are run one after the other, so some methods have more seeds than others."""
    text = filled_without({("central-fedavg", 2), ("central-fednc", 2)}, tmp_path)
    assert f"| central-fedavg | {accuracies('central-fedavg')[0]:.1f} (1 of 2 seeds) | - | - |" in text
    distance = 100 * (ACCURACY["central-fedavg"] - ACCURACY["fednc"])
    assert f"{cell('fednc')} | {distance:.1f} |" in text


def test_without_a_shared_seed_there_is_no_distance(tmp_path: Path) -> None:
    central = {("central-fedavg", 2), ("central-fednc", 2)}
    text = filled_without(central | {("fednc", 1), ("fednc+vertex", 1)}, tmp_path)
    assert f"{accuracies('fednc')[1]:.1f} (1 of 2 seeds) | - |" in text


def test_pictures_name_only_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, FILE, ACCURACY)
    for row in place.rows():
        if row.variant != "scaffold":
            place.put(row)
    compared = read_folder(place.plan, place.results / "small").compared
    assert compared is not None
    shown: list[set[str]] = []
    monkeypatch.setattr(plots, "bands", lambda _, panels, *__, **___: shown.extend(map(set, panels.values())))
    monkeypatch.setattr(plots, "bars", lambda _, lines, *__: shown.append(set(lines)))
    whole = replace(compared, plan=place.plan.model_copy(update={"pictured": tuple(ACCURACY)}))
    draw_settings(whole, tmp_path, looks_of(place.plan))
    assert shown
    assert all("fednc" in names for names in shown)
    assert not any("scaffold" in names for names in shown)
