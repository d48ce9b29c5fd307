"""The README's numbers are those of results.json, and what it names is there."""

import json
import re

import pytest

import helpers as h

README = (h.PROJECT / "README.md").read_text()
RESULTS = json.loads((h.PROJECT / "figures" / "results.json").read_text())
ROWS = re.findall(r"^\| \[(\d\d_\w+)\]\(notebooks/\1\.ipynb\) \|(.+?)\|(.+?)\|(.+?)\|$", README, flags=re.M)


def test_every_notebook_has_its_row():
    assert [row[0] for row in ROWS] == sorted(path.stem for path in (h.PROJECT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_headline_numbers_come_from_the_run(row):
    name, _, headline, minutes = row
    numbers = [float(text.replace("−", "-")) for text in re.findall(r"−?\d+\.?\d*", headline)]
    assert numbers
    # a number may be given in fewer digits than results.json keeps
    kept = [result["value"] for result in RESULTS[name]["results"]]
    for text in re.findall(r"−?\d+\.?\d*", headline):
        digits = len(text.partition(".")[2])
        assert float(text.replace("−", "-")) in [round(value, digits) for value in kept], f"{name}: {text}"
    # a first run spends so long on what the cache keeps, and at most two minutes more on everything else;
    # three where it estimates, as annealing is not kept
    results = RESULTS[name]["results"]
    training, estimation = (
        sum(r["value"] for r in results if r["result"].startswith(f"{kind} time of"))
        for kind in ("training", "estimation")
    )
    assert training + estimation < 60 * float(minutes) < training + estimation + (180 if estimation else 120)


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (h.PROJECT / link).exists(), link


def test_named_commands_exist():
    targets = set(re.findall(r"^([\w.-]+):", (h.PROJECT / "Makefile").read_text(), flags=re.M))
    commands = set(re.findall(r"`(?:[A-Z_]+=\S+ )*make (\w+)", README)) | set(
        re.findall(r"^make (\w+)", README, flags=re.M)
    )
    assert {"run", "test", "lab", "refresh", "lint"} <= commands <= targets
