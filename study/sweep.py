"""Many seeds: each notebook under each of them, on this machine or on a Dask cluster.

A task is one notebook under one seed, in a kernel process of its own. What it leaves is kept in the
cache under all that decides it, so that the same command goes on where an earlier one ended.
Locally each of joblib's threads drives one kernel: one that dies fails its task alone. On a cluster
workers do, and Dask tries a task again whose worker died. A worker takes code, data and trained
models from the folder that it was started in, and sends back what the task left. No sweep begins
with a worker whose code or versions are others.
"""

import asyncio
import contextlib
import functools
import json
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import joblib
import nbformat
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from study.arguments import find_notebooks
from study.execute import Loop, ending_at_signals, execute
from study.files import atomic_write
from study.identity import digest
from study.recipes import load_data
from study.report import say, to_json
from study.seeds import draw_seeds, gather
from study.settings import LARGEST_SEED, PROJECT, Settings, require_folder
from study.stamps import OLD_INSTRUCTIONS, SEEDS, STORED, code_hash, versions

MOST_TASKS = 100_000


class Task(NamedTuple):
    """One notebook under one seed."""

    notebook: str  # its path, from the project's folder
    environment: dict[str, str]  # of its kernel
    key: str  # of all that decides what it leaves

    @property
    def name(self) -> str:
        """For a reader."""
        return f"{Path(self.notebook).stem}, seed {self.environment['SEED']}"


# --- which tasks there are ---


