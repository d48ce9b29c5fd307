"""Fixtures shared by the tests."""

import dataclasses
import functools
import gzip
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import matplotlib
import numpy as np
import pytest
import torch

import helpers as h
from latent_digits import mnist
from study import publish, recipes
from study.report import read_results
from study.settings import PROJECT

# the machine may be busy: how long an example takes says nothing about whether it is right
unhurried = hypothesis.settings(deadline=None, max_examples=30)
# the same examples each time, so that a red test is a change's doing; others, and more: --hypothesis-profile=explore
hypothesis.settings.register_profile("same", unhurried, derandomize=True)
hypothesis.settings.register_profile("explore", unhurried, max_examples=300, print_blob=True)
hypothesis.settings.load_profile("same")
matplotlib.use("Agg")
recipes.read_digits = functools.cache(recipes.read_digits)  # once in each process, not at every call


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data():
    """Forty training and twenty test images of each digit, from the scans that are always there."""
    whole = h.load_data("digits", per_class=40)
    return dataclasses.replace(whole, test_x=whole.test_x[:200], test_y=whole.test_y[:200])


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


def checksums(content):
    """The MD5 of a file, and of what gzip makes of it."""
    return tuple(hashlib.md5(form).hexdigest() for form in (content, gzip.compress(content, mtime=0)))


@pytest.fixture
def tiny_mnist(idx_folder, monkeypatch):
    """The tiny MNIST of `idx_folder`, with its own checksums and no mirror that answers."""
    raw = idx_folder / "MNIST" / "raw"
    monkeypatch.setattr(mnist, "FILES", {name: checksums((raw / name).read_bytes()) for name in mnist.FILES})
    monkeypatch.setattr(mnist, "MIRRORS", ["http://127.0.0.1:9/"])
    return idx_folder


@pytest.fixture
def with_nobody(tiny_mnist):
    """The tiny MNIST where anybody can reach it, and what makes us a user without rights: root may do everything."""
    folder, user = Path(tempfile.mkdtemp()), os.geteuid()
    folder.chmod(0o755)
    shutil.copytree(tiny_mnist / "MNIST", folder / "MNIST")
    yield folder, lambda: os.seteuid(65534 if user == 0 else user)
    os.seteuid(user)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The folder of the report on the stored notebooks."""
    folder = tmp_path_factory.mktemp("report")
    notebooks = publish.read_notebooks((PROJECT / "notebooks").glob("*.ipynb"))
    for name, notebook in notebooks.items():
        publish.write_page(folder, name, notebook)
    results = read_results(PROJECT / "figures" / "results.json")
    publish.write_index(folder, results, PROJECT / "figures", notebooks)
    return folder
