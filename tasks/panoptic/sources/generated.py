"""Reads generated streets: `streets:images=96,test=32,seed=1,parts=no`.

    images, test   number of training and of test streets
    seed           of everything
    noise          standard deviation of the noise on pixels in 0..1
    site           `0/3`: the first of three sites, each of which prefers one of the things
    skew           how much more often a site has that thing
    parts          `no`: the training streets have no part labels

Called by `reading.py`.

Legend: N pictures, H height, W width.
"""

from __future__ import annotations

import numpy as np
import torch

from fednc.common.tasks.generated_spec import COUNT, SEED, Keys, between, parse_keys, site
from fednc.tasks.dense.maps import INSTANCE, LABEL, PART
from fednc.tasks.dense.sources.pictures import Part, Pictures
from fednc.tasks.panoptic.options import PanopticOptions
from fednc.tasks.panoptic.sources.part_names import part_values
from fednc.tasks.panoptic.streets import CLASSES, PARTS, StreetSettings, draw_streets


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return text == "yes"


_KEYS: Keys = {
    "images": COUNT,
    "test": COUNT,
    "seed": SEED,
    "noise": between(0, 1, float),
    "skew": between(1, 1000, float),
    "site": site,
    "parts": _yes_or_no,
}


def read_streets(place: str, part: Part, options: PanopticOptions) -> Pictures:
    """Streets of the run's size. Raises DataError: an unknown key or value, or parts that the run does not
    have.
    """
    given = {"images": 96, "test": 32, "seed": 0, "parts": True, **parse_keys("streets", place, _KEYS)}
    count, seed, labelled = {p: given.pop(p) for p in ("images", "test")}, given.pop("seed"), given.pop("parts")
    if part == "test":
        given |= {"skew": 1.0, "site": (0, 1)}
    settings = StreetSettings(size=options.size, **given)
    streets = draw_streets(settings, count["images" if part == "train" else "test"], seed, part)
    label_NHW = np.stack([street.label for street in streets])
    maps = {LABEL: label_NHW, INSTANCE: np.stack([street.instance for street in streets])}
    if labelled or part == "test":
        names = {CLASSES.index(whole): own for whole, own in PARTS.items()}
        maps[PART] = np.stack(
            [part_values(s.label, s.part, CLASSES, names, options, f"streets:{place}") for s in streets]
        )
    number, of = settings.site
    pixel_NHWC = np.stack([street.pixel for street in streets])
    return Pictures(
        pixel_NCHW=torch.from_numpy(np.ascontiguousarray(pixel_NHWC.transpose(0, 3, 1, 2))),
        maps={kind: torch.from_numpy(value) for kind, value in maps.items()},
        value_names=CLASSES,
        names=tuple(f"{part} street {index}" for index in range(len(streets))),
        sites=(f"site {number}",) * len(streets) if of > 1 else (),
        has_test=True,
    )
