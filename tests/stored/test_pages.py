"""The report on the stored notebooks: links lead to cells, figures are there, no check or question is missing."""

import html
import json
import re
import tomllib
from urllib.parse import unquote

import pytest

from study import publish
from study.settings import PROJECT

RESULTS = json.loads((PROJECT / "figures" / "results.json").read_text(encoding="utf-8"))
QUESTIONS = [
    question
    for group in tomllib.loads((PROJECT / "study" / "questions.toml").read_text(encoding="utf-8"))["group"]
    for question in group["questions"]
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report on the stored notebooks."""
    folder = tmp_path_factory.mktemp("report")
    notebooks = publish.read_notebooks((PROJECT / "notebooks").glob("*.ipynb"))
    for name, notebook in notebooks.items():
        publish.write_page(folder, name, notebook)
    publish.write_index(folder, RESULTS, PROJECT / "figures", notebooks)
    return folder


@pytest.fixture(scope="module")
def index(report):
    return (report / "index.html").read_text(encoding="utf-8")


def text_of(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_every_link_leads_to_a_page_and_a_place_in_it(report, index):
    links = re.findall(r'(?:href|src)="([^"]+)"', index)
    assert len(links) > 80
    pages = {path.name: path.read_text(encoding="utf-8") for path in report.glob("*.html")}
    for link in links:
        name, _, place = html.unescape(unquote(link)).partition("#")
        if place:
            assert f'id="{place}"' in pages[name or "index.html"], link
        else:
            assert (report / name).exists(), link


def test_links_between_pages_stay_in_the_report(report):
    found = 0
    for path in report.glob("0*.html"):
        for link in re.findall(r'href="([^"#][^"]*)"', path.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                found += 1
                assert (report / link.partition("#")[0]).exists(), f"{path.name}: {link}"
    assert found >= 12


def test_pages_fetch_nothing(report):
    for path in report.glob("*.html"):
        assert not re.search(
            r"""(?:src=|@import |url\(|<link[^>]+href=)["']?(?:https?:)?//""", path.read_text(encoding="utf-8")
        ), path


def test_the_index_has_every_check_result_and_figure(index):
    text = text_of(index)
    for name, entry in RESULTS.items():
        for check in entry["checks"]:
            assert " ".join(f"✓ {check['claim']}".split()) in text
        for result in entry["results"]:
            assert f"{result['result']} {publish.show_number(result)}" in text
        figures = {path.name for path in (PROJECT / "figures").glob(f"{name[:2]}_*.png")}
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


def test_every_question_names_cells_and_numbers_that_are_there():
    notebooks = publish.read_notebooks((PROJECT / "notebooks").glob("*.ipynb"))
    for question in QUESTIONS:
        assert "?" not in publish.fill_in(question, RESULTS), question
        for label, name, words in question["cells"]:
            assert "#cell-id=" in publish.link_to(notebooks[name], name, words), (label, words)
