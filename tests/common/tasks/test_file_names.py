"""Names of files that show predictions: each example has its own, also on a disk that ignores capital letters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fednc.common.tasks.file_names import MOST_STEM, file_stem, file_stems

PARTS = st.text("aA.[]_-/1 é", min_size=1, max_size=8)


@given(names=st.lists(PARTS | st.text(max_size=150), max_size=12))
def test_no_two_examples_share_a_file(names: list[str]) -> None:
    found = file_stems(names)
    kept = [stem.casefold().replace("[", "_").replace("]", "_") for stem in found]
    assert len(set(kept)) == len(names)
    assert [file_stem(stem) for stem in found] == found
    for stem in found:
        assert not set(stem) & set("/\\.: ")


def test_names_stay_short_where_they_can() -> None:
    names = ["in/a.png", "in/a.jpg", "in/b.png", "x/c.png", "y/c.png", "d.npz[0]", "d.npz[1]", "Scene 3"]
    assert file_stems(names) == ["a_png", "a_jpg", "b", "x_c_png", "y_c_png", "d_npz[0]", "d_npz[1]", "Scene_3"]
    assert len(file_stem("x" * 300)) == MOST_STEM
