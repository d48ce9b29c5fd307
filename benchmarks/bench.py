"""Side-by-side timings: `make bench` prints a table, and writes results.json, ratios.png and growth.png.

Each row has two processes, one for each side, that take turns: while one is timed the other sleeps.
"""

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
import torch
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helpers as h


@dataclass(frozen=True)
class Row:
    """One comparison: functions <name>_ours and <name>_peer of sides.py."""

    label: str
    name: str
    target: float  # how many times faster ours should be
    quality: str  # what is reached, and its unit
    slack: float  # by how much ours may reach less
    options: dict = field(default_factory=dict)
    equal: bool = False  # nor may it reach more by that much: it is a value, and not a merit
    as_rate: bool = False  # compare quality per second: there it is the amount of work
    warm_up: bool = True  # one unit each that does not count


ROWS = [
    Row("VAE, one epoch of 20,000 images", "vae_epoch", 4, "validation elbo (nats)", 1.0),
    Row("CNN, from nothing to 99 %", "cnn", 3, "test accuracy (%)", 0.5, warm_up=False),
    Row("log p(x), 200 images, M = 1,000", "log_prob", 5, "mean log p(x) (nats)", 0.5, equal=True),
    Row("latent optimization, 100 steps, 60,000 images", "latents", 3, "elbo of visited images (nats)", 1.0),
    *(
        Row(
            f"EM, a fit of {iterations} iterations, K = {components}",
            *("em", 8, "log-likelihood (nats)", 1e-6),
            {"components": components, "iterations": iterations},
            equal=True,
        )
        for components, iterations in ((10, 100), (100, 20), (300, 20))
    ),
    Row("conv VAE step, as a share of the matrix product's rate", "step", 0.5, "GFLOP", 0.0, as_rate=True),
]

GROWTH = {  # what grows: the side that is timed, its argument, the sizes, and a label
    "images": ("grow_images", "images", [5_000, 10_000, 20_000, 40_000, 60_000], "images (an epoch, MLP VAE)"),
    "codes": ("grow_codes", "images", [5_000, 10_000, 20_000, 40_000, 60_000], "images (100 steps of latent opt.)"),
    "latents": ("step_ours", "latent_size", [8, 20, 50, 100, 200], "latents (20 steps, conv VAE)"),
    "components": ("em_ours", "components", [10, 30, 100, 300], "components K (EM, 10 iterations)"),
    "samples": ("grow_samples", "samples", [10, 100, 1_000, 10_000], "samples M (log p(x), 20 images)"),
}


class Worker:
    """A process that sets `side` up, measures it when told to, and sleeps otherwise."""

    def __init__(self, side: str, **options):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, side, options))
        self.process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        self.answer()  # it is set up
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.terminate()

    def answer(self):
        """What the process says. Raises RuntimeError with its traceback where it failed."""
        answer = self.connection.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def measure(self) -> float:
        """Seconds of one unit."""
        self.connection.send("measure")
        return self.answer()

    def finish(self) -> dict[str, float]:
        """Its quality, and its memory in MB: `peak`, and `above` what it had before it was set up."""
        self.connection.send("finish")
        return self.answer()


def serve(connection, side: str, options: dict) -> None:
    """What a worker's process does."""
    try:
        import sides

        before = psutil.Process().memory_info().rss / 2**20
        unit, quality = getattr(sides, side)(**options)
        forget_peak()
        connection.send(None)
        while connection.recv() == "measure":
            start = time.perf_counter()
            unit()
            connection.send(time.perf_counter() - start)
        children = sum(own_memory(child) for child in psutil.Process().children(recursive=True)) / 2**20
        peak = peak_memory() + children
        connection.send({"quality": float(quality()), "peak": peak, "above": peak - before})
    except EOFError:  # the other side has failed
        pass
    except Exception:
        connection.send(f"{side}{options or ''} failed:\n{traceback.format_exc()}")


