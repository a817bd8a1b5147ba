"""Reads generated scenes: `scenes:images=400,test=200,seed=1,tail=0.7`.

    images, test   number of training and of test scenes
    seed           of everything
    objects        kinds of objects, beside wall and floor
    tail           kind k is drawn tail^k times as often; test scenes have all kinds equally often
    noise          standard deviation of the noise on pixels in 0..1
    tint           share of a colour of its kind in the colour of an object; 0: only shapes tell kinds apart
    site           `0/3`: the first of three sites, each of which prefers some of the kinds
    maps           which maps the site has, joined by `+`: `label+depth`; default: all of them

Called by `select.py`.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fednc.common.tasks.generated_spec import COUNT, SEED, Keys, between, parse_keys, site
from fednc.tasks.dense.maps import DEPTH, EDGES, INSTANCE, LABEL, MAPS, NORMALS, PART, SALIENCY
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.scenes import MOST_OBJECTS, SceneSettings, draw_scenes
from fednc.tasks.dense.sources.pictures import Part, Pictures

_ALL = (LABEL, INSTANCE, PART, DEPTH, NORMALS, EDGES, SALIENCY)


def _maps(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split("+"))
    unknown = [kind for kind in kinds if kind not in _ALL]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(_ALL)}")
    return kinds


_KEYS: Keys = {
    "images": COUNT,
    "test": COUNT,
    "seed": SEED,
    "objects": between(2, MOST_OBJECTS, int),
    "tail": between(0.01, 1, float),
    "noise": between(0, 1, float),
    "tint": between(0, 1, float),
    "site": site,
    "maps": _maps,
}
_DEFAULTS: dict[str, Any] = {"images": 100, "test": 100, "seed": 0, "maps": _ALL}


def read_scenes(place: str, part: Part, options: DenseOptions) -> Pictures:
    """Scenes of the run's size. Raises DataError: an unknown key, or a value that is not allowed."""
    given = {**_DEFAULTS, **parse_keys("scenes", place, _KEYS)}
    kinds, seed, count = given.pop("maps"), given.pop("seed"), {p: given.pop(p) for p in ("images", "test")}
    if part == "test":
        given |= {"tail": 1.0, "site": (0, 1)}
    settings = SceneSettings(size=options.size, **given)
    scenes = draw_scenes(settings, count["images" if part == "train" else "test"], seed, part)
    number, of = settings.site
    return Pictures(
        pixel_NCHW=torch.from_numpy(np.stack([scene.pixel_HW3 for scene in scenes]).transpose(0, 3, 1, 2).copy()),
        maps={
            kind: torch.from_numpy(np.stack([getattr(scene, kind) for scene in scenes])).to(MAPS[kind].dtype)
            for kind in kinds
        },
        value_names=settings.class_names,
        names=tuple(f"{part} scene {index}" for index in range(len(scenes))),
        sites=(f"site {number}",) * len(scenes) if of > 1 else (),
        has_test=True,
    )
