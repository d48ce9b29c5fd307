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
import pandas as pd
from scipy import stats

from latent_digits.checks import require_whole
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
        "class consistency as written, training images",
        "class consistency cured, training images",
        "elbo cured, training images",
    ),
    "04_sampling": (
        "Fréchet distance, samples after the last epoch",
        "Fréchet distance, floor (real against real)",
        "nearer to a training image than the median new picture, z from N(0, I)",
    ),
    "05_log_probability": (
        "log p(x), test images, amortized",
        "log p(x) of the digit 1, test images, amortized",
        "what annealing adds on test images, amortized",
    ),
    "06_gaussian_mixture": (
        "conv VAE, many clusters: test accuracy, soft vote",
        "conv VAE, 10 clusters: test accuracy, soft vote",
        "ten groups without a label: one-to-one accuracy, mean of the starts",
        "gain of the mixture as prior, log p(x) of test images",
        "Fréchet distance, VAE, 200 latents, mixture",
    ),
}


def gather(stamp: dict, parts: Iterable[tuple[str, int, dict | None]]) -> dict:
    """seeds.json: a stamp, and every result by seed.

    parts: notebook, seed, and what the notebook left of results.json; None where it has no Report.
    """
    notebooks: dict[str, dict] = {}
    seeds = set()
    for notebook, seed, part in parts:
        seeds.add(seed)
        for row in part["results"] if part else ():
            kept = {"unit": row["unit"], "digits": row["digits"], "by_seed": {}}
            found = notebooks.setdefault(notebook, {}).setdefault(row["result"], kept)
            found["by_seed"][str(seed)] = row["value"]
    return {"stamp": stamp | {"seeds": sorted(seeds)}, "notebooks": notebooks}


def read_seeds_file(path: Path | None = None) -> dict:
    """seeds.json as `gather` has it. Raises FileNotFoundError where no sweep has been made."""
    path = path or SEEDS_FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} must be there: make it with `make sweep`")
    return json.loads(path.read_text(encoding="utf-8"))


def row_of(everything: Mapping, notebook: str, result: str) -> dict:
    """A result: unit, digits, and its values by seed. Raises ValueError where it is not there."""
    there = everything["notebooks"].get(notebook, {})
    if result not in there:
        raise ValueError(f"result must be one of {notebook} in seeds.json, got {result!r}")
    return there[result]


def show(value: float, row: Mapping) -> str:
    """A value with the digits of its result."""
    # + 0.0: a zero has no sign
    return show_value({"value": round(float(value), row["digits"]) + 0.0, "digits": row["digits"]})


def over_seeds(notebook: str, *results: str) -> pd.DataFrame:
    """Mean, range and standard deviation of results over the seeds of the sweep, one in a row."""
    everything, rows = read_seeds_file(), {}
    for result in results:
        row = row_of(everything, notebook, result)
        values = np.array(list(row["by_seed"].values()))
        spread = values.std(ddof=1) if len(values) > 1 else np.nan
        rows[result] = summarize(values, row) | {"standard deviation": show(spread, row)}
    return table(rows, everything["stamp"])


def compare_over_seeds(notebook: str, differences: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """Differences within each seed, one in a row, and whether they can be told from 0.

    differences: by what they are called, the results (first, second), of which the second is
    subtracted; or (result,), which is a difference itself. Where Student's interval of the mean, at
    95 %, holds 0, a difference is called indistinguishable from 0.
    """
    everything, rows = read_seeds_file(), {}
    for name, results in differences.items():
        row, *others = (row_of(everything, notebook, result) for result in results)
        seeds = [seed for seed in row["by_seed"] if all(seed in o["by_seed"] for o in others)]
        gaps = np.array([row["by_seed"][s] - sum(o["by_seed"][s] for o in others) for s in seeds])
        low, high = interval(gaps)
        if others and row["unit"] == "%":
            row = row | {"unit": "points"}
        rows[name] = summarize(gaps, row) | {
            "95 % interval of the mean (Student’s t)": f"{show(low, row)} to {show(high, row)}",
            "from 0": "indistinguishable" if low <= 0 <= high else "different",
        }
    return table(rows, everything["stamp"])


def summarize(values: np.ndarray, row: Mapping) -> dict:
    """Mean and range of values by seed, as text; row: the result that they are of."""
    found = {"mean": values.mean(), "lowest": values.min(), "highest": values.max()}
    shown = {name: show(value, row) for name, value in found.items()}
    return shown | {"unit": row["unit"], "trainings": len(values)}


def table(rows: Mapping[str, dict], stamp: Mapping) -> pd.DataFrame:
    """Rows by name, under the data and the seeds that they are of."""
    name = f"{stamp['data']}, seeds {', '.join(map(str, stamp['seeds']))}"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(name)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Student's interval, at 95 %, of the mean. Raises ValueError for fewer than two values."""
    require_whole(2, **{"number of seeds": len(values)})
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return values.mean() - half, values.mean() + half


def shown_rows(everything: Mapping) -> list[tuple[str, str, dict]]:
    """Notebook, name and values of each headline that is there."""
    return [
        (notebook, result, everything["notebooks"][notebook][result])
        for notebook, results in HEADLINES.items()
        for result in results
        if result in everything["notebooks"].get(notebook, {})
    ]


def mean_and_range(row: Mapping) -> str:
    """A result as README has it: −51.1 (−51.5 to −50.8)."""
    found = summarize(np.array(list(row["by_seed"].values())), row)
    return f"{found['mean']} ({found['lowest']} to {found['highest']})"


def describe_seeds(everything: Mapping) -> str:
    """What the figure shows, in words."""
    rows = shown_rows(everything)
    listed = "; ".join(f"{result} {mean_and_range(row)}" for _, result, row in rows)
    count = len(everything["stamp"]["seeds"])
    dots = "a dot for each and a line at their mean"
    return f"Results of {count} trainings, {dots}, and in words mean and range: {listed}"


def draw_seeds(everything: Mapping) -> bytes:
    """How far seeds differ, as a PNG: a row for each headline, with a point for each seed."""
    rows = shown_rows(everything)
    with plt.style.context(STYLE):
        size = (9, 0.9 + 0.55 * max(1, len(rows)))
        figure, axes = plt.subplots(max(1, len(rows)), 1, figsize=size, squeeze=False)
        for ax, (notebook, result, row) in zip(axes[:, 0], rows, strict=False):
            draw_row(ax, f"{notebook[:2]} · {result}", row)
        axes[0, 0].set_title(
            "A dot: one training. The line: their mean. Each row has its own scale.",
            loc="right",
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)
    return buffer.getvalue()


def draw_row(ax: plt.Axes, name: str, row: Mapping) -> None:
    """One result: a dot for each seed, above one that it would cover, and a line at the mean."""
    values = np.sort(list(row["by_seed"].values()))
    # as wide as a dot is in this figure
    begins = np.searchsorted(values, values - 0.02 * np.ptp(values))
    heights = np.arange(len(values)) - begins
    ax.axvline(values.mean(), color="0.4", lw=1, zorder=0)
    ax.plot(values, heights, "o", ms=5)
    unit = f" ({row['unit']})" if row["unit"] else ""
    ax.set_ylabel(f"{name}{unit}", rotation=0, ha="right", va="center")
    ax.set(yticks=[], ylim=(-0.8, max(2, heights.max() + 1)))
    ax.locator_params(axis="x", nbins=4)
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.grid(False)
    ax.spines[["top", "left", "right"]].set_visible(False)
    ax.margins(x=0.1)
