"""The report: its links lead to cells, its figures are there, and no check or question is missing."""

import html
import json
import re
import tomllib
from urllib.parse import unquote

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import helpers as h
import publish

RESULTS = json.loads((h.PROJECT / "figures" / "results.json").read_text())
QUESTIONS = [
    question
    for group in tomllib.loads((h.PROJECT / "assignment.toml").read_text())["group"]
    for question in group["questions"]
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report on the stored notebooks."""
    folder = tmp_path_factory.mktemp("report")
    notebooks = publish.read_notebooks((h.PROJECT / "notebooks").glob("*.ipynb"))
    for name, notebook in notebooks.items():
        publish.write_page(folder, name, notebook)
    publish.write_index(folder, RESULTS, h.PROJECT / "figures", notebooks)
    return folder


@pytest.fixture(scope="module")
def index(report):
    return (report / "index.html").read_text()


def text_of(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_every_link_leads_to_a_page_and_a_place_in_it(report, index):
    links = re.findall(r'(?:href|src)="([^"]+)"', index)
    assert len(links) > 80
    pages = {path.name: path.read_text() for path in report.glob("*.html")}
    for link in links:
        name, _, place = html.unescape(unquote(link)).partition("#")
        if place:
            assert f'id="{place}"' in pages[name or "index.html"], link
        else:
            assert (report / name).exists(), link


def test_links_between_pages_stay_in_the_report(report):
    found = 0
    for path in report.glob("0*.html"):
        for link in re.findall(r'href="([^"#][^"]*)"', path.read_text()):
            if not link.startswith("http"):
                found += 1
                assert (report / link.partition("#")[0]).exists(), f"{path.name}: {link}"
    assert found >= 12


def test_pages_fetch_nothing(report):
    for path in report.glob("*.html"):
        assert not re.search(r"""(?:src=|@import |url\(|<link[^>]+href=)["']?(?:https?:)?//""", path.read_text()), path


def test_the_index_has_every_check_result_and_figure(index):
    text = text_of(index)
    for name, entry in RESULTS.items():
        for check in entry["checks"]:
            assert " ".join(f"✓ {check['claim']}".split()) in text
        for result in entry["results"]:
            assert f"{result['result']} {publish.show_number(result)}" in text
        figures = {path.name for path in (h.PROJECT / "figures").glob(f"{name[:2]}_*.png")}
        assert set(re.findall(rf"figures/({name[:2]}_\w+\.png)", index)) == figures
    assert "Not a full run on MNIST" not in text


def test_every_question_is_answered(index):
    text = text_of(index)
    assert len(QUESTIONS) >= 20
    for question in QUESTIONS:
        assert question["asks"] in text
        assert question["cells"]
    assert not re.search(r"\{[^}]*\}", re.sub(r"<style>.*?</style>", "", index, flags=re.S))
    # two answers, with their numbers from the run
    results = {row["result"]: row["value"] for row in RESULTS["03_latent_optimization"]["results"]}
    kept = results["class consistency as written, training images"]
    assert f"As written it collapses: {kept:.1f} % of the images" in text
    ones = {row["result"]: row["value"] for row in RESULTS["05_log_probability"]["results"]}
    value = ones["log p(x) of the digit 1, test images, amortized"]
    assert f"The ones, at −{-value:.2f} nats: they differ little" in text


def small_notebook():
    cells = [
        new_markdown_cell("# 09 · Small\n\n**Questions.** Is $a < b$?\n\n**Time.** None."),
        new_code_cell('report.figure(figure, "one_thing")'),
    ]
    return new_notebook(cells=cells)


def test_an_index_of_part_of_the_notebooks_in_a_quick_run(tmp_path):
    checks = [
        {"claim": "1 < 2", "value": "", "passed": True},
        {"claim": "needs training", "value": "0", "passed": None},
    ]
    entry = {"data": "digits", "seed": 0, "quick": True, "results": [], "checks": checks}
    notebooks = {"09_small": small_notebook(), "01_other": small_notebook()}
    (tmp_path / "figures").mkdir()
    publish.write_page(tmp_path, "09_small", notebooks["09_small"])
    publish.write_index(tmp_path, {"09_small": entry, "01_other": entry}, tmp_path / "figures", notebooks)
    page = (tmp_path / "index.html").read_text()
    assert "Not a full run on MNIST" in page
    assert "QUICK smoke run" in page
    assert "01_other" not in page  # it has no page
    assert 'id="assignment"' not in page  # none of its questions is answered by this notebook
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


def test_a_link_leads_to_the_cell_or_at_least_to_the_page():
    notebook = small_notebook()
    assert publish.link_to(notebook, "09_small", "one_thing") == f"09_small.html#cell-id={notebook.cells[1].id}"
    assert publish.link_to(notebook, "09_small", "nowhere") == "09_small.html"
    notebook.cells.append(nbformat.from_dict(notebook.cells[1]))
    assert publish.link_to(notebook, "09_small", "one_thing") == "09_small.html"


def test_an_answer_takes_numbers_from_the_first_notebook_that_has_them():
    def entry(**values):
        return {
            "results": [{"result": name, "value": value, "unit": "nats", "digits": 0} for name, value in values.items()]
        }

    cells = [["here", "09_small", "words"], ["there", "01_other", "words"]]
    results = {"09_small": entry(a=1.0), "01_other": entry(a=2.0, b=3.0)}
    assert publish.fill_in({"answer": "{a}, {b}, {c}", "cells": cells}, results) == "1 nats, 3 nats, ?"


def test_every_question_names_cells_and_numbers_that_are_there():
    notebooks = publish.read_notebooks((h.PROJECT / "notebooks").glob("*.ipynb"))
    for question in QUESTIONS:
        assert "?" not in publish.fill_in(question, RESULTS), question
        for label, name, words in question["cells"]:
            assert "#cell-id=" in publish.link_to(notebooks[name], name, words), (label, words)
