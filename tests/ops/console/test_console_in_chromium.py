"""The console in Debian's Chromium: the link logs in, the policy breaks nothing, hostile names do nothing."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fednc.bench.chromium import chromium
from fednc.ops.console.desk import Sights
from support.console_browser import RunningConsole, look
from support.console_states import HOSTILE, write_run

pytestmark = pytest.mark.skipif(not chromium(), reason="Chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "wards", rounds=8, clients=["site-0", HOSTILE], classes=["cup", HOSTILE, "mug"])
    with RunningConsole(Sights(runs=[folder])) as running:
        yield running


def test_the_link_logs_in_and_the_script_refreshes_the_page(console: RunningConsole) -> None:
    seen = look(console, "/")
    assert not seen.complaints
    assert '<span class="name">wards</span>' in seen.dom
    assert console.key not in seen.dom
    assert 'data-look="light' in seen.dom, "the script has fetched the parts"
    assert 'id="lost" hidden' in seen.dom


def test_hostile_names_stay_text(console: RunningConsole) -> None:
    for path in ("/", "/runs"):
        seen = look(console, path)
        assert not seen.complaints
        assert "<script>alert" not in seen.dom
        assert "onerror=alert(2)>" not in seen.dom.replace("&gt;", "")
    assert "&lt;script&gt;alert(1)" in look(console, "/").dom


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1440, False)])
def test_it_can_be_drawn(console: RunningConsole, tmp_path: Path, width: int, dark: bool) -> None:
    picture = tmp_path / "run.png"
    seen = look(console, "/", width=width, height=1000, dark=dark, to=picture)
    assert not seen.complaints
    assert struct.unpack(">II", picture.read_bytes()[16:24]) == (width, 1000)
    from PIL import Image

    with Image.open(picture) as image:
        shown = image.convert("L")
        corner = shown.getpixel((3, 990))
        assert isinstance(corner, int)
        assert (corner < 60) is dark
        assert len(set(shown.tobytes())) > 60, "it is not an empty page"
