"""Figures: curves, and rows of images."""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from latent_digits.checks import require_choice, require_finite, require_whole


def plot_history(
    ax: plt.Axes,
    history: pd.DataFrame,
    term: str,
    label: str,
    sign: Real = 1,
    log: bool = False,
) -> None:
    """Training (solid) and validation (dashed) curves of one term against the epoch.

    Raises ValueError for an unknown term.
    """
    known = [name.removeprefix("train_") for name in history if name.startswith("train_")]
    require_choice(known, term=term)
    for split, style, color in (("train", "-", "C0"), ("validation", "--", "C1")):
        values = sign * history[f"{split}_{term}"]
        ax.plot(history.index, values, style, color=color, label=split.replace("train", "training"))
    ax.set(xlabel="epoch", ylabel=label)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend()


GAP = 2  # white pixels between the images of a grid


def tile(images: Float[Tensor, "n 1 h w"], columns: Integral, gap: Integral = GAP) -> np.ndarray:
    """Images row by row in one image with white gaps. Raises ValueError for columns < 1."""
    require_finite(images=images)
    require_whole(columns=columns)
    require_whole(0, gap=gap)
    images = F.pad(images.detach().cpu(), (0, gap, 0, gap), value=1.0)
    blank = images.new_ones(-len(images) % columns, *images.shape[1:])
    grid = torch.cat([images, blank]).unflatten(0, (-1, columns))  # (rows, columns, 1, h, w)
    tiled = grid[:, :, 0].permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # (rows h, columns w)
    height, width = tiled.shape
    return tiled[: height - gap, : width - gap].numpy()


def show_images(
    ax: plt.Axes, images: Float[Tensor, "n 1 h w"], columns: Integral, title: str = ""
) -> None:
    """Draw images as a grid with white gaps. Raises ValueError as `tile` does."""
    ax.imshow(tile(images, columns), cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
    ax.set_title(title)


def image_rows(
    rows: Mapping[str, Tensor], columns: Iterable = (), scale: Real = 0.75
) -> plt.Figure:
    """A figure with one labelled row of images (n, 1, h, w) per entry, and labels over columns.

    Raises ValueError for no rows at all.
    """
    require_whole(**{"len(rows)": len(rows)})
    count = max(len(images) for images in rows.values())
    size = (scale * count + 1, scale * len(rows))
    figure, axes = plt.subplots(len(rows), 1, figsize=size, squeeze=False, layout="none")
    for ax, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        ax.imshow(tile(images, len(images)), cmap="gray", vmin=0, vmax=1)
        ax.set_ylabel(label, rotation=0, ha="right", va="center")
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
    step, columns = images.shape[-1] + GAP, list(columns)
    places = [step * i + images.shape[-1] / 2 for i in range(len(columns))]
    axes[0, 0].set_xticks(places, columns)
    axes[0, 0].tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    figure.subplots_adjust(hspace=0.06)
    return figure
