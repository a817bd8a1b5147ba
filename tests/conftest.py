"""Shared by all tests: one thread for torch, because the rounding of sums depends on the number of threads.

That also keeps small models fast if several test processes share few cores. Ctrl-C works, as tests of it need. And
an authority, on request.
"""

from __future__ import annotations

import os
import signal
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


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_works() -> None:
    """A shell starts background commands with SIGINT ignored, and they pass that on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An authority with a server certificate for this machine."""
    from support.local_servers import make_place  # gRPC and more, which most tests need not load

    return make_place(tmp_path)


# No deadline: the time for one example says more about the machine's load than about the code. CI draws the same
# examples every time, so that a change is judged by itself; runs by hand draw new ones.
settings.register_profile("fednc", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("fednc")
