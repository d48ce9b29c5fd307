"""The pages' numbers are those of the stored files, and what the pages name is there."""

import json
import re
import tomllib

import arithmetic
import bench
import numpy as np
import published
import pytest
from test_many_seeds import RANGE

from study.settings import PROJECT

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "COMPARISON.md", "benchmarks/README.md"]
README, CONTRIBUTING, _, COMPARISON, BENCHMARKS = ((PROJECT / page).read_text(encoding="utf-8") for page in PAGES)
RESULTS = json.loads((PROJECT / "figures" / "results.json").read_text(encoding="utf-8"))
STORED = {
    name: json.loads((PROJECT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("results", "published")
}
ROWS = re.findall(r"^\| \[(\d\d_\w+)\]\(notebooks/\1\.ipynb\) \|(.+?)\|(.+?)\|(.+?)\|$", README, flags=re.M)


def test_the_readme_is_short_and_leads_to_the_other_pages():
    assert len(README.splitlines()) <= 130
    for page in PAGES:
        assert page == "README.md" or f"]({page})" in README, page


def test_every_notebook_has_its_row():
    assert [row[0] for row in ROWS] == sorted(path.stem for path in (PROJECT / "notebooks").glob("*.ipynb"))


def numbers(text):
    """The numbers of a text as they are written, without means of seeds: 99.5 % (99.4 to 99.6)."""
    return re.findall(r"−?\d[\d,]*\.?\d*", RANGE.sub("", text))


def is_from(results, text):
    """Whether a number is one of the results. It may be given in fewer digits than are kept."""
    text = text.rstrip(".,")
    digits = len(text.partition(".")[2])
    value = float(text.replace("−", "-").replace(",", ""))
    return value in [round(result["value"], digits) for result in results]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_answers_and_minutes_come_from_the_run(row):
    name, _, answer, minutes = row
    results = RESULTS[name]["results"]
    assert [text for text in numbers(answer) if not is_from(results, text)] == []
    # a first run spends so long on what the cache keeps, and not much longer on everything else
    training, estimation = (
        sum(r["value"] for r in results if r["result"].startswith(f"{kind} time of"))
        for kind in ("training", "estimation")
    )
    assert training + estimation < 60 * float(minutes) <= 1.5 * (training + estimation) + 120


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_an_answer_says_how_far_another_run_may_come_out(row):
    assert RANGE.search(row[2])


# the results behind each row of the comparison, in the order of the numbers of its last column
COMPARED = {
    "CNN, 20,000 images, ten epochs: test accuracy": ["test accuracy"],
    "latent optimization: training images that keep their class": [
        "class consistency as written, training images",
        "class consistency cured, training images",
    ],
    "mean log p(x), test images, amortized": ["log p(x), test images, amortized"],
    "mean log p(x), training images, amortized": ["log p(x), train images, amortized"],
    "mean log p(x), test images, latent optimization": ["log p(x), test images, latent optimization"],
    "mean log p(x), training images, latent optimization": ["log p(x), train images, latent optimization"],
    "log p(x) of the ones, amortized": ["log p(x) of the digit 1, test images, amortized"],
    "ten clusters as a classifier, fully connected VAE": ["MLP VAE, 10 clusters: test accuracy"],
    "60,000 images": ["test accuracy"],
    "ten clusters one-to-one": ["conv VAE, 10 clusters: one-to-one accuracy, mean of the starts"],
    "ten groups of many clusters": ["ten groups without a label: one-to-one accuracy, mean of the starts"],
}


def test_what_is_compared_with_others_comes_from_the_run():
    assert COMPARISON.startswith("# Comparison with published results\n")
    everything = {result["result"]: result for entry in RESULTS.values() for result in entry["results"]}
    table = COMPARISON.split("| quantity | reported | here |\n|---|---|---|\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", table, flags=re.M)
    assert len(rows) == len(table.splitlines())
    for (quantity, ours), (words, names) in zip(rows, COMPARED.items(), strict=True):
        assert words in quantity
        found = numbers(ours.removesuffix(" with 20,000"))
        assert [is_from([everything[name]], text) for name, text in zip(names, found, strict=True)] == [True] * len(
            names
        )


def one_line(text):
    return " ".join(text.split())


def test_the_comparison_says_what_the_published_network_reached():
    stored = STORED["published"]
    assert published.describe(stored) in one_line(COMPARISON)
    assert f"we are {published.PUBLISHED - stored['log p(x)']['mean (nats)']:.2f} nats below" in one_line(COMPARISON)
    assert stored["published (nats)"] == published.PUBLISHED
    assert stored["epochs"] == published.EPOCHS
    spent = (stored["training (s)"] + stored["log p(x)"]["seconds"]) / 60
    (minutes,) = re.findall(r"^\| `make published` \|.+\| (\d+) \|$", CONTRIBUTING, flags=re.M)
    assert spent < int(minutes) < 1.2 * spent


def test_the_stored_arithmetic_is_complete_on_its_page_and_within_its_budget():
    stored = STORED["results"]["arithmetic"]
    assert set(stored) == {path.stem for path in arithmetic.notebooks()}
    assert arithmetic.markdown(stored) in BENCHMARKS
    total = sum(sum(parts.values()) for parts in stored.values())
    assert total < 95e12
    share = sum(parts.get("training", 0) for parts in stored.values()) / total
    assert f"needs {total / 1e12:.1f} TFLOP. {share:.0%} of them train".replace("%", " %") in BENCHMARKS


def test_the_stored_benchmark_is_complete_and_on_its_page():
    stored, text = STORED["results"], one_line(BENCHMARKS)
    machine = stored["machine"]
    formats = bench.FORMATS[: 1 + bench.FORMATS.index(machine["format"])]
    assert [row["row"] for row in stored["rows"]] == [row.label for row in bench.ROWS if row.dtype in ("", *formats)]
    assert [row["row"] for row in stored["rows"] if not row["met"] and not row["limit"]] == []
    assert set(stored["growth"]) == set(bench.GROWTH)
    assert set(stored["run"]) == set(formats)
    for part in (bench.markdown(stored), bench.limits(stored)):
        assert part in BENCHMARKS
    assert f"{machine['cores']} cores ({machine['cpu']};" in text
    assert f"torch {machine['torch']} and scikit-learn {machine['scikit-learn']}" in text
    for points in stored["growth"].values():
        slope = np.polyfit(np.log(points["sizes"]), np.log(points["seconds"]), 1)[0]
        assert points["slope"] == pytest.approx(slope)
        assert f"- {points['label']}: **{slope:.2f}**\n".replace("*-", "*−") in BENCHMARKS
        assert max(slope, points["memory slope"]) < 1.005  # "nothing grows faster than in proportion"


def headings(path):
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = PROJECT / name
    prose = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8").replace("```", "`"))
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", prose):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), f"{link}#{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_says_what_it_shows(name):
    for words in re.findall(r"!\[([^\]]*)\]", (PROJECT / name).read_text(encoding="utf-8")):
        assert len(words.split()) >= 8, words


TARGETS = set(re.findall(r"^(\w[\w-]*):", (PROJECT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
IGNORED = (PROJECT / ".gitignore").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", PAGES)
def test_named_commands_and_files_exist(name):
    text = (PROJECT / name).read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|`)(?:[A-Z_]+=\S+ )*make ([\w-]+)", text, flags=re.M)) <= TARGETS
    folders = "" if name == "CHANGELOG.md" else r"(?:\w+/)*"  # it also tells of files that have gone
    for file in re.findall(rf"`({folders}[\w.]+\.(?:py|toml|txt|jinja|md|js|json)|\w+/)`", text):
        # what is not stored: made by a command, or a user's own
        there = (PROJECT / file).exists() or f"{file.partition('/')[0]}/" in IGNORED or file.startswith("MNIST/")
        assert there, file


def test_every_command_is_named():
    for target in TARGETS:
        assert f"`make {target}`" in README + CONTRIBUTING, target


def test_the_diagram_has_every_module_and_the_layers_of_the_contract():
    diagram = CONTRIBUTING.split("```mermaid\n")[1].split("```")[0]
    for path in [*PROJECT.glob("latent_digits/[a-z]*.py"), *PROJECT.glob("study/*.py")]:
        assert path.stem == "__init__" or re.search(rf"\b{path.stem}\b", diagram), path
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    for layer in contracts["contracts"][1]["layers"]:
        modules = ", ".join(name.removeprefix("latent_digits.") for name in layer.split(" | "))
        assert f'"{modules}"' in diagram


def test_explained_messages_are_those_of_the_code():
    explained = set(re.findall(r'^- \*\*"(.+)"\.\*\*', README.split("\n## Troubleshooting\n")[1], flags=re.M))
    paths = [PROJECT / "Makefile", PROJECT / "latent_digits" / "mnist.py"]
    paths += [*PROJECT.glob("study/*.py"), *PROJECT.glob("notebooks/*.ipynb")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    assert explained
    for message in explained:
        assert message.removeprefix("QUICK ") in code, message


def test_hooks_use_the_ruff_that_is_installed():
    hooks = (PROJECT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"entry: (\S+)", hooks) == [".venv/bin/ruff"] * 2
    assert "ruff==" in (PROJECT / "requirements.txt").read_text(encoding="utf-8")
