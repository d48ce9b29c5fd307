"""The tests, and a run, where text is CP1252 by default and goes to a file, as on Windows (CASES, kind C)."""

import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from around import plain_environment
from study.settings import PROJECT

pytestmark = pytest.mark.cases
# what reads or writes files, or prints
UNIT = ("files", "identity", "mnist", "publish", "report", "settings", "text")


@pytest.fixture(scope="module")
def cp1252(tmp_path_factory):
    """An environment like that of Windows in western Europe."""
    folder = tmp_path_factory.mktemp("locales")
    environ = plain_environment() | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252", "LOCPATH": str(folder)}
    command = ["localedef", "-i", "en_US", "-f", "CP1252", str(folder / "en_US.CP1252")]
    if not shutil.which("localedef") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the locale cannot be made here: localedef and the charmaps of glibc are needed")
    environ |= {"LC_ALL": "en_US.CP1252", "LANG": "en_US.CP1252"}
    code = "import locale; print(locale.getpreferredencoding())"
    told = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, check=True)
    assert told.stdout.split() == [b"CP1252"]
    return environ


def test_c3_the_tests_of_files_and_text_pass(cp1252, tmp_path):
    files = [f"tests/unit/test_{name}.py" for name in UNIT]
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-x", *files]
        done = subprocess.run(command, cwd=PROJECT, env=cp1252, stdout=log, stderr=log, check=False)
    assert done.returncode == 0, (tmp_path / "log").read_bytes().decode("cp1252", "replace")[-4000:]


CELL = """import sys
sys.path.insert(0, "..")
import pathlib
import helpers as h
settings = h.Settings.from_environment()
report = h.Report("NAME", settings, h.load_data("digits", per_class=5))
report.check("Fréchet's − is π", True, "σ")
report.result("Fréchet distance of NAME", -1.5, "σ")
print(pathlib.Path("note.txt").read_text())
report.finish()"""


def test_c2_runs_leave_a_report_as_it_should_be(cp1252, tmp_path):
    for name in ("helpers.py", "study", "latent_digits"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy2
        copy(PROJECT / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "note.txt").write_text("a student's Ελληνικά", encoding="utf-8")
    names = ["07_first", "08_second"]
    for name in names:
        cells = [new_markdown_cell("# Fréchet − π"), new_code_cell(CELL.replace("NAME", name))]
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    command = [sys.executable, "-m", "study", "run", "--jobs", "2"]
    for part in (["notebooks/07_first.ipynb"], []):  # one, then all
        with (tmp_path / "log").open("wb") as log:
            done = subprocess.run([*command, *part], cwd=tmp_path, env=cp1252, stdout=log, stderr=log, check=False)
        said = (tmp_path / "log").read_bytes().decode("cp1252", "replace")
        assert done.returncode == 0, said
        assert "Fréchet distance of 07_first  ?1.50 ?" in said  # a letter is lost, and no run
    index = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "report" / "figures" / "results.json").read_text(encoding="utf-8"))
    assert list(results) == names
    for name in names:
        assert results[name]["results"][0]["result"] == f"Fréchet distance of {name}"
        assert f"<td>Fréchet distance of {name}</td>" in index
        assert "Ελληνικά" in (tmp_path / "report" / f"{name}.html").read_text(encoding="utf-8")
    assert "Fréchet − π" in index


def test_c4_make_has_utf8_everywhere(cp1252, tmp_path):
    code = "import sys; print(sys.stdout.encoding, sys.flags.utf8_mode)"
    environ = {name: value for name, value in cp1252.items() if name not in ("PYTHONUTF8", "PYTHONIOENCODING")}
    shutil.copy2(PROJECT / "Makefile", tmp_path)
    with (tmp_path / "more.mk").open("w", encoding="utf-8") as file:
        file.write(f"include Makefile\ntold:\n\t@{sys.executable} -c '{code}'\n")
    command = ["make", "-s", "-f", "more.mk", "told"]
    told = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, check=True)
    assert told.stdout.split() == [b"utf-8", b"1"], os.environ
