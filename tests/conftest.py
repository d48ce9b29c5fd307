"""Fixtures shared by the tests."""

import os

import hypothesis
import matplotlib
import numpy as np
import pytest
import torch

import helpers as h

# the machine may be busy: how long an example takes says nothing about whether it is right
unhurried = hypothesis.settings(deadline=None, max_examples=30)
# the same examples each time, so that a red test is a change's doing; others, and more: --hypothesis-profile=explore
hypothesis.settings.register_profile("same", unhurried, derandomize=True)
hypothesis.settings.register_profile("explore", unhurried, max_examples=300, print_blob=True)
hypothesis.settings.load_profile("same")
matplotlib.use("Agg")


def pytest_collection_modifyitems(items):
    """A QUICK run leaves out what is thorough rather than quick, and says so."""
    if os.environ.get("QUICK", "") not in ("", "0"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="thorough: not in a QUICK run"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data():
    """Forty training and twenty test images of each digit, from the scans that are always there."""
    whole = h.load_data("digits", per_class=40)
    return h.replace(whole, test_x=whole.test_x[:200], test_y=whole.test_y[:200])


@pytest.fixture
def settings(tmp_path):
    return h.Settings(quick=True, output=tmp_path / "figures", cache=tmp_path / "cache")


@pytest.fixture
def idx_folder(tmp_path):
    """A tiny MNIST in torchvision's layout: 30 training and 20 test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = np.array([0x801, count], ">i4").tobytes()
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + (np.arange(count) % 10).astype(np.uint8).tobytes())
    return tmp_path
