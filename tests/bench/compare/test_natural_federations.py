"""Comparisons whose clients have data of their own: what each trains and is tested on, and what the page says."""

from __future__ import annotations

import tomllib
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fednc.bench.compare import natural
from fednc.bench.compare.engine import compare
from fednc.bench.compare.gains import chosen
from fednc.bench.compare.plan import Comparison, tuning_rows
from fednc.bench.compare.prepared_data import prepare
from fednc.bench.compare.report import Compared, last5
from fednc.bench.compare.results_page import page
from fednc.bench.compare.rows import Bench
from fednc.bench.compare.training import averaged
from fednc.common.errors import ConfigError, DataError

FILE = """
# What it is about:
name = "sites"
seeds = [1, 2]
baseline = "fedavg"
published_by = "nobody"
[data]
source = "npz:{digits}?only=site={client}"
clients = { north = "0", south = "1", west = "2" }
[tuning]
rates = [0.1]
repeats = 2
[run.task]
name = "image"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
size = 8
channels = 1
width = 8
[run.frame]
dim = 16
[run.train]
batch = 32
[run.rounds]
total = 2
[run.evaluate]
test_share = 0.25
[[settings]]
name = "natural"
[[variants]]
name = "pooled"
clients = "pooled"
method.name = "fedavg"
[[variants]]
name = "alone"
clients = "alone"
method.name = "fedavg"
[[variants]]
name = "south"
clients = "south"
rate_like = "alone"
method.name = "fedavg"
[[variants]]
name = "fedavg"
method.name = "fedavg"
[[variants]]
name = "fednc"
method.name = "fednc"
[[variants]]
name = "fednc+vertex"
method.name = "fednc"
method.readout = "vertex"
[[choices]]
name = "best"
among = ["fednc", "fednc+vertex"]
[[published]]
name = "Theirs"
pooled = 0.01
mean = 0.02
[[published]]
name = "Perfect"
beside = "fedavg"
pooled = 1.0
"""
SIZES = {"north": 150, "south": 80, "west": 40}


def plan(text: str = FILE) -> Comparison:
    return Comparison.model_validate(tomllib.loads(text))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = load_digits()
    site = np.repeat(np.arange(3), list(SIZES.values()))
    x = (found.images[: len(site)] / 16).astype(np.float32)
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, x_train=x, y_train=found.target[: len(site)], site=site)
    return str(path)


@pytest.fixture(scope="module")
def done(digits: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compared]:
    folder = tmp_path_factory.mktemp("results") / "sites"
    shares: list[float] = []
    compared = compare(plan(), {"digits": digits}, Bench(folder=folder, command="x"), shares.append)
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    return folder, compared


def one(compared: Compared, variant: str, seed: int = 1) -> dict[str, Any]:
    return next(row for row in compared.of("natural", variant) if row["seed"] == seed)


def test_each_client_has_its_own_data_and_tuning_never_sees_the_test_part(digits: str, tmp_path: Path) -> None:
    tuning, final = prepare(plan(), {"digits": digits}, tmp_path)
    assert len(tuning.repeats) == 2
    whole = np.load(final.path)
    files = {name: np.load(path) for name, path in final.clients.items()}
    assert {name: len(file["y_train"]) + len(file["y_test"]) for name, file in files.items()} == SIZES
    for key in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(whole[key], np.concatenate([file[key] for file in files.values()])), key
    test = {image.tobytes() for image in whole["x_test"]} - {image.tobytes() for image in whole["x_train"]}
    held = []
    for repeat in tuning.repeats:
        for name, path in repeat.clients.items():
            file = np.load(path)
            seen = {image.tobytes() for part in ("x_train", "x_test") for image in file[part]}
            assert not seen & test, "a test image in the data for tuning"
            assert len(file["y_train"]) + len(file["y_test"]) == len(files[name]["y_train"])
        held.append(np.load(repeat.path)["x_test"].tobytes())
    assert held[0] != held[1], "the same validation part twice"


def test_the_metric_of_all_test_examples_is_that_of_the_clients_together(done: tuple[Path, Compared]) -> None:
    for row in done[1].final:
        clients = row["clients"].values()
        total = sum(client["examples"] for client in clients)
        together = sum(client["examples"] * client["last5"] for client in clients) / total
        assert row["summary"]["last5"] == pytest.approx(together, abs=2e-6), row["variant"]
        assert row["summary"]["client mean"] == pytest.approx(fmean(c["last5"] for c in clients), abs=2e-6)
        assert row["summary"]["worst of clients"] == min(client["last5"] for client in clients)


def test_alone_is_for_each_client_the_model_that_it_trains_by_itself(done: tuple[Path, Compared]) -> None:
    for seed in (1, 2):
        alone, south = one(done[1], "alone", seed), one(done[1], "south", seed)
        assert alone["lr"] == south["lr"]
        assert alone["clients"]["south"] == south["clients"]["south"]
        assert alone["clients"]["north"] != south["clients"]["north"], "tested with the model of another client"
        assert alone["trained_on"] == "alone"
    assert len({row["digest"] for row in done[1].final}) == len(done[1].final)


