"""What all tests share: one thread for torch, as sums of floats round differently with another number.

It also keeps small models quick where several test processes share few cores.
"""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
