"""Executing, stamping and publishing notebooks, and noticing that a stored one no longer fits."""

import asyncio
import contextlib
import io
import os
import platform
import re
import shutil
import subprocess

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import study.execute
import study.run
import study.stamps
from around import plain_environment
from study import identity
from study.settings import PROJECT

SETUP = """import sys
sys.path.insert(0, PROJECT)
import helpers as h
settings = h.Settings.from_environment()
data = h.load_data("digits", per_class=5)
report = h.Report("09_small", settings, data)"""

BODY = """from tqdm import tqdm
for _ in tqdm(range(3), leave=False):
    pass
report.check("two is two", 2 == 2)
report.result("answer", 42, "nats", digits=0)
report.finish()"""


# a warning beside a progress bar, and a widget beside its twin
REMARKS = """import ipywidgets, sys, torch, warnings
for _ in tqdm(range(3), leave=False):
    warnings.warn("watch out")
print("its twin", torch.backends.cpu.get_cpu_capability(), flush=True)
print("\\x1b[A", end="", file=sys.stderr, flush=True)
ipywidgets.FloatSlider()"""


def write_small(folder, *more):
    """A small notebook in `folder`, with `more` cells of code."""
    cells = [
        new_markdown_cell(
            "# Small\n\nA formula, $\\mathrm{KL}(q\\,\\|\\,p) \\ge 0$, and\n\n$$\\frac{1}{2}\\sum_i z_i^2$$"
        ),
        *map(new_code_cell, (SETUP.replace("PROJECT", repr(str(PROJECT))), BODY, *more)),
    ]
    path = folder / "09_small.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


