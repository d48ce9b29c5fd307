"""The report: every executed notebook as a page, and an index, readable without a network.

The index shows each notebook's questions and answers, which stand in its first cell, its headline
numbers, its checks and its figures; and explorers, which live without a kernel. Beside each page
lies the notebook that it shows: the one that was executed, whatever has become of it since. Modules
of the course that a notebook links to are pages, too.
"""

import contextlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import jinja2
import nbformat
from latex2mathml.converter import convert as latex_to_mathml
from markupsafe import Markup
from matplotlib import rc_params_from_file
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from study.arguments import PROJECT
from study.files import atomic_write
from study.report import EXPLORERS, STYLE, show_value
from study.seeds import describe_seeds, read_seeds_file

# of the templates, wherever the report goes
HERE = Path(__file__).resolve().parent
# one item of a notebook's first cell: 1. **Question?** Answer. [Where](#Heading)
ANSWER = re.compile(r"^\d+\. \*\*(.+?)\*\* (.+) \[([^\]]+)\]\(#(.+)\)$", re.M)


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

    def __init__(self, **options):
        super().__init__(**options)
        self.raw_template = (HERE / "page.html.jinja").read_text(encoding="utf-8")

    def default_filters(self):
        """The usual ones, with our own Markdown."""
        yield from super().default_filters()
        yield "markdown2html", to_html

    def page(self, notebook: NotebookNode) -> str:
        """The page. Links to notebooks lead to their pages; scripts from elsewhere are removed."""
        page, _ = self.from_notebook_node(notebook)
        page = re.sub(r'<script src="[^"]*">\s*</script>', "", page)
        page = re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.html', page)
        page = re.sub(r'href="\.\./(latent_digits/\w+)\.py"', r'href="\1.html"', page)
        page = page.replace('href="../README.md"', 'href="index.html"')
        # what scrolls can be reached from the keyboard; a heading without words is none
        page = re.sub(r"<table\b.*?</table>", reachable, page, flags=re.S)
        page = re.sub(r'<math display="block".*?</math>', reachable, page, flags=re.S)
        page = re.sub(r"<th\b[^>]*>(&nbsp;|\s)*</th>", "<td></td>", page)
        return page.replace("<main>", f"{TO_INDEX}<main>", 1)


def reachable(found: re.Match) -> str:
    """A table or formula in a box that scrolls by itself, not with the page."""
    return f'<div class="wide" tabindex="0">{found[0]}</div>'


TO_INDEX = '<nav class="to-index"><a href="index.html">Latent Digits</a></nav>'


def write_page(folder: Path, name: str, notebook: NotebookNode) -> None:
    """One page of the report, the notebook that it shows, and the modules that it links to."""
    atomic_write(folder / f"{name}.html", PageExporter().page(notebook).encode())
    atomic_write(folder / f"{name}.ipynb", nbformat.writes(notebook).encode())
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for module in set(re.findall(r"\(\.\./latent_digits/(\w+)\.py\)", words)):
        write_module(folder, module)


def write_module(folder: Path, module: str) -> None:
    """A module of the course as a page."""
    path = PROJECT / "latent_digits" / f"{module}.py"
    if path.is_file():
        formatter = HtmlFormatter(style="sas")
        page = template("module.html.jinja").render(
            name=f"latent_digits/{module}.py",
            style=Markup(formatter.get_style_defs("pre")),
            code=Markup(highlight(path.read_text(encoding="utf-8"), PythonLexer(), formatter)),
        )
        atomic_write(folder / "latent_digits" / f"{module}.html", page.encode())


def template(name: str) -> jinja2.Template:
    """A template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = show_number
    return environment.get_template(name)


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
        for path in [*figures.glob("[!.]*.png"), figures / "results.json", figures / "seeds.json"]:
            if path.is_file():
                atomic_write(folder / "figures" / path.name, path.read_bytes())
    cycle = rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"]
    page = template("index.html.jinja").render(
        chapters=[describe(name, notebooks[name], results.get(name)) for name in names],
        explorers=read_explorers(figures),
        colours=[f"#{colour}" for colour in cycle.by_key()["color"]],
        seeds=read_seeds_of(figures),
        partly=any(one["quick"] or one["data"] != "mnist" for one in results.values()),
    )
    atomic_write(folder / "index.html", page.encode())
    return folder / "index.html"


def read_seeds_of(figures: Path) -> str:
    """What seeds.png shows, in words; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        everything = read_seeds_file(figures / "seeds.json")
        if (figures / "seeds.png").is_file():
            return describe_seeds(everything)
    return ""


def read_explorers(figures: Path) -> dict[str, dict]:
    """What the notebooks have left to be tried without a kernel, by kind."""
    paths = {kind: figures / f"explore_{kind}.json" for kind in EXPLORERS}
    return {
        kind: json.loads(path.read_text(encoding="utf-8"))
        for kind, path in paths.items()
        if path.is_file()
    }


def show_number(result: Mapping) -> str:
    """A result with its unit: −45.1 nats, 99.5 %."""
    return f"{show_value(result)} {result['unit']}".strip()


def describe(name: str, notebook: NotebookNode, entry: Mapping | None) -> dict:
    """What the index says about one notebook. entry: None where it has no Report."""
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    title = re.search(r"^# (.+)$", first, re.M)
    nothing = {"data": None, "seed": None, "quick": False, "results": [], "checks": []}
    entry = nothing | {"figures": []} | dict(entry or {})
    figures = [figure | {"place": place_of(figure, name, notebook)} for figure in entry["figures"]]
    answers = [
        {
            "question": to_html(question),
            "answer": to_html(answer),
            "label": label,
            "link": f"{quote(name)}.html#{quote(anchor)}",
            "figure": figure_below(anchor, notebook, figures),
        }
        for question, answer, label, anchor in ANSWER.findall(first)
    ]
    headlines = [figure for figure in figures if figure.get("headline")]
    return entry | {
        "name": name,
        "title": title[1] if title else name,
        "answers": answers,
        "figures": figures,
        "headline": next(iter([*headlines, *figures]), None),
        "passed": sum(check["passed"] is True for check in entry["checks"]),
    }


def figure_below(anchor: str, notebook: NotebookNode, figures: list[dict]) -> dict | None:
    """The first figure of the section with this heading, or None."""
    by_cell, level = {figure["cell"]: figure for figure in reversed(figures)}, None
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for marks, heading in re.findall(r"^(#+) (.+)$", cell.source, re.M):
                if heading.strip().replace(" ", "-") == anchor:
                    level = len(marks)
                elif level is not None and len(marks) <= level:
                    return None
        elif level is not None and (found := by_cell.get(cell.get("execution_count"))):
            return found
    return None


def place_of(figure: Mapping, name: str, notebook: NotebookNode) -> str:
    """Where a figure is: its cell, by the count at which that was executed; or the page."""
    for cell in notebook.cells:
        if figure["cell"] is not None and cell.get("execution_count") == figure["cell"]:
            return f"{quote(name)}.html" + (f"#cell-id={cell.id}" if "id" in cell else "")
    return f"{quote(name)}.html"


def read_notebooks(paths) -> dict[str, NotebookNode]:
    """Notebooks by name."""
    return {path.stem: nbformat.read(path, as_version=4) for path in paths}


def read_pages(folder: Path) -> dict[str, NotebookNode]:
    """The notebooks that the pages in a folder show, by name."""
    paths = folder.glob("[!.]*.ipynb")
    return read_notebooks(path for path in paths if path.with_suffix(".html").exists())
