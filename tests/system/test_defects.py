"""The tests of the notebooks can fail: of a defect planted in a copy of the project `make test`'s machinery tells."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from around import plain_environment
from study.settings import PROJECT

NOT_THE_PROJECT = shutil.ignore_patterns(
    ".git", ".venv", ".cache", ".*_cache", "__pycache__", "report", "play", "data", "mutants", ".hypothesis"
)


@pytest.fixture
def project(tmp_path):
    """A copy of the project, to plant defects in."""
    return shutil.copytree(PROJECT, tmp_path / "project", ignore=NOT_THE_PROJECT)


def call(project, *command, quick=True, options=""):
    """Run a command in the copy, on the digits. Returns whether it passed, and what it said."""
    environ = plain_environment() | {"DATA": "digits", "QUICK": "1" if quick else "", "PYTEST_ADDOPTS": options}
    done = subprocess.run(
        command, cwd=project, env=environ, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    return done.returncode == 0, done.stdout + done.stderr


def execute_again(project, number, quick=True, options="-x"):
    """`make test`'s second half, on one notebook, up to the first failure."""
    make = ("make", "-o", ".venv/installed", "test-notebooks", f"BIN={Path(sys.executable).parent}", "JOBS=1")
    (path,) = (project / "notebooks").glob(f"{number}*.ipynb")
    return call(project, *make, f"NOTEBOOKS={path.relative_to(project)}", quick=quick, options=options)


def replace_in(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_flipped_sign_of_the_kl_is_told(project):
    replace_in(
        project / "latent_digits" / "densities.py",
        "    return 0.5 * (mu.square() + torch",
        "    return -0.5 * (mu.square() + torch",
    )
    passed, said = execute_again(project, "02")
    assert not passed
    assert "✗ the naive VAE has the terms and gradients of the fast one" in said


def test_an_untrained_decoder_is_told(project):
    """No step is ever taken: at full scale, where nothing is skipped."""
    step = "    def training_step(self, batch: Tensor, epoch: Integral = 1, step: Integral = 1) -> None:\n"
    module = project / "latent_digits" / "training.py"
    text = module.read_text(encoding="utf-8")
    docstring = '        """One step of the weights on the images of a batch, given by their indices."""\n'
    assert text.count(step + docstring) == 1
    module.write_text(text.replace(step + docstring, f"{step}{docstring}        return\n"), encoding="utf-8")
    passed, said = execute_again(project, "02", quick=False)
    assert not passed
    assert "✗ with 100 images the validation elbo falls" in said


def stored_cell(project, number, marked):
    """A notebook's path, itself, and its first cell of code that contains `marked`."""
    (path,) = (project / "notebooks").glob(f"{number}*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    return path, notebook, next(c for c in notebook.cells if c.cell_type == "code" and marked in c.source)


def test_a_stale_output_is_told(project):
    path, notebook, cell = stored_cell(project, "04", "NBVAL_CHECK_OUTPUT")
    cell.outputs[0]["text"] = cell.outputs[0]["text"].replace("200", "100")
    nbformat.write(notebook, path)
    passed, said = execute_again(project, "04", options="")
    assert not passed
    assert "mismatch" in said
    assert "200" in said
    assert re.search(r"\b1 failed, \d+ passed\b", said), said  # or it would prove nothing


def remove_a_figure(project):
    """From the folder: 01's."""
    (project / "figures" / "01_confusion.png").unlink()


def remove_a_shown_figure(project):
    """From what 02 shows."""
    path, notebook, cell = stored_cell(project, "02", '"traversal"')
    cell.outputs = [output for output in cell.outputs if "image/png" not in output.get("data", {})]
    nbformat.write(notebook, path)


def change_a_value(project):
    """Of a check in results.json: nbval does not compare what comes from training, but it stands in 03's output."""
    path = project / "figures" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    claim = next(claim for claim in results["03_latent_optimization"]["checks"] if claim["value"])
    claim["value"] += "9"
    path.write_text(json.dumps(results), encoding="utf-8")


def change_a_cell(project):
    """Of 04, without executing it again."""
    path, notebook, cell = stored_cell(project, "04", "report.figure")
    cell.source += "\n1 + 1"
    nbformat.write(notebook, path)


def test_what_no_longer_fits_a_stored_notebook_is_told(project):
    expected = {
        "test_every_figure_is_stored[01_supervised_cnn]": remove_a_figure,
        "test_every_figure_is_stored[02_amortized_vae]": remove_a_shown_figure,
        "test_every_check_passed_in_the_stored_output[03_latent_optimization]": change_a_value,
        "test_the_stamp_fits[04_sampling]": change_a_cell,
    }
    for plant in expected.values():
        plant(project)
    passed, said = call(project, sys.executable, "-m", "pytest", "tests/stored/test_notebooks.py")
    assert not passed
    failed = re.findall(r"^_+ (test_\S+) _+$", said, flags=re.M)
    assert sorted(failed) == sorted(expected)
