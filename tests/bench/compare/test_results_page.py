"""docs/results.md says what the rows say: what pays, each claim with its command, and what did not run."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy import stats

from fednc.bench.compare.gains import Gain, gains
from fednc.bench.compare.plan import Row, read_comparison
from fednc.bench.compare.results_folder import read_folder
from fednc.bench.compare.results_page import page
from fednc.bench.compare.run_archive import ARCHIVE, archive_runs, read_runs, write_run
from fednc.bench.compare.terms import COLUMNS, METHODS, SPEED, TERMS
from fednc.common.config.run import RunConfig
from fednc.common.errors import DataError
from support.written_results import SMALL, Place

ROOT = Path(__file__).parents[3]
CONFIGS, RESULTS = ROOT / "bench" / "configs", ROOT / "results"
FILE = f"""
# What it is about:
#   fednc compare small.toml
name = "small"
seeds = [1, 2]
baseline = "fedavg"
{SMALL}[[settings]]
name = "easy"
[[settings]]
name = "hard"
run.split.alpha = 0.05
[[variants]]
name = "fedavg"
method.name = "fedavg"
[[variants]]
name = "fednc"
method.name = "fednc"
[[variants]]
name = "pulled"
rate_like = "fednc"
method.name = "fednc"
method.anchor = 1.0
[[parts]]
name = "the pull"
variant = "pulled"
against = ["fednc", "fedavg"]
"""
ACCURACY = {"fedavg": 0.5, "fednc": 0.7, "pulled": 0.6}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, FILE, ACCURACY)


@pytest.fixture
def full(place: Place) -> Place:
    place.fill()
    return place


def test_the_committed_page_is_what_the_results_say() -> None:
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page(CONFIGS, RESULTS), (
        "run `make results`"
    )


COMMITTED = {path.parent.name: read_runs(path.parent) for path in sorted(RESULTS.glob(f"*/{ARCHIVE}"))}


def all_committed() -> Iterator[tuple[str, dict[str, Any]]]:
    for comparison, rows in COMMITTED.items():
        for name, row in rows.items():
            yield f"{comparison}: {name}", row


def digest_of(row: dict[str, Any], config: dict[str, Any]) -> str:
    return Row(
        kind=row["kind"],
        setting=row["setting"],
        variant=row["variant"],
        seed=row["seed"],
        lr=row["lr"],
        run=RunConfig.model_validate(config),
        data_sha256=row["data_sha256"],
        clients=row.get("trained_on", ""),
    ).digest


def test_committed_rows_are_named_by_the_digest_of_the_run_that_they_hold() -> None:
    """If the digest changed with the code, earlier results would no longer belong to their rows."""
    assert COMMITTED
    for name, row in all_committed():
        config = row["config"]
        init = config.get("init", {})
        if init.get("kind") == "ordinary" and init.get("gain", 1.0) == 1.0 and not init.get("report"):
            # The first rows also held defaults without any effect.
            config = {key: value for key, value in config.items() if key != "init"}
        assert digest_of(row, config) == row["digest"], name


def test_committed_rows_hold_no_path_of_a_machine() -> None:
    for name, row in all_committed():
        assert "/" not in row["command"].replace("bench/configs/", ""), name
        assert row["config"]["evaluate"]["test"] in ("npz:{data}", ""), name


def test_committed_rows_are_archived_and_archiving_them_again_gives_the_same_bytes(tmp_path: Path) -> None:
    assert not [path for path in RESULTS.glob("*/*.json") if path.parent.name != "bench"]
    for comparison, rows in COMMITTED.items():
        copy = tmp_path / comparison
        copy.mkdir()
        for row in rows.values():
            write_run(copy, row)
        archive_runs(copy)
        packed = [gzip.decompress((folder / comparison / ARCHIVE).read_bytes()) for folder in (RESULTS, tmp_path)]
        assert packed[0] == packed[1], comparison


OTHER_METHODS = {
    "fedadam",
    "fedyogi",
    *("fedavg", "fedprox", "scaffold", "moon", "fedntd", "fedlc", "fedetf"),
    *("fedavg+nio", "fedavg+nio-cheap"),
}


def paragraphs(text: str) -> list[list[str]]:
    """Lines of prose and of list items, item by item; no headings, tables, code or pictures."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line or line.startswith(("#", "|", "    ", "![")):
            found.append([])
        elif line.startswith("* "):
            found.append([line])
        else:
            found[-1].append(line)
    return [one for one in found if one]


