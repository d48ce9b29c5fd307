"""What `make sweep` itself costs, by tasks that do nothing: on threads and on a Dask cluster.

Run as `.venv/bin/python benchmarks/scaling.py`, with requirements-cluster.txt installed. Writes scaling.json.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from study.files import atomic_write
from study.settings import PROJECT
from study.sweep import Task, locally, on_cluster

COUNTS, WORKERS = (10, 100, 1_000), 2
FILE = PROJECT / "benchmarks" / "scaling.json"


def do_nothing(task, running):
    """In place of a notebook."""
    return {"key": task.key}


def measure(spread, where, count):
    """Seconds by the clock and of the driver's processor, and milliseconds for each task."""
    tasks = [Task("notebooks/01_supervised_cnn.ipynb", {"SEED": str(seed)}, f"{seed}") for seed in range(count)]
    start, used = time.perf_counter(), time.process_time()
    done = [task.key for task, record in spread(do_nothing, tasks, where) if record["key"] == task.key]
    clock, processor = time.perf_counter() - start, time.process_time() - used
    assert sorted(done) == sorted(task.key for task in tasks)
    return {"seconds": clock, "processor seconds": processor, "ms for each task": 1_000 * clock / count}


def table(found):
    """The file as the lines of benchmarks/README.md."""
    head = "| tasks | threads: seconds | ms for each | Dask: seconds | ms for each |"
    rows = [
        f"| {count} | {one['seconds']:.2f} | {one['ms for each task']:.2f} "
        f"| {two['seconds']:.2f} | {two['ms for each task']:.2f} |"
        for count, one, two in zip(found["threads"], found["threads"].values(), found["dask"].values(), strict=True)
    ]
    return [head, "| --- | --- | --- | --- | --- |", *rows]


def main():
    """Measure, and write the file."""
    import distributed

    found = {"threads": {}, "dask": {}}
    for count in COUNTS:
        found["threads"][str(count)] = measure(locally, WORKERS, count)
    options = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(**options) as cluster:
        measure(on_cluster, cluster.scheduler_address, 10)  # the first connections
        for count in COUNTS:
            found["dask"][str(count)] = measure(on_cluster, cluster.scheduler_address, count)
    atomic_write(FILE, json.dumps(found, indent=1).encode() + b"\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    main()
