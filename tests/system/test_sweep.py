"""Many seeds: the same results however they are spread, and nothing lost by what is killed."""

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from around import lives, make_project, plain_environment, wait_until
from study.settings import PROJECT

# leaves what a Report would, at once
NOTEBOOK = """import json, os, time
from pathlib import Path
seed, here = int(os.environ["SEED"]), Path(HERE)
(here / f"begun-NAME-{seed}").touch()
time.sleep(0.5)
if (here / "fails").exists() and seed == 1:
    raise ValueError("seed one")
rows = [{"result": "seed squared", "value": seed**2, "unit": "", "digits": 0}]
Path(os.environ["REPORT_PART"]).write_text(json.dumps({"results": rows, "checks": []}))
with open(here / "executed.log", "a") as log:
    log.write(f"NAME {seed}\\n")"""
NAMES = ("08_first", "09_second")


@pytest.fixture
def project(tmp_path):
    """A project of two notebooks that are done in a second."""
    sources = {name: NOTEBOOK.replace("HERE", repr(str(tmp_path))).replace("NAME", name) for name in NAMES}
    return make_project(tmp_path / "project", sources)


def start(folder, *options, **settings):
    """`python -m study sweep` in a folder, as a process."""
    command = [sys.executable, "-m", "study", "sweep", *options]
    environment = plain_environment() | {"QUICK": "1", "DATA": "digits"} | settings
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )


def finish(process, status=0):
    """What a sweep has said, when it has ended with this status."""
    said = process.communicate(timeout=400)[0]
    assert process.returncode == status, said
    return said


def seeds_of(folder):
    """The results by seed."""
    return json.loads((folder / "report" / "figures" / "seeds.json").read_text(encoding="utf-8"))["notebooks"]


def expected(count):
    by_seed = {str(seed): seed**2 for seed in range(count)}
    return {name: {"seed squared": {"unit": "", "digits": 0, "by_seed": by_seed}} for name in NAMES}


def executed(project):
    """Which tasks were executed to their end, as often as they were."""
    return (project.parent / "executed.log").read_text(encoding="utf-8").splitlines()


@contextlib.contextmanager
def cluster(folder, workers=2, **settings):
    """A Dask scheduler and its workers, started as README says. Their address, and the workers' process."""
    pytest.importorskip("distributed", reason="the optional extra is not installed: requirements-cluster.txt")
    dask, file = [sys.executable, "-m", "dask"], folder / "scheduler.json"
    environment = plain_environment() | {"PYTHONPATH": "."} | settings
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    worker = ["worker", "--scheduler-file", str(file), "--nworkers", str(workers), "--nthreads", "1", "--no-dashboard"]
    with contextlib.ExitStack() as stack, open(folder / "dask.log", "w", encoding="utf-8") as log:
        processes = []
        for command in ([*scheduler, "--scheduler-file", str(file)], worker):
            process = subprocess.Popen([*dask, *command], cwd=folder, env=environment, stdout=log, stderr=log)
            processes.append(process)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            wait_until(file.exists, 60, (folder / "dask.log").read_text)
        yield json.loads(file.read_text(encoding="utf-8"))["address"], processes[1]


def test_a_task_that_fails_is_named_and_the_others_go_on(project):
    (project.parent / "fails").touch()
    said = finish(start(project, SEEDS="0-2"), status=1)
    assert "6 tasks, of which 0 were finished before" in said
    for name in NAMES:
        assert f"{name}, seed 1: ValueError: seed one (in {project / 'notebooks' / name}.ipynb, cell 2 of 2)" in said
    assert "2 of 6 tasks failed" in said
    assert not (project / "report" / "figures" / "seeds.json").exists()
    (project.parent / "fails").unlink()
    assert "6 tasks, of which 4 were finished before" in finish(start(project, SEEDS="0-2"))
    assert sorted(executed(project)) == sorted(f"{name} {seed}" for name in NAMES for seed in range(3))
    assert seeds_of(project) == expected(3)
    (record, *_) = (project / ".cache" / "sweep").glob("08_first-0-*")
    record.write_bytes(record.read_bytes()[:100])
    assert "6 tasks, of which 5 were finished before" in finish(start(project, SEEDS="0-2"))
    assert seeds_of(project) == expected(3)


def begun(project):
    return len(list(project.parent.glob("begun-*")))


def test_one_ctrl_c_ends_all_and_the_next_start_goes_on(project):
    process = start(project, SEEDS="0-3")
    wait_until(lambda: begun(project) >= 3, 120)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert "Ended, kernels too" in finish(process, status=130)
    wait_until(lambda: not any(map(lives, family)), 20, lambda: "a kernel has outlived the sweep")
    assert len(executed(project)) < 8
    finish(start(project, SEEDS="0-3"))
    assert seeds_of(project) == expected(4)


