"""The report: every executed notebook as a page, and an index, readable without a network.

The index has, for each notebook, its question, its headline numbers, its checks and its figures;
and the assignment's questions, each with a link to the cell that answers it. Beside each page lies
the notebook that it shows: the one that was executed, whatever has become of it since.
"""

import html
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import jinja2
import nbformat
from latex2mathml.converter import convert as latex_to_mathml
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from study.files import atomic_write
from study.report import show_value

# of the template and the questions, wherever the report goes
HERE = Path(__file__).resolve().parent


class FormulaRenderer(IPythonRenderer):
    """Markdown with its formulas as MathML, which browsers show without a script."""

    def block_math(self, body):
        """A displayed formula."""
        return to_mathml(body, "block")

    def inline_math(self, body):
        """A formula within a sentence."""
        return to_mathml(body, "inline")


def to_mathml(formula: str, display: str) -> str:
    """A formula as MathML; one that cannot be converted as it is written."""
    try:
        return latex_to_mathml(formula, display=display)
    except Exception:  # the converter has many
        return f"<code>{html.escape(formula)}</code>"


def to_html(markdown: str) -> Markup:
    """Markdown as HTML."""
    return Markup(MarkdownWithMath(renderer=FormulaRenderer(escape=False)).render(markdown))


class PageExporter(HTMLExporter):
    """An executed notebook as one HTML page that needs no network."""

    def default_filters(self):
        """The usual ones, with our own Markdown."""
        yield from super().default_filters()
        yield "markdown2html", to_html

    def page(self, notebook: NotebookNode) -> str:
        """The page. Links to notebooks lead to their pages; scripts from elsewhere are removed."""
        page, _ = self.from_notebook_node(notebook)
        page = re.sub(r'<script src="[^"]*">\s*</script>', "", page)
        page = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', page)
        page = page.replace('href="../README.md"', 'href="index.html"')
        return page.replace("</head>", f"{PAGE_STYLE}</head>", 1).replace(
            "<main>", f"{TO_INDEX}<main>", 1
        )


TO_INDEX = '<nav class="to-index"><a href="index.html">Latent Digits</a></nav>'
PAGE_STYLE = """<style>
/* the template sets code that a cell shows as Markdown in the font of prose */
.jp-RenderedMarkdown.jp-OutputArea-output pre {
  font: var(--jp-code-font-size) var(--jp-code-font-family); white-space: pre; overflow-x: auto
}
.to-index { font: 14px system-ui, sans-serif; padding: 8px 16px }
/* what is wider than the window scrolls by itself, not with the page */
.jp-RenderedHTMLCommon table, math[display="block"] {
  display: block; overflow-x: auto; max-width: 100%
}
@media (max-width: 700px) {
  .jp-Notebook { padding: 0 8px !important }
  .jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none !important }
}
</style>"""


def write_page(folder: Path, name: str, notebook: NotebookNode) -> None:
    """One page of the report, and the notebook that it shows."""
    atomic_write(folder / f"{name}.html", PageExporter().page(notebook).encode())
    atomic_write(folder / f"{name}.ipynb", nbformat.writes(notebook).encode())


def write_index(
    folder: Path,
    results: Mapping[str, dict],
    figures: Path,
    notebooks: Mapping[str, NotebookNode],
) -> Path:
    """The report's first page, on every notebook whose page is in the folder.

    Figures are copied to where it is. notebooks: by name, for their words and cells; results: of
    those that have a Report.
    """
    names = sorted(name for name in notebooks if (folder / f"{name}.html").exists())
    results = {name: results[name] for name in names if name in results}
    if figures != folder / "figures":
        for path in [*figures.glob("[!.]*.png"), figures / "results.json"]:
            if path.is_file():
                atomic_write(folder / "figures" / path.name, path.read_bytes())
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template.filters["number"] = show_number
    text = (HERE / "index.html.jinja").read_text(encoding="utf-8")
    page = template.from_string(text).render(
        chapters=[describe(name, notebooks[name], results.get(name)) for name in names],
        groups=answered(results, notebooks),
        partly=any(one["quick"] or one["data"] != "mnist" for one in results.values()),
    )
    atomic_write(folder / "index.html", page.encode())
    return folder / "index.html"


