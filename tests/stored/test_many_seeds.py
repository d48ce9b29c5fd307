"""What pages and notebooks say of many seeds is what seeds.json has, and that is of the code as it stands."""

import html
import json
import re
import runpy

import nbformat
import pytest
import scaling

import helpers
from study import seeds
from study.settings import PROJECT
from study.stamps import SEEDS, STORED, code_hash, versions

EVERYTHING = seeds.read_seeds_file()
STAMP = EVERYTHING["stamp"]
PATHS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in PATHS}
RESULTS = json.loads((PROJECT / "figures" / "results.json").read_text(encoding="utf-8"))
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SMALL = "class consistency, 2,000 images, "  # in the small setting of 03
RECIPES = [
    result.removeprefix(SMALL)
    for result in EVERYTHING["notebooks"]["03_latent_optimization"]
    if result.startswith(SMALL)
]
# mean (lowest to highest), with a unit in between
RANGE = re.compile(r"(−?\d[\d,.]*)(?: %| nats)? \((−?\d[\d,.]*) to (−?\d[\d,.]*)\)")


def test_the_stamp_fits():
    remedy = "make sweep SEEDS=0-4"
    assert STAMP["code"] == {name: code_hash(notebook) for name, notebook in NOTEBOOKS.items()}, remedy
    assert {name: STAMP[name] for name in ("data", "quick", "dtype")} == {
        name: STORED[name] for name in ("data", "quick", "dtype")
    }
    current = versions()
    assert {name: STAMP["versions"][name] for name in current if name != "python"} == {
        name: version for name, version in current.items() if name != "python"
    }, remedy


def test_every_result_has_every_seed():
    assert len(STAMP["seeds"]) >= 5
    assert STAMP["processors"]
    for name, entry in RESULTS.items():
        results = EVERYTHING["notebooks"][name]
        assert set(results) == {row["result"] for row in entry["results"]}, name
        for result, row in results.items():
            assert list(map(int, row["by_seed"])) == STAMP["seeds"], result


def test_seed_0_is_the_stored_run():
    for name, entry in RESULTS.items():
        for row in entry["results"]:
            if "time" not in row["result"]:
                assert EVERYTHING["notebooks"][name][row["result"]]["by_seed"]["0"] == row["value"], row["result"]


def test_seeds_differ():
    for results in EVERYTHING["notebooks"].values():
        assert sum(len(set(row["by_seed"].values())) > 1 for row in results.values()) > len(results) / 3


@pytest.mark.parametrize("name", RESULTS)
def test_brackets_of_the_readme_are_means_and_ranges(name):
    (row,) = [line for line in README.splitlines() if line.startswith(f"| [{name}]")]
    found = RANGE.findall(row)
    possible = [seeds.mean_and_range(EVERYTHING["notebooks"][name][result]) for result in seeds.HEADLINES[name]]
    assert sorted(f"{mean} ({low} to {high})" for mean, low, high in found) == sorted(possible)
    assert "±" not in row


def test_the_readme_says_how_many_trainings():
    words = {5: "five", 10: "ten"}[len(STAMP["seeds"])]
    prose = " ".join(README.split())
    assert f"the mean of {words} trainings, and the lowest and the highest" in prose
    assert seeds.describe_seeds(EVERYTHING) in README


def displayed(cell):
    """The table that a cell shows, as text."""
    (output,) = cell.outputs
    return html.unescape(re.sub(r"<[^>]+>", "", output["data"]["text/html"]))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_show_what_the_file_has(name, tmp_path):
    """Executed again, the cells would show the same."""
    cells = [cell for cell in NOTEBOOKS[name].cells if SEEDS in cell.metadata.get("tags", ())]
    assert cells
    for cell in cells:
        shown = displayed(cell)
        (tmp_path / "cell.py").write_text(f"table = {cell.source}", encoding="utf-8")
        expected = runpy.run_path(str(tmp_path / "cell.py"), {"h": helpers, "recipes": RECIPES})["table"]
        assert len(expected)
        for row in expected.itertuples():
            assert not [value for value in row if f"{value}" not in shown]


def test_no_check_and_no_result_reads_what_seeds_say():
    for notebook in NOTEBOOKS.values():
        for cell in notebook.cells:
            tagged = SEEDS in cell.metadata.get("tags", ())
            shows = "over_seeds(" in cell.source and cell.cell_type == "code"
            assert tagged == shows
            assert not tagged or not re.search(r"check\(|report\.|=\s*h\.", cell.source)


def test_the_cost_of_the_sweep_itself_is_on_its_page():
    page = (PROJECT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert "\n".join(scaling.table(json.loads(scaling.FILE.read_text(encoding="utf-8")))) in page
