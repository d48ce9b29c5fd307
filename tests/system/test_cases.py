"""Notebooks of one's own, in surroundings of one's own: they run, are shown, and end when they are told to (CASES)."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import study.run
from around import lives, make_project, plain_environment, wait_until
from study.execute import execute
from study.settings import PROJECT

pytestmark = pytest.mark.cases

SETUP = f"""import sys
sys.path.insert(0, {str(PROJECT)!r})
import matplotlib.pyplot as plt
import numpy as np
import helpers as h
settings = h.Settings.from_environment()
report = h.Report("02_amortized_vae", settings, h.load_data("digits", per_class=5))"""

FIGURES = """for name in ("in_a_variable",):
    figure, ax = plt.subplots()
    ax.plot([1, 2])
    report.figure(figure, name)
report.figure(figure, 'single')
report.check("c", True, np.float32(.5))
report.result("answer", np.float32(42), "nats", digits=0)
report.finish()"""


def write(path, *cells, title="Mine"):
    """A notebook with a title, and a cell for each text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        new_markdown_cell(f"# {title}\n\nA broken formula, $\\frac{{a}}{{$, and $a < b$."),
        *map(new_code_cell, cells),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a report of a renamed notebook, one without a Report, and one with a namesake."""
    folder = tmp_path_factory.mktemp("ran")
    paths = [
        write(folder / "notebooks" / "07_mine.ipynb", SETUP, FIGURES),
        write(
            folder / "notebooks" / "plain.ipynb", "import matplotlib.pyplot as plt", "plt.plot([1, 2]);", title="Plain"
        ),
        write(folder / "play" / "03_x.ipynb", "print('played with')", title="The one that ran"),
    ]
    write(folder / "notebooks" / "03_x.ipynb", "1 / 0", title="Its namesake")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OUTPUT": folder / "figures", "CACHE": folder / "cache", "MPLBACKEND": "TkAgg"}.items():
            patch.setenv(name, str(value))
        patch.setenv("QUICK", "no")
        patch.setattr(study.run, "PROJECT", folder)
        # of an earlier run, when it still had a Report
        (folder / "figures").mkdir()
        old = {"plain": {"data": "mnist", "seed": 0, "quick": False, "results": [], "checks": [], "figures": []}}
        (folder / "figures" / "results.json").write_text(json.dumps(old), encoding="utf-8")
        assert study.run.run(paths, jobs=2)
    return folder


def page(folder, name):
    return (folder / "report" / f"{name}.html").read_text(encoding="utf-8")


def test_d1_renamed_and_new_notebooks_and_one_without_a_report_are_shown(ran):
    index = page(ran, "index")
    for title in ("Mine", "Plain", "The one that ran"):
        assert title in index
    results = json.loads((ran / "figures" / "results.json").read_text(encoding="utf-8"))
    assert list(results) == ["07_mine"]  # neither the name that it was copied from, nor what was before
    assert results["07_mine"]["checks"] == [{"claim": "c", "value": "0.5", "passed": True}]
    assert index.count("No Report is finished in this notebook") == 2
    assert "42 nats" in index


def test_g1_the_notebook_that_ran_is_shown_and_not_its_namesake(ran):
    assert "Its namesake" not in page(ran, "index")
    assert "played with" in page(ran, "03_x")


def test_g2_figures_are_shown_whatever_they_are_called_in_the_source(ran):
    index, notebook = page(ran, "index"), nbformat.read(ran / "report" / "07_mine.ipynb", as_version=4)
    for name in ("in_a_variable", "single"):
        assert (
            f'<a href="07_mine.html#cell-id={notebook.cells[2].id}"><img loading="lazy" src="figures/07_{name}.png"'
            in index
        )
        assert (ran / "report" / "figures" / f"07_{name}.png").exists()


def test_f1_figures_are_in_the_report_whatever_mplbackend_says(ran):
    for name in ("07_mine", "plain"):
        assert "data:image/png;base64" in page(ran, name).replace(" ", "")


def test_d4_a_formula_that_cannot_be_converted_costs_itself(ran):
    assert "<code>\\frac{a}{</code>" in page(ran, "07_mine")
    assert "<math" in page(ran, "07_mine")


def test_d4_a_page_that_cannot_be_made_costs_itself(ran, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study.run, "PROJECT", tmp_path)
    write_page = study.publish.write_page

    def fail_once(folder, name, notebook):
        assert name != "07_mine", "on purpose"
        write_page(folder, name, notebook)

    monkeypatch.setattr(study.publish, "write_page", fail_once)
    assert not study.run.report([ran / "report" / "07_mine.ipynb", ran / "report" / "plain.ipynb"])
    assert "the page of 07_mine could not be written: AssertionError(" in capsys.readouterr().out
    assert "Plain" in page(tmp_path, "index")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"killed \(SIGKILL\), most likely by the system for lack of memory"),
        ("import os; os.abort()", "was ended by SIGABRT"),
        ("import os; os._exit(3)", "ended by itself, with status 3"),
    ],
    ids=["killed", "aborted", "exited"],
)
def test_d5_a_dead_kernel_is_reported_with_notebook_cell_and_cause(tmp_path, monkeypatch, code, said):
    monkeypatch.setattr(study.run, "PROJECT", tmp_path)
    monkeypatch.setenv("OUTPUT", str(tmp_path / "figures"))
    path = write(tmp_path / "07_mine.ipynb", "1 + 1", f"# too large\n{code}")
    with pytest.raises(DeadKernelError, match=rf"{said}.*, in cell 3 of 3, which begins '# too large'") as caught:
        study.run.run([path])
    assert caught.value.__notes__ == [f"(in {path})"]


def test_d5_a_kernel_that_dies_before_its_first_cell_is_reported(tmp_path, monkeypatch):
    startup = tmp_path / "ipython" / "profile_default" / "startup" / "00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("import os; os.kill(os.getpid(), 9)", encoding="utf-8")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    path = write(tmp_path / "07_mine.ipynb", "1 + 1")
    with pytest.raises(DeadKernelError, match=r"killed \(SIGKILL\), most likely .*, before its first cell") as caught:
        asyncio.run(execute(path))
    assert caught.value.__notes__ == [f"(in {path})"]


# told to end

SLEEPING = """import pathlib, time
pathlib.Path("{name}-runs").touch()
while not pathlib.Path("../go").exists():
    time.sleep(0.1)"""


@pytest.fixture
def project(tmp_path):
    """A project of two notebooks that wait until the test is over, or until "go" is there."""
    make_project(tmp_path, {})
    for name in ("08_first", "09 second"):
        write(
            tmp_path / "notebooks" / f"{name}.ipynb",
            SLEEPING.format(name=name),
            "import matplotlib.pyplot as plt\nplt.plot([1]);",
        )
    yield tmp_path
    (tmp_path / "go").touch()


def make_run(folder, preexec=None, **environ):
    command = ["make", "-o", ".venv/installed", "run", f"BIN={os.path.dirname(sys.executable)}", "JOBS=2"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=plain_environment() | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=preexec,
        text=True,
        encoding="utf-8",
    )


def family_of(process):
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def kernels_of(family):
    return [one for one in family if lives(one) and "ipykernel_launcher" in one.cmdline()]


def both_run(folder, process):
    """Wait until both notebooks run. Returns all processes of the run."""
    runs = [folder / "notebooks" / f"{name}-runs" for name in ("08_first", "09 second")]
    wait_until(lambda: process.poll() is not None or all(path.exists() for path in runs))
    assert process.poll() is None, process.communicate()[0]
    for path in runs:
        path.unlink()
    return family_of(process)


def the_command(family):
    return next(one for one in family if "study" in one.cmdline() and "python" in one.name())


def test_f5_one_signal_ends_a_whole_run_and_the_next_goes_on(project):
    asked = {
        "SIGTERM to make": lambda process, family: process.terminate(),
        "SIGTERM to the command": lambda process, family: the_command(family).terminate(),
        "Ctrl-C": lambda process, family: os.killpg(process.pid, signal.SIGINT),
        "the terminal is closed": lambda process, family: os.killpg(process.pid, signal.SIGHUP),
    }
    for how, ask in asked.items():
        process = make_run(project)
        family = both_run(project, process)
        assert len(family) >= 4, family
        ask(process, family)
        said = process.communicate(timeout=60)[0]
        assert process.returncode != 0, how
        assert "Traceback" not in said, how
        assert "Ended, kernels too." in said, how
        wait_until(lambda family=family: not any(map(lives, family)), 20, lambda how=how: f"{how}: something lives on")
    (project / "go").touch()
    process = make_run(project, MPLBACKEND="no such thing")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    for name in ("08_first", "09 second"):
        assert "data:image/png;base64" in page(project, name)


def test_f5_a_signal_while_kernels_start_ends_them_too(project):
    process = make_run(project)
    kernels = wait_until(lambda: kernels_of(family_of(process)))
    the_command(family_of(process)).terminate()
    process.wait(60)
    assert not any(map(lives, kernels))
    assert "Ended, kernels too." in process.communicate()[0]


def test_f5_sigterm_ends_what_a_script_has_put_in_the_background(project):
    # of which a shell lets Ctrl-C be ignored
    process = make_run(project, preexec=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    family = both_run(project, process)
    the_command(family).terminate()
    said = process.communicate(timeout=60)[0]
    assert "Ended, kernels too." in said
    assert "Traceback" not in said
    assert not any(map(lives, kernels_of(family)))


@pytest.mark.skipif(os.name != "posix", reason="kernels are reached by ports there")
def test_f5_no_kernel_has_a_port_that_another_may_have_taken(project):
    process = make_run(project)
    kernels = kernels_of(both_run(project, process))
    assert len(kernels) == 2
    for kernel in kernels:
        command = kernel.cmdline()
        connection = json.loads(Path(command[command.index("-f") + 1]).read_text(encoding="utf-8"))
        assert connection["transport"] == "ipc"
    process.terminate()
    process.communicate(timeout=60)


def test_f4_a_name_that_matches_nothing_is_refused_in_a_line(project):
    for command in ("run", "report", "refresh", "test-notebooks"):
        done = subprocess.run(
            ["make", command, "NOTEBOOKS=notebooks/07*"],  # nothing is installed before
            cwd=project,
            env=plain_environment(),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode != 0
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert "NOTEBOOKS must name notebooks, got notebooks/07*: there are" in line
    told = [sys.executable, "-m", "study", "run", "notebooks/07*"]
    done = subprocess.run(told, cwd=project, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 2
    assert "NOTEBOOKS must name notebooks, got 'notebooks/07*'" in done.stderr
    assert "Traceback" not in done.stderr


def test_d5_a_setting_that_makes_no_sense_is_refused_in_a_line(project):
    for name, value in {"QUICK": "perhaps", "OUTPUT": "Makefile"}.items():
        done = make_run(project, **{name: value})
        said = done.communicate(timeout=60)[0]
        assert done.returncode != 0
        assert f"{name} must be" in said
        assert "Traceback" not in said