def forget_peak() -> None:
    """From here on `peak_memory` counts anew, where that can be had: setting up is not what is compared."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Most memory that this process has had, in MB (its parent's would count in getrusage on Linux)."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def own_memory(process: psutil.Process, share: bool = False) -> int:
    """Bytes that a process has to itself; with its share in what it has together with others, where that is known."""
    try:
        info = process.memory_full_info()
        return getattr(info, "pss", info.uss) if share else info.uss
    except psutil.Error:  # it has just ended
        return 0


def compare(row: Row, pairs: int) -> dict:
    """Time both sides of a row in turn."""
    with Worker(f"{row.name}_ours", **row.options) as ours, Worker(f"{row.name}_peer", **row.options) as peer:
        workers = {"ours": ours, "peer": peer}
        for worker in workers.values():
            if row.warm_up:
                worker.measure()
        pairs_taken = []
        for index in tqdm(range(pairs), desc=row.label, unit="pair", leave=False):
            turns = list(workers)[:: 1 if index % 2 else -1]  # each is first in every other pair
            pairs_taken.append({side: workers[side].measure() for side in turns})
        ends = {side: worker.finish() for side, worker in workers.items()}
    seconds = pd.DataFrame(pairs_taken)
    ratios = seconds["peer"] / seconds["ours"]
    if row.as_rate:
        ratios *= ends["ours"]["quality"] / ends["peer"]["quality"]
    ahead = ends["ours"]["quality"] - ends["peer"]["quality"]
    reached = row.as_rate or (abs(ahead) if row.equal else -ahead) <= row.slack
    return {
        "row": row.label,
        "ours (s)": seconds["ours"].median(),
        "peer (s)": seconds["peer"].median(),
        "ratio": ratios.median(),
        "min": ratios.min(),
        "max": ratios.max(),
        "target": row.target,
        "ours (MB)": ends["ours"]["peak"],
        "peer (MB)": ends["peer"]["peak"],
        "quality": row.quality,
        "slack": row.slack,
        "ours reaches": ends["ours"]["quality"],
        "peer reaches": ends["peer"]["quality"],
        "met": bool(ratios.median() >= row.target and reached),
    }


def full_run() -> dict:
    """`make run` with nothing in the cache: minutes, and the most memory that its processes have together.

    They are looked at every two seconds. As `make run` does, it writes report/.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = ("QUICK", "SEED", "DATA", "DEVICE", "JOBS", "NOTEBOOKS", "OMP_NUM_THREADS", "MAKEFLAGS")
        environment = {name: value for name, value in os.environ.items() if name not in settings}
        environment |= {"CACHE": f"{folder}/cache", "OUTPUT": f"{folder}/figures"}
        start, peak = time.perf_counter(), 0.0
        process = psutil.Popen(["make", "run"], cwd=h.PROJECT, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(own_memory(member, share=True) for member in family))
            time.sleep(2)
        if process.returncode:
            raise RuntimeError(f"make run ended with status {process.returncode}: see what it printed above")
    return {"minutes": (time.perf_counter() - start) / 60, "memory (GB)": peak / 1e9}


def grow(side: str, argument: str, sizes: list[int], label: str, repeats: int) -> dict:
    """Seconds (least of `repeats`) and memory above an idle process in MB at each size, and the slope of the logs."""
    seconds, memory = [], []
    for size in tqdm(sizes, desc=label, unit="size", leave=False):
        with Worker(side, **{argument: size}) as worker:
            worker.measure()
            seconds.append(min(worker.measure() for _ in range(repeats)))
            memory.append(worker.finish()["above"])
    slopes = [float(np.polyfit(np.log(sizes), np.log(values), 1)[0]) for values in (seconds, memory)]
    found = {"label": label, "sizes": sizes, "seconds": seconds, "memory": memory}
    return found | {"slope": slopes[0], "memory slope": slopes[1]}