def kernels_of(process):
    """The kernels that a sweep drives now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in psutil.Process(process.pid).children() if lives(child)]
    return []


def wait_for_another(project, process):
    """Until one more task has begun, and then for a random part of what it takes."""
    before = begun(project)
    wait_until(lambda: begun(project) > before, 120)
    time.sleep(random.Random(before).uniform(0, 1.2))
    assert process.poll() is None, "the sweep is over: it needs more tasks"


def test_kills_at_random_moments_cost_the_task_at_hand_and_nothing_else(project):
    """Five of the driver, five of a kernel: a task that has been kept is never executed again."""
    seeds, tasks, at_hand = "0-19", 40, 0
    for _ in range(5):
        process = start(project, SEEDS=seeds)
        wait_for_another(project, process)
        kernels = kernels_of(process)
        at_hand += len(kernels)
        process.kill()
        process.communicate()
        wait_until(lambda k=kernels: not any(map(lives, k)), 60, lambda: "a kernel has outlived the driver")
    process = start(project, SEEDS=seeds)
    for _ in range(5):
        wait_for_another(project, process)
        for kernel in kernels_of(process)[:1]:
            kernel.kill()
    said = finish(process, status=1)
    failed = said.count("the kernel was killed (SIGKILL)")
    assert 1 <= failed <= 5  # of one that had done its task nothing is lost
    assert f"{failed} of {tasks} tasks failed" in said
    assert "Traceback" not in said
    assert f"of which {tasks - failed} were finished before" in finish(start(project, SEEDS=seeds))
    assert seeds_of(project) == expected(20)
    done = executed(project)
    assert len(set(done)) == tasks
    assert len(done) - tasks <= at_hand + failed


def test_a_cluster_whose_worker_is_killed_finishes_all(project):
    with cluster(project) as (address, worker):
        process = start(project, SEEDS="0-7", SCHEDULER=address)
        for _ in range(3):
            wait_for_another(project, process)
            nannied = [one for one in psutil.Process(worker.pid).children(recursive=True) if kernels_of(one)]
            for one in nannied[:1]:
                one.kill()
        said = finish(process)
        assert "2 workers; Dask's dashboard: http://127.0.0.1:" in said
        assert seeds_of(project) == expected(8)
        # a driver that is killed costs what is at hand, too
        process = start(project, SEEDS="8-15", SCHEDULER=address)
        wait_for_another(project, process)
        process.kill()
        process.communicate()
        said = finish(start(project, SEEDS="0-15", SCHEDULER=address))
        assert seeds_of(project) == expected(16)
        assert int(said.split("of which ")[1].split()[0]) >= 16
        # one Ctrl-C ends what the workers do; they are there for the next
        process = start(project, SEEDS="16-30", SCHEDULER=address)
        wait_for_another(project, process)
        process.send_signal(signal.SIGINT)
        assert "Ended, kernels too" in finish(process, status=130)
        workers = [one for one in psutil.Process(worker.pid).children(recursive=True) if lives(one)]
        wait_until(lambda: not any(kernels_of(one) for one in workers), 30, lambda: "a kernel has outlived the sweep")
        finish(start(project, SEEDS="16-20", SCHEDULER=address))


def test_a_worker_with_other_code_is_refused(project, tmp_path):
    elsewhere = make_project(tmp_path / "elsewhere", dict.fromkeys(NAMES, "1 + 1"))
    with cluster(elsewhere, workers=1) as (address, _):
        said = finish(start(project, SEEDS="0", SCHEDULER=address), status=1)
    assert re.search("sweep: the worker tcp://.* must have the driver's code and versions, got others: ", said)
    assert "08_first.ipynb" in said
    assert "Traceback" not in said


def test_a_notebook_without_a_report_is_executed_once_and_leaves_nothing(project):
    source = f"from pathlib import Path\nPath({str(project.parent)!r}, 'plain').touch(exist_ok=False)"
    notebook = new_notebook(cells=[new_code_cell(source)])
    nbformat.write(notebook, project / "notebooks" / "10_plain.ipynb")
    said = finish(start(project, SEEDS="0"))
    assert "10_plain, seed 0: it leaves no results, as no Report is finished in it" in said
    assert "3 tasks, of which 3 were finished before" in finish(start(project, SEEDS="0"))
    assert seeds_of(project) == expected(1)


def test_a_scheduler_that_goes_is_told_in_lines(project):
    with cluster(project) as (address, _):
        process = start(project, SEEDS="0-7", SCHEDULER=address)
        wait_for_another(project, process)
        scheduler = next(one for one in psutil.Process().children() if "scheduler" in one.cmdline())
        scheduler.kill()
        said = finish(process, status=1)
    assert "Traceback" not in said
    assert "tasks failed, see above; the others are kept" in said
    finish(start(project, SEEDS="0-7"))
    assert seeds_of(project) == expected(8)


def test_a_scheduler_that_is_not_there_is_refused(project):
    said = finish(start(project, SEEDS="0", SCHEDULER="tcp://127.0.0.1:9"), status=1)
    assert "sweep: SCHEDULER must be the address of a Dask scheduler" in said


def without_times(notebooks):
    return {
        (notebook, result): row["by_seed"]
        for notebook, results in notebooks.items()
        for result, row in results.items()
        if "time" not in result
    }


def test_results_are_the_same_with_one_worker_two_or_a_cluster(tmp_path):
    """To the last digit, on the digits that come with scikit-learn, QUICK."""
    paths = [str(path) for path in sorted((PROJECT / "notebooks").glob("0[16]_*.ipynb"))]

    def run(name, *options, **settings):
        folder = tmp_path / name
        own = {"OUTPUT": str(folder), "CACHE": str(folder / "cache"), "SEEDS": "0-1"}
        finish(start(PROJECT, *options, *paths, **own | settings))
        return without_times(json.loads((folder / "seeds.json").read_text(encoding="utf-8"))["notebooks"])

    one = run("one", "--jobs", "1")
    assert len(one) > 50
    assert any(len(set(by_seed.values())) == 2 for by_seed in one.values())
    assert run("two", "--jobs", "2") == one
    with cluster(tmp_path, CACHE=str(tmp_path / "worker"), PYTHONPATH=str(PROJECT)) as (address, _):
        assert run("cluster", SCHEDULER=address) == one
