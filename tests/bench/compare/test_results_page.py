"""docs/results.md says what the result files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fednc.bench.compare.gains import Gain, gains
from fednc.bench.compare.plan import Comparison, Row, final_rows, read_comparison, tuning_rows
from fednc.bench.compare.results_folder import read_folder
from fednc.bench.compare.results_page import page
from fednc.common.config.run import RunConfig
from fednc.common.errors import DataError

ROOT = Path(__file__).parents[3]
CONFIGS, RESULTS = ROOT / "bench" / "configs", ROOT / "results"
FILE = """
# What it is about:
#   fednc compare small.toml
name = "small"
seeds = [1, 2]
baseline = "fedavg"
[data]
source = "digits"
[tuning]
rates = [0.01, 0.1]
[run.task]
classes = ["a", "b"]
[run.split]
parts = 2
[[settings]]
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


def result(row: Row, accuracy: float) -> dict[str, Any]:
    machine = {"cpu": "a CPU", "cores": 2, "torch": "2"}
    rounds = [{"round": 1, "accuracy": accuracy / 2}, {"round": 2, "accuracy": accuracy}]
    return {
        "digest": row.digest,
        "kind": row.kind,
        "setting": row.setting,
        "variant": row.variant,
        "seed": row.seed,
        "lr": row.lr,
        "failed": "",
        "summary": {"last5": accuracy, "best": accuracy, "session_acc": [0.25, 0.75]},
        "rounds": rounds,
        "duration_s": 9,
        "shared_by": 3,
        "command": "fednc compare small.toml",
        "commit": "abc",
        "machine": machine,
        "device": "cpu",
        "data_sha256": row.data_sha256,
        "config": {},
    }


class Place:
    """A folder of comparison files and one of results, small enough to write by hand."""

    def __init__(self, folder: Path) -> None:
        self.configs, self.results = folder / "configs", folder / "results"
        self.configs.mkdir()
        (self.results / "small").mkdir(parents=True)
        (self.configs / "small.toml").write_text(FILE.lstrip())

    @property
    def plan(self) -> Comparison:
        return read_comparison(self.configs / "small.toml")

    def rows(self) -> list[Row]:
        tuning = tuning_rows(self.plan, "t")
        return [*tuning, *final_rows(self.plan, {(row.setting, row.variant): 0.1 for row in tuning}, "f")]

    def put(self, row: Row, accuracy: float | None = None, name: str = "") -> None:
        value = ACCURACY[row.variant] + row.seed / 100 + row.lr / 10 if accuracy is None else accuracy
        (self.results / "small" / (name or row.file_name)).write_text(json.dumps(result(row, value)))

    def page(self) -> str:
        return page(self.configs, self.results)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def full(place: Place) -> Place:
    for row in place.rows():
        place.put(row)
    return place


def test_the_committed_page_is_what_the_results_say() -> None:
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page(CONFIGS, RESULTS), (
        "run `make results`"
    )


COMMITTED = [
    path
    for path in sorted(RESULTS.glob("*/*.json"))
    if path.parent.name != "bench" and "digest" in path.read_text()
]


def digest_of(row: dict[str, Any], config: dict[str, Any]) -> str:
    return Row(
        kind=row["kind"],
        setting=row["setting"],
        variant=row["variant"],
        seed=row["seed"],
        lr=row["lr"],
        run=RunConfig.model_validate(config),
        data_sha256=row["data_sha256"],
    ).digest


def test_committed_rows_are_named_by_the_digest_of_the_run_that_they_hold() -> None:
    """If the digest changed with the code, earlier results would no longer belong to their rows."""
    assert COMMITTED
    for path in COMMITTED:
        row = json.loads(path.read_bytes())
        config = row["config"]
        init = config.get("init", {})
        if init.get("kind") == "ordinary" and init.get("gain", 1.0) == 1.0 and not init.get("report"):
            # The first rows also held defaults without any effect.
            config = {key: value for key, value in config.items() if key != "init"}
        assert digest_of(row, config) == row["digest"], path.name