def read_seeds(word: str) -> list[int]:
    """The seeds of "0-4" or "0,2,5-7", each once. Raises ValueError for another word."""
    found = []
    for part in word.split(","):
        ends = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part, re.ASCII)
        first, last = (int(end) for end in (ends[1], ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last <= min(LARGEST_SEED, first + MOST_TASKS):
            rule = "seeds from 0 on, and ranges of them, as in SEEDS=0-4,7"
            raise ValueError(f"SEEDS must be {rule}, got {word[:40]!r}")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def find_tasks(paths: Iterable[Path], seeds: Iterable[int]) -> list[Task]:
    """Each notebook under each seed, seed by seed; QUICK, DATA and DEVICE as in the environment."""
    settings = Settings.from_environment()
    shared = {
        "QUICK": str(int(settings.quick)),
        "DATA": load_data(settings.source, per_class=1, test_size=1).name,
        "DEVICE": settings.device,
        # as stored notebooks are executed, so that the processor does not matter
        "DTYPE": STORED["dtype"],
        "OMP_NUM_THREADS": "1",
        **OLD_INSTRUCTIONS,
    }
    places = [path.resolve() for path in paths]
    names = [str(p.relative_to(PROJECT) if p.is_relative_to(PROJECT) else p) for p in places]
    hashes = {name: notebook_hash(name) for name in names}
    environments = [shared | {"SEED": str(seed)} for seed in seeds]
    return [
        Task(name, environment, task_key(hashes[name], environment))
        for environment in environments
        for name in names
    ]


def notebook_hash(notebook: str) -> str:
    """Hash of a notebook's name, its code and the code behind it, as they are in this folder."""
    path = PROJECT / notebook
    return digest([path.stem, code_hash(nbformat.read(path, as_version=4))])


def what_decides(notebooks: Iterable[str]) -> dict[str, str]:
    """The code of each notebook and the versions, as they are in this folder."""
    return {name: notebook_hash(name) for name in notebooks} | versions()


def task_key(notebook: str, environment: dict[str, str]) -> str:
    """The key of a task: hash of its notebook, of its settings and of the versions."""
    return digest([notebook, environment, versions()])


# --- one task ---


class Running:
    """The notebooks at work in threads of this process, so that all can be ended at once."""

    def __init__(self):
        self.ended, self.at_work = threading.Event(), set()

    def run(self, work: Coroutine) -> object:
        """What `work` returns, in an event loop of this thread's own."""

        async def counted() -> object:
            own = asyncio.get_running_loop(), asyncio.current_task()
            self.at_work.add(own)
            try:
                if self.ended.is_set():
                    raise asyncio.CancelledError
                return await work
            finally:
                work.close()
                self.at_work.discard(own)

        with asyncio.Runner(loop_factory=Loop) as runner:
            return runner.run(counted())

    def end(self) -> None:
        """End all, kernels too, and let none begin."""
        self.ended.set()
        for loop, task in list(self.at_work):
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                loop.call_soon_threadsafe(task.cancel)
        limit = time.monotonic() + 20
        while self.at_work and time.monotonic() < limit:
            time.sleep(0.05)


def execute_task(task: Task, running: Running) -> dict:
    """What a task leaves: its part of results.json, None where it has no Report; or its error."""
    begun = time.perf_counter()
    try:
        if task_key(notebook_hash(task.notebook), task.environment) != task.key:
            raise ValueError(f"the code or the versions in {PROJECT} are others than the driver's")
        with tempfile.TemporaryDirectory() as output:
            environment = task.environment | {"OUTPUT": output}
            path = PROJECT / task.notebook
            # what seeds say is not there yet, or is of an earlier sweep
            work = execute(path, environment, without=SEEDS, quiet=True)
            part = running.run(work).metadata["part"]
    except (Exception, asyncio.CancelledError) as error:
        return {"error": describe_error(error)}
    seconds = round(time.perf_counter() - begun, 1)
    return {"key": task.key, "part": part, "seconds": seconds, "processor": processor()}


def describe_error(error: BaseException) -> str:
    """An error in a few words, with the cell that it is of."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, CellExecutionError):
        said = f"{error.ename}: {error.evalue}"
    elif isinstance(error, asyncio.CancelledError):
        said = "it was ended"
    return " ".join([said, *getattr(error, "__notes__", ())])


def processor() -> str:
    """The name of this machine's processor."""
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if found:
            return found[1]
    return platform.processor() or platform.machine()


# --- many tasks ---

Done = Iterator[tuple[Task, dict]]


def locally(work: Callable[[Task, Running], dict], tasks: list[Task], jobs: int) -> Done:
    """Each task and what `work` makes of it, as they are finished: `jobs` threads at a time."""
    running = Running()
    parallel = joblib.Parallel(jobs, prefer="threads", return_as="generator_unordered")
    results = parallel(joblib.delayed(lambda task: (task, work(task, running)))(t) for t in tasks)
    try:
        yield from results
    finally:
        running.end()


def on_cluster(work: Callable[[Task, Running], dict], tasks: list[Task], scheduler: str) -> Done:
    """As `locally`, by the workers of a Dask cluster. scheduler: its address, tcp://host:8786."""
    try:
        import distributed
    except ImportError as error:
        how = "pip install -r requirements-cluster.txt -c requirements.txt -c constraints.txt"
        raise ValueError(f"SCHEDULER needs Dask: {how}") from error
    try:
        client = distributed.Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        rule = "the address of a Dask scheduler, as in SCHEDULER=tcp://host:8786"
        raise ValueError(f"SCHEDULER must be {rule}, got {scheduler} ({error})") from error
    with client:
        count = len(client.scheduler_info(n_workers=-1)["workers"])
        said = f"{count} workers" if count else "No workers yet"
        tqdm.write(f"{said}; Dask's dashboard: {client.dashboard_link}")
        require_same_workers(client, {task.notebook for task in tasks})
        futures = client.map(functools.partial(by_worker, work, client.id), tasks, pure=False)
        task_of = dict(zip([future.key for future in futures], tasks, strict=True))
        try:
            found = distributed.as_completed(futures, with_results=True, raise_errors=False)
            for future, result in found:
                if future.status != "finished":  # an error, or a triple with it
                    error = result[1] if isinstance(result, tuple) else result
                    result = {"error": describe_error(error)}
                yield task_of[future.key], result
                future.release()
        finally:
            with contextlib.suppress(OSError):  # workers end with their scheduler
                client.cancel(futures)
                client.run(end_worker, client.id, on_error="ignore")


def require_same_workers(client, notebooks: set[str]) -> None:
    """Raise ValueError for a worker of a Dask client that has other code or other versions."""
    ours = what_decides(notebooks)
    for worker, theirs in client.run(what_decides, notebooks, on_error="return").items():
        if isinstance(theirs, Exception):
            raise ValueError(f"the worker {worker} cannot be used: {theirs!r}")
        if others := [f"{name} {theirs[name][:8]}" for name in ours if theirs[name] != ours[name]]:
            rule = f"must have the driver's code and versions, got others: {', '.join(others)}"
            raise ValueError(f"the worker {worker} {rule}")


def by_worker(work: Callable[[Task, Running], dict], client: str, task: Task) -> dict:
    """`work` in a thread of a Dask worker, for one of its clients."""
    import distributed

    # on the worker, where `end_worker` finds it
    return work(task, vars(distributed.get_worker()).setdefault(f"of {client}", Running()))


def end_worker(client: str, dask_worker=None) -> None:
    """End what a Dask worker has at work for a client. Dask gives the worker."""
    vars(dask_worker).pop(f"of {client}", Running()).end()


# --- the sweep ---


def record_path(folder: Path, task: Task) -> Path:
    """Where the cache has what a task left."""
    name = f"{Path(task.notebook).stem}-{task.environment['SEED']}-{task.key[:16]}.json"
    return folder / name


def read_record(folder: Path, task: Task) -> dict | None:
    """What a task left at an earlier time; None where it did not, or the file is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(record_path(folder, task).read_text(encoding="utf-8"))
        left = record["part"] is None or "results" in record["part"]
        if record["key"] == task.key and record["processor"] and left:
            return record
    return None


def sweep(paths: list[Path], seeds: list[int], jobs: int, scheduler: str | None) -> bool:
    """Carry out all tasks that are not finished, and write seeds.json and seeds.png.

    Whether all could be. A task that fails is named; the others go on.
    """
    folder = Settings.from_environment().cache / "sweep"
    require_folder(CACHE=folder)  # without it nothing could be kept
    tasks = find_tasks(paths, seeds)
    records = {task.key: read_record(folder, task) for task in tasks}
    open_tasks = [task for task in tasks if not records[task.key]]
    say(f"{len(tasks)} tasks, of which {len(tasks) - len(open_tasks)} were finished before")
    failed, done = 0, ()
    if open_tasks:
        spread, where = (on_cluster, scheduler) if scheduler else (locally, jobs)
        done = spread(execute_task, open_tasks, where)
    # over all tasks, the mean gives the time that is left
    with tqdm(total=len(open_tasks), desc="sweep", unit="task", smoothing=0) as bar:
        for task, record in done:
            if "error" in record:
                failed += 1
                bar.write(f"{task.name}: {record['error']}")
            else:
                atomic_write(record_path(folder, task), to_json(record, indent=1))
                records[task.key] = record
                if record["part"] is None:
                    bar.write(f"{task.name}: it leaves no results, as no Report is finished in it")
            bar.update()
    if failed:
        say(f"{failed} of {len(tasks)} tasks failed, see above; the others are kept")
        return False
    if find_tasks(paths, seeds) != tasks:  # else the stamp would be that of the new code
        raise ValueError("the code has changed while the sweep ran: start it again")
    write_seeds(tasks, records)
    return True


def write_seeds(tasks: list[Task], records: dict[str, dict]) -> None:
    """Write seeds.json, with a stamp of what it came from, and its figure.

    Into figures/ for all notebooks at full scale on MNIST, on the CPU, under five seeds or more.
    """
    environment, output = tasks[0].environment, Settings.from_environment().output
    stamp = {"data": environment["DATA"], "quick": environment["QUICK"] == "1"}
    stamp |= {"dtype": environment["DTYPE"], "versions": versions()}
    names = list(dict.fromkeys(task.notebook for task in tasks))
    stamp["code"] = {
        Path(name).stem: code_hash(nbformat.read(PROJECT / name, as_version=4)) for name in names
    }
    found = [(Path(t.notebook).stem, int(t.environment["SEED"]), records[t.key]) for t in tasks]
    stamp["processors"] = sorted({record["processor"] for _, _, record in found})
    everything = gather(stamp, [(name, seed, record["part"]) for name, seed, record in found])
    whole = {path.resolve() for path in find_notebooks()} == {PROJECT / name for name in names}
    stored = all(stamp[name] == STORED[name] for name in ("data", "quick", "dtype"))
    enough = environment["DEVICE"] == "cpu" and len(everything["stamp"]["seeds"]) >= 5
    if whole and stored and enough and output == Settings.output:
        output = PROJECT / "figures"
    atomic_write(output / "seeds.json", to_json(everything, indent=1, sort_keys=True) + b"\n")
    atomic_write(output / "seeds.png", draw_seeds(everything))
    say(f"Written: {output / 'seeds.json'} and {output / 'seeds.png'}")


def command(paths: list[Path], seeds: str, jobs: int, scheduler: str | None) -> None:
    """The command; what ends it is said in a line."""
    try:
        chosen = read_seeds(seeds)
        with ending_at_signals():
            done = sweep(paths, chosen, jobs, scheduler or None)
    except (ValueError, OSError) as error:
        sys.exit(f"sweep: {error}")
    except KeyboardInterrupt:
        say("\nEnded, kernels too. The same command goes on from what is there.")
        sys.exit(130)
    if not done:
        sys.exit(1)
