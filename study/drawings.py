"""Drawings of the methods: a VAE, latent optimization, importance sampling, annealing, EM."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.patches import Ellipse, FancyBboxPatch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Place = tuple[float, float, float, float]  # left, bottom, width, height
INK, DATA, CODE, NETWORK = "#333333", "C0", "C1", "C3"


def draw_vae() -> plt.Figure:
    """A VAE: what flows from an image to its reconstruction, and where each term of the elbo is."""
    figure, ax = _canvas(10.2, 3.8)
    boxes = {
        "x": _box(ax, 0.7, 2.3, "image\n$x$", DATA),
        "encoder": _box(ax, 2.35, 2.3, "encoder", NETWORK),
        "q": _box(ax, 4.3, 2.3, "$q(z|x)$\n$\\mu,\\ \\sigma$", CODE),
        "z": _box(ax, 6.0, 2.3, "$z = \\mu + \\sigma\\epsilon$", CODE),
        "decoder": _box(ax, 7.75, 2.3, "decoder", NETWORK),
        "x_hat": _box(ax, 9.5, 2.3, "mean\n$\\hat{x}$", DATA),
    }
    for start, end in itertools.pairwise(boxes):
        _arrow(ax, boxes[start], boxes[end])
    noise = _box(ax, 6.0, 3.3, "$\\epsilon \\sim N(0, I)$", "white")
    _arrow(ax, noise, boxes["z"])
    kl = _box(ax, 4.3, 0.7, "KL divergence: $q(z|x)$\nbeside the prior $N(0, I)$", "white", 2.7)
    fit = _box(ax, 8.4, 0.7, "log-likelihood $\\log p(x|z)$:\n$x$ beside $\\hat{x}$", "white", 2.9)
    _arrow(ax, boxes["q"], kl)
    _arrow(ax, boxes["x_hat"], fit)
    ax.text(0.05, 0.7, "elbo = log-likelihood\n          − KL divergence", va="center", color=INK)
    return figure


def draw_latent_optimization() -> plt.Figure:
    """Amortized: one encoder for all images. Latent optimization: a row of a table for each."""
    figure, ax = _canvas(10, 4.6)
    top = [
        _box(ax, 0.8, 3.7, "image $x_i$", DATA),
        _box(ax, 3.2, 3.7, "encoder\n(one for all images)", NETWORK, 2.0),
        _box(ax, 5.6, 3.7, "$\\mu_i,\\ \\sigma_i$", CODE),
        _box(ax, 7.6, 3.7, "decoder", NETWORK),
        _box(ax, 9.3, 3.7, "$\\hat{x}_i$", DATA, 0.9),
    ]
    ax.text(0.2, 4.4, "Amortized", weight="bold", color=INK)
    ax.text(0.2, 2.6, "Latent optimization", weight="bold", color=INK)
    table = _table(ax, 4.75, 0.5, 1.7, 1.8)
    bottom = [
        table,
        _box(ax, 7.6, 1.4, "decoder", NETWORK),
        _box(ax, 9.3, 1.4, "$\\hat{x}_i$", DATA, 0.9),
    ]
    for row in (top, bottom):
        for start, end in itertools.pairwise(row):
            _arrow(ax, start, end)
    back = {"arrowstyle": "-|>", "color": "C2", "lw": 2, "shrinkA": 0, "shrinkB": 0}
    ax.plot([9.3, 9.3], [1.05, 0.72], color="C2", lw=2)
    ax.annotate("", (table[0] + table[2], 0.72), (9.3, 0.72), arrowprops=back)
    ax.text(7.8, 0.4, "gradient of the elbo of $x_i$", color="C2", ha="center", va="center")
    ax.text(
        2.4,
        1.4,
        "no encoder:\none row for each\ntraining image",
        ha="center",
        va="center",
        color=INK,
    )
    return figure


def draw_importance_sampling() -> plt.Figure:
    """Weights of samples from a q that fits the posterior, and from one that is too narrow."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
    z = np.linspace(-4, 4, 400)
    # p(x, z) = p(x) p(z|x) with log p(x) = 0, so that the true answer is 0
    for ax, (title, mean, std) in zip(
        axes,
        (("q fits the posterior", 0.2, 1.15), ("q is narrow, and beside it", -1.3, 0.6)),
        strict=True,
    ):
        samples = mean + std * np.array([-1.2, -0.5, 0.1, 0.7, 1.6])
        weights = _normal(samples, 0, 1) / _normal(samples, mean, std)
        ax.fill_between(z, _normal(z, 0, 1), alpha=0.3, color=DATA, label="posterior $p(z|x)$")
        ax.plot(z, _normal(z, mean, std), "--", color=CODE, label="proposal $q(z)$")
        ax.vlines(samples, 0, weights / 4, color="C2", lw=2)
        ax.plot(samples, weights / 4, "o", color="C2", label="weight of a sample (a quarter)")
        found = f"log of the mean weight {np.log(weights.mean()):.2f} (true: 0)".replace("-", "−")
        title += f"\n{found}\ness {ess_of(weights):.1f} of 5"
        ax.set(title=title, xlabel="latent $z$", ylim=(0, 1.05))
    axes[0].set_ylabel("density")
    axes[0].legend(loc="upper left")
    return figure