def show_number(result: Mapping) -> str:
    """A result with its unit: −45.1 nats, 99.5 %."""
    return f"{show_value(result)} {result['unit']}".strip()


def describe(name: str, notebook: NotebookNode, entry: Mapping | None) -> dict:
    """What the index says about one notebook. entry: None where it has no Report."""
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    title, question = (
        re.search(r"^# (.+)$", first, re.M),
        re.search(r"\*\*Questions?\.\*\* (.+?)(\n\n|$)", first, re.S),
    )
    words = {
        "title": title[1] if title else name,
        "question": to_html(question[1]) if question else "",
    }
    nothing = {"data": None, "seed": None, "quick": False, "results": [], "checks": []}
    entry = nothing | dict(entry or {})
    passed = sum(check["passed"] is True for check in entry["checks"])
    figures = [
        {"name": figure["name"], "file": figure["file"], "place": place_of(figure, name, notebook)}
        for figure in entry.get("figures", figures_in_source(name, notebook))
    ]
    return entry | words | {"name": name, "figures": figures, "passed": passed}


def place_of(figure: Mapping, name: str, notebook: NotebookNode) -> str:
    """Where a figure is: its cell, by the count at which that was executed; or the page."""
    for cell in notebook.cells:
        if figure["cell"] is not None and cell.get("execution_count") == figure["cell"]:
            return f"{quote(name)}.html" + (f"#cell-id={cell.id}" if "id" in cell else "")
    return f"{quote(name)}.html"


def figures_in_source(name: str, notebook: NotebookNode) -> list[dict]:
    """The figures of a notebook that was executed before its results named them."""
    return [
        {"name": found, "file": f"{name[:2]}_{found}.png", "cell": cell.get("execution_count")}
        for cell in notebook.cells
        for found in re.findall(r"""report\.figure\(\w+, ["'](\w+)["']\)""", cell.source)
    ]


def answered(results: Mapping[str, dict], notebooks: Mapping[str, NotebookNode]) -> list[dict]:
    """The questions that `results` can answer, with numbers in their answers and links to cells."""
    groups = []
    text = (HERE / "questions.toml").read_text(encoding="utf-8")
    for group in tomllib.loads(text)["group"]:
        questions = []
        for question in group["questions"]:
            if {name for _, name, _ in question["cells"]} <= set(results):
                links = [
                    (label, link_to(notebooks[name], name, words))
                    for label, name, words in question["cells"]
                ]
                questions.append(
                    {"asks": question["asks"], "answer": fill_in(question, results), "links": links}
                )
        if questions:
            groups.append({"title": group["title"], "questions": questions})
    return groups


def link_to(notebook: NotebookNode, name: str, words: str) -> str:
    """Where the one cell with these words is; the page, where no cell or more than one has them.

    (A notebook that somebody has changed should not cost them the report. The tests ask for the
    cell.)
    """
    found = [cell.get("id") for cell in notebook.cells if words in cell.source]
    return f"{name}.html#cell-id={found[0]}" if len(found) == 1 and found[0] else f"{name}.html"


def fill_in(question: dict, results: Mapping[str, dict]) -> str:
    """The answer, with each {name of a result} replaced by that result.

    It is that of the first named notebook that has it. What this run has not computed is a question
    mark; a QUICK run leaves some out.
    """
    names = dict.fromkeys(name for _, name, _ in question["cells"])
    known = {
        result["result"]: result for name in reversed(names) for result in results[name]["results"]
    }
    return re.sub(
        r"\{([^}]+)\}",
        lambda found: show_number(known[found[1]]) if found[1] in known else "?",
        question["answer"],
    )


def read_notebooks(paths) -> dict[str, NotebookNode]:
    """Notebooks by name."""
    return {path.stem: nbformat.read(path, as_version=4) for path in paths}


def read_pages(folder: Path) -> dict[str, NotebookNode]:
    """The notebooks that the pages in a folder show, by name."""
    paths = folder.glob("[!.]*.ipynb")
    return read_notebooks(path for path in paths if path.with_suffix(".html").exists())
