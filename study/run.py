"""Run the notebooks, some at a time.

`run` executes copies into report/, `refresh` in place, with stamps. `report` makes report/ of the
stored notebooks, executing nothing. A stamp says what a stored notebook was executed from; `stale`
tells whether it still fits.
"""

import argparse
import asyncio
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm

from study import publish
from study.files import atomic_write
from study.identity import imports, source_hash, source_of
from study.settings import PROJECT, Settings

WIDGET = "application/vnd.jupyter.widget-view+json"
VERSIONED = ("torch", "numpy", "scikit-learn", "matplotlib", "pandas")
# what a stored notebook was executed with
STORED = {"data": "mnist", "seed": 0, "quick": False, "dtype": "float32"}

# what all 64-bit processors of the last ten years have, for torch and for oneDNN
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
OLD_INSTRUCTIONS = AVX2 if platform.machine() in ("x86_64", "AMD64") else {}


class Client(NotebookClient):
    """Executes a notebook; its progress bars go to one bar in the terminal instead of into it."""

    def __init__(self, notebook: NotebookNode, bar: tqdm, **options):
        super().__init__(notebook, **options)
        self.bar = bar

    def output(self, outs, msg, display_id, cell_index):
        """Take the bars out of stderr; everything else, warnings too, is stored as usual."""
        content = msg["content"]
        to_stderr = msg["msg_type"] == "stream" and content["name"] == "stderr"
        # a bar within another sends the line between them, and the way back up, by themselves
        if to_stderr and (re.search(r"\r|\x1b\[A", content["text"]) or not content["text"].strip()):
            if shown := re.findall(r"[^\r\n]*\d%", content["text"]):
                self.bar.set_postfix_str(shown[-1].strip())
            residue = r"[^\r\n]*\d%\|[^\]\r\n]*\]|\r *|\x1b\[A"
            content["text"] = re.sub(residue, "", content["text"])
            if not content["text"].strip():
                return None
        return super().output(outs, msg, display_id, cell_index)


async def execute(path: Path) -> NotebookNode:
    """The notebook at `path`, executed in a fresh kernel. A failing cell raises."""
    notebook = nbformat.read(path, as_version=4)
    cells = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    bar = tqdm(total=len(cells), desc=path.stem, unit="cell")
    client = Client(
        notebook,
        bar,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        # or each kernel remarks on its unencrypted loopback socket
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda **_: (bar.set_postfix_str(""), bar.update()),
    )
    with bar:
        await client.async_execute()
    # a widget lives as long as its kernel: stored, it would be an error message
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if WIDGET not in output.get("data", {})
            ]
    return notebook


def execute_all(paths: list[Path], jobs: int, then: Callable[[Path, NotebookNode], None]) -> None:
    """Execute notebooks in this order, `jobs` at a time, and hand each to `then` when it is done.

    What two of them need, one trains, and the other waits for it. After an error no other is
    started; those that run are finished, and then it is raised.
    """

    async def everything() -> None:
        slots, waiting = asyncio.Semaphore(jobs), list(paths)

        async def one() -> None:
            async with slots:
                if not waiting:
                    return
                path = waiting.pop(0)
                try:
                    then(path, await execute(path))
                except BaseException:
                    waiting.clear()
                    raise

        results = await asyncio.gather(*(one() for _ in paths), return_exceptions=True)
        for error in filter(None, results):
            raise error

    asyncio.run(everything())


def code_hash(notebook: NotebookNode) -> str:
    """Hash of the notebook's code cells and of the code of ours behind what they use."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    names = set(re.findall(r"\bh\.(\w+)", "\n".join(cells)))
    modules = {module for module, name in imports(source_of("helpers")) if name in names}
    return hashlib.sha256("\n".join([*cells, source_hash(*sorted(modules))]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, without local tags such as +cpu."""
    found = {name: importlib.metadata.version(name).split("+")[0] for name in VERSIONED}
    return {"python": platform.python_version()} | found


def stamp(notebook: NotebookNode, entry: dict) -> None:
    """Write into the notebook what it was executed from; `entry`: its part of results.json."""
    notebook.metadata["latent_digits"] = {
        **{name: entry[name] for name in STORED},
        "versions": versions(),
        "code": code_hash(notebook),
    }


