"""Side-by-side timings: `make bench` prints tables, and writes results.json, ratios.png and growth.png.

Each row has two processes, one for each side, that take turns: while one is timed the other sleeps. The second table
is that of arithmetic.py.
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
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
from collections.abc import Iterator
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
import arithmetic

import helpers as h
from latent_digits.precision import fast_bfloat16
from study.files import atomic_write
from study.settings import PROJECT


@dataclass(frozen=True)
class Row:
    """One comparison: functions <name>_ours and <name>_<peer> of sides.py."""

    label: str
    name: str
    target: float  # how many times faster ours should be
    quality: str  # what is reached, and its unit
    slack: float  # by how much ours may reach less
    options: dict = field(default_factory=dict)
    equal: bool = False  # nor may it reach more by that much: it is a value, and not a merit
    as_rate: bool = False  # compare quality per second: there it is the amount of work
    warm_up: bool = True  # one unit each that does not count
    pairs: float = math.inf  # at most so many
    peer: str = "peer"
    dtype: str = ""  # "float32" or "bfloat16" on both sides
    environ: dict = field(default_factory=dict)  # what their processes need in the environment
    limit: str = ""  # what keeps ours from the target, where it is missed


FORMATS = ("float32", "bfloat16")
FLOAT64 = "the peer computes in float32, with half the digits and at up to twice the rate of float64, which ours is in"


def in_both_formats(label: str, *arguments, **options) -> list[Row]:
    """A row at float32, and one at bfloat16."""
    return [Row(f"{label}, {dtype}", *arguments, dtype=dtype, **options) for dtype in FORMATS]


def em_rows(label: str, peer: str, slack: float, **options) -> list[Row]:
    """Rows of EM beside one of its peers, for few, many and very many components."""
    few = "a product of so few columns runs far below the processor's rate"
    return [
        Row(
            f"EM, {iterations} iterations, K = {components}, beside {label}",
            *("em", 8, "log-likelihood (nats)", slack),
            {"components": components, "iterations": iterations},
            equal=True,
            peer=peer,
            limit="; ".join([few] * (components == 10) + [FLOAT64] * (slack > 1e-6)),
            **options,
        )
        for components, iterations in ((10, 100), (100, 20), (300, 20))
    ]


CONSTANT, PIXELS = "65 columns, one of them constant", "784 pixels"


def wide_rows() -> list[Row]:
    """Rows of EM on 1,000 samples of many columns, where it should at least be no slower than scikit-learn."""
    kinds = [("full", columns) for columns in ("50 columns", "100 columns", "200 columns", CONSTANT, PIXELS)]
    kinds += [(kind, columns) for kind in ("diag", "spherical") for columns in ("64 columns", PIXELS)]
    return [
        Row(
            f"EM, 10 iterations, 1,000 samples of {columns}, {kind}",
            *("em", 0.95, "log-likelihood (nats)", 1e-3),
            {"components": 10, "columns": columns, "covariance_type": kind},
            equal=True,
            limit="each iteration passes over all samples at the memory's rate, where a second thread helps the peer's "
            "larger products more than ours; on one thread the ratio is 0.84 to 1.4",
        )
        for kind, columns in kinds
    ]


ROWS = [
    *in_both_formats(
        *("VAE, one epoch of 20,000 images", "vae_epoch", 4, "validation elbo (nats)", 1.0),
        limit="without the loader most of a step is what both sides have in common: products, and the optimizer",
    ),
    *in_both_formats(
        *("CNN, from nothing to 99 %", "cnn", 3, "test accuracy (%)", 0.5),
        warm_up=False,
        pairs=1,
        limit="an epoch of both networks is mostly convolutions; ours has four layers of them, the peer's two",
    ),
    *in_both_formats(
        *("log p(x), 200 images, M = 1,000", "log_prob", 5, "mean log p(x) (nats)", 0.5),
        equal=True,
        limit="nearly all of our time is spent in the decoder, which both sides have in common",
    ),
    *in_both_formats(
        *("latent optimization, 100 steps, 60,000 images", "latents", 3, "elbo of visited images (nats)", 1.0),
        limit="what is saved is the dense update of all codes: the decoder's own steps are the same on both sides",
    ),
    *em_rows("scikit-learn", "peer", 1e-6),
    *em_rows("scikit-learn on float32", "float32", 1e-3),
    *em_rows("scikit-learn on torch tensors of float32", "torch", 1e-3, environ={"SCIPY_ARRAY_API": "1"}),
    *wide_rows(),
    *in_both_formats(
        *("conv VAE step, as a share of the matrix product's rate", "step", 0.5, "GFLOP", 0.0),
        as_rate=True,
        limit="48 images of 28 x 28 are few and small for convolutions, and nearly half of the time goes to what "
        "multiplies no matrices: activations, conversions between number formats, the optimizer",
    ),
]

RUN_MINUTES = {"float32": 18, "bfloat16": 12}  # of `make run` from nothing, on two cores
RUN_MEMORY = 1.5  # GB a notebook
RUN_LIMIT = "most of its time is training: see its arithmetic by part"

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
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(pid: int | str = "self") -> float:
    """Most memory that a process has had, in MB (its parent's would count in getrusage on Linux).

    Of another process, where Linux does not tell, what it has now; 0 when it has ended.
    """
    try:
        if (status := Path(f"/proc/{pid}/status")).exists():
            return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[1]) / 1024
        if pid == "self":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return psutil.Process(pid).memory_info().rss / 2**20
    except (OSError, TypeError, psutil.Error):  # it has just ended
        return 0.0


def own_memory(process: psutil.Process) -> int:
    """Bytes that a process has to itself."""
    try:
        return process.memory_full_info().uss
    except psutil.Error:  # it has just ended
        return 0


def compare(row: Row, pairs: int) -> dict:
    """Time both sides of a row in turn."""
    with (
        arithmetic.environment(arithmetic.in_format(os.environ, row.dtype) | row.environ),
        Worker(f"{row.name}_ours", **row.options) as ours,
        Worker(f"{row.name}_{row.peer}", **row.options) as peer,
    ):
        workers = {"ours": ours, "peer": peer}
        for worker in workers.values():
            if row.warm_up:
                worker.measure()
        pairs_taken = []
        for index in tqdm(range(min(pairs, row.pairs)), desc=row.label, unit="pair", leave=False):
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
        "limit": row.limit,
    }


def full_scale() -> dict[str, str]:
    """The environment without settings that a user may have made for `make run`."""
    settings = ("QUICK", "SEED", "DATA", "DEVICE", "DTYPE", "JOBS", "NOTEBOOKS", "OMP_NUM_THREADS", "MAKEFLAGS")
    return {name: value for name, value in os.environ.items() if name not in settings}


def full_run(dtype: str) -> dict:
    """`make run` with nothing in the cache: minutes, and the most memory that one process, a notebook's kernel, has.

    They are looked at twice a second. As `make run` does, it writes report/.
    """
    with tempfile.TemporaryDirectory() as folder:
        environ = full_scale() | {"CACHE": f"{folder}/cache", "OUTPUT": f"{folder}/figures"}
        environ = arithmetic.in_format(environ, dtype)
        start, peak = time.perf_counter(), 0.0
        process = psutil.Popen(["make", "run"], cwd=PROJECT, env=environ, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max([peak, *(peak_memory(member.pid) for member in process.children(recursive=True))])
            time.sleep(0.5)
        if process.returncode:
            raise RuntimeError(f"make run ended with status {process.returncode}: see what it printed above")
    return {"minutes": (time.perf_counter() - start) / 60, "memory (GB)": peak * 2**20 / 1e9}


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


def formats() -> list[str]:
    """The number formats that this machine is fast in."""
    return list(FORMATS[: 1 + fast_bfloat16(torch.device("cpu"))])


def machine() -> dict:
    """What the timings were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8"))
        cpu = named[1].strip() if named else cpu
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "scikit-learn")}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "format": formats()[-1],
    } | versions