def test_a_tuning_row_is_the_mean_of_its_validation_splits(done: tuple[Path, Compared]) -> None:
    assert all(row["validation_splits"] == 2 for row in done[1].tuning)
    metric = {"name": "accuracy"}
    rows = [
        {"failed": "", "summary": {"metric": metric, "last5": v, "best": v, "accuracy": v}} for v in (0.25, 0.75)
    ]
    assert averaged(rows)["summary"]["last5"] == 0.5
    failed = {"failed": "diverged", "summary": {"metric": metric}}
    assert averaged([rows[0], failed]) == failed


def test_validation_data_chooses_among_variants(done: tuple[Path, Compared]) -> None:
    compared = done[1]
    name = chosen(compared, "natural", plan().choices[0])
    best = {
        variant: max(last5(row, compared.metric) for row in compared.tuning if row["variant"] == variant)
        for variant in ("fednc", "fednc+vertex")
    }
    assert best[name] == max(best.values())


def test_the_page_has_each_client_and_says_what_follows_from_the_rows(
    done: tuple[Path, Compared], tmp_path: Path
) -> None:
    folder, compared = done
    (tmp_path / "sites.toml").write_text(FILE.lstrip())
    text = page(tmp_path, folder.parent)
    name = chosen(compared, "natural", plan().choices[0])
    value = 100 * fmean(last5(row, compared.metric) for row in compared.of("natural", name))
    flat = " ".join(text.split())
    size = {name: client["examples"] for name, client in compared.final[0]["clients"].items()}
    heads = " | ".join(f"{name} ({count})" for name, count in size.items())
    assert f"| variant | {heads} | pooled | mean |" in text
    assert f"best (of 2, validation data chose {name}) has {value:.1f} pooled and" in flat
    assert f"{sum(size.values())} test examples, so a standard error of" in flat
    assert (
        f"* Above Theirs as published (1.0) by {value - 1:.1f} points, as the mean over the clients above" in flat
    )
    assert f"* Below Perfect as published (100.0) by {100 - value:.1f} points" in flat
    assert "Of 3 clients" in flat
    assert "![natural: clients](../results/sites/natural-clients.png)" in text
    assert (folder / "natural-clients.png").stat().st_size > 5000
    assert "| Theirs (published) | - | - | 1.0 | 2.0 |" in text


def test_a_difference_within_the_error_of_the_test_data_is_not_called_one(done: tuple[Path, Compared]) -> None:
    _, compared = done
    name = chosen(compared, "natural", plan().choices[0])
    value = fmean(last5(row, compared.metric) for row in compared.of("natural", name))
    near = plan(FILE.replace("pooled = 0.01", f"pooled = {value - 0.001}"))
    said = list(
        natural.against_published(
            Compared(plan=near, tuning=compared.tuning, rates=compared.rates, final=compared.final), "natural"
        )
    )
    assert said[0].endswith("pooled, the test data is too small to call it a difference.")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("?only=site={client}", "", "go together"),
        ("[tuning]", "train_examples = 20\n[tuning]", "leave out train_examples"),
        ('west = "2"', 'alone = "2"', "'alone' cannot be the name of a client"),
        ('clients = "south"', 'clients = "east"', "'east' of 'south' is not a client"),
        ("[run.train]", "[run.split]\nparts = 3\n[run.train]", "names natural clients: leave it out"),
        (
            'among = ["fednc", "fednc+vertex"]',
            'among = ["fednc", "south"]',
            "'south', which is not a tuned variant",
        ),
        ('beside = "fedavg"', 'beside = "fedprox"', "'fedprox' is not a variant or a choice"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(FILE.replace(old, new))


def test_clients_whose_data_does_not_fit_together_are_refused(digits: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has site = '7'; there are 0, 1, 2"):
        prepare(plan(FILE.replace('west = "2"', 'west = "7"')), {"digits": digits}, tmp_path)
    with pytest.raises(ConfigError, match="add --data digits=PATH"):
        prepare(plan(), {}, tmp_path)


def test_methods_with_equal_keys_are_different_runs() -> None:
    """fedadam and fedyogi have the same keys, fedavg and fednova have the same keys: only the code differs."""
    names = ("fedavg", "fednova", "fedadam", "fedyogi")
    variants = "".join(f'[[variants]]\nname = "{name}"\nmethod.name = "{name}"\n' for name in names)
    head = FILE[: FILE.index("[[variants]]")]
    rows = tuning_rows(plan(head + variants), "data")
    assert len({row.digest for row in rows}) == len({row.training for row in rows}) == len(rows) == 4
