"""Ten thousand hostile messages per call, most of them valid except for one field: only the counters change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

from support.hostile import messages as hm
from support.hostile import uploads as hu
from support.hostile.attacked_round import DIM, HostilePlace
from support.hostile.replies import HostileReply

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
BATCH, BATCHES = 50, 100  # of each half: 10,000 messages per call
CALLERS = {"Attend": "stranger"} | dict.fromkeys(("Declare", "Download", "Report", "UploadWhole"), "hostile")
REASONS = {
    "Attend": {"name", "software", "app", "tasks", "methods", "instance", "part"},
    "Declare": {"examples", "held_out", "class_counts", "device", "problem", "pid", "standing"},
    "Download": {"digests"},
    "Report": {"id", "step", "steps", "examples_per_s", "device_memory_bytes"},
    "UploadWhole": {"header", "id", "data"},
    "Upload": {
        "header",
        "id",
        "upload_id",
        "manifest",
        "manifest.records",
        "manifest.arrays",
        "manifest.values",
        "manifest.size",
        "failure.kind",
        "failure.reason",
        "failure.code",
        "data",
        "grant",
        "content",
    },
}
OPERATORS = ("Status", "Watch", "Control")
MANY = settings(
    max_examples=BATCHES,
    phases=[Phase.explicit, Phase.generate],
    database=None,
    print_blob=False,
    verbosity=Verbosity.quiet,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
# How a call with gibberish may end. Not with UNKNOWN or INTERNAL: those mean an exception that nobody caught.
ENDS = {
    grpc.StatusCode.OK,
    hm.INVALID,
    hm.TAKEN,
    hm.WRONG_VERSION,
    hm.FORBIDDEN,
    hm.UNKNOWN_NAME,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostilePlace]:
    place = HostilePlace(tmp_path_factory.mktemp("hostile"))
    yield place
    model = place.finish()
    assert [bytes(a.data) for a in model.values()] == [bytes(a.data) for a in place.honest_model().values()]
    place.close()
    log = place.logged()
    assert log.total() - log["no-reply"] < 2000, log
    print(log)


def bad(place: HostilePlace, call: str) -> st.SearchStrategy[Any]:
    me = place.hostile.welcome.node_id
    return {
        "Attend": hm.BAD_ATTENDANCES,
        "Declare": hm.BAD_DECLARATIONS,
        "Download": hm.BAD_DOWNLOADS,
        "Report": hm.bad_progresses(me),
        "UploadWhole": hu.bad_wholes(me),
        "Status": hm.BAD_STATUSES,
        "Watch": hm.BAD_WATCHES,
        "Control": hm.BAD_CONTROLS,
    }[call]


def valid(place: HostilePlace, call: str) -> st.SearchStrategy[Any]:
    me = place.hostile.welcome.node_id
    return {
        "Attend": hm.ATTENDANCES,
        "Declare": hm.DECLARATIONS,
        "Download": hm.DOWNLOADS,
        "Report": hm.progresses(me),
        "UploadWhole": hu.wholes(me),
        "Status": hm.STATUSES,
        "Watch": hm.WATCHES,
        "Control": hm.CONTROLS,
    }[call]


@pytest.mark.parametrize("call", [*CALLERS, *OPERATORS])
def test_messages_with_one_hostile_field(place: HostilePlace, call: str) -> None:
    sent, counted = 0, Counter[str]()

    @MANY
    @given(st.lists(bad(place, call), min_size=BATCH, max_size=BATCH))
    def attack(batch: list[hm.Attack]) -> None:
        nonlocal sent, counted
        expected = Counter(attack.counted for attack in batch if attack.counted)
        found = place.run(place.unharmed(place.send_all(call, batch, CALLERS.get(call, "operator"))))
        assert found == expected
        sent, counted = sent + len(batch), counted + expected

    attack()
    assert sent >= BATCH * BATCHES
    assert {reason.partition(".")[2] for reason in counted} == REASONS.get(call, set())
    print(call, sent, dict(counted))


@pytest.mark.parametrize("call", [*CALLERS, *OPERATORS])
def test_messages_of_arbitrary_bytes(place: HostilePlace, call: str) -> None:
    ends = Counter[grpc.StatusCode]()
    caller = CALLERS.get(call, "operator")

    @MANY
    @given(st.lists(hm.gibberish(valid(place, call)), min_size=BATCH, max_size=BATCH))
    def attack(batch: list[bytes]) -> None:
        async def send() -> None:
            ends.update(await place.send_gibberish(call, batch, caller))

        place.run(place.unharmed(send(), may_change=["hostile"]))

    attack()
    assert ends.total() >= BATCH * BATCHES
    assert set(ends) <= ENDS
    print(call, {code.name: count for code, count in ends.items()})


def test_replies_with_one_thing_wrong(place: HostilePlace) -> None:
    sent, counted = 0, Counter[str]()
    me = place.hostile.welcome.node_id

    @MANY
    @given(st.lists(hu.bad_replies(place.model, hm.CLASSES, DIM, me), min_size=BATCH, max_size=BATCH))
    def attack(batch: list[HostileReply]) -> None:
        nonlocal sent, counted
        expected = Counter[str]()

        async def send() -> None:
            expected.update(await place.upload_all(batch))

        assert place.run(place.unharmed(send())) == expected
        sent, counted = sent + len(batch), counted + expected

    attack()
    assert sent >= BATCH * BATCHES
    assert {reason.partition(".")[2] for reason in counted} == REASONS["Upload"]
    print("Upload", sent, dict(counted))


def test_uploads_of_arbitrary_frames(place: HostilePlace) -> None:
    ends = Counter[grpc.StatusCode]()

    @MANY
    @given(st.lists(hu.gibberish_replies(place.model), min_size=BATCH, max_size=BATCH))
    def attack(batch: list[HostileReply]) -> None:
        async def send() -> None:
            ends.update(await place.upload_gibberish(batch))

        place.run(place.unharmed(send()))

    attack()
    assert ends.total() >= BATCH * BATCHES
    assert set(ends) <= ENDS
    print("Upload", {code.name: count for code, count in ends.items()})