@contextlib.contextmanager
def project_in(folder):
    """All that is written goes to `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OUTPUT": folder / "figures", "CACHE": folder / "cache", "QUICK": 0, "SEED": 0}.items():
            patch.setenv(name, str(value))
        patch.setattr(study.run, "PROJECT", folder)
        yield


@pytest.fixture
def small(tmp_path):
    """A small notebook, and a project folder of its own to write to."""
    with project_in(tmp_path):
        yield write_small(tmp_path)


HALVES = (".09_small.ipynb", "report/.09_small.html", "report/.index.html", "report/figures/.09_picture.png")


@pytest.fixture(scope="module")
def refreshed_once(tmp_path_factory):
    """A small notebook with remarks, refreshed where a killed command had left halves, and what the terminal showed."""
    folder, shown = tmp_path_factory.mktemp("refreshed"), io.StringIO()
    (folder / "report" / "figures").mkdir(parents=True)
    for half in HALVES:
        left = folder / f"{half}.abc.part"
        left.write_bytes(b"half")
        os.utime(left, (0, 0))  # long ago
    with project_in(folder), contextlib.redirect_stderr(shown):
        path = write_small(folder, REMARKS)
        study.run.refresh([path])
    return path, shown.getvalue()


@pytest.fixture
def refreshed(refreshed_once, tmp_path):
    """A copy of it, and of its project folder."""
    shutil.copytree(refreshed_once[0].parent, tmp_path, dirs_exist_ok=True)
    with project_in(tmp_path):
        yield tmp_path / refreshed_once[0].name


def test_run_writes_the_report_and_changes_no_notebook(small, capsys):
    before = small.read_bytes()
    study.run.run([small])
    assert small.read_bytes() == before
    out = capsys.readouterr().out
    assert "answer  42 nats" in out
    assert "1 checks passed" in out
    assert "index.html" in out
    page = (small.parent / "report" / "09_small.html").read_text(encoding="utf-8")
    assert "✓ two is two" in page
    index = (small.parent / "report" / "index.html").read_text(encoding="utf-8")
    assert 'href="09_small.html"' in index
    assert "42 nats" in index
    # pages need no network
    assert "<script src=" not in page
    assert "$" not in re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    assert page.count("<math") == 2
    assert 'display="block"' in page


WAITING = """import pathlib, time
folder = pathlib.Path({folder!r})
(folder / "{name}").touch()
deadline = time.monotonic() + 600
while not (folder / "{other}").exists():
    assert time.monotonic() < deadline, "the other notebook is not running"
    time.sleep(0.1)"""


def pair(small):
    """Two notebooks, each of which waits until the other runs too."""
    paths = [small, small.with_name("10_other.ipynb")]
    notebook = nbformat.read(small, as_version=4)
    for path, other in zip(paths, paths[::-1], strict=True):
        waiting = WAITING.format(folder=str(small.parent), name=f"{path.stem}-runs", other=f"{other.stem}-runs")
        setup = notebook.cells[1].source.replace("09_small", path.stem)
        cells = [notebook.cells[0], *map(new_code_cell, (setup, waiting, BODY))]
        nbformat.write(new_notebook(cells=cells), path)
    return paths


def test_two_notebooks_run_at_a_time_and_both_leave_their_results(small, capsys):
    paths = pair(small)
    study.run.run(paths, jobs=2)
    out = capsys.readouterr().out
    assert out.count("answer  42 nats") == 2
    index = (small.parent / "report" / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{path.stem}.html"' in index for path in paths)


def test_after_an_error_what_runs_is_finished_and_nothing_else_is_started(monkeypatch):
    started, finished = [], []

    async def execute(path):
        started.append(path)
        if path == "second":
            raise ValueError("on purpose")
        await asyncio.sleep(0.1)

    monkeypatch.setattr(study.execute, "execute", execute)
    with pytest.raises(ValueError, match="on purpose"):
        study.execute.execute_all(["first", "second", "third"], 2, lambda path, _: finished.append(path))
    assert started == ["first", "second"]
    assert finished == ["first"]


def stream(cell, name):
    """What a stored cell has in its stdout or stderr."""
    return "".join(output.text for output in cell.outputs if output.get("name") == name)


def test_refresh_stores_outputs_and_a_stamp_without_progress_bars(refreshed, refreshed_once):
    notebook = nbformat.read(refreshed, as_version=4)
    stamp = notebook.metadata["latent_digits"]
    assert (stamp["data"], stamp["seed"], stamp["quick"], stamp["dtype"]) == ("digits", 0, False, "float32")
    assert stamp["versions"]["torch"] == study.stamps.versions()["torch"]
    assert "+" not in stamp["versions"]["torch"]
    assert "✓ two is two" in stream(notebook.cells[2], "stdout")
    assert not any("%|" in stream(cell, "stderr") for cell in notebook.cells[1:])
    assert "100%" in refreshed_once[1]


def test_a_warning_beside_a_progress_bar_is_not_lost(refreshed):
    said = stream(nbformat.read(refreshed, as_version=4).cells[3], "stderr")
    assert "watch out" in said
    assert "\x1b" not in said  # nor is the way up from a bar within another


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors have no AVX2")
def test_stored_numbers_are_computed_by_instructions_that_every_machine_has(refreshed):
    assert stream(nbformat.read(refreshed, as_version=4).cells[3], "stdout") == "its twin AVX2\n"


def test_a_widget_is_not_stored_but_what_stands_beside_it_is(refreshed):
    stored = nbformat.read(refreshed, as_version=4)
    assert stream(stored.cells[3], "stdout").startswith("its twin ")
    assert {output.output_type for output in stored.cells[3].outputs} == {"stream"}
    assert "widgets" not in stored.metadata


def test_the_report_of_stored_notebooks_executes_nothing_and_removes_what_a_killed_command_left(refreshed, capsys):
    figures = refreshed.parent / "figures"
    (figures / "09_picture.png").write_bytes(b"a picture")
    notebook = nbformat.read(refreshed, as_version=4)
    notebook.cells[1].source = "raise SystemExit"
    nbformat.write(notebook, refreshed)
    study.run.report([refreshed])
    folder = refreshed.parent / "report"
    assert "✓ two is two" in (folder / "09_small.html").read_text(encoding="utf-8")
    assert "42 nats" in (folder / "index.html").read_text(encoding="utf-8")
    assert (folder / "figures" / "09_picture.png").read_bytes() == b"a picture"
    assert str(folder / "index.html") in capsys.readouterr().out
    assert not [*refreshed.parent.rglob("*.part")]


def test_a_failing_cell_leaves_the_stored_notebook_as_it_was(small):
    notebook = nbformat.read(small, as_version=4)
    notebook.cells[2].source = 'report.check("two is three", 2 == 3)'
    nbformat.write(notebook, small)
    before = small.read_bytes()
    with pytest.raises(Exception, match="✗ two is three"):
        study.run.refresh([small])
    assert small.read_bytes() == before


@pytest.fixture
def stamped(refreshed):
    """The notebook as if it had been executed on MNIST."""
    notebook = nbformat.read(refreshed, as_version=4)
    notebook.metadata["latent_digits"]["data"] = "mnist"
    assert study.stamps.stale(notebook) == []
    return notebook


def test_a_stamp_notices_every_change(stamped, monkeypatch):
    notebook = stamped
    notebook.cells[0].source = "Prose may change."
    assert study.stamps.stale(notebook) == []
    for key, value in (("data", "digits"), ("seed", 3), ("quick", True), ("dtype", "bfloat16")):
        changed = nbformat.from_dict(notebook)
        changed.metadata["latent_digits"] = notebook.metadata["latent_digits"] | {key: value}
        assert any("not executed at full scale" in reason for reason in study.stamps.stale(changed))
    monkeypatch.setattr(study.stamps, "versions", lambda: dict.fromkeys(study.stamps.VERSIONED, "0.1"))
    assert any("torch 2" in reason for reason in study.stamps.stale(notebook))


def test_a_stamp_notices_changed_cells_and_modules(stamped, monkeypatch):
    notebook, read = stamped, identity.source_of

    def edit(module, old, new):
        assert old in read(module)
        edited = {module: read(module).replace(old, new)}
        monkeypatch.setattr(identity, "source_of", lambda name: edited.get(name) or read(name))

    edit("latent_digits.metrics", "max(0.0, ", "max(0.1, ")
    assert study.stamps.stale(notebook) == []  # the notebook never reaches it
    edit("study.report", "name must be letters", "a name must be letters")  # a message
    assert study.stamps.stale(notebook) == []
    edit("study.report", "round(number, digits)", "round(-number, digits)")
    assert any("code of ours behind it" in reason for reason in study.stamps.stale(notebook))
    monkeypatch.setattr(identity, "source_of", read)
    notebook.cells[2].source += "\n1 + 1"
    assert any("its code" in reason for reason in study.stamps.stale(notebook))


def test_a_notebook_without_a_stamp_is_stale(small):
    assert study.stamps.stale(nbformat.read(small, as_version=4)) == ["it has never been executed by `make refresh`"]


@pytest.mark.parametrize("command", ["run", "refresh", "test", "report"])
def test_make_takes_every_notebook(command):
    call = {"cwd": PROJECT, "env": plain_environment(), "capture_output": True, "text": True, "check": True}
    told = subprocess.run(["make", "-n", command], **call).stdout
    notebooks = sorted(path.name for path in (PROJECT / "notebooks").glob("*.ipynb"))
    assert sorted(re.findall(r"notebooks/(\S+\.ipynb)", told)) == notebooks
