"""Run the notebooks, some at a time.

`run` executes copies into report/, `refresh` in place, with stamps. `report` makes report/ of the
stored notebooks, executing nothing.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from study import publish
from study.execute import execute_all
from study.files import atomic_write
from study.report import forget, read_results, say
from study.settings import PROJECT, Settings
from study.stamps import OLD_INSTRUCTIONS, STORED, stamp


def show_results(name: str, entry: dict | None) -> None:
    """Print one notebook's part of results.json as aligned text."""
    if entry is None:
        tqdm.write(f"\n{name}: executed; it leaves no results, as no Report is finished in it\n")
        return
    rows = [(row["result"], publish.show_number(row)) for row in entry["results"]]
    width = max((len(result) for result, _ in rows), default=0)
    passed = sum(check["passed"] is True for check in entry["checks"])
    skipped = len(entry["checks"]) - passed
    lines = [f"\n{name} ({entry['data']})"]
    lines += [f"  {result:<{width}}  {value}" for result, value in rows]
    lines += [f"  {passed} checks passed" + (f", {skipped} skipped" if skipped else "") + "\n"]
    tqdm.write("\n".join(lines))


def attempt(what: str, work: Callable[[], object]) -> bool:
    """Do what comes after hours: where it fails, that is said, and the rest goes on."""
    try:
        work()
    except Exception as error:  # whatever a student's cell leads to
        tqdm.write(f"{what} could not be written: {error!r}")
        return False
    return True


def run(paths: list[Path], jobs: int = 1) -> bool:
    """Execute copies of the notebooks and write report/. No committed file changes.

    Whether all of it could be written.
    """
    folder, settings, done = PROJECT / "report", Settings.from_environment(), []

    def keep(path: Path, notebook: NotebookNode) -> None:
        name, entry = path.stem, notebook.metadata.pop("part", None)
        if entry is None:
            done.append(attempt("results.json", lambda: forget(name, settings)))
        write = partial(publish.write_page, folder, name, notebook)
        done.append(attempt(f"the page of {name}", write))
        show_results(name, entry)

    try:
        execute_all(paths, jobs, keep)
    except Exception:
        attempt("the first page", partial(finish_report, settings.output))
        raise
    done.append(attempt("the first page", partial(finish_report, settings.output)))
    return all(done)


def report(paths: list[Path]) -> bool:
    """Write report/ from the stored notebooks and figures/: nothing is executed.

    Whether all of it could be written.
    """
    folder, done = PROJECT / "report", []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        write = partial(publish.write_page, folder, path.stem, notebook)
        done.append(attempt(f"the page of {path.stem}", write))
    done.append(attempt("the first page", partial(finish_report, PROJECT / "figures")))
    return all(done)


def finish_report(output: Path) -> None:
    """Write the index, over all pages that are there. output: of figures and results.json."""
    folder = PROJECT / "report"
    index = publish.write_index(
        folder, read_results(output / "results.json"), output, publish.read_pages(folder)
    )
    say(f"Read the executed notebooks: {index}")


def refresh(paths: list[Path], jobs: int = 1) -> None:
    """Execute the notebooks in place: outputs, stamp, figures/ and its results.json.

    No model is taken that was trained before, unless CACHE names a folder. A notebook that fails is
    left as it was, and so are its figures. One without a Report gets no stamp.
    """
    with tempfile.TemporaryDirectory() as cold:
        os.environ.setdefault("OUTPUT", "figures")
        os.environ.setdefault("CACHE", cold)
        # stored numbers are not to depend on the formats and instructions that a machine has
        os.environ |= {"DTYPE": STORED["dtype"]} | OLD_INSTRUCTIONS
        Settings.from_environment()

        def keep(path: Path, notebook: NotebookNode) -> None:
            entry = notebook.metadata.pop("part", None)
            if entry:
                stamp(notebook, entry)
            atomic_write(path, nbformat.writes(notebook).encode() + b"\n")
            show_results(path.stem, entry)

        execute_all(paths, jobs, keep)


def main(command: str, paths: list[Path], jobs: int) -> None:
    """Run a command; what ends it is said in a few lines."""
    try:
        Settings.from_environment()
    except (ValueError, OSError) as error:
        sys.exit(f"{command}: {error}")
    call = partial(report, paths)
    if command != "report":
        call = partial({"run": run, "refresh": refresh}[command], paths, jobs)
    try:
        if call() is False:
            sys.exit(f"{command}: see above what could not be written")
    except KeyboardInterrupt:
        say("\nEnded, kernels too. The same command goes on from what is there.")
        sys.exit(130)
    except (CellExecutionError, DeadKernelError) as error:
        sys.exit("\n".join([f"\n{command}: {error}", *getattr(error, "__notes__", ())]))
