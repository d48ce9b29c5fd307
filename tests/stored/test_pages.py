"""The report on the stored notebooks: links lead to cells, figures are there, no check or question is missing."""

import base64
import html
import io
import json
import re
from urllib.parse import quote, unquote

import nbformat
import PIL.Image
import pytest

from study import publish
from study.report import EXPLORERS
from study.settings import PROJECT

RESULTS = json.loads((PROJECT / "figures" / "results.json").read_text(encoding="utf-8"))


@pytest.fixture
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


def test_every_question_of_the_notebooks_is_answered(index):
    text, count = text_of(index), 0
    for path in (PROJECT / "notebooks").glob("*.ipynb"):
        for question, _, label, anchor in publish.ANSWER.findall(nbformat.read(path, as_version=4).cells[0].source):
            count += 1
            assert text_of(publish.to_html(question)).strip() in text
            assert f'{path.stem}.html#{quote(anchor)}">{html.escape(label)}' in index
    assert count >= 30
    # most stand beside a picture
    assert len(re.findall(r'class="thumbnail" href="[^"]+"><img', index)) > 0.6 * count


def test_every_picture_says_what_it_shows(report):
    for path in report.rglob("*.html"):
        for picture in re.findall(r"<img\b[^>]*>", path.read_text(encoding="utf-8")):
            words = re.search(r"alt=(['\"])(.*?)\1", re.sub(r'src="data:[^"]*"', "", picture), re.S)
            assert len(words[2].split()) >= 8, picture[:200]


def test_each_explorer_has_an_image_for_each_of_its_states(index):
    assert len(index) < 8e6
    paths = [PROJECT / "figures" / f"explore_{kind}.json" for kind in EXPLORERS]
    latents, walk, points, parts = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    assert images_of(latents) >= len(latents["digits"]) * len(latents["latents"]) * len(latents["values"])
    assert images_of(walk) >= 45 * walk["steps"]
    assert images_of(points) >= len(points["x"]) == len(points["y"]) == len(points["label"]) == len(points["log_prob"])
    assert images_of(parts) >= len(parts["weight"]) * (1 + parts["draws"])
    assert len(parts["weight"]) == len(parts["digit"]) == len(parts["purity"])
    for kind in EXPLORERS:
        assert f'id="explore-{kind}"' in index


def images_of(explorer):
    """How many images the sheet has room for."""
    sprites = explorer["sprites"]
    width, height = PIL.Image.open(io.BytesIO(base64.b64decode(sprites["source"].partition(",")[2]))).size
    assert width == sprites["columns"] * sprites["width"]
    return width // sprites["width"] * (height // sprites["height"])