@pytest.mark.parametrize("kind", ["committed", "full", "empty"])
def test_no_paragraph_is_longer_than_five_lines(kind: str, place: Place) -> None:
    if kind == "full":
        place.fill()
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8") if kind == "committed" else place.page()
    found = paragraphs(text)
    assert len(found) >= 4
    for one in found:
        assert len(one) <= 5, one
        assert max(map(len, one)) <= 120, one


def test_the_page_does_not_depend_on_the_order_in_which_rows_came(tmp_path: Path) -> None:
    said = []
    for turn in (1, -1):
        (tmp_path / str(turn)).mkdir()
        place = Place(tmp_path / str(turn), FILE, ACCURACY)
        for row in place.rows()[::turn]:
            place.put(row)
            if row.seed == turn:  # some in the archive, some not
                archive_runs(place.results / "small")
        said += [place.page(), place.page()]
    assert len(set(said)) == 1


def test_the_figures_of_the_committed_table_of_smoke_tests_are_those_of_the_rows() -> None:
    """Read from the page as a reader does, and computed from the archives without any code of the page."""
    lines = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    head = lines.index("| setting | fednc | best other method | fedavg | fedavg with fednc's read-out |")
    assert head > lines.index("## Smoke tests")
    table = [line.strip("| ").split(" | ") for line in lines[head + 2 : lines.index("", head)]]
    assert len(table) == 14
    ours = {"cpu-ladder": "discriminant"}  # what cpu-ladder calls it
    for setting, *cells in table:
        title, name = setting.rstrip(")").rpartition("(#")[::2]
        plan = read_comparison(CONFIGS / f"{name}.toml")
        what = title.partition(": ")[2].partition(" ([")[0]
        (place,) = (one.name for one in plan.settings if one.title == what)
        by_variant: dict[str, list[float]] = {}
        for row in COMMITTED[name].values():
            if (row["kind"], row["setting"]) == ("final", place):
                by_variant.setdefault(row["variant"], []).append(100 * row["summary"]["last5"])
        said = {variant: f"{fmean(them):.1f} ± {stdev(them):.1f}" for variant, them in by_variant.items()}
        best, told = cells[1].removesuffix(")").split(" (")
        rival, count = told.split(", best of ")
        assert [cells[0], best, cells[2]] == [said[ours.get(name, "fednc")], said[rival], said["fedavg"]]
        assert cells[3] == said.get("fedavg+discriminant", "not run")
        rivals = by_variant.keys() & OTHER_METHODS
        assert int(count) == len(rivals)
        assert max(fmean(by_variant[one]) for one in rivals) == fmean(by_variant[rival])


def items(text: str, *comparisons: str) -> list[str]:
    """The list of findings that have their evidence in these comparisons, one line for each."""
    wanted = "From " + ", ".join(f"[{name}](#{name})" for name in comparisons) + ":"
    found = [one for one in re.split(r"\n(?=From \[)", text) if " ".join(one.split("\n\n")[0].split()) == wanted]
    listed = [block for one in found for block in one.split("\n\n") if block.startswith("* ")]
    return [" ".join(item.split()) for block in listed[:1] for item in block.removeprefix("* ").split("\n* ")]


