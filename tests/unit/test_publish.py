"""The report: of some notebooks or of a QUICK run, its numbers and its links."""

import html
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from study import publish


def text_of(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


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
