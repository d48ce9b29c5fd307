"""The report: of some notebooks or of a QUICK run, its numbers and its links."""

import html
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from study import publish


def text_of(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


FIRST = """# 09 · Small

**Questions and answers**

1. **Is $a < b$?** Yes, by *3.2* nats. [Where](#Where-(it)-is-shown)
2. **And else?** Not shown. [Nowhere](#Nowhere)

**Time.** None."""
FIGURES = [
    {"name": "one_thing", "file": "09_one_thing.png", "cell": 1, "alt": "One thing, at 3.2 nats", "headline": False},
    {"name": "other", "file": "09_other.png", "cell": 2, "alt": "The other", "headline": True},
]


def small_notebook():
    cells = [
        new_markdown_cell(FIRST),
        new_markdown_cell("## Where (it) is shown"),
        new_code_cell('report.figure(figure, "one_thing")', execution_count=1),
        new_markdown_cell("## And not here"),
        new_code_cell('report.figure(figure, "other")', execution_count=2),
    ]
    return new_notebook(cells=cells)


def test_an_index_of_part_of_the_notebooks_in_a_quick_run(tmp_path):
    checks = [
        {"claim": "1 < 2", "value": "", "passed": True},
        {"claim": "needs training", "value": "0", "passed": None},
    ]
    entry = {"data": "digits", "seed": 0, "quick": True, "results": [], "checks": checks, "figures": FIGURES}
    notebooks = {"09_small": small_notebook(), "01_other": small_notebook()}
    (tmp_path / "figures").mkdir()
    publish.write_page(tmp_path, "09_small", notebooks["09_small"])
    publish.write_index(tmp_path, {"09_small": entry, "01_other": entry}, tmp_path / "figures", notebooks)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Not a full run on MNIST" in page
    assert "QUICK smoke run" in page
    assert "01_other" not in page  # it has no page
    assert "✓ 1 < 2" in text_of(page)
    assert "– needs training" in text_of(page)
    assert "1 of 2 checks passed" in text_of(page)
    assert 'src="figures/09_one_thing.png"' in page
    assert "<math" in page


@pytest.mark.parametrize(
    ("value", "unit", "digits", "shown"),
    [
        (-45.1, "nats", 2, "−45.10 nats"),
        (10.0, "%", 1, "10.0 %"),
        (884.0, "", 0, "884"),
        (12345.6, "s", 1, "12,345.6 s"),
        (-45.1, "nats", None, "−45.1 nats"),
    ],
)
def test_numbers_are_shown_with_their_digits_and_unit(value, unit, digits, shown):
    kept = {} if digits is None else {"digits": digits}  # None: kept before digits were
    assert publish.show_number({"value": value, "unit": unit} | kept) == shown


def test_an_answer_stands_with_its_link_and_the_figure_of_its_section():
    notebook = small_notebook()
    entry = entry_of(figures=FIGURES)
    chapter = publish.describe("09_small", notebook, entry)
    shown, nowhere = chapter["answers"]
    assert "<math" in shown["question"]
    assert "<em>3.2</em> nats" in shown["answer"]
    assert (shown["label"], shown["link"]) == ("Where", "09_small.html#Where-%28it%29-is-shown")
    assert shown["figure"]["place"] == f"09_small.html#cell-id={notebook.cells[2].id}"
    assert shown["figure"]["alt"] == "One thing, at 3.2 nats"
    assert nowhere["figure"] is None
    assert chapter["headline"]["name"] == "other"
    del notebook.cells[2]  # a section without a figure does not take the next one's
    assert publish.describe("09_small", notebook, entry)["answers"][0]["figure"] is None


def test_a_page_says_what_its_pictures_show_and_links_to_the_pages_of_modules(tmp_path):
    notebook = small_notebook()
    picture = nbformat.v4.new_output("display_data", {"image/png": "AA=="}, metadata={"image/png": {"alt": 'a "b" <c'}})
    notebook.cells[2].outputs = [picture]
    links = "[the density](../latent_digits/densities.py) and [next](04_sampling.ipynb#Here)"
    notebook.cells[1].source += f"\n\nSee {links}."
    publish.write_page(tmp_path, "09_small", notebook)
    page = (tmp_path / "09_small.html").read_text(encoding="utf-8")
    words = re.search(r"<img\b[^>]*?alt=(['\"])(.*?)\1", page)[2]
    assert html.unescape(words) == 'a "b" <c'
    assert 'href="latent_digits/densities.html"' in page
    assert 'href="04_sampling.html#Here"' in page
    module = (tmp_path / "latent_digits" / "densities.html").read_text(encoding="utf-8")
    assert "def gaussian_log_likelihood" in text_of(module)


def test_explorers_are_those_that_the_notebooks_have_left(tmp_path):
    (tmp_path / "explore_walk.json").write_text('{"kind": "walk", "note": "</script>"}', encoding="utf-8")
    publish.write_index(tmp_path / "report", {}, tmp_path, {})
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert 'id="explore-walk"' in page
    assert 'id="explore-map"' not in page
    assert page.count("</script>") == 2  # no data can end the script that it stands in


# what was executed is shown, and what cannot be shown costs itself (CASES, kinds D and G)


def entry_of(**changed):
    return {"data": "mnist", "seed": 0, "quick": False, "results": [], "checks": []} | changed


def write_report(folder, results, notebooks):
    (folder / "figures").mkdir(exist_ok=True)
    for name, notebook in notebooks.items():
        publish.write_page(folder, name, notebook)
    return publish.write_index(folder, results, folder / "figures", notebooks).read_text(encoding="utf-8")


@pytest.mark.cases
def test_g2_figures_are_those_that_were_executed_and_lead_to_their_cells(tmp_path):
    notebook = small_notebook()
    notebook.cells.append(new_code_cell("for name in names: report.figure(figure, name)", execution_count=5))
    figures = [{"name": "in_a_variable", "file": "09_in_a_variable.png", "cell": 5, "alt": "one"}]
    figures.append({"name": "elsewhere", "file": "09_elsewhere.png", "cell": None, "alt": "two"})
    page = write_report(tmp_path, {"09_small": entry_of(figures=figures)}, {"09_small": notebook})
    place = f"09_small.html#cell-id={notebook.cells[5].id}"
    assert f'<a href="{place}"><img loading="lazy" src="figures/09_in_a_variable.png" alt="one"' in page
    assert '<a href="09_small.html"><img loading="lazy" src="figures/09_elsewhere.png" alt="two"' in page
    assert "09_one_thing" not in page  # it stands in the source, and was not executed


@pytest.mark.cases
def test_d1_a_notebook_without_a_report_a_title_or_a_cell_is_shown(tmp_path):
    bare, code = new_notebook(), new_notebook(cells=[new_code_cell("# a comment, no title\n1 + 1")])
    page = write_report(tmp_path, {}, {"07_mine": bare, "my own": code})
    assert 'href="07_mine.html">07_mine</a>' in page
    assert 'href="my%20own.html">my own</a>' in page
    assert text_of(page).count("No Report is finished in this notebook") == 2
    assert "checks passed" not in page
    assert "Not a full run" not in page


@pytest.mark.cases
@pytest.mark.parametrize("formula", [r"$\frac{a}{$", r"$$\begin{matrix} 1 \\ 2$$", r"$\left( x$", "$}$"])
def test_d4_a_formula_that_cannot_be_converted_is_shown_as_it_is_written(tmp_path, formula):
    notebook = small_notebook()
    notebook.cells[0].source = f"# 09 · Small\n\n1. **Is {formula} right?** Yes. [There](#There)\n\nAnd $a<b$."
    page = write_report(tmp_path, {"09_small": entry_of()}, {"09_small": notebook})
    assert "right?" in page
    assert "<math" in (tmp_path / "09_small.html").read_text(encoding="utf-8")


@pytest.mark.cases
def test_d4_the_converter_may_fail_in_any_way(monkeypatch):
    monkeypatch.setattr(publish, "latex_to_mathml", lambda *_, **__: 1 / 0)
    assert publish.to_html("Is $a<b$?").strip() == "<p>Is <code>a&lt;b</code>?</p>"


@pytest.mark.cases
def test_d3_only_pictures_and_results_are_copied(tmp_path):
    for name in ("picture.png", "results.json", "notes.txt"):
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "folder.png").mkdir()
    for _ in range(2):  # OUTPUT=report, twice
        publish.write_index(tmp_path, {}, tmp_path, {})
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["picture.png", "results.json"]


@pytest.mark.cases
def test_g1_beside_each_page_lies_the_notebook_that_ran(tmp_path):
    notebook = small_notebook()
    publish.write_page(tmp_path, "09_small", notebook)
    nbformat.write(small_notebook(), tmp_path / "no_page.ipynb")
    pages = publish.read_pages(tmp_path)
    assert list(pages) == ["09_small"]
    assert [cell.id for cell in pages["09_small"].cells] == [cell.id for cell in notebook.cells]


@pytest.mark.cases
def test_d1_a_notebook_of_an_older_format_has_no_names_of_cells(tmp_path):
    notebook = nbformat.from_dict(small_notebook() | {"nbformat_minor": 4})
    for cell in notebook.cells:
        del cell["id"]
    figures = [{"name": "one", "file": "09_one.png", "cell": 1, "alt": "one"}]
    page = write_report(tmp_path, {"09_small": entry_of(figures=figures)}, {"09_small": notebook})
    assert '<a href="09_small.html"><img' in page
