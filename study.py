"""Run the notebooks: `run` executes copies into report/, `refresh` executes in place and stamps them.

A stamp says what a stored notebook was executed from. `stale` tells whether it still fits.
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
from latex2mathml.converter import convert as latex_to_mathml
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from tqdm import tqdm

import helpers as h

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
        extra_arguments=["--log-level=ERROR"],  # or each kernel remarks on its unencrypted loopback socket
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda **_: bar.update(),
    )
    with bar:
        client.execute()
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


class FormulaRenderer(IPythonRenderer):
    """Markdown with its formulas as MathML, which browsers show without a script."""

    def block_math(self, body):
        """A displayed formula."""
        return latex_to_mathml(body, display="block")

    def inline_math(self, body):
        """A formula within a sentence."""
        return latex_to_mathml(body)


# the template sets code that a cell shows as Markdown in the font of prose
CODE_IN_OUTPUT = (
    ".jp-RenderedMarkdown.jp-OutputArea-output pre { font: var(--jp-code-font-size) var(--jp-code-font-family) }"
)


class PageExporter(HTMLExporter):
    """An executed notebook as one HTML page that needs no network."""

    def default_filters(self):
        """The usual ones, with our own Markdown."""
        yield from super().default_filters()
        yield "markdown2html", lambda text: MarkdownWithMath(renderer=FormulaRenderer(escape=False)).render(text)

    def page(self, notebook: NotebookNode) -> str:
        """The page, without the links to scripts on other servers that the template brings."""
        html, _ = self.from_notebook_node(notebook)
        html = re.sub(r'<script src="[^"]*">\s*</script>', "", html)
        return html.replace("</head>", f"<style>{CODE_IN_OUTPUT}</style></head>", 1)


def results_table(entry: dict) -> str:
    """One notebook's results as aligned text."""
    rows = [(row["result"], f"{row['value']:g} {row['unit']}") for row in entry["results"]]
    width = max((len(name) for name, _ in rows), default=0)
    passed = sum(check["passed"] is True for check in entry["checks"])
    skipped = len(entry["checks"]) - passed
    checks = f"{passed} checks passed" + (f", {skipped} skipped" if skipped else "")
    return "\n".join([f"  {name:<{width}}  {value}" for name, value in rows] + [f"  {checks}"])


def index_page(results: dict, names: list[str]) -> str:
    """The report's first page: every notebook with its results and checks."""
    parts = []
    for name in names:
        entry = results[name]
        rows = "".join(
            f"<tr><td>{row['result']}</td><td>{row['value']:g} {row['unit']}</td></tr>" for row in entry["results"]
        )
        checks = "".join(f"<li>{'–' if c['passed'] is None else '✓'} {c['claim']}</li>" for c in entry["checks"])
        scale = "QUICK smoke run" if entry["quick"] else "full scale"
        parts.append(
            f'<section><h2><a href="{name}.html">{name}</a></h2>'
            f"<p>{entry['data']}, seed {entry['seed']}, {scale}</p>"
            f"<table>{rows}</table>"
            f"<details><summary>{len(entry['checks'])} checks</summary><ul>{checks}</ul></details></section>"
        )
    return INDEX.replace("CONTENT", "\n".join(parts))


INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Latent Digits</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
td { padding: .1rem 1rem .1rem 0 } h2 { margin: 2rem 0 0 } p { color: #666; margin: 0 0 .5rem } li { list-style: none }
</style>
<h1>Latent Digits</h1>
CONTENT
</html>
"""


def run(paths: list[Path]) -> None:
    """Execute copies of the notebooks and write report/: one page each, and an index. No committed file changes."""
    settings = h.Settings.from_environment()
    folder = h.PROJECT / "report"
    for path in paths:
        notebook = execute(path)
        h.write_whole(folder / f"{path.stem}.html", PageExporter().page(notebook).encode())
        results = json.loads((settings.output / "results.json").read_text())
        print(f"\n{path.stem} ({results[path.stem]['data']})\n{results_table(results[path.stem])}\n")
    names = sorted(name for name in results if (folder / f"{name}.html").exists())
    h.write_whole(folder / "index.html", index_page(results, names).encode())
    print(f"Read the executed notebooks: {folder / 'index.html'}")


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
    parser.add_argument("command", choices=["run", "refresh"])
    parser.add_argument("notebooks", nargs="+", type=Path)
    arguments = parser.parse_args()
    {"run": run, "refresh": refresh}[arguments.command](sorted(arguments.notebooks))


if __name__ == "__main__":
    main()