def test_committed_findings_follow_from_the_rows() -> None:
    """One of each kind, computed here from the archives, without any code of the page."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")

    def accuracy(setting: str, variant: str, seed: int) -> float:
        rows = COMMITTED["cpu-ladder"].values()
        key = ("final", setting, variant, seed)
        (found,) = (r for r in rows if (r["kind"], r["setting"], r["variant"], r["seed"]) == key)
        return float(100 * found["summary"]["last5"])

    settings, seeds = ("dirichlet-0.1", "dirichlet-0.05", "shift"), (1, 2, 3)
    for variant, rival, verdict, name in (
        ("prior", "frame", "pays", "loss that allows for each client's class frequencies (class prior)"),
        ("centre", "prior", "costs", "class means of each batch pulled to the memory in training"),
    ):
        gain = {s: [accuracy(s, variant, n) - accuracy(s, rival, n) for n in seeds] for s in settings}
        pairs = [one for them in gain.values() for one in them]
        interval = {s: stats.t.interval(0.95, 2, fmean(them), stats.sem(them)) for s, them in gain.items()}
        sure = [s for s, (low, high) in interval.items() if low * high > 0 and abs(low + high) > 2 * 0.5]
        means = " / ".join(f"{mean:+.1f}" for mean in sorted(map(fmean, gain.values())))
        assert (
            f"**{verdict}**: {name} (cpu-ladder {means}); ahead in {sum(one > 0 for one in pairs)} of 9 pairs, "
            f"{verdict} in {len(sure)} of 3 settings"
        ) in items(text, "cpu-ladder")


def test_every_list_of_findings_begins_with_the_commands_of_its_comparisons() -> None:
    """The commands are those at the top of the comparison files, read here without any code of the page."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    lists = re.findall(r"^From ((?:[^\n]+\n)+?)\n((?:    .+\n)+)\n\* ", text, re.MULTILINE)
    assert len(lists) >= 8
    assert len(lists) == text.count("\nFrom [")
    for named, code in lists:
        names = re.findall(r"\[([^\]]+)\]\(#", named)
        wanted = [line for name in names for line in commands_of(name)]
        assert [line.strip() for line in code.splitlines()] == wanted


def commands_of(name: str) -> list[str]:
    lines = (CONFIGS / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    found = [line.removeprefix("#").strip() for line in lines if line.startswith("#   fednc compare ")]
    assert any(f"bench/configs/{name}.toml" in line for line in found), "each comparison file says how to run it"
    return found


def test_every_section_of_the_committed_page_has_its_commands_and_smoke_tests_come_last() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    plans = [read_comparison(path) for path in CONFIGS.glob("*.toml")]
    sections = {found[0]: found[1] for found in re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.M | re.S)}
    shown = [plan for plan in plans if plan.name in sections]
    assert {plan.name for plan in shown} == COMMITTED.keys()
    for plan in shown:
        assert all(f"    {line}\n" in sections[plan.name] for line in commands_of(plan.name))
        at = text.index(f"\n## {plan.name}\n")
        assert (at > text.index("\n## Smoke tests\n") > text.index("\n## Speed\n")) == (plan.tier == "smoke")
    assert {plan.name for plan in plans if plan.tier == "smoke"} >= {
        "cpu-smoke",
        "cpu-fashion",
        "cpu-ladder",
        "demo",
    }


def test_every_column_of_the_page_is_explained_once() -> None:
    lines = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    heads = [before for before, line in itertools.pairwise(lines) if line.startswith("|---")]
    columns = {cell.strip() for head in heads for cell in head.strip("|").split("|")}
    speed = lines[lines.index("## Speed") : lines.index("## Smoke tests")]
    columns |= {line.split(" | ")[0].strip("| ") for line in speed if line[:2] == "| "}
    explained = [word for terms in (TERMS, METHODS, COLUMNS, SPEED) for key in terms for word in key.split(", ")]
    plans = [read_comparison(path) for path in CONFIGS.glob("*.toml")]
    clients = {name for one in plans for name in one.data.clients}
    columns = {cell for cell in columns if cell.partition(" (")[0] not in clients}
    columns -= {f"rounds: {one.baseline}" for one in plans}
    columns -= {metric for one in plans for gain in one.gains for metric in gain.against}
    settings = {one.name for path in CONFIGS.glob("*.toml") for one in read_comparison(path).settings}
    plain = {"setting", "best other method", "fedavg with fednc's read-out", "comparison", "results"}
    plain |= {"tuning runs", "not run"}
    plain |= {"command", "own read-out", "fednc's read-out", "below central training", "fednc below central"}
    plain |= {"word", "method", "column", "picture", "meaning", "value", "rounds: fednc", "rounds: fedavg"}
    rates = {column for column in columns if column.replace(".", "").isdecimal()}
    engines = {"raw", "flower", "bare", "REST, JSON", "REST, binary", "gRPC"}
    assert columns - settings - rates - plain - engines - {*explained} - {*SPEED} == set()
    assert len([*METHODS, *TERMS]) == len({*METHODS, *TERMS})


