"""What all tests share: one thread for torch, as sums of floats round differently with another number.

It also keeps small models quick where several test processes share few cores.
"""

import os

import pytest
import torch
from hypothesis import settings


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# How long one example takes says more about the machine's other work than about the code. CI draws the same
# examples every time, so that a change is judged by itself; those who run the tests by hand find new ones.
settings.register_profile("fednc", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("fednc")
