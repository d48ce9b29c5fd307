"""The stored notebooks: executed in order, fresh, without errors, with all their figures."""

import json
import re
import statistics

import nbformat
import pytest

from study import execute, identity, publish, stamps
from study.report import EXPLORERS
from study.settings import PROJECT

PATHS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
RESULTS = json.loads((PROJECT / "figures" / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(output):
    """All text of an output: streams, and every textual representation of a result."""
    data = output.get("data", {})
    return output.get("text", "") + "".join(v for k, v in data.items() if k.startswith("text/"))


def test_the_chapters_are_there():
    assert [path.stem for path in PATHS] == [
        "01_supervised_cnn",
        "02_amortized_vae",
        "03_latent_optimization",
        "04_sampling",
        "05_log_probability",
        "06_gaussian_mixture",
    ]


def test_the_stamp_fits(notebook):
    assert stamps.stale(notebook) == [], "execute it again with `make refresh`"


def test_cells_were_run_once_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_have_no_error_warning_or_progress_bar(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", text_of(output)
            plain = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not re.search(r"Warning|Traceback|\d%\|", plain)


def test_outputs_name_no_folder_of_a_machine(notebook):
    text = "".join(text_of(output) for cell in code_cells(notebook) for output in cell.outputs)
    assert not re.search(r"(?<![\w.:])/(home|root|tmp|Users|usr|work|mnt|private)/|[A-Z]:\\\\", text)


def test_no_widget_is_stored(notebook):
    """Without the kernel that made it, it would be shown as an error."""
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        assert not any(execute.WIDGET in output.get("data", {}) for output in cell.outputs)


def test_every_check_passed_in_the_stored_output(notebook, path):
    text = "".join(text_of(output) for cell in code_cells(notebook) for output in cell.outputs)
    claims = RESULTS[path.stem]["checks"]
    assert len(claims) >= 6
    for claim in claims:
        assert claim["passed"] is True
        value = f"  ({claim['value']})" if claim["value"] else ""
        assert f"✓ {claim['claim']}{value}\n" in text  # an output of another seed has other values


def test_every_figure_is_stored(notebook, path):
    figures = RESULTS[path.stem]["figures"]
    assert len(figures) >= 4
    assert sum(figure["headline"] for figure in figures) == 1
    for figure in figures:
        image = PROJECT / "figures" / figure["file"]
        assert image.read_bytes().startswith(b"\x89PNG"), image
    shown = [
        output for cell in code_cells(notebook) for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    words = [" ".join(output.metadata["image/png"]["alt"].split()) for output in shown]
    assert words == [figure["alt"] for figure in figures]
    assert all(len(alt.split()) >= 8 for alt in words)  # not the name alone


OF_ALL = {"results.json", "seeds.json", "seeds.png"}


def test_nothing_is_left_over_in_the_figures():
    figures = {figure["file"] for entry in RESULTS.values() for figure in entry["figures"]}
    explorers = {f"explore_{kind}.json" for kind in EXPLORERS}
    assert {path.name for path in (PROJECT / "figures").glob("[!.]*")} <= figures | explorers | OF_ALL


# numbers in answers and alternative texts that are settings, and no results
SETTINGS = {
    "01_supervised_cnn": ["14", "16", "28", "32", "64", "128"],
    "02_amortized_vae": ["12", "20", "30", "200", "0.1"],
    "03_latent_optimization": ["20", "6,000", "20,000"],
    "04_sampling": ["20"],
    "05_log_probability": ["384", "415", "0.4", "200", "50", "4,000"],
    "06_gaussian_mixture": ["2,000"],
}


def answers(notebook):
    """The answers of a notebook's first cell."""
    return [answer for _, answer, _, _ in publish.ANSWER.findall(notebook.cells[0].source)]


def strangers_in(text, name):
    """Numbers that are neither results of the notebook nor settings. Small whole numbers may be counts."""
    results = [abs(row["value"]) for row in RESULTS[name]["results"]]
    found = set()
    for number in re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"\b0\d\b|\b(?:19|20)\d\d\b", "", text)):
        value, digits = float(number.rstrip(",").replace(",", "")), len(number.partition(".")[2])
        if (value > 10 or digits) and not any(value == round(result, digits) for result in results):
            found.add(number.rstrip(","))
    return found


def test_answers_and_alternative_texts_are_of_the_results(notebook, path):
    assert len(answers(notebook)) >= 4
    texts = [*answers(notebook), *(figure["alt"] for figure in RESULTS[path.stem]["figures"])]
    found = set.union(*(strangers_in(text, path.stem) for text in texts))
    assert found == set(SETTINGS[path.stem]), "no results of the notebook (or no longer used)"


def test_every_answer_has_a_number_and_leads_to_a_heading(notebook):
    items = publish.ANSWER.findall(notebook.cells[0].source)
    assert len(items) == len(re.findall(r"^\d+\. ", notebook.cells[0].source, re.M))  # each has the form
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = [heading.strip().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", prose, re.M)]
    for question, answer, _, anchor in items:
        assert question.endswith("?"), question
        assert re.search(r"\d", answer), question
        assert headings.count(anchor) == 1, anchor


def test_every_exercise_has_its_solution(path, notebook):
    solution = nbformat.read(path.parent / "solutions" / path.name, as_version=4)
    nbformat.validate(solution)
    exercises = re.findall(r"^(\d+)\. ", notebook.cells[-1].source.split("**Exercises.**")[1], re.M)
    assert len(exercises) >= 4
    prose = "\n".join(cell.source for cell in solution.cells if cell.cell_type == "markdown")
    assert re.findall(r"^## (?:Exercise )?(\d+)\b", prose, re.M) == exercises
    assert f"`notebooks/solutions/{path.name}`" in notebook.cells[-1].source
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(solution))


# numbers in prose that no output or setting of the notebook has, and why they are right
FROM_ELSEWHERE = {
    "01_supervised_cnn": {
        **dict.fromkeys(["98.43", "99.22", "99.19", "97"], "reported by others"),
    },
    "02_amortized_vae": {"0.0005": "the learning rate of fit_mlp_vae"},
    "03_latent_optimization": {
        **dict.fromkeys(["0.004", "0.15"], "learning rate and weight decay of LatentConfig"),
    },
    "04_sampling": {},
    "05_log_probability": {
        **dict.fromkeys(["826.3", "991.4"], "reported by Wu et al. 2017, table 2"),
    },
    "06_gaussian_mixture": {},
}


def test_numbers_in_prose_come_from_the_run(notebook, path):
    """A number of two digits or more stands in some output (a share perhaps as a percentage) or in the code."""
    cells = code_cells(notebook)
    outputs = re.sub(r"<[^>]+>", " ", "\n".join(text_of(output) for cell in cells for output in cell.outputs))
    sources = "\n".join(cell.source for cell in cells).replace("_", "")
    known = [
        abs(float(text.replace(",", ""))) for text in re.findall(r"\d[\d,]*\.?\d*(?:e[-+]?\d+)?", outputs + sources)
    ]
    prose = "\n".join(cell.source for cell in notebook.cells[1:] if cell.cell_type == "markdown")
    prose = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|\b(?:19|20)\d\d\b|\b0\d\b", "", prose, flags=re.S)
    strangers = set()
    for text in re.findall(r"\d[\d,]*\.?\d*", prose):
        text = text.rstrip(".,")
        value, digits = float(text.replace(",", "")), len(text.partition(".")[2])
        if (value > 10 or digits) and not any(value in (round(n, digits), round(100 * n, digits)) for n in known):
            strangers.add(text)
    assert strangers == set(FROM_ELSEWHERE[path.stem]), "not in the outputs (or no longer missing there)"


def test_rhythm(notebook, path):
    """Title, questions and time; one set-up cell; short cells; verdicts, limits, exercises and a link."""
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert first.startswith(f"# {path.stem[:2]} · ")
    assert "**Questions and answers**" in first
    assert "**You will learn**" in first
    assert "**Time.**" in first
    assert "h.begin(" in code_cells(notebook)[0].source
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert statistics.median(lengths) <= 10
    assert max(lengths) <= 30
    assert any(cell.source.startswith("> **Verdict.**") or "\n> **Verdict.**" in cell.source for cell in notebook.cells)
    ours = [cell for cell in code_cells(notebook) if stamps.SEEDS not in cell.metadata.get("tags", ())]
    assert "report.finish()" in ours[-1].source  # what seeds say comes after it
    for part in ("**Limits.**", "**Exercises.**"):
        assert part in last
    for link in re.findall(r"\]\(([^)]+)\)", last):
        assert (path.parent / link).exists(), link


def test_some_outputs_are_compared(notebook):
    marked = [cell for cell in code_cells(notebook) if cell.source.startswith("# NBVAL_CHECK_OUTPUT\n")]
    assert marked
    assert all(cell.outputs for cell in marked)
    assert all("NBVAL" not in cell.source for cell in code_cells(notebook) if cell not in marked)


def test_a_change_of_the_widgets_makes_those_notebooks_stale_that_use_them_and_no_others(monkeypatch):
    read, before = identity.source_of, identity.source_hash("latent_digits.training", "latent_digits.latents")
    monkeypatch.setattr(identity, "source_of", lambda name: read(name) + "\nNEW = 1\n" * (name == "study.widgets"))
    stale = [path.stem[:2] for path in PATHS if stamps.stale(nbformat.read(path, as_version=4))]
    assert stale == ["02", "04", "05", "06"]  # which end with something to play with
    assert identity.source_hash("latent_digits.training", "latent_digits.latents") == before  # nothing is trained anew
