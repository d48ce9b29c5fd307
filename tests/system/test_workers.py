"""The benchmark's workers: each side, and each notebook that is counted, in a process of its own."""

import multiprocessing
import os
from dataclasses import replace

import arithmetic
import bench
import nbformat
import numpy as np
import pytest


def test_a_row_times_both_sides_in_turn_and_says_what_each_reaches():
    row = bench.Row("EM", "em", 0.01, "log-likelihood (nats)", 1e-6, {"components": 2}, equal=True)
    found = bench.compare(row, pairs=3)
    assert found["limit"] == ""
    assert found["min"] <= found["ratio"] <= found["max"]
    assert found["ours (s)"] > 0
    assert found["ours reaches"] == pytest.approx(found["peer reaches"], abs=1e-6)
    assert min(found["ours (MB)"], found["peer (MB)"]) > 100
    assert found["met"]


def test_a_side_that_fails_says_why_and_ends_the_other():
    row = bench.Row("no such", "em", 1, "nats", 0.0, {"components": 2, "iterations": -1}, warm_up=False)
    with pytest.raises(RuntimeError, match=r"em_peer.*failed(.|\n)*max_iter"):
        bench.compare(row, pairs=1)
    assert multiprocessing.active_children() == []


def test_on_torch_tensors_scikit_learn_reaches_what_ours_does():
    (row,) = [row for row in bench.ROWS if row.peer == "torch" and row.options["components"] == 10]
    found = bench.compare(replace(row, options={"components": 2, "iterations": 3}, target=0), pairs=1)
    assert found["met"]
    assert found["peer reaches"] == np.float32(found["peer reaches"])


def test_a_notebook_of_which_everything_is_counted(tmp_path):
    source = (
        "import sys\nsys.path.insert(0, '..')\nimport torch\nimport helpers as h\nmodel = h.mlp_vae(3, hidden=(5,))\n"
        "z = h.in_batches(model.decode, torch.zeros(4, 3))\ntorch.ones(2, 3) @ torch.ones(3, 5)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    path = tmp_path / "07_tiny.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    assert arithmetic.measure(os.environ, [path]) == {
        "07_tiny": {arithmetic.INFERENCE: 2 * 4 * (3 * 5 + 5 * 784), arithmetic.REST: 2 * 2 * 3 * 5}
    }
    assert path.read_bytes() == before
