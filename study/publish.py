"""The report: every executed notebook as a page, and an index, readable without a network.

The index has, for each notebook, its question, its headline numbers, its checks and its figures;
and the assignment's questions, each with a link to the cell that answers it.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

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
        return latex_to_mathml(body, display="block")

    def inline_math(self, body):
        """A formula within a sentence."""
        return latex_to_mathml(body)


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
        html, _ = self.from_notebook_node(notebook)
        html = re.sub(r'<script src="[^"]*">\s*</script>', "", html)
        html = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', html)
        html = html.replace('href="../README.md"', 'href="index.html"')
        return html.replace("</head>", f"{PAGE_STYLE}</head>", 1).replace(
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
    """One page of the report."""
    atomic_write(folder / f"{name}.html", PageExporter().page(notebook).encode())


def write_index(
    folder: Path,
    results: Mapping[str, dict],
    figures: Path,
    notebooks: Mapping[str, NotebookNode],
) -> Path:
    """The report's first page, on every notebook whose page is in the folder.

    Figures are copied to where it is. notebooks: by name, for their words and cells; whether they
    have outputs does not matter.
    """
    names = sorted(
        name for name in results if name in notebooks and (folder / f"{name}.html").exists()
    )
    if figures != folder / "figures":
        for path in figures.glob("[!.]*"):
            atomic_write(folder / "figures" / path.name, path.read_bytes())
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template.filters["number"] = show_number
    page = template.from_string((HERE / "index.html.jinja").read_text()).render(
        chapters=[describe(name, notebooks[name], results[name]) for name in names],
        groups=answered({name: results[name] for name in names}, notebooks),
    )
    atomic_write(folder / "index.html", page.encode())
    return folder / "index.html"


def show_number(result: Mapping) -> str:
    """A result with its unit: −45.1 nats, 99.5 %."""
    return f"{show_value(result)} {result['unit']}".strip()


def describe(name: str, notebook: NotebookNode, entry: dict) -> dict:
    """What the index says about one notebook."""
    first = notebook.cells[0].source
    title, question = (
        re.search(r"^# (.+)$", first, re.M),
        re.search(r"\*\*Questions?\.\*\* (.+?)(\n\n|$)", first, re.S),
    )
    figures = [
        {"name": found, "file": f"{name[:2]}_{found}.png", "cell": cell.id}
        for cell in notebook.cells
        for found in re.findall(r'report\.figure\(\w+, "(\w+)"\)', cell.source)
    ]
    words = {
        "title": title[1] if title else name,
        "question": to_html(question[1]) if question else "",
    }
    passed = sum(check["passed"] is True for check in entry["checks"])
    return {"name": name, "figures": figures, "passed": passed} | words | entry


def answered(results: Mapping[str, dict], notebooks: Mapping[str, NotebookNode]) -> list[dict]:
    """The questions that `results` can answer, with numbers in their answers and links to cells."""
    groups = []
    for group in tomllib.loads((HERE / "questions.toml").read_text())["group"]:
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
    found = [cell.id for cell in notebook.cells if words in cell.source]
    return f"{name}.html#cell-id={found[0]}" if len(found) == 1 else f"{name}.html"


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
