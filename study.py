"""Run the notebooks: `run` executes copies into report/, `refresh` executes in place and stamps them.

`report` makes report/ of the stored notebooks, executing nothing. A stamp says what a stored notebook was executed
from; `stale` tells whether it still fits.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm

import helpers as h
import publish

WIDGET = "application/vnd.jupyter.widget-view+json"
VERSIONED = ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "pandas")


class Client(NotebookClient):
    """Executes a notebook; progress bars go to the terminal instead of into it."""

    def output(self, outs, msg, display_id, cell_index):
        """Take the bars out of stderr; everything else, warnings too, is stored as usual."""
        content = msg["content"]
        if msg["msg_type"] == "stream" and content["name"] == "stderr" and "\r" in content["text"]:
            sys.stderr.write(content["text"])
            sys.stderr.flush()
            content["text"] = re.sub(r"[^\r\n]*\d%\|[^\]\r\n]*\]|\r *", "", content["text"])
            if not content["text"].strip():
                return None
        return super().output(outs, msg, display_id, cell_index)


def execute(path: Path) -> NotebookNode:
    """The notebook at `path`, executed from top to bottom in a fresh kernel. A failing cell raises."""
    notebook = nbformat.read(path, as_version=4)
    cells = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    bar = tqdm(total=len(cells), desc=path.stem, unit="cell")
    client = Client(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],  # or each kernel remarks on its unencrypted loopback socket
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda **_: bar.update(),
    )
    with bar:
        client.execute()
    for cell in notebook.cells:  # a widget lives as long as its kernel: stored, it would be an error message
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    return notebook


def code_hash(notebook: NotebookNode) -> str:
    """Hash of the notebook's code cells and of every definition of helpers.py that they reach."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    names = sorted(set(re.findall(r"\bh\.(\w+)", "\n".join(cells))))
    return hashlib.sha256("\n".join([*cells, h.source_hash(*names)]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, without local tags such as +cpu."""
    found = {name: importlib.metadata.version(name).split("+")[0] for name in VERSIONED}
    return {"python": platform.python_version()} | found


def stamp(notebook: NotebookNode, entry: dict) -> None:
    """Write into the notebook's metadata what it was executed from; `entry` is its part of results.json."""
    notebook.metadata["latent_digits"] = {
        "data": entry["data"],
        "seed": entry["seed"],
        "quick": entry["quick"],
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
        reasons.append("its code, or code of helpers.py behind it, has changed")
    if stamped["data"] != "mnist" or stamped["quick"] or stamped["seed"] != 0:
        reasons.append("it was not executed at full scale on MNIST with seed 0")
    current = versions()
    for name in VERSIONED:
        if stamped["versions"].get(name) != current[name]:
            reasons.append(f"it was executed with {name} {stamped['versions'].get(name)}, not {current[name]}")
    return reasons


def results_table(entry: dict) -> str:
    """One notebook's results as aligned text."""
    rows = [(row["result"], publish.show_number(row)) for row in entry["results"]]
    width = max((len(name) for name, _ in rows), default=0)
    passed = sum(check["passed"] is True for check in entry["checks"])
    skipped = len(entry["checks"]) - passed
    checks = f"{passed} checks passed" + (f", {skipped} skipped" if skipped else "")
    return "\n".join([f"  {name:<{width}}  {value}" for name, value in rows] + [f"  {checks}"])


def run(paths: list[Path]) -> None:
    """Execute copies of the notebooks and write report/: one page each, and an index. No committed file changes."""
    settings = h.Settings.from_environment()
    folder = h.PROJECT / "report"
    for path in paths:
        publish.write_page(folder, path.stem, execute(path))
        results = json.loads((settings.output / "results.json").read_text())
        print(f"\n{path.stem} ({results[path.stem]['data']})\n{results_table(results[path.stem])}\n")
    finish_report(folder, paths, settings.output)


def report(paths: list[Path]) -> None:
    """Write report/ from the stored notebooks and figures/: nothing is executed."""
    folder = h.PROJECT / "report"
    for path in paths:
        publish.write_page(folder, path.stem, nbformat.read(path, as_version=4))
    finish_report(folder, paths, h.PROJECT / "figures")


def finish_report(folder: Path, paths: list[Path], output: Path) -> None:
    """Write the index, over all pages that are there. output: where the figures and results.json are."""
    results = json.loads((output / "results.json").read_text())
    notebooks = publish.read_notebooks({*(h.PROJECT / "notebooks").glob("*.ipynb"), *paths})
    index = publish.write_index(folder, results, output, notebooks)
    print(f"Read the executed notebooks: {index}")


def refresh(paths: list[Path]) -> None:
    """Execute the notebooks in place, with no model trained before: outputs, stamp, figures/ and its results.json.

    A notebook that fails is left as it was, and so are its figures.
    """
    with tempfile.TemporaryDirectory() as cold:
        os.environ.setdefault("OUTPUT", "figures")
        os.environ.setdefault("CACHE", cold)
        settings = h.Settings.from_environment()
        for path in paths:
            notebook = execute(path)
            entry = json.loads((settings.output / "results.json").read_text())[path.stem]
            stamp(notebook, entry)
            h.write_whole(path, nbformat.writes(notebook).encode() + b"\n")
            print(f"\n{path.stem}\n{results_table(entry)}\n")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["run", "report", "refresh"])
    parser.add_argument("notebooks", nargs="+", type=Path)
    arguments = parser.parse_args()
    {"run": run, "report": report, "refresh": refresh}[arguments.command](sorted(arguments.notebooks))


if __name__ == "__main__":
    main()
