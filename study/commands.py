"""What make's other targets do, for places without make: the tests, and JupyterLab."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from study.arguments import PROJECT
from study.files import atomic_write

Command = list[str]


def tool(name: str, *options: object) -> Command:
    """A program that was installed beside this Python, with its options."""
    folder = Path(sys.executable).parent
    found = shutil.which(name, path=str(folder))
    if found is None:
        raise FileNotFoundError(f"{folder} must have {name}: pip install -r requirements.txt")
    return [found, *map(str, options)]


def quick(jobs: int) -> list[Command]:
    """Lint, and the unit tests."""
    return [
        tool("ruff", "check", "."),
        tool("ruff", "format", "--check", "."),
        tool("lint-imports"),
        tool("pytest", "-n", jobs, "--dist", "worksteal", "tests/unit"),
    ]


def test_code(jobs: int) -> list[Command]:
    """The same, then the tests that start processes, and those of what is stored."""
    by_file = ("-n", jobs, "--dist", "loadfile", "--no-loadscope-reorder")  # the slow ones first
    return [*quick(jobs), tool("pytest", *by_file, "tests/system", "tests/stored")]


def test_notebooks(jobs: int, notebooks: Sequence[Path]) -> list[Command]:
    """Every notebook executed again, with nbval. Figures and results go to report/test."""
    nbval = ("--nbval-lax", "--nbval-cell-timeout=36000", "-v", "--tb=short")
    return [tool("pytest", "-n", jobs, "--dist", "loadfile", *nbval, *notebooks)]


def lab(options: Sequence[str]) -> list[Command]:
    """JupyterLab on copies of the notebooks in play/, where none is that a learner has changed."""
    notebooks, play = PROJECT / "notebooks", PROJECT / "play"
    for path in [*notebooks.glob("*.ipynb"), *notebooks.glob("solutions/*.ipynb")]:
        if not (copy := play / path.relative_to(notebooks)).exists():
            atomic_write(copy, path.read_bytes())
    return [tool("jupyter", "lab", f"--notebook-dir={play}", *options)]


def run_in_turn(commands: Sequence[Command]) -> int:
    """Run commands in the project's folder up to the first that fails; its exit status, or 0."""
    for command in commands:
        process = subprocess.Popen(command, cwd=PROJECT)
        # whoever ends us means the command; Ctrl-C reaches it by itself
        before = signal.signal(signal.SIGTERM, lambda *_, process=process: process.terminate())
        try:
            status = wait(process)
        finally:
            signal.signal(signal.SIGTERM, before)
        if status:
            return status if status > 0 else 128 - status  # as a shell says it
    return 0


def wait(process: subprocess.Popen) -> int:
    """The exit status of a process, which may take its time to end after Ctrl-C."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def carry_out(command: str, jobs: int, notebooks: Sequence[Path], options: Sequence[str]) -> int:
    """The exit status of "quick", "test", "test-code", "test-notebooks" or "lab"."""
    if command == "lab":
        return run_in_turn(lab(options))
    if command == "quick":
        return run_in_turn(quick(jobs))
    status = 0 if command == "test-notebooks" else run_in_turn(test_code(jobs))
    if status or command == "test-code":
        return status
    os.environ["OUTPUT"] = str(PROJECT / "report" / "test")
    return run_in_turn(test_notebooks(jobs, notebooks))
