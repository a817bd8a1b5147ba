"""PQ and PartPQ equal published values and an independent brute force; every rule of the evaluator has a case."""

from __future__ import annotations

import json
import math
import tomllib

import numpy as np
import pytest
from references.panoptic import per_class

from fednc.tasks.panoptic.metrics import PartQuality
from support.oracles import ORACLES

THINGS, STUFF, PARTS, VOID = (1, 2, 4), (3, 6), {1: (1, 2, 3), 6: (1, 2), 4: (5,)}, 255
CASES = ORACLES / "pq_scalabel"
Maps = dict[str, np.ndarray]


def quality() -> PartQuality:
    return PartQuality(things=list(THINGS), stuff=list(STUFF), parts={c: list(p) for c, p in PARTS.items()})


def of(truth: Maps, guess: Maps) -> PartQuality:
    found = quality()
    found.add(truth, guess)
    return found


def maps(semantic: object, instance: object = -1, part: object = VOID) -> Maps:
    semantic = np.array(semantic)
    return {
        "semantic": semantic,
        "instance": np.broadcast_to(instance, semantic.shape).astype(np.int64),
        "part": np.broadcast_to(part, semantic.shape).astype(np.int64),
    }


def drawn(random: np.random.Generator, *, size: int = 9) -> tuple[Maps, Maps]:
    """Patches of everything, and a prediction that is the truth with some patches drawn anew."""

    def paint(canvas: Maps, patches: int, *, guess: bool) -> None:
        for number in range(patches):
            top, left = random.integers(-1, size - 2, 2)
            where = (
                slice(max(top, 0), top + random.integers(2, 6)),
                slice(max(left, 0), left + random.integers(2, 6)),
            )
            known = int(random.choice([*THINGS, *STUFF, 1, 6, 0, VOID]))
            canvas["semantic"][where] = known
            lonely = known in STUFF or random.random() < 0.15
            canvas["instance"][where] = -1 if lonely else 10 * guess + number
            shape = canvas["part"][where].shape
            values = [[VOID], [VOID, 1], [1, 2], [0, 1, 2, 3], [1, 2, VOID]][random.integers(5)]
            canvas["part"][where] = random.choice(values, shape)

    truth = maps(np.full((size, size), 3))
    paint(truth, int(random.integers(2, 7)), guess=False)
    guess = {name: value.copy() for name, value in truth.items()}
    guess["semantic"][guess["semantic"] == VOID] = random.choice([1, 2, 3, 6])
    noise = random.random(guess["part"].shape) < 0.3
    guess["part"][noise] = random.choice([0, 1, 2, 3, VOID], int(noise.sum()))
    paint(guess, int(random.integers(0, 4)), guess=True)
    return truth, guess


def test_per_class_sums_equal_brute_force_on_random_maps() -> None:
    random = np.random.default_rng(0)
    matches = np.zeros(3)
    for _ in range(300):
        truth, guess = drawn(random)
        found = of(truth, guess).result()
        for plain, values in ((False, found.per_class), (True, found.whole_per_class)):
            expected = per_class(truth, guess, THINGS, STUFF, PARTS, VOID, plain=plain)
            for known in (*THINGS, *STUFF):
                assert values[known][1:] == expected[known][1:]
                assert values[known][0] == pytest.approx(expected[known][0], abs=1e-8)
                matches += values[known][1:]
    assert matches.min() > 200, "the maps are too easy or too hard to compare anything"


def test_sums_of_shards_are_those_of_the_whole_bit_for_bit() -> None:
    random = np.random.default_rng(1)
    pictures = [drawn(random) for _ in range(12)]
    whole, one, two = quality(), quality(), quality()
    for picture in pictures:
        whole.add(*picture)
    for number in random.permutation(12):
        (one, two)[number % 2].add(*pictures[number])
    two.merge(one)
    for name, value in whole.sums.items():
        assert np.array_equal(value, two.sums[name]), name
    with pytest.raises(ValueError, match="other classes"):
        whole.merge(PartQuality(things=[1], stuff=[], parts={}))