def ess_of(weights: Array) -> float:
    """Effective sample size: (sum w)^2 / sum w^2."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def draw_annealing() -> plt.Figure:
    """From q to the posterior in small steps, with chains that follow."""
    betas = (0, 0.25, 0.5, 0.75, 1)
    figure, axes = plt.subplots(1, len(betas), figsize=(10, 2.6), sharey=True)
    z, colours = (
        np.linspace(-4, 5, 400),
        plt.colormaps["viridis"](np.linspace(0.1, 0.8, len(betas))),
    )
    quantiles = np.array([-1.2, -0.4, 0.3, 1.1])
    for ax, beta, colour in zip(axes, betas, colours, strict=True):
        mean, std = anneal_normal(beta)
        ax.fill_between(z, _normal(z, mean, std), color=colour, alpha=0.4)
        ax.plot(z, _normal(z, mean, std), color=colour)
        ax.plot(mean + std * quantiles, np.full(4, 0.05), "o", color=INK, ms=5)
        ax.set(xlabel="latent $z$", title=f"$\\beta = {beta:g}$")
    axes[0].set(ylabel="density", title="$\\beta = 0$: $q(z)$")
    axes[-1].set_title("$\\beta = 1$: $p(z|x)$")
    density = "$q^{1-\\beta}\\,p(x, z)^{\\beta}$"
    figure.suptitle(f"Chains (dots) follow {density}; the log weight adds up the small steps")
    return figure


def anneal_normal(beta: float) -> tuple[float, float]:
    """Mean and standard deviation of N(-1, 1)^(1 - beta) N(2, 0.5^2)^beta."""
    precision = (1 - beta) + beta / 0.25
    return ((1 - beta) * -1 + beta * 2 / 0.25) / precision, precision**-0.5


def draw_em() -> plt.Figure:
    """One step of EM on nine points: the start, the E step, the M step."""
    points = np.array([[0.4, 1], [1, 0.6], [1.2, 1.5], [0.7, 1.9], [2.2, 2.2]])
    points = np.vstack([points, [[3, 2.6], [3.6, 3.2], [3.1, 3.7], [4, 2.9]]])
    start = np.full(2, 0.5), np.array([[1.0, 2.6], [3.4, 1.6]]), np.stack([np.eye(2)] * 2)
    responsibilities = expectation(points, *start)
    after = maximization(points, responsibilities)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.5), sharex=True, sharey=True)
    panels = (
        ("Start: two Gaussians, put anywhere", np.zeros_like(responsibilities), start),
        ("E step: responsibilities", responsibilities, start),
        ("M step: means and covariances", responsibilities, after),
    )
    for ax, (title, shares, parameters) in zip(axes, panels, strict=True):
        _gaussians(ax, *parameters)
        _pies(ax, points, shares)
        ax.set(
            title=title, xlabel="first coordinate", xlim=(-0.6, 5), ylim=(-0.3, 4.8), aspect="equal"
        )
    axes[0].set_ylabel("second coordinate")
    return figure


def expectation(points: Array, weights: Array, means: Array, covariances: Array) -> Array:
    """Responsibilities, (points, components)."""
    shifted = points[:, None] - means
    squares = np.einsum("nki,kij,nkj->nk", shifted, np.linalg.inv(covariances), shifted)
    joint = weights * np.exp(-0.5 * squares) / np.sqrt(np.linalg.det(covariances))
    return joint / joint.sum(1, keepdims=True)


def maximization(points: Array, responsibilities: Array) -> tuple[Array, Array, Array]:
    """Weights, means and covariances of the two Gaussians."""
    counts = responsibilities.sum(0)
    means = responsibilities.T @ points / counts[:, None]
    shifted = points[:, None] - means
    covariances = (
        np.einsum("nk,nki,nkj->kij", responsibilities, shifted, shifted) / counts[:, None, None]
    )
    return counts / len(points), means, covariances + 0.02 * np.eye(2)


def _normal(z: Array, mean: float, std: float) -> Array:
    return np.exp(-0.5 * ((z - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))


def _gaussians(ax: plt.Axes, weights: Array, means: Array, covariances: Array) -> None:
    """An ellipse at two standard deviations for each component."""
    for k, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
        lengths, directions = np.linalg.eigh(covariance)
        angle = np.degrees(np.arctan2(*directions[::-1, 1]))
        width, height = 4 * np.sqrt(lengths[::-1])
        ax.add_patch(Ellipse(mean, width, height, angle=angle, fill=False, color=f"C{2 * k}", lw=2))
        ax.plot(*mean, "x", color=f"C{2 * k}", ms=9, mew=3)


def _pies(ax: plt.Axes, points: Array, shares: Array) -> None:
    """A dot for each point, split by its responsibilities; grey where there are none yet."""
    for point, share in zip(points, shares, strict=True):
        if share.sum() == 0:
            ax.plot(*point, "o", color="0.6", ms=9)
            continue
        turns = np.linspace(0, 2 * np.pi, 60)
        for k, (low, high) in enumerate(((0, share[0]), (share[0], 1))):
            arc = turns[(turns >= 2 * np.pi * low) & (turns <= 2 * np.pi * high)]
            if len(arc):
                edge = np.vstack([point, point + 0.14 * np.stack([np.cos(arc), np.sin(arc)], 1)])
                ax.fill(*edge.T, color=f"C{2 * k}", zorder=3)


def _canvas(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    """An empty drawing, a unit an inch."""
    figure, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(-0.1, width + 0.1), ylim=(0, height))
    ax.set_axis_off()
    return figure, ax


def _box(
    ax: plt.Axes, x: float, y: float, text: str, colour: str, width: float = 1.3
) -> tuple[float, ...]:
    """A box with text, centred at (x, y): its left, bottom, width and height."""
    place = (x - width / 2, y - 0.35, width, 0.7)
    style = {"boxstyle": "round,pad=0,rounding_size=0.1", "ec": INK}
    face = colour if colour == "white" else to_rgba(colour, 0.35)
    ax.add_patch(FancyBboxPatch(place[:2], *place[2:], fc=face, **style))
    ax.text(x, y, text, ha="center", va="center", color=INK)
    return place


def _table(
    ax: plt.Axes, left: float, bottom: float, width: float, height: float
) -> tuple[float, ...]:
    """A table of codes, a row for each image."""
    rows = ("$\\mu_1,\\ \\sigma_1$", "$\\mu_2,\\ \\sigma_2$", "⋮", "$\\mu_N,\\ \\sigma_N$")
    step = height / len(rows)
    for row, text in enumerate(rows):
        y = bottom + height - (row + 1) * step
        face = to_rgba(CODE, 0.35)
        ax.add_patch(
            FancyBboxPatch((left, y), width, step, boxstyle="square,pad=0", fc=face, ec=INK)
        )
        ax.text(left + width / 2, y + step / 2, text, ha="center", va="center", color=INK)
    return left, bottom, width, height


def _arrow(ax: plt.Axes, start: Place, end: Place) -> None:
    """From the edge of one box to that of another, to the right or down."""
    if end[0] >= start[0] + start[2]:
        y = end[1] + end[3] / 2
        points = (start[0] + start[2], y), (end[0], y)
    else:
        x = start[0] + start[2] / 2
        points = (x, start[1]), (x, end[1] + end[3])
    ax.annotate(
        "",
        points[1],
        points[0],
        arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0},
    )
