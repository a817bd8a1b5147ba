"""What all tests share: one thread for torch, as sums of floats round differently with another number.

It also keeps small models quick where several test processes share few cores. And an authority for those who ask.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from support.local_servers import Place


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An authority whose server answers on this machine."""
    from support.local_servers import make_place  # gRPC and more, which most tests need not load

    return make_place(tmp_path)


# How long one example takes says more about the machine's other work than about the code. CI draws the same
# examples every time, so that a change is judged by itself; those who run the tests by hand find new ones.
settings.register_profile("fednc", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("fednc")
