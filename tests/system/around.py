"""What tests of processes share: a project of small notebooks, its environment, and waiting with a deadline."""

import contextlib
import os
import shutil
import time

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from study.settings import PROJECT

# what make passes on to its children, and what a user may have set for this run
SET = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "NOTEBOOKS", "OUTPUT", "CACHE", "SEED", "QUICK", "DATA", "JUPYTER_TOKEN")


def plain_environment():
    """The environment without make's variables and without settings."""
    return {name: value for name, value in os.environ.items() if name not in SET}


def wait_until(condition, seconds=120, said=lambda: "it took too long", pause=lambda: time.sleep(0.1)):
    """What `condition` says as soon as that is true; AssertionError with what was `said` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, said()
        pause()
    return found


def make_project(folder, sources):
    """A project with the code of this one, and a notebook of one cell for each name and source."""
    (folder / "notebooks").mkdir(parents=True)
    for name in ("helpers.py", "requirements.txt", "Makefile"):
        shutil.copy2(PROJECT / name, folder)
    for name in ("latent_digits", "study"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, source in sources.items():
        cells = [new_markdown_cell(f"# {name}"), new_code_cell(source)]
        nbformat.write(new_notebook(cells=cells), folder / "notebooks" / f"{name}.ipynb")
    return folder


def lives(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
