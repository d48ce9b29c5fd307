"""The benchmark's workers: each side in a process of its own."""

import multiprocessing

import bench
import pytest


def test_a_row_times_both_sides_in_turn_and_says_what_each_reaches():
    row = bench.Row("EM", "em", 0.01, "log-likelihood (nats)", 1e-6, {"components": 2}, equal=True)
    found = bench.compare(row, pairs=3)
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
