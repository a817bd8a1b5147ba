"""Batches: each request gets its own answer, a bad one fails alone, and no more waits than the queue allows."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednc.ops.serving.batching import Batcher, BatchLimits
from fednc.ops.serving.refusals import Problem, RequestRefusal

BAD = -1.0


def double(inputs: Tensor) -> dict[str, Any]:
    """Refuses a batch with a bad value in it, as a model might."""
    if (inputs == BAD).any():
        raise RequestRefusal("a bad value")
    return {"twice": (2 * inputs).numpy()}


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    most=st.integers(1, 16),
    delay_ms=st.sampled_from([0, 2]),
    seed=st.integers(0, 1000),
)
def test_batched_answers_are_the_single_ones(sizes: list[int], most: int, delay_ms: int, seed: int) -> None:
    chance = random.Random(seed)
    widths = [chance.choice([2, 3]) for _ in sizes]
    requests = [torch.rand(size, width) for size, width in zip(sizes, widths, strict=True)]
    for each in requests:
        if chance.random() < 0.2:
            each[0, 0] = BAD
    batches: list[int] = []

    async def main() -> list[Any]:
        batcher = Batcher(double, BatchLimits(most, delay_ms / 1000), batches.append)
        asked = [asyncio.create_task(batcher(each)) for each in requests]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert batcher.queued == 0
        batcher.close()
        return found

    for request, answer in zip(requests, asyncio.run(main()), strict=True):
        if (request == BAD).any():
            assert isinstance(answer, RequestRefusal)
        else:
            assert np.array_equal(answer["twice"], 2 * request.numpy())
    assert sum(batches) == sum(sizes)
    assert all(size <= most or size in sizes for size in batches)  # only a single request may be larger


def test_what_waits_is_computed_together_and_the_queue_is_bounded() -> None:
    go, started = threading.Event(), threading.Event()
    sizes: list[int] = []

    def held(inputs: Tensor) -> dict[str, Any]:
        started.set()
        assert go.wait(10)
        sizes.append(len(inputs))
        return {"same": inputs.numpy()}

    async def main() -> None:
        batcher = Batcher(held, BatchLimits(most=8, queue=4))
        first = asyncio.create_task(batcher(torch.zeros(1, 1)))
        await asyncio.to_thread(started.wait, 10)
        waiting = [asyncio.create_task(batcher(torch.full((1, 1), float(i)))) for i in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(RequestRefusal, match="busy: 4 examples wait already") as refused:
            await batcher(torch.zeros(1, 1))
        assert refused.value.problem is Problem.BUSY
        waiting[3].cancel()  # its caller has left: nothing is computed for it
        await asyncio.sleep(0)
        go.set()
        await first
        found = await asyncio.gather(*waiting[:3])
        assert [float(each["same"][0, 0]) for each in found] == [0.0, 1.0, 2.0]
        batcher.close()

    asyncio.run(main())
    assert sizes == [1, 3]


def test_an_idle_model_waits_for_more_only_as_long_as_it_may() -> None:
    sizes: list[int] = []

    async def main() -> None:
        batcher = Batcher(double, BatchLimits(most=3, delay_s=60.0), sizes.append)
        asked = [asyncio.create_task(batcher(torch.zeros(1, 1))) for _ in range(3)]
        await asyncio.wait_for(asyncio.gather(*asked), 10)  # full, so it does not wait
        batcher.close()
        patient = Batcher(double, BatchLimits(most=3, delay_s=0.02), sizes.append)
        await asyncio.wait_for(patient(torch.zeros(1, 1)), 10)
        patient.close()

    asyncio.run(main())
    assert sizes == [3, 1]
