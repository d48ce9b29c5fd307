"""F of CASES, places: where notebooks are opened, and what a place without make has."""

import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest

from study import arguments, commands
from study.settings import PROJECT

pytestmark = pytest.mark.cases
NOTEBOOKS = sorted(PROJECT.glob("notebooks/**/[0-9]*.ipynb"))


def finding(path):
    """The lines of a notebook's first cell that find our code."""
    notebook = nbformat.read(path, as_version=4)
    source = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    head = source[: source.index("sys.path.insert(0, str(home))")]
    return "import sys\nfrom pathlib import Path\n" + head[head.index("folders = ") :]


@pytest.fixture
def found_from(tmp_path_factory, monkeypatch):
    """Where the lines of a notebook find our code, in a kernel of this folder."""
    script = tmp_path_factory.mktemp("cell") / "cell.py"
    script.write_text(finding(NOTEBOOKS[0]), encoding="utf-8")

    def find(folder):
        monkeypatch.chdir(folder)
        return runpy.run_path(str(script))["home"]

    return find


@pytest.fixture
def copy(tmp_path):
    """A project in a folder of courses, another of which has a helpers.py, too."""
    project = tmp_path / "courses" / "latent-digits"
    for folder in ("notebooks/solutions", "play/solutions", "latent_digits"):
        (project / folder).mkdir(parents=True)
    for name in ("helpers.py", "latent_digits/latents.py", "../helpers.py"):
        (project / name).write_text("", encoding="utf-8")
    return project


def test_f2_all_notebooks_find_our_code_by_the_same_lines():
    assert len(NOTEBOOKS) == 12
    assert len({finding(path) for path in NOTEBOOKS}) == 1


@pytest.mark.parametrize("place", [".", "notebooks", "play", "notebooks/solutions", "play/solutions", ".."])
def test_f2_the_right_helpers_are_found_wherever_a_notebook_is_opened(copy, found_from, place):
    """At the repository's root, in its folders, and beside it, where Colab clones it."""
    assert found_from(copy / place).resolve() == copy.resolve()


def test_f2_a_notebook_alone_says_what_to_do(tmp_path, found_from):
    (tmp_path / "helpers.py").write_text("", encoding="utf-8")  # another course's
    with pytest.raises(ModuleNotFoundError, match="needs its repository: clone it into this folder"):
        found_from(tmp_path)


def test_f2_a_folder_that_may_not_be_read_is_passed_over(with_nobody, monkeypatch):
    """A PermissionError would say nothing of what to do."""
    folder, become_nobody = with_nobody
    (folder / "locked" / "latent_digits").mkdir(parents=True)
    (folder / "locked").chmod(0o000)
    (folder / "cell.py").write_text(finding(NOTEBOOKS[0]), encoding="utf-8")
    monkeypatch.chdir(folder)
    become_nobody()
    with pytest.raises(ModuleNotFoundError, match="needs its repository: clone it into this folder"):
        runpy.run_path(str(folder / "cell.py"))


def test_f6_make_calls_what_a_place_without_make_has():
    make = (PROJECT / "Makefile").read_text(encoding="utf-8")
    called = dict(re.findall(r"^([\w-]+): \.venv/installed.*\n\texec \$\(BIN\)/python -m study ([\w-]+)", make, re.M))
    assert called == {name: name for name in called}
    assert set(called) == {"run", "report", "refresh", "sweep", "lab", "quick", "test", "test-code", "test-notebooks"}


def test_f6_the_tests_are_those_of_make(monkeypatch):
    monkeypatch.setenv("OUTPUT", "elsewhere")
    ran = []
    monkeypatch.setattr(commands, "run_in_turn", lambda many: ran.extend(many) or 0)
    notebooks = arguments.find_notebooks(["notebooks/02*"])
    assert commands.carry_out("test", 3, notebooks, ()) == 0
    assert [Path(command[0]).stem for command in ran] == ["ruff", "ruff", "lint-imports", *["pytest"] * 3]
    assert [command[-1] for command in ran[3:]] == ["tests/unit", "tests/stored", str(notebooks[0])]
    assert all(command[2] == "3" for command in ran[3:])


def test_f6_lab_copies_what_is_not_there_yet(tmp_path, monkeypatch):
    notebooks = tmp_path / "notebooks" / "solutions"
    notebooks.mkdir(parents=True)
    for path in (notebooks.parent / "01_a.ipynb", notebooks / "01_a.ipynb", notebooks.parent / "02_b.ipynb"):
        path.write_text(path.stem, encoding="utf-8")
    mine = tmp_path / "play" / "02_b.ipynb"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    monkeypatch.setattr(commands, "PROJECT", tmp_path)
    ((_, *options),) = commands.lab(["--no-browser"])
    assert options == ["lab", f"--notebook-dir={tmp_path / 'play'}", "--no-browser"]
    assert mine.read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "play" / "solutions" / "01_a.ipynb").read_text(encoding="utf-8") == "01_a"


def test_f6_a_program_that_is_not_installed_is_named():
    with pytest.raises(FileNotFoundError, match=r"must have no-such-tool: pip install -r requirements\.txt"):
        commands.tool("no-such-tool")


def test_f7_the_containers_install_what_the_notebooks_were_executed_with():
    about = json.loads((PROJECT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert about["postCreateCommand"] == "make .venv/installed"
    assert about["containerEnv"]["OMP_NUM_THREADS"] == "1"
    binder = PROJECT / ".binder"
    version = (binder / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    assert f"Programming Language :: Python :: {version}" in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r"^-[rc] (\S+)$", (binder / "requirements.txt").read_text(encoding="utf-8"), re.M)
    assert {(binder / name).resolve() for name in named} == {PROJECT / "requirements.txt", PROJECT / "constraints.txt"}
    assert (binder / "start").stat().st_mode & 0o111
