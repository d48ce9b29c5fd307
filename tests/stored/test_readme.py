"""The README's numbers are those of results.json, and what it and its neighbours name is there."""

import json
import re

import arithmetic
import bench
import groups
import nbformat
import numpy as np
import published
import pytest

from study.settings import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((PROJECT / "figures" / "results.json").read_text(encoding="utf-8"))
ROWS = re.findall(r"^\| \[(\d\d_\w+)\]\(notebooks/\1\.ipynb\) \|(.+?)\|(.+?)\|(.+?)\|$", README, flags=re.M)


def test_every_notebook_has_its_row():
    assert [row[0] for row in ROWS] == sorted(path.stem for path in (PROJECT / "notebooks").glob("*.ipynb"))


def numbers(text):
    """The numbers of a text as they are written, without tolerances: (± 0.5)."""
    return re.findall(r"−?\d[\d,]*\.?\d*", re.sub(r"\(± [^)]*\)", "", text))


def is_from(results, text):
    """Whether a number is one of the results. It may be given in fewer digits than are kept."""
    digits = len(text.partition(".")[2])
    value = float(text.replace("−", "-").replace(",", ""))
    return value in [round(result["value"], digits) for result in results]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_headline_numbers_come_from_the_run(row):
    name, _, headline, minutes = row
    results = RESULTS[name]["results"]
    assert numbers(headline)
    assert [text for text in numbers(headline) if not is_from(results, text)] == []
    # a first run spends so long on what the cache keeps, and not much longer on everything else
    training, estimation = (
        sum(r["value"] for r in results if r["result"].startswith(f"{kind} time of"))
        for kind in ("training", "estimation")
    )
    assert training + estimation < 60 * float(minutes) <= 1.5 * (training + estimation) + 120


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_headline_says_how_far_another_run_may_come_out(row):
    assert re.search(r"\(± \d", row[2])


# the results behind each row of the table beside the sources, in the order of the numbers of its last column
BESIDE_SOURCES = {
    "CNN, 20,000 images, ten epochs: test accuracy": ["test accuracy"],
    "latent optimization: training images that keep their class": [
        "class consistency as written, training images",
        "class consistency cured, training images",
    ],
    "mean log p(x), test images, amortized": ["log p(x), test images, amortized"],
    "mean log p(x), training images, amortized": ["log p(x), train images, amortized"],
    "mean log p(x), test images, latent optimization": ["log p(x), test images, latent optimization"],
    "log p(x) of the ones, amortized": ["log p(x) of the digit 1, test images, amortized"],
    "ten clusters as a classifier, fully connected VAE": ["MLP VAE, 10 clusters: test accuracy"],
    "60,000 images": ["test accuracy"],
    "ten clusters one-to-one": ["conv VAE, 10 clusters: one-to-one accuracy, mean of the starts"],
    "ten groups of many clusters": ["ten groups without a label: one-to-one accuracy, mean of the starts"],
}


def test_what_stands_beside_the_sources_comes_from_the_run():
    everything = {result["result"]: result for entry in RESULTS.values() for result in entry["results"]}
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", README.split("| quantity | reported | here |")[1], flags=re.M
    )
    rows = rows[: len(BESIDE_SOURCES)]
    for (quantity, ours), (words, names) in zip(rows, BESIDE_SOURCES.items(), strict=True):
        assert words in quantity
        found = numbers(ours.removesuffix(" with 20,000"))
        assert [is_from([everything[name]], text) for name, text in zip(names, found, strict=True)] == [True] * len(
            names
        )


def test_the_stored_arithmetic_is_complete_in_the_readme_and_within_its_budget():
    stored = json.loads((PROJECT / "benchmarks" / "results.json").read_text(encoding="utf-8"))["arithmetic"]
    assert set(stored) == {path.stem for path in arithmetic.notebooks()}
    assert arithmetic.markdown(stored) in README
    assert sum(sum(parts.values()) for parts in stored.values()) < 95e12


def test_the_stored_benchmark_is_complete_and_in_the_readme():
    stored = json.loads((PROJECT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    formats = bench.FORMATS[: 1 + bench.FORMATS.index(stored["machine"]["format"])]
    assert [row["row"] for row in stored["rows"]] == [row.label for row in bench.ROWS if row.dtype in ("", *formats)]
    assert [row["row"] for row in stored["rows"] if not row["met"] and not row["limit"]] == []
    assert set(stored["growth"]) == set(bench.GROWTH)
    assert set(stored["run"]) == set(formats)
    for text in (bench.markdown(stored), bench.limits(stored)):
        assert text in README
    assert f"{stored['machine']['cores']} cores ({stored['machine']['cpu']};" in README
    for points in stored["growth"].values():
        slope = np.polyfit(np.log(points["sizes"]), np.log(points["seconds"]), 1)[0]
        assert points["slope"] == pytest.approx(slope)


def test_the_notebook_says_what_five_vaes_say_of_the_ten_groups():
    stored = json.loads((PROJECT / "benchmarks" / "groups.json").read_text(encoding="utf-8"))
    assert len(stored["seeds"]) == len(groups.SEEDS)
    notebook = nbformat.read(PROJECT / "notebooks" / "06_gaussian_mixture.ipynb", as_version=4)
    prose = " ".join(" ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown").split())
    assert groups.describe(stored) in prose


def test_the_readme_says_what_the_published_network_reached():
    stored = json.loads((PROJECT / "benchmarks" / "published.json").read_text(encoding="utf-8"))
    assert published.describe(stored) in " ".join(README.split())
    assert stored["published (nats)"] == published.PUBLISHED
    assert stored["epochs"] == published.EPOCHS


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (PROJECT / name).read_text(encoding="utf-8")):
        assert (PROJECT / link).exists(), link


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_named_commands_and_files_exist(name):
    text = (PROJECT / name).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w.-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert set(re.findall(r"(?:^|`|, `)(?:[A-Z_]+=\S+ )*make (\w+)", text, flags=re.M)) <= targets
    for file in re.findall(r"`([\w.]+\.(?:py|toml|txt|jinja|md)|\w+/)`", text):
        assert (PROJECT / file).exists() or f"{file}\n" in (PROJECT / ".gitignore").read_text(encoding="utf-8"), file


def test_the_readme_names_every_command():
    for target in re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), flags=re.M):
        assert f"make {target}" in README, target


def test_hooks_use_the_ruff_that_is_installed():
    hooks = (PROJECT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"entry: (\S+)", hooks) == [".venv/bin/ruff"] * 2
    assert "ruff==" in (PROJECT / "requirements.txt").read_text(encoding="utf-8")
