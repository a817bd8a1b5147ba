"""The claims of the long comparisons: for each its verdict, its gains and one picture, and the commands.

Called by `results_page.py`. The claims are the findings, so all of them come from the rows by stated rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fednc.bench.compare import plots
from fednc.bench.compare.file_comment import code
from fednc.bench.compare.findings import Finding, paragraph, span
from fednc.bench.compare.gains import POINTS
from fednc.bench.compare.plan import Setting
from fednc.bench.compare.report import Compared

FOLDER = "claims"  # of the pictures, beside the folders of the comparisons
_WORDS = 8  # of a claim in the name of its picture


def section(claims: Sequence[Finding], configs: Path, pictures: Path) -> Iterator[str]:
    """The commands that give the rows of all claims, then the claims, without those that repeat another.

    Args:
        claims: in the order of the page.
        configs: folder of comparison files.
        pictures: folder in which `draw` has drawn.
    """
    yield from _commands(claims, configs)
    for claim in _distinct(claims):
        yield from [f"### {claim.name}", "", *paragraph(f"{_told(claim)}; {claim.counts}."), ""]
        if (pictures / _file(claim)).exists():
            yield from [f"![{claim.name}](../results/{FOLDER}/{_file(claim)})", ""]


def _commands(claims: Sequence[Finding], configs: Path) -> list[str]:
    names = dict.fromkeys(name for claim in claims for name in claim.comparisons)
    return code(configs, names, {gain.setting for claim in claims for gain in claim.gains})


def _distinct(claims: Sequence[Finding]) -> list[Finding]:
    found: dict[tuple[tuple[str, tuple[float, ...]], ...], Finding] = {}
    for claim in claims:
        found.setdefault(tuple((gain.setting, gain.of_seed) for gain in claim.gains), claim)
    return list(found.values())


def _told(claim: Finding) -> str:
    """The verdict, the gain in the first setting, and the least and the largest mean gain in the others."""
    first, *others = claim.gains
    told = f"**{claim.verdict.capitalize()}**: {first} in {first.setting}"
    return f"{told}, {span([gain.mean for gain in others], '+.1f')} elsewhere" if others else told


def draw(claims: Sequence[Finding], comparisons: Sequence[Compared], pictures: Path) -> None:
    """Draw the gains of each claim: a line per setting, a dot per seed. Earlier pictures are deleted.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pictures.mkdir(exist_ok=True)
    for drawn in pictures.glob("*.png"):
        drawn.unlink()
    titles = {(one.plan.name, s.name): _title(one, s) for one in comparisons for s in one.plan.settings}
    for claim in _distinct(claims):
        of_setting = {
            titles[name, gain.setting]: gain.of_seed
            for name, found in claim.by_comparison.items()
            for gain in found
        }
        plots.differences(pictures / _file(claim), of_setting, "gain in points, a dot per seed", least=POINTS)


def _title(one: Compared, setting: Setting) -> str:
    data = (one.plan.title or one.plan.name).partition(" (")[0]
    return f"{data}: {setting.title or setting.name}"


def _file(claim: Finding) -> str:
    words = re.findall(r"[a-z0-9]+", claim.name.lower().replace("'s", ""))
    return f"{'-'.join(words[:_WORDS])}.png"
