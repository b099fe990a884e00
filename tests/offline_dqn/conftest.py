"""Every test here runs torch on one thread: bit-equality needs a fixed number, and the machine has others to serve."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