def test_the_list_says_what_pays_and_what_does_not(full: Place) -> None:
    said = full.page()
    whole, part, speed = items(said, "small")
    assert whole == (
        "**leads**: fednc against the best other method (small +20.0 / +20.0); ahead in 4 of 4 pairs, leads in 2 "
        "of 2 settings"
    )
    assert part == (
        "**costs**: the pull (small -10.0 / -10.0); ahead in 0 of 4 pairs, costs in 2 of 2 settings; rivals: "
        "fednc, fedavg"
    )
    assert speed.startswith(
        "in 2 of 2 settings fednc reaches the baseline's best accuracy with every seed, in 100% of"
    )
    assert "fednc against fedavg with fednc's read-out" not in said, "it was not run"
    table = next(line for line in said.splitlines() if line.startswith("| the pull |"))
    assert table.count("costs (best: fednc)") == 2


@pytest.mark.parametrize(
    ("easy", "hard", "verdict", "told"),
    [
        (0.9, 0.9, "pays", "pays in 2 of 2 settings"),
        (0.9, 0.7, "pays", "pays in 1 of 2 settings"),
        (0.9, None, "mixed", "pays in 1 and costs in 1 of 2"),
        (0.7, None, "costs", "costs in 1 of 2"),
        (0.7, 0.7, "no clear difference", "no clear difference in any of 2 settings"),
    ],
)
def test_a_part_is_judged_by_what_its_rows_say(
    easy: float, hard: float | None, verdict: str, told: str, full: Place
) -> None:
    for row in full.rows():
        value = easy if row.setting == "easy" else hard
        if (row.kind, row.variant) == ("final", "pulled") and value:
            full.put(row, value + row.seed / 100 + row.lr / 10)
    said = next(item for item in items(full.page(), "small") if "the pull" in item)
    assert f"**{verdict}**: the pull" in said
    assert told in said


def test_a_method_that_is_behind_is_named(full: Place) -> None:
    for row in full.rows():
        if (row.kind, row.variant, row.setting) == ("final", "fednc", "hard"):
            full.put(row, 0.4)
    behind, speed = items(full.page(), "small")[-2:]
    assert behind == (
        "not clearly ahead of the best other method on [small](#small), hard (-12.5 ± 0.7 against fedavg)"
    )
    assert "in 1 of 2 settings fednc reaches" in speed


def test_rounds_are_compared_with_the_baselines(full: Place) -> None:
    contest = next(line for line in full.page().splitlines() if line.startswith("| easy | fedavg | +"))
    assert contest == "| easy | fedavg | +20.0 ± 0.0 | 2.0 | 2.0 | 1.00 |"


def test_lists_of_figures_have_a_column(full: Place) -> None:
    table = [line for line in full.page().splitlines() if line.startswith("| variant | lr |")]
    assert all("| session_acc |" in line for line in table)
    assert "| 0.25 / 0.75 | 3 |" in full.page(), "shared runs count by their share"


def test_what_is_missing_is_listed_in_one_place_with_its_command(place: Place) -> None:
    link, command = "[small](../bench/configs/small.toml)", "`fednc compare small.toml`"
    assert f"| {link} | 0 of 12 | 0 of 8 | all | {command} |" in place.page()
    assert "Nothing has been measured yet." in place.page()
    assert "| speed: scale | none | - | all | `fednc bench scale` |" in place.page()
    for row in place.rows():
        if row.setting == "easy" and row.variant != "pulled":
            place.put(row)
    said = place.page()
    assert f"| {link} | 4 of 12 | 4 of 8 | easy: 2 runs; hard: 10 runs | {command} |" in said
    assert "### hard" not in said
    assert "| the pull | pulled | fednc, fedavg | not run |" in said
    place.fill()
    assert link not in place.page()


def test_the_committed_page_lists_each_comparison_as_run_or_not_run() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = text.partition("\n## What did not run\n")[2].partition("\n## ")[0]
    for plan in (read_comparison(path) for path in CONFIGS.glob("*.toml")):
        planned = sum(len(plan.tuning.rates) * (not v.rate_like) + len(plan.seeds) for _, v in plan.pairs)
        done = len(COMMITTED.get(plan.name, {}))
        assert (f"[{plan.name}](../bench/configs/{plan.name}.toml)" in table) == (done < planned), plan.name