def test_without_parts_partpq_is_pq() -> None:
    random = np.random.default_rng(2)
    found = PartQuality(things=THINGS, stuff=STUFF, parts={})
    for _ in range(20):
        found.add(*drawn(random))
    result = found.result()
    assert result.per_class == result.whole_per_class
    assert result.all == result.no_parts == result.pq
    assert math.isnan(result.parts)
    assert math.isnan(result.part_miou)


CAR = maps([[3] * 6] + [[3, 1, 1, 1, 1, 3]] * 4, instance=0, part=[[0] * 6] + [[0, 1, 1, 2, 2, 0]] * 4)
CAR["instance"][CAR["semantic"] == 3] = -1


def with_(given: Maps, **changes: np.ndarray) -> Maps:
    return {**given, **changes}


def test_a_perfect_prediction_has_every_value_1() -> None:
    found = of(CAR, CAR).result()
    assert (found.all, found.parts, found.no_parts, found.pq, found.part_miou, found.pwq_gm) == (1,) * 6
    assert found["per_class"][1] == (1.0, 1, 0, 0)


def test_swapped_parts_keep_pq_and_leave_partpq_the_background() -> None:
    swapped = with_(CAR, part=np.array([0, 2, 1])[CAR["part"]])
    found = of(CAR, swapped).result()
    assert found.pq == 1
    assert found.parts == pytest.approx(1 / 3)  # outside is right, both parts are wrong
    assert found.part_miou == found.pwq_gm == 0


def test_an_iou_of_one_half_is_no_match() -> None:
    row = maps([[1, 1, 1, 3]], instance=[[0, 0, 0, -1]], part=[[1, 1, 2, 0]])
    half = maps([[3, 1, 1, 1]], instance=[[-1, 0, 0, 0]], part=[[0, 1, 1, 2]])
    assert of(row, half).result().per_class[1] == (0.0, 0, 1, 1)
    assert of(row, row).result().per_class[1] == (1.0, 1, 0, 0)


def test_void_pixels_do_not_count_in_the_union_and_excuse_a_prediction() -> None:
    truth = maps([[2, 2, VOID, VOID, 3, 3]], instance=[[0, 0, 0, 0, -1, -1]])
    wide = maps([[2, 2, 2, 2, 3, 3]], instance=[[0, 0, 0, 0, -1, -1]])
    assert of(truth, wide).result().per_class[2] == (1.0, 1, 0, 0)
    apart = maps([[3, 3, 2, 2, 2, 3]], instance=[[-1, -1, 7, 7, 7, -1]])
    assert of(truth, apart).result().per_class[2] == (0.0, 0, 0, 1)  # two of its three pixels are void
    half = maps([[3, 3, 3, 2, 2, 3]], instance=[[-1, -1, -1, 7, 7, -1]])
    assert of(truth, half).result().per_class[2] == (0.0, 0, 1, 1)  # exactly half is not enough


def test_crowd_is_no_segment_and_excuses_only_its_own_class() -> None:
    truth = maps([[2, 2, 2, 3]], instance=-1)
    guess = maps([[2, 2, 2, 3]], instance=[[4, 4, 4, -1]])
    assert of(truth, guess).result().per_class[2] == (0.0, 0, 0, 0)
    other = with_(guess, semantic=np.array([[1, 1, 1, 3]]))
    assert of(truth, other).result().per_class[1] == (0.0, 0, 1, 0)


def test_a_segment_without_part_labels_is_crowd_for_partpq_and_counts_for_pq() -> None:
    bare = with_(CAR, part=np.full_like(CAR["part"], VOID))
    found = of(bare, CAR).result()
    assert found.per_class[1] == (0.0, 0, 0, 0)
    assert found.whole_per_class[1] == (1.0, 1, 0, 0)
    assert found.all == found.no_parts == 1
    assert math.isnan(found.part_miou)