def machine() -> dict:
    """What the timings were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = re.search(r"model name\s*: (.+)", info.read_text())
        cpu = named[1].strip() if named else cpu
    kind = "bfloat16" if h.fast_bfloat16(torch.device("cpu")) else "float32"
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "scikit-learn")}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "format": kind,
    } | versions


def draw_ratios(rows: list[dict]) -> plt.Figure:
    """Each row's ratio, from the lowest to the highest pair, beside its target."""
    figure, ax = plt.subplots(figsize=(9, 0.45 * len(rows) + 1.2), layout="constrained")
    middle, low, high, target = (np.array([row[key] for row in rows]) for key in ("ratio", "min", "max", "target"))
    places = np.arange(len(rows))
    ax.errorbar(middle, places, xerr=[middle - low, high - middle], fmt="o", capsize=3, label="median, least to most")
    ax.plot(target, places, "|", ms=14, color="C1", mew=2, label="target")
    ax.set(xscale="log", xlabel="times faster than the peer (last row: share of the peak rate)")
    ax.set_yticks(places, [row["row"] for row in rows])
    name_ticks(ax.xaxis)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def name_ticks(axis: Axis) -> None:
    """1, 2, 5, 10, 20 ... in place of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())


def draw_growth(growth: dict[str, dict]) -> plt.Figure:
    """Time and memory against each size, log-log, with the slopes."""
    size = (3.4 * len(growth), 5.4)
    figure, axes = plt.subplots(2, len(growth), figsize=size, layout="constrained", squeeze=False, sharey="row")
    for points, column in zip(growth.values(), axes.T, strict=True):
        sizes = np.array(points["sizes"], float)
        for ax, kind, slope, color in zip(column, ("seconds", "memory"), ("slope", "memory slope"), "bg", strict=True):
            values = np.array(points[kind])
            fitted = np.exp(np.log(values).mean()) * (sizes / np.exp(np.log(sizes).mean())) ** points[slope]
            ax.loglog(sizes, values, f"{color}o", ms=4)
            ax.loglog(sizes, fitted, f"{color}-", lw=1, alpha=0.6)
            ax.set_title(f"slope {points[slope]:.2f}", fontsize=10)
            name_ticks(ax.xaxis)
            ax.tick_params(axis="x", rotation=45)
            ax.grid(alpha=0.3, which="both")
        name_ticks(column[-1].yaxis)
        column[-1].set_xlabel(points["label"], fontsize=9)
    axes[0, 0].set_ylabel("time (s)")
    axes[1, 0].set_ylabel("memory above an idle process (MB)")
    return figure


def markdown(found: dict) -> str:
    """The rows as a table."""
    head = ["measured side by side", "ours", "peer", "times faster (least to most)", "target", "reached, ours and peer"]
    lines = [head + ["peak memory, ours and peer"], ["---"] * 7]
    for row in found["rows"]:
        reached = f"{row['ours reaches']:.2f}, {row['peer reaches']:.2f}: {row['quality']}"
        reached += f", within {row['slack']:g}" if row["slack"] else ""
        times = [f"{row[f'{side} (s)']:.2f} s" for side in ("ours", "peer")]
        ratio = f"**{row['ratio']:.2f}** ({row['min']:.2f} to {row['max']:.2f})"
        memory = f"{row['ours (MB)']:.0f}, {row['peer (MB)']:.0f} MB"
        lines.append([row["row"], *times, ratio, f"{row['target']:g} {'✓' if row['met'] else '✗'}", reached, memory])
    if found["run"]:
        minutes, memory = found["run"]["minutes"], found["run"]["memory (GB)"]
        met = "✓" if minutes <= 20 and memory <= 3 else "✗"
        cells = [
            "`make run` from nothing",
            f"{minutes:.1f} minutes",
            "–",
            "–",
            f"20 minutes, 3 GB {met}",
            "every check",
        ]
        lines.append([*cells, f"{memory:.1f} GB"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write(found: dict, folder: Path) -> None:
    """results.json and the two figures."""
    h.write_whole(folder / "results.json", (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    for name, draw, part in (("ratios", draw_ratios, found["rows"]), ("growth", draw_growth, found["growth"])):
        if part:
            figure = draw(part)
            figure.savefig(folder / f"{name}.png", dpi=110)
            plt.close(figure)


def main() -> None:
    """Parse the command line, measure, print and write."""
    names = list(dict.fromkeys(row.name for row in ROWS)) + [f"grow_{what}" for what in GROWTH] + ["run"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="how often each side of a row is timed")
    parser.add_argument(
        "--only", nargs="*", default=names, choices=names, help="measure these; others stay as they were"
    )
    parser.add_argument("--output", type=Path, default=h.PROJECT / "report" / "bench")
    arguments = parser.parse_args()
    h.load_data("mnist")  # says at once where it is missing, and fetches it where it can
    path, found = arguments.output / "results.json", {"rows": [], "growth": {}, "run": None}
    if arguments.only != names and path.exists():
        found = json.loads(path.read_text())
        if found["machine"] != machine():
            parser.error(f"{path} is of another machine: measure everything, or choose another --output")
    found["machine"] = machine()
    order = [row.label for row in ROWS]
    for row in ROWS:
        if row.name in arguments.only:
            found["rows"] = [old for old in found["rows"] if old["row"] != row.label] + [compare(row, arguments.pairs)]
            found["rows"].sort(key=lambda old: order.index(old["row"]))
            write(found, arguments.output)
    for what, settings in GROWTH.items():
        if f"grow_{what}" in arguments.only:
            found["growth"][what] = grow(*settings, arguments.pairs)
            write(found, arguments.output)
    if "run" in arguments.only:
        found["run"] = full_run()
        write(found, arguments.output)
    print(markdown(found))
    for points in found["growth"].values():
        print(f"time grows with {points['label']} to the power of {points['slope']:.2f}")


if __name__ == "__main__":
    main()
