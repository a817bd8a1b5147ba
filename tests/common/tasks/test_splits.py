"""Simulated splits: every example in exactly one part, the same index everywhere, nothing left out silently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fednc.common.config.tables import SplitSection
from fednc.common.errors import DataError, MissingExtraError
from fednc.common.tasks import splits
from fednc.common.tasks.splits import split_digest, split_index
from fednc.common.tasks.tensor_data import hold_out_index
from fednc.tasks.vision.shifts import ImageSplit


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "fednc" / "splits"


def labels_of(examples: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, examples)


def cut(kind: str, parts: int, seed: int = 0, **other) -> SplitSection:
    return SplitSection(kind=kind, parts=parts, seed=seed, **other)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["dirichlet", "shards", "iid"]),
    parts=st.integers(1, 15),
    alpha=st.floats(0.1, 10),
    classes_per_part=st.integers(1, 5),
    examples=st.integers(200, 600),
    classes=st.integers(2, 12),
    seed=st.integers(0, 1000),
)
def test_every_example_is_in_exactly_one_part(kind, parts, alpha, classes_per_part, examples, classes, seed):
    labels = labels_of(examples, classes, seed)
    split = cut(kind, parts, seed, alpha=alpha, classes_per_part=classes_per_part)
    try:
        index = split_index(labels, split)
    except DataError:
        if kind == "dirichlet" and alpha < 1:
            reject()  # that many parts cannot all get something; the refusal is tested below
        raise
    assert len(index) == parts
    assert min(map(len, index)) >= splits.SMALLEST_PART
    np.testing.assert_array_equal(np.sort(np.concatenate(index)), np.arange(examples))


def skew(index: list[np.ndarray], labels: np.ndarray) -> float:
    """Mean share of a part's most frequent class."""
    return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in index]))


def test_smaller_alpha_is_more_skewed_and_iid_is_not():
    labels = np.sort(labels_of(2000, 10))  # sorted, as files often are, so iid must shuffle
    skews = [
        np.mean([skew(split_index(labels, cut("dirichlet", 5, seed, alpha=alpha)), labels) for seed in range(5)])
        for alpha in (0.1, 1.0, 100.0)
    ]
    assert skews[0] > skews[1] + 0.1 > skews[2] + 0.2
    assert skew(split_index(labels, cut("iid", 5)), labels) < 0.2


def test_shards_hold_few_classes():
    labels = np.repeat(np.arange(10), 100)
    index = split_index(labels, cut("shards", 10, classes_per_part=2))
    assert all(len(part) == 100 and len(np.unique(labels[part])) <= 2 for part in index)
    assert split_digest(index) != split_digest(split_index(labels, cut("shards", 10, seed=1)))


def test_a_split_is_read_from_the_cache_unless_it_is_damaged(cache, monkeypatch):
    labels, split = labels_of(300, 7, seed=5), cut("dirichlet", 3, alpha=0.5)
    before = set(cache.glob("*"))
    first = split_index(labels, split)
    (file,) = set(cache.glob("*")) - before
    with monkeypatch.context() as patch:
        patch.setattr(splits, "_partition", lambda *_: pytest.fail("partitioned again"))
        assert split_digest(split_index(labels, split)) == split_digest(first)
    with np.load(file) as saved:
        size = saved["size"]
    for damaged in (b"", file.read_bytes()[:200]):
        file.write_bytes(damaged)
        assert split_digest(split_index(labels, split)) == split_digest(first)
    np.savez(file, position=np.zeros(len(labels), dtype=np.int64), size=size)
    assert split_digest(split_index(labels, split)) == split_digest(first)


def test_shift_settings_do_not_change_the_split_but_labels_do():
    labels, split = labels_of(300, 5), cut("dirichlet", 3, alpha=1)
    turned = ImageSplit.model_validate({**split.model_dump(), "sites": 2, "shift": {"rotation_deg": 30}})
    other = labels.copy()
    other[0] = (other[0] + 1) % 5
    assert splits._key(labels, split) == splits._key(labels, turned)
    assert splits._key(labels, split) != splits._key(other, split)


def test_a_read_only_cache_is_not_an_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(split_index(labels_of(50, 3), cut("iid", 2))) == 2


def test_every_split_reports_what_it_used(caplog):
    with caplog.at_level("INFO", logger=splits.__name__):
        for _ in range(2):  # made, then read from the cache
            split_index(labels_of(70, 3), cut("iid", 2))
    assert [r.getMessage() for r in caplog.records] == [
        "split iid into 2 parts: 70 of 70 examples used, 0 dropped, smallest part 35"
    ] * 2


def test_dropped_examples_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(splits, "_iid", lambda *_: [np.arange(10), np.arange(8, 30)])
    with pytest.raises(DataError, match="uses 30 of 40 examples, drops 10, deals 2 twice"):
        split_index(np.zeros(40), cut("iid", 2))
    assert not list(Path(tmp_path).rglob("*.npz"))


def test_too_many_parts_are_refused():
    with pytest.raises(DataError, match="50 parts of at least 2 need 100 examples, but there are 99"):
        split_index(np.zeros(99), cut("iid", 50))
    with pytest.raises(DataError, match="larger alpha or fewer parts"):
        split_index(np.zeros(60), cut("dirichlet", 30, alpha=0.05))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    def missing(_: str) -> str:
        raise splits.PackageNotFoundError

    monkeypatch.setattr(splits, "version", missing)
    with pytest.raises(MissingExtraError, match=r"fednc\[demo\]"):
        split_index(labels_of(50, 3), cut("iid", 2))


@settings(deadline=None)
@given(
    examples=st.integers(0, 120),
    classes=st.integers(1, 8),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_hold_out_is_disjoint_stratified_and_leaves_one(examples, classes, share, seed):
    labels = labels_of(examples, classes, seed)
    rest, held = hold_out_index(labels, share, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, held])), np.arange(examples))
    assert len(rest) >= min(1, examples)
    assert len(held) == max(0, min(examples - 1, int(np.ceil(share * examples - 1e-9))))
    part = len(held) / max(1, examples)
    for c in range(classes):
        assert abs(np.sum(labels[held] == c) - part * np.sum(labels == c)) < 1
    np.testing.assert_array_equal(held, hold_out_index(labels, share, seed)[1])


def test_hold_out_depends_on_its_seed():
    labels = labels_of(200, 4)
    assert not np.array_equal(hold_out_index(labels, 0.3, 1)[1], hold_out_index(labels, 0.3, 2)[1])