def draw_ratios(rows: list[dict]) -> plt.Figure:
    """Each row's ratio, from the lowest to the highest pair, beside its target."""
    figure, ax = plt.subplots(figsize=(9, 0.45 * len(rows) + 1.2), layout="constrained")
    middle, low, high, target = (np.array([row[key] for row in rows]) for key in ("ratio", "min", "max", "target"))
    places = np.arange(len(rows))
    ax.errorbar(middle, places, xerr=[middle - low, high - middle], fmt="o", capsize=3, label="median, least to most")
    ax.plot(target, places, "|", ms=14, color="C1", mew=2, label="target")
    ax.set(xscale="log", xlabel="times faster than the peer\n(last rows: share of the peak rate)")
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
    """The rows and `make run` as a table."""
    head = ["measured side by side", "ours", "peer", "times faster (least to most)", "target", "reached, ours and peer"]
    lines = [head + ["peak memory, ours and peer"], ["---"] * 7]
    for row in found["rows"]:
        reached = f"{row['ours reaches']:.2f}, {row['peer reaches']:.2f}: {row['quality']}"
        reached += f", within {row['slack']:g}" if row["slack"] else ""
        times = [f"{row[f'{side} (s)']:.2f} s" for side in ("ours", "peer")]
        ratio = f"**{row['ratio']:.2f}** ({row['min']:.2f} to {row['max']:.2f})"
        memory = f"{row['ours (MB)']:.0f}, {row['peer (MB)']:.0f} MB"
        lines.append([row["row"], *times, ratio, f"{row['target']:g} {'✓' if row['met'] else '✗'}", reached, memory])
    for dtype, run in found["run"].items():
        target = f"{RUN_MINUTES[dtype]} minutes, {RUN_MEMORY:g} GB a notebook {'✓' if run_met(dtype, run) else '✗'}"
        cells = [f"{run['minutes']:.1f} minutes", "–", "–", target]
        lines.append([f"`make run` from nothing, {dtype}", *cells, "every check", f"{run['memory (GB)']:.1f} GB"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def run_met(dtype: str, run: dict) -> bool:
    """Whether `make run` keeps to its minutes and its memory."""
    return run["minutes"] <= RUN_MINUTES[dtype] and run["memory (GB)"] <= RUN_MEMORY


def limits(found: dict) -> str:
    """What each row that misses its target is limited by, as a list."""
    missed = [(row["row"], row["limit"]) for row in found["rows"] if not row["met"]]
    runs = found["run"].items()
    missed += [(f"`make run` from nothing, {dtype}", RUN_LIMIT) for dtype, run in runs if not run_met(dtype, run)]
    return "\n".join(f"- **{name}**: {limit}." for name, limit in missed)


def write(found: dict, folder: Path) -> None:
    """results.json and the two figures."""
    atomic_write(folder / "results.json", (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    for name, draw, part in (("ratios", draw_ratios, found["rows"]), ("growth", draw_growth, found["growth"])):
        if part:
            figure = draw(part)
            figure.savefig(folder / f"{name}.png", dpi=110)
            plt.close(figure)


def main() -> None:
    """Parse the command line, measure, print and write."""
    names = list(dict.fromkeys(row.name for row in ROWS)) + [f"grow_{what}" for what in GROWTH] + ["run", "arithmetic"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="how often each side of a row is timed")
    parser.add_argument(
        "--only", nargs="*", default=names, choices=names, help="measure these; others stay as they were"
    )
    parser.add_argument("--output", type=lambda text: Path(text).expanduser(), default=PROJECT / "report" / "bench")
    arguments = parser.parse_args()
    h.load_data("mnist")  # says at once where it is missing, and fetches it where it can
    path, found = arguments.output / "results.json", {"rows": [], "growth": {}, "run": {}, "arithmetic": {}}
    if arguments.only != names and path.exists():
        found |= json.loads(path.read_text(encoding="utf-8"))
        if found["machine"] != machine():
            parser.error(f"{path} is of another machine: measure everything, or choose another --output")
    found["machine"] = machine()
    for _ in measurements(found, arguments.only, arguments.pairs):
        write(found, arguments.output)
    print("\n\n".join([markdown(found), limits(found), arithmetic.markdown(found["arithmetic"])]))
    for points in found["growth"].values():
        print(f"time grows with {points['label']} to the power of {points['slope']:.2f}")


def measurements(found: dict, only: list[str], pairs: int) -> Iterator[None]:
    """Put into `found` one thing after another of those in `only`."""
    order = [row.label for row in ROWS]
    for row in ROWS:
        if row.name in only and row.dtype in ("", *formats()):
            found["rows"] = [old for old in found["rows"] if old["row"] != row.label] + [compare(row, pairs)]
            found["rows"].sort(key=lambda old: order.index(old["row"]))
            yield
    for what, settings in GROWTH.items():
        if f"grow_{what}" in only:
            found["growth"][what] = grow(*settings, pairs)
            yield
    for dtype in formats() if "run" in only else []:
        found["run"][dtype] = full_run(dtype)
        yield
    if "arithmetic" in only:
        found["arithmetic"] = arithmetic.measure(full_scale(), arithmetic.notebooks())
        yield


if __name__ == "__main__":
    main()
