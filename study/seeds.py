"""What many seeds say of a result: its mean and range, in words and as one figure.

figures/seeds.json has every result by seed. `make sweep` makes it of executed notebooks, so no
check may read it; cells that show it are tagged "seeds", and left out of stamps.
"""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from study.report import STYLE, show_value
from study.settings import PROJECT

SEEDS_FILE = PROJECT / "figures" / "seeds.json"
# whose mean and range README gives, and the figure shows
HEADLINES = {
    "01_supervised_cnn": ("test accuracy",),
    "02_amortized_vae": (
        "validation elbo (200 latents)",
        "latents of 200 that carry more than 0.1 nats",
    ),
    "03_latent_optimization": (
        "class consistency cured, training images",
        "elbo cured, training images",
    ),
    "04_sampling": (
        "Fréchet distance, samples after the last epoch",
        "nearer to a training image than the median new picture, z from N(0, I)",
    ),
    "05_log_probability": (
        "log p(x), test images, amortized",
        "log p(x) of the digit 1, test images, amortized",
    ),
    "06_gaussian_mixture": (
        "conv VAE, many clusters: test accuracy, soft vote",
        "conv VAE, 10 clusters: test accuracy, soft vote",
        "ten groups without a label: one-to-one accuracy, mean of the starts",
        "gain of the mixture as prior, log p(x) of test images",
        "Fréchet distance, VAE, 200 latents, mixture",
    ),
}


def gather(stamp: dict, parts: Iterable[tuple[str, int, dict]]) -> dict:
    """seeds.json: a stamp, and every result by seed.

    parts: notebook, seed, and what the notebook left of results.json.
    """
    notebooks: dict[str, dict] = {}
    seeds = set()
    for notebook, seed, part in parts:
        seeds.add(seed)
        for row in part["results"]:
            kept = {"unit": row["unit"], "digits": row["digits"], "by_seed": {}}
            found = notebooks.setdefault(notebook, {}).setdefault(row["result"], kept)
            found["by_seed"][str(seed)] = row["value"]
    return {"stamp": stamp | {"seeds": sorted(seeds)}, "notebooks": notebooks}


def read_seeds_file(path: Path | None = None) -> dict:
    """seeds.json as `gather` has it; without a file one that has nothing."""
    path = path or SEEDS_FILE
    if not path.exists():
        return {"stamp": {"seeds": []}, "notebooks": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def values_of(everything: Mapping, notebook: str, result: str) -> dict[str, float]:
    """A result by seed. Raises ValueError where it is not there."""
    there = everything["notebooks"].get(notebook, {})
    if result not in there:
        raise ValueError(f"result must be one of {notebook} in seeds.json, got {result!r}")
    return there[result]["by_seed"]


def show(value: float, row: Mapping) -> str:
    """A value with the digits and the unit of its result."""
    unit = f" {row['unit']}" if row["unit"] else ""
    return f"{show_value({'value': value, 'digits': row['digits']})}{unit}"


def show_range(values: Iterable[float], row: Mapping) -> str:
    """(99.38 to 99.55)."""
    low, high = (show_value({"value": f(values), "digits": row["digits"]}) for f in (min, max))
    return f"({low} to {high})"


def over_seeds(notebook: str, *results: str) -> str:
    """A sentence for each result: its mean and range over the seeds of the sweep."""
    everything, lines = read_seeds_file(), []
    if not everything["notebooks"]:
        return "No sweep has been made yet: see `make sweep`."
    for result in results:
        values = list(values_of(everything, notebook, result).values())
        row = everything["notebooks"][notebook][result]
        mean, spread = show(float(np.mean(values)), row), show_range(values, row)
        lines.append(f"{result}: {mean}, the mean of {len(values)} trainings {spread}")
    return "\n".join(lines)


def compare_over_seeds(notebook: str, first: str, second: str) -> str:
    """By how much the first result exceeds the second, over the seeds that have both.

    The interval is Student's, at 95 %, of the mean difference within a seed. Where it holds 0 the
    two are called indistinguishable.
    """
    everything = read_seeds_file()
    if not everything["notebooks"]:
        return "No sweep has been made yet: see `make sweep`."
    ours, others = (values_of(everything, notebook, result) for result in (first, second))
    seeds = [seed for seed in ours if seed in others]
    gaps = np.array([ours[seed] - others[seed] for seed in seeds])
    row = everything["notebooks"][notebook][first]
    low, high = interval(gaps)
    words = f"{first}, less {second}: {show(gaps.mean(), row)}, the mean of {len(seeds)} trainings "
    words += f"{show_range(gaps, row)}; 95 % interval of the mean "
    words += show_range((low, high), row).strip("()")
    return words + (": indistinguishable" if low <= 0 <= high else "")


def interval(values: np.ndarray) -> tuple[float, float]:
    """Student's interval, at 95 %, of the mean."""
    if len(values) < 2:
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return values.mean() - half, values.mean() + half


def draw_seeds(everything: Mapping) -> bytes:
    """How far seeds differ, as a PNG: a row for each headline, with a point for each seed."""
    rows = [
        (notebook, result)
        for notebook, results in HEADLINES.items()
        for result in results
        if result in everything["notebooks"].get(notebook, {})
    ]
    with plt.style.context(STYLE):
        size = (9, 0.9 + 0.62 * max(1, len(rows)))
        figure, axes = plt.subplots(max(1, len(rows)), 1, figsize=size, squeeze=False)
        for ax, (notebook, result) in zip(axes[:, 0], rows, strict=False):
            row = everything["notebooks"][notebook][result]
            draw_row(ax, f"{notebook[:2]} · {result}", row)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)
    return buffer.getvalue()


def draw_row(ax: plt.Axes, name: str, row: Mapping) -> None:
    """One result: a point for each seed, and a line at the mean."""
    values = np.array(list(row["by_seed"].values()))
    ax.plot(values, np.zeros(len(values)), "o", alpha=0.7)
    ax.axvline(values.mean(), color="black", lw=1)
    for seed, value in row["by_seed"].items():
        ax.annotate(seed, (value, 0), (0, 6), textcoords="offset points", ha="center", fontsize=7)
    unit = f" ({row['unit']})" if row["unit"] else ""
    ax.set_ylabel(f"{name}{unit}", rotation=0, ha="right", va="center")
    ax.set(yticks=[], ylim=(-1, 2))
    ax.grid(False)
    ax.spines[["top", "left", "right"]].set_visible(False)
    ax.margins(x=0.1)
