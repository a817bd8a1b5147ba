"""Reading signals: windows are cut as they should be, and what does not fit is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.errors import DataError
from fednc.tasks.signal.options import SignalOptions
from fednc.tasks.signal.sources.select import read
from fednc.tasks.signal.sources.windows import cut, unused_samples
from fednc.tasks.signal.suggest import suggest
from support.signal_files import CHANNELS, CLASSES, TASK, WINDOW, recording, write_csv, write_folder, write_npz


def options(**changes: Any) -> SignalOptions:
    return SignalOptions(**{**{key: value for key, value in TASK.items() if key != "name"}, **changes})


@settings(deadline=None)
@given(length=st.integers(0, 60), window=st.integers(1, 20), step=st.integers(1, 25))
def test_windows_are_all_whole_stretches_at_the_stride(length: int, window: int, step: int) -> None:
    signal_LC = np.arange(2 * length).reshape(length, 2)
    expected, start, covered = [], 0, set[int]()
    while start + window <= length:
        expected.append([signal_LC[start + t].tolist() for t in range(window)])
        covered |= set(range(start, start + window))
        start += step
    assert cut(signal_LC, window, step).tolist() == expected
    assert unused_samples(length, window, step) == length - len(covered)


def test_a_folder_of_recordings_is_cut_and_the_remainder_is_said(tmp_path: Path) -> None:
    spec = write_folder(tmp_path / "data", samples=200)
    (tmp_path / "data" / "readme.txt").write_text("no recording")
    found = read(spec, "train", options(stride=16))
    per_recording = (200 - WINDOW) // 16 + 1
    assert found.label_N == ("fast",) * 2 * per_recording + ("slow",) * 2 * per_recording
    first = recording(1, 0, 200, 0)  # `fast` comes first
    assert np.allclose(found.window_NTC[3], first[48 : 48 + WINDOW], rtol=1e-6)
    assert found.names[3].endswith("fast/0.csv[48:80]")
    assert f"4 recordings were cut into {4 * per_recording} windows" in found.notes[0]
    assert f"{4 * 8} samples are in no window" in found.notes[0]
    assert any("1 files that are not csv recordings" in note for note in found.notes)


def test_labels_may_be_in_a_column_or_in_a_file(tmp_path: Path) -> None:
    both = np.concatenate([recording(0, 0, 80), recording(1, 0, 80)])
    write_csv(tmp_path / "one" / "a.csv", both, what=["slow"] * 80 + ["fast"] * 80)
    found = read(f"csv:{tmp_path / 'one'}?columns=label=what", "train", options())
    assert found.label_N == ("slow", "slow", "fast", "fast")
    assert any("1 windows in which 'what' changes" in note for note in found.notes)
    for name in ("a", "b"):
        write_csv(tmp_path / "two" / f"{name}.csv", recording(0, 0, 70))
    (tmp_path / "two" / "labels.csv").write_text("file,label,subject\nb.csv,fast,7\na.csv,slow,8\n")
    assert read(f"csv:{tmp_path / 'two'}", "train", options()).label_N == ("fast", "fast", "slow", "slow")
    only = read(f"csv:{tmp_path / 'two'}?only=subject=8", "train", options())
    assert only.label_N == ("slow", "slow")
    assert all("a.csv" in name for name in only.names)


def test_parquet_holds_many_recordings_in_one_file(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    parts = [recording(label, 0, samples) for label, samples in ((0, 70), (1, 40), (0, 20))]
    table = pandas.DataFrame(np.concatenate(parts), columns=list(CHANNELS))
    table["take"] = ["a"] * 70 + ["b"] * 40 + ["c"] * 20
    table["what"] = ["slow"] * 70 + ["fast"] * 40 + ["slow"] * 20
    table["subject"] = [1] * 70 + [2] * 60
    table.to_parquet(tmp_path / "all.parquet")
    spec = f"parquet:{tmp_path / 'all.parquet'}?columns=recording=take,label=what"
    found = read(spec, "train", options())
    assert found.label_N == ("slow", "slow", "fast")
    assert np.allclose(found.window_NTC[2], parts[1][:WINDOW], rtol=1e-6), "no window spans two recordings"
    assert any("1 recordings shorter than a window" in note for note in found.notes)
    assert read(f"{spec}&only=subject=2", "train", options()).label_N == ("fast",)


def test_integers_are_scaled_channel_by_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values, scale = rng.integers(-900, 900, (6, WINDOW, 2)).astype(np.int16), np.array([0.5, 0.001])
    np.savez(tmp_path / "s.npz", X_int=values, scale=scale, y=np.array([1, 2, 1, 2, 1, 2], np.int8))
    spec = f"npz:{tmp_path / 's.npz'}?columns=signal=X_int,label=y&class-names=none,slow,fast"
    found = read(spec, "train", options())
    assert np.array_equal(found.window_NTC, (values * scale).astype(np.float32))
    assert found.label_N == ("slow", "fast") * 3


def test_one_owner_of_a_file_gets_only_its_own_windows(tmp_path: Path) -> None:
    subject = np.repeat([3, 12, 7, 3], 10)
    spec = write_npz(tmp_path / "all.npz", 0, 20, subject=subject)
    whole = read(spec, "train", options())
    found = read(f"{spec}?only=subject=3", "train", options())
    assert np.array_equal(found.window_NTC, whole.window_NTC[subject == 3])
    two = read(f"{spec}?only=subject=3,subject=7", "train", options())
    assert len(two.names) == 30
    with pytest.raises(DataError, match=r"no row has subject = '5'; there are 3, 7, 12"):
        read(f"{spec}?only=subject=5", "train", options())
    with pytest.raises(
        DataError, match="has no array 'person' for `only`; there are classes, person_test, subject"
    ):
        read(
            f"{write_npz(tmp_path / 'b.npz', 0, subject=subject, person_test=subject)}?only=person=5",
            "train",
            options(),
        )


def test_the_division_is_the_same_for_the_server_and_for_each_owner_and_nothing_overlaps(tmp_path: Path) -> None:
    """Windows at half a stride: those beside a test window share samples with it."""
    subject = np.repeat([1, 2, 1, 2], 20)
    place = write_npz(tmp_path / "all.npz", 0, 40, subject=subject)
    spec, half = f"{place}?columns=group=subject", options(stride=WINDOW // 2)
    test = set(read(spec, "test", half, 0.25).names)
    trained = set(read(spec, "train", half, 0.25).names)
    of_owners = [set(read(f"{spec}&only=subject={one}", "train", half, 0.25).names) for one in (1, 2)]
    assert len(test) == 20
    assert not test & trained
    assert set.union(*of_owners) == trained
    assert all(of_owners)
    number = {name: int(name.rpartition("[")[2][:-1]) for name in test | trained}
    for name in trained:
        place = number[name]
        beside = [
            other for other in test if abs(number[other] - place) <= 1 and subject[number[other]] == subject[place]
        ]
        assert not beside, "a training window next to a test window of the same person"
    assert len(trained) == 80 - 20 - 4, "one window before each of four test parts is dropped"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x_train": np.full((4, WINDOW, 2), np.nan)}, r"256 values are missing.*at \[0, 0\] of channel 'left'"),
        ({"x_train": np.zeros((4, WINDOW, 3))}, r"3 channels, but this run's windows have 2 \(left, right"),
        ({"x_train": np.zeros((4, 20, 2))}, r"windows of 20 samples, but this run's have 32 \(task.window\)"),
        ({"x_train": np.zeros((4, WINDOW))}, r"expected numbers \[N, T, C\]"),
        ({"y_train": np.array([0, 1, 5, 0])}, r"labels 0 to 5, but the 2 names are for labels 0 to 1: slow, fast"),
        ({"y_train": np.array([0.0, 1, 0, 0])}, r"expected whole numbers or names \[4\]"),
        ({"x_train": np.zeros((4, WINDOW, 2), np.int16), "scale": np.ones(3)}, "one for each of the 2 channels"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    fine = {"x_train": np.zeros((4, WINDOW, 2)), "y_train": np.array([0, 1, 0, 0]), "classes": np.array(CLASSES)}
    np.savez(tmp_path / "x.npz", **{**fine, **change})
    with pytest.raises(DataError, match=said):
        read(f"npz:{tmp_path / 'x.npz'}", "train", options())


def test_recordings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(spec: str, said: str, **changes: Any) -> None:
        with pytest.raises(DataError, match=said):
            read(spec, "train", options(**changes))

    short = write_csv(tmp_path / "short" / "slow" / "a.csv", recording(0, 0, 20))
    refused(f"csv:{tmp_path / 'short'}", "all 1 recordings are shorter than a window of 32")
    refused(f"csv:{short}", "windows have no label|shorter")
    holes = write_csv(tmp_path / "holes" / "slow" / "a.csv", recording(0, 0, 40))
    lines = holes.read_text().splitlines()
    holes.write_text("\n".join([*lines[:5], "," + lines[5].split(",")[1], *lines[6:]]))
    refused(f"csv:{tmp_path / 'holes'}", "row 5 of column 'left' is ''")
    holes.write_text("\n".join([*lines[:5], "nan," + lines[5].split(",")[1], *lines[6:]]))
    refused(f"csv:{tmp_path / 'holes'}", r"1 values are missing.*at \[4\] of channel 'left'")
    refused(
        write_folder(tmp_path / "fine"),
        "no column 'up' for a channel.*it has left, right",
        channels=["left", "up"],
    )
    refused(f"csv:{tmp_path / 'fine' / 'slow'}", "windows have no label.*labels.csv.*columns=label=NAME")
    refused(f"csv:{tmp_path / 'fine'}?columns=label=what", "no column 'what', which the data spec names")
    refused(f"csv:{tmp_path / 'fine'}?only=subject=1", "no column 'subject' for `only`")
    refused(f"csv:{tmp_path / 'fine'}?columns=image=what", "are for label, recording, not 'image'")
    refused(f"csv:{tmp_path / 'gone'}", "no such file or folder")
    refused("digits", "expected npz:PATH, csv:PATH or parquet:PATH")


def test_data_without_a_test_part_is_not_tested_on(tmp_path: Path) -> None:
    spec = write_folder(tmp_path)
    with pytest.raises(DataError, match=r"has no test part.*evaluate\.test_share"):
        read(spec, "test", options())
    assert len(read(spec, "test", options(), 1).names) == len(read(spec, "train", options()).names)


def test_init_suggests_what_the_data_has(tmp_path: Path) -> None:
    found = suggest(write_folder(tmp_path / "csv")).options
    assert found == {"classes": ["fast", "slow"], "channels": list(CHANNELS), "window": 128}
    found = suggest(write_npz(tmp_path / "a.npz", 0)).options
    assert found == {"classes": list(CLASSES), "channels": ["channel 1", "channel 2"], "window": WINDOW}