def test_committed_rows_hold_no_machine_s_paths() -> None:
    for path in COMMITTED:
        told = json.loads(path.read_bytes())
        assert "/" not in told["command"].replace("bench/configs/", ""), path.name
        assert told["config"]["evaluate"]["test"] in ("npz:{data}", ""), path.name


def test_what_does_not_pay_comes_first(full: Place) -> None:
    lines = full.page().splitlines()
    assert lines[2] == (
        "**fednc takes more than 50% of the baseline's rounds to the baseline's best on:** small, easy (100%); "
        "small, hard (100%)."
    )
    assert lines[4] == "**What does not pay:** the pull (-10.0 ± 0.0 on easy, -10.0 ± 0.0 on hard)."
    assert lines[6].startswith("**fednc is ahead of the best other method on:** small, easy (+20.0 ± 0.0 points")
    table = next(line for line in lines if line.startswith("| the pull |"))
    assert table.count("costs (best: fednc)") == 2


def test_a_method_that_is_behind_is_named_before_all(full: Place) -> None:
    for row in full.rows():
        if (row.kind, row.variant, row.setting) == ("final", "fednc", "hard"):
            full.put(row, 0.4)
    said, _, slow = full.page().splitlines()[2:5]
    assert said.startswith("**fednc is not ahead of the best other method on:** small, hard (")
    assert "against fedavg" in said
    assert "easy" not in said
    assert "small, hard (not reached with every seed)" in slow


def test_rounds_are_compared_with_the_baselines(full: Place) -> None:
    contest = next(line for line in full.page().splitlines() if line.startswith("| easy | fedavg |"))
    assert contest == "| easy | fedavg | +20.0 ± 0.0 | 2.0 | 2.0 | 1.00 |"


def test_lists_of_figures_have_a_column(full: Place) -> None:
    table = [line for line in full.page().splitlines() if line.startswith("| variant | lr |")]
    assert all("| session_acc |" in line for line in table)
    assert "| 0.25 / 0.75 | 3 |" in full.page(), "shared runs count by their share"


def test_what_is_missing_is_listed_as_not_run(place: Place) -> None:
    assert "| 0 of 20 | not run |" in place.page()
    assert "Nothing has been measured yet." in place.page()
    assert "| `fednc bench scale` | none | not run |" in place.page()
    for row in place.rows():
        if row.setting == "easy" and row.variant != "pulled":
            place.put(row)
    said = place.page()
    assert "| 8 of 20 | partly run |" in said
    assert "### hard" not in said
    assert "| the pull | pulled | fednc, fedavg | not run |" in said


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
    full.put(older, name="again.json")
    with pytest.raises(DataError, match="delete the older one"):
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
        ((1.0, 2.0, 3.0), 1),
        ((0.5, 2.0, 3.5), 1),
        ((0.0, 2.0, 4.0), 0),
        ((0.4, 0.5, 0.4), 0),
        ((-1.0, -1.2), -1),
        ((5.0,), 0),
        ((0.0, 0.0), 0),
    ],
)
def test_a_gain_counts_beyond_two_standard_errors_and_half_a_point(
    of_seed: tuple[float, ...], verdict: int
) -> None:
    assert Gain("s", of_seed, "x").verdict == verdict


def test_every_picture_is_shown_once(full: Place) -> None:
    names = ["easy-accuracy", "easy-sessions", "hard-alignment", "initialisation"]
    for name in names:
        (full.results / "small" / f"{name}.png").touch()
    said = full.page()
    assert [said.count(f"(../results/small/{name}.png)") for name in names] == [1] * 4
    assert said.index("easy-sessions") < said.index("### hard") < said.index("hard-alignment")


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
    assert "## fold\n\n    fednc bench fold --json -\n\nCommit abc; a CPU, 2 cores, 4.0 GiB." in said
    assert "| ratio | 0.6123 |" in said
    assert "| `fednc bench fold` | fold | complete |" in said
    assert "| clients | round_s |\n|---|---|\n| 2 | 0.5 |\n| 8 | 1.25 |" in said