def test_unlabelled_pixels_of_a_segment_are_not_judged_and_unknown_only_misses() -> None:
    some = CAR["part"].copy()
    some[1, 1:5] = VOID  # a quarter of the car has no part label
    nonsense = CAR["part"].copy()
    nonsense[1, 1:5] = 3
    assert of(with_(CAR, part=some), with_(CAR, part=nonsense)).result().per_class[1] == (1.0, 1, 0, 0)
    unknown = CAR["part"].copy()
    unknown[1, 1] = VOID  # one of eight pixels of part 1: its IoU falls, and no further label appears
    iou = of(CAR, with_(CAR, part=unknown)).result().per_class[1][0]
    assert iou == pytest.approx((1 + 7 / 8 + 1) / 3, abs=1e-9)


def test_a_predicted_thing_without_instance_is_no_segment() -> None:
    assert of(CAR, with_(CAR, instance=np.full_like(CAR["part"], -1))).result().per_class[1] == (0.0, 0, 0, 1)


def test_a_part_of_a_wrong_whole_is_wrong() -> None:
    wrong = with_(CAR, semantic=np.where(CAR["semantic"] == 1, 6, 3))
    found = of(CAR, wrong).result()
    assert found.part_iou == {(1, 1): 0, (1, 2): 0, (6, 1): 0, (6, 2): 0}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"things": [1], "stuff": [1], "parts": {}}, "differ"),
        ({"things": [1], "stuff": [255], "parts": {}}, "void"),
        ({"things": [1], "stuff": [2], "parts": {3: [1, 2]}}, "no classes"),
        ({"things": [1], "stuff": [2], "parts": {1: [0, 2]}}, "neither 0"),
    ],
)
def test_contradicting_ids_are_refused(ids: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartQuality(**ids)  # type: ignore[arg-type]


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        of(CAR, maps([[3]]))
    with pytest.raises(ValueError, match="instance"):
        of(CAR, with_(CAR, instance=CAR["instance"] * 1.0))


# ---- published values -------------------------------------------------------------------------------------------


def decoded(rle: dict[str, object] | None) -> np.ndarray:
    """bool [H, W] of COCO's compressed run lengths: 5 bits a character, each count from the third on a
    difference.
    """
    if rle is None:
        return np.zeros((720, 1280), dtype=bool)
    counts: list[int] = []
    value = shift = 0
    for code in (ord(letter) - 48 for letter in str(rle["counts"])):
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        value -= (1 << shift) if code & 16 else 0
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    height, width = rle["size"]  # type: ignore[misc]
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def painted(labels: list[dict[str, object]], ids: dict[str, int], things: set[str]) -> Maps:
    found = maps(np.full((720, 1280), VOID))
    for number, label in enumerate(labels):
        where, name = decoded(label["rle"]), str(label["category"])  # type: ignore[arg-type]
        found["semantic"][where] = ids[name]
        found["instance"][where] = number if name in things else -1
    return found


@pytest.mark.skipif(not CASES.is_dir(), reason="the published cases are not on this machine")
@pytest.mark.parametrize("case", range(3))
def test_pq_equals_published_values(case: int) -> None:
    """Values published with scalabel (tests/eval/pan_seg_test.py, Apache-2.0)."""
    chosen = json.loads((CASES / "expected.json").read_text())["cases"][case]
    categories = tomllib.loads((CASES / "pan_seg_configs.toml").read_text())["categories"]
    ids = {category["name"]: number for number, category in enumerate(categories)}
    things = {category["name"] for category in categories if category["isThing"]}
    found = PartQuality([ids[n] for n in things], [i for n, i in ids.items() if n not in things], parts={})
    guesses = {frame["name"]: frame["labels"] for frame in json.loads((CASES / chosen["pred"]).read_text())}
    for frame in json.loads((CASES / chosen["gt"]).read_text()):
        guess = painted(guesses.get(frame["name"], []), ids, things)
        found.add(painted(frame["labels"], ids, things), guess)
    result, expected = found.result(), chosen["expected"]
    names = {"PQ": "pq", "SQ": "sq", "RQ": "rq", "PQ/THING": "pq_things", "PQ/STUFF": "pq_stuff"}
    for theirs, ours in names.items():
        if theirs in expected:
            assert 100 * result[ours] == pytest.approx(expected[theirs], abs=1e-6), theirs
    assert sum(any(counts[1:]) for counts in result.whole_per_class.values()) == expected["NUM"]