def stale(notebook: NotebookNode) -> list[str]:
    """What no longer fits between a stored notebook and its stamp; empty when all does."""
    stamped = notebook.metadata.get("latent_digits")
    if stamped is None:
        return ["it has never been executed by `make refresh`"]
    reasons = []
    if stamped["code"] != code_hash(notebook):
        reasons.append("its code, or code of ours behind it, has changed")
    if {name: stamped.get(name) for name in STORED} != STORED:
        reasons.append("it was not executed at full scale on MNIST with seed 0 in float32")
    current = versions()
    for name in VERSIONED:
        if stamped["versions"].get(name) != current[name]:
            reasons.append(
                f"it was executed with {name} {stamped['versions'].get(name)}, not {current[name]}"
            )
    return reasons


def read_entry(name: str, output: Path) -> dict:
    """One notebook's part of results.json."""
    return json.loads((output / "results.json").read_text())[name]


def show_results(name: str, entry: dict) -> None:
    """Print one notebook's part of results.json as aligned text."""
    rows = [(row["result"], publish.show_number(row)) for row in entry["results"]]
    width = max((len(result) for result, _ in rows), default=0)
    passed = sum(check["passed"] is True for check in entry["checks"])
    skipped = len(entry["checks"]) - passed
    lines = [f"\n{name} ({entry['data']})"]
    lines += [f"  {result:<{width}}  {value}" for result, value in rows]
    lines += [f"  {passed} checks passed" + (f", {skipped} skipped" if skipped else "") + "\n"]
    tqdm.write("\n".join(lines))


def run(paths: list[Path], jobs: int = 1) -> None:
    """Execute copies of the notebooks and write report/. No committed file changes."""
    folder, output = PROJECT / "report", Settings.from_environment().output

    def keep(path: Path, notebook: NotebookNode) -> None:
        publish.write_page(folder, path.stem, notebook)
        show_results(path.stem, read_entry(path.stem, output))

    execute_all(paths, jobs, keep)
    finish_report(paths, output)


def report(paths: list[Path]) -> None:
    """Write report/ from the stored notebooks and figures/: nothing is executed."""
    for path in paths:
        publish.write_page(PROJECT / "report", path.stem, nbformat.read(path, as_version=4))
    finish_report(paths, PROJECT / "figures")


def finish_report(paths: list[Path], output: Path) -> None:
    """Write the index, over all pages that are there. output: of figures and results.json."""
    results = json.loads((output / "results.json").read_text())
    notebooks = publish.read_notebooks({*(PROJECT / "notebooks").glob("*.ipynb"), *paths})
    index = publish.write_index(PROJECT / "report", results, output, notebooks)
    print(f"Read the executed notebooks: {index}")


def refresh(paths: list[Path], jobs: int = 1) -> None:
    """Execute the notebooks in place: outputs, stamp, figures/ and its results.json.

    No model is taken that was trained before, unless CACHE names a folder. A notebook that fails is
    left as it was, and so are its figures.
    """
    with tempfile.TemporaryDirectory() as cold:
        os.environ.setdefault("OUTPUT", "figures")
        os.environ.setdefault("CACHE", cold)
        # stored numbers are not to depend on the formats and instructions that a machine has
        os.environ |= {"DTYPE": STORED["dtype"]} | OLD_INSTRUCTIONS
        output = Settings.from_environment().output

        def keep(path: Path, notebook: NotebookNode) -> None:
            entry = read_entry(path.stem, output)
            stamp(notebook, entry)
            atomic_write(path, nbformat.writes(notebook).encode() + b"\n")
            show_results(path.stem, entry)

        execute_all(paths, jobs, keep)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["run", "report", "refresh"])
    parser.add_argument("--jobs", type=int, default=1, help="notebooks that are executed at a time")
    parser.add_argument("notebooks", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs is {arguments.jobs}: give at least 1")
    if arguments.command == "report":
        report(arguments.notebooks)
    else:
        {"run": run, "refresh": refresh}[arguments.command](arguments.notebooks, arguments.jobs)
