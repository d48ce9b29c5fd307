"""Killed anywhere: what is trained, cached and reported is in the end the same as without a disturbance."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

import killed
from around import lives, make_project, plain_environment, wait_until
from study.settings import PROJECT


def outcome(folder):
    """What an undisturbed run leaves: its results, and the names of its files."""
    results = json.loads((folder / "figures" / "results.json").read_text(encoding="utf-8"))["09_killed"]["results"]
    return results, sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.name.endswith(".lock"))


@pytest.fixture(scope="module")
def processes():
    """Makes processes that have everything imported as they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(PROJECT)]))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["killed"])
        yield context.Process


def test_kills_at_random_moments_change_no_result(processes, tmp_path):
    def run(folder, seconds=300):
        """Run to the end, or for so many seconds. Returns the time it took and how it ended."""
        began, process = time.monotonic(), processes(target=killed.work, args=(folder,))
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        return time.monotonic() - began, process.exitcode

    assert run(tmp_path / "warm-up")[1] == 0
    duration, code = run(tmp_path / "undisturbed")
    assert code == 0
    expected = outcome(tmp_path / "undisturbed")
    assert len(expected[0]) == 3
    rng, kills = random.Random(0), 0
    while kills < 20:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        took, code = run(folder, rng.uniform(0, duration))
        if code == 0:  # it ended before: the machine is faster now than when the duration was measured
            duration = took
        else:
            assert code == -signal.SIGKILL
            kills += 1
            assert run(folder)[1] == 0
        assert outcome(folder) == expected


# `make run`, killed between and inside notebooks

NOTEBOOK = """import sys
sys.path.insert(0, PROJECT)
import time
import helpers as h
import torch
settings = h.Settings.from_environment()
data = h.load_data("digits", per_class=30, seed=settings.seed, test_size=50)
report = h.Report(NAME, settings, data)
model = h.build(h.mlp_vae, latent_size=4, hidden=(32,), seed=SEED)
run, _ = h.recall(h.fit, model, h.vae_objective, data, h.VAEConfig(epochs=4, snapshots=()), cache=settings.cache)
time.sleep(1)
import matplotlib.pyplot as plt
figure = plt.figure()
report.figure(figure, "empty")
report.result("elbo", run.history["validation_elbo"].iloc[-1], "nats", digits=9)
report.finish()"""


@pytest.fixture
def project(tmp_path):
    """A project of two small notebooks, with the code of this one."""
    folder, sources = tmp_path / "project", {}
    for number, name in enumerate(("08_first", "09_second")):
        code = NOTEBOOK.replace("PROJECT", repr(str(folder))).replace("NAME", repr(name))
        sources[name] = code.replace("SEED", str(number))
    return make_project(folder, sources)


def make_run(folder, seconds=600):
    """`make run`, to the end or for so many seconds; what was killed may leave no kernel behind.

    Returns the time it took and whether it was killed.
    """
    command = ["make", "-o", ".venv/installed", "run", f"BIN={Path(sys.executable).parent}", "JOBS=1"]
    command.append("NOTEBOOKS=notebooks/08_first.ipynb notebooks/09_second.ipynb")
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=plain_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        out = process.communicate(timeout=seconds)[0].decode()
        assert process.returncode == 0, out
        return time.monotonic() - began, False
    except subprocess.TimeoutExpired:
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    wait_until(lambda: not any(map(lives, family)), 60, lambda: "a kernel has outlived the run that was killed")
    return time.monotonic() - began, True


def reported(folder):
    """The results, the pages without what differs from run to run, and all files."""
    report = folder / "report"
    results = json.loads((report / "figures" / "results.json").read_text(encoding="utf-8"))
    pages = [re.sub(r'id="[^"]*"', "", page.read_text(encoding="utf-8")) for page in sorted(report.glob("*.html"))]
    digests = [hashlib.sha256(page.encode()).hexdigest() for page in pages]
    files = sorted(str(p.relative_to(report)) for p in report.rglob("*") if not p.name.endswith(".lock"))
    return results, digests, files


def test_a_make_run_that_is_killed_again_and_again_is_finished_by_the_next(project):
    duration, was_killed = make_run(project)
    assert not was_killed
    expected = reported(project)
    assert set(expected[0]) == {"08_first", "09_second"}
    for folder in ("report", ".cache"):
        shutil.rmtree(project / folder)
    for share in (0.3, 0.6, 0.9):
        was_killed = False
        while not was_killed:
            took, was_killed = make_run(project, share * duration)
            if not was_killed:  # it ended before: the machine is faster now than when the duration was measured
                duration = took
    _, was_killed = make_run(project)
    assert not was_killed
    assert reported(project) == expected
