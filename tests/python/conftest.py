"""What the tests share: a seeded generator, tensors, the oracle."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

# What a shell starts in the background ignores Ctrl-C, and so would every test of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("TRIVIUM_TEST_SEED", "0"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of this test's own; its seed is printed when the test fails."""
    print(f"TRIVIUM_TEST_SEED={SEED}")
    return np.random.default_rng([SEED, *request.node.name.encode()])