def test_results_of_an_earlier_version_are_marked_and_replaced_by_new_ones(full: Place) -> None:
    one = next(row for row in full.rows() if row.kind == "final" and row.variant == "fednc")
    (full.results / "small" / one.file_name).unlink()
    changed = RunConfig.model_validate(
        {**one.run.model_dump(), "method": {**one.run.method.model_dump(), "scale": 9.0}}
    )
    older = Row(**{**vars(one), "run": changed})
    full.put(older)
    found = read_folder(full.plan, full.results / "small")
    assert (found.there, found.older) == (19, 1)
    assert "1 of the runs are older than today's comparison file" in full.page()
    full.put(one)
    found = read_folder(full.plan, full.results / "small")
    assert (found.there, found.older) == (20, 0)
    (full.results / "small" / one.file_name).unlink()
    full.put(older)
    full.put(Row(**{**vars(older), "run": changed.model_copy(update={"seed": 77})}))
    with pytest.raises(DataError, match="delete one of them"):
        full.page()


def test_a_gain_is_taken_seed_by_seed_from_the_best_rival(full: Place) -> None:
    compared = read_folder(full.plan, full.results / "small").compared
    assert compared
    easy, hard = gains(compared, "pulled", ["fedavg", "fednc"])
    assert (easy.setting, easy.than, hard.than) == ("easy", "fednc", "fednc")
    assert easy.of_seed == pytest.approx((-10, -10))
    assert gains(compared, "fednc", ["fedavg"])[0].verdict == 1


@pytest.mark.parametrize(
    ("of_seed", "verdict"),
    [
        ((1.2, 2.0, 2.8), 1),
        ((1.0, 2.0, 3.0), 0),
        ((0.4, 0.5, 0.4), 0),
        ((-1.0, -1.02), -1),
        ((-1.0, -1.2), 0),
        ((5.0,), 0),
        ((0.0, 0.0), 0),
    ],
)
def test_a_gain_counts_beyond_its_confidence_interval_and_half_a_point(
    of_seed: tuple[float, ...], verdict: int
) -> None:
    assert Gain("s", of_seed, "x").verdict == verdict


@pytest.mark.parametrize("seeds", range(2, 11))
def test_the_confidence_interval_is_that_of_students_t(seeds: int) -> None:
    """Equal to scipy's, on both sides of the border."""
    around = [(-1.0) ** k for k in range(seeds)]
    around = [value - fmean(around) for value in around]
    border = stats.sem(around) * stats.t.ppf(0.975, seeds - 1)
    for factor, verdict in ((0.99, 0), (1.01, 1)):
        assert Gain("s", tuple(factor * border + value for value in around), "x").verdict == verdict


def test_every_picture_is_shown_once(full: Place) -> None:
    names = ["easy-accuracy", "easy-sessions", "hard-alignment", "initialisation"]
    for name in names:
        (full.results / "small" / f"{name}.png").touch()
    said = full.page()
    assert [said.count(f"(../results/small/{name}.png)") for name in names] == [1] * 4
    assert said.index("easy-sessions") < said.index("### hard") < said.index("hard-alignment")


def test_every_picture_of_a_claim_is_on_the_committed_page() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    drawn = {path.name for path in (RESULTS / "claims").glob("*.png")}
    assert {*re.findall(r"\]\(\.\./results/claims/([^)]+)\)", text)} == drawn
    claims = text.partition("\n## What pays and what does not\n")[2].partition("\n## ")[0]
    assert len(drawn) == len(re.findall(r"^### ", claims, re.MULTILINE))


def test_measurements_have_a_table_with_their_command(place: Place) -> None:
    (place.results / "bench").mkdir()
    machine = {"cpu": "a CPU", "cores": 2, "memory_gib": 4.0}
    told = {"command": "fednc bench fold --json -", "commit": "abc", "machine": machine}
    (place.results / "bench" / "fold.json").write_text(
        json.dumps({**told, "results": [{"ratio": 0.61234, "x": [1]}]})
    )
    rows = [{"clients": 2, "round_s": 0.5}, {"clients": 8, "round_s": 1.25}]
    (place.results / "bench" / "link.json").write_text(json.dumps({**told, "results": rows}))
    said = place.page()
    assert "### fold\n\n    fednc bench fold --json -\n\nCommit abc; hardware a CPU (2 cores, 4.0 GiB)." in said
    assert "| ratio | 0.6123 |" in said
    assert "| speed: fold |" not in said
    assert "| clients | round_s |\n|---|---|\n| 2 | 0.5 |\n| 8 | 1.25 |" in said
