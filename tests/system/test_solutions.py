"""The solutions of the exercises run, on a QUICK run's numbers."""

import asyncio

import pytest

from study.execute import execute
from study.settings import PROJECT

PATHS = sorted((PROJECT / "notebooks" / "solutions").glob("*.ipynb"))


def test_every_notebook_has_solutions():
    assert [path.name for path in PATHS] == sorted(path.name for path in (PROJECT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_solution_runs(path, monkeypatch, tmp_path):
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    notebook = asyncio.run(execute(path))
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source)
    assert list(tmp_path.iterdir()) == []  # a solution writes no results
