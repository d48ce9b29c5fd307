"""Drawings of the methods: a VAE, latent optimization, importance sampling, annealing, EM."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.patches import Polygon, Wedge
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm

Array = NDArray[np.float64]
Place = tuple[float, float, float, float]  # centre x, centre y, width, height
INK, IMAGE, CODE, GRADIENT, NETWORK, TERM = "#333333", "C0", "C1", "C2", "C3", "C4"
# p(z) = N(0, 1), p(x|z) = N(x; z, 0.6), x = 1.5: mean and standard deviation of p(z|x), and p(x)
POSTERIOR = 1.5 / 1.36, 0.6 / 1.36**0.5
EVIDENCE = norm.pdf(1.5, 0, 1.36**0.5)
NARROW = -0.4, 0.35  # a q far from that posterior
EM_POINTS = np.array(
    [[0.3, 0.9], [0.8, 0.3], [1.6, 1.3], [0.5, 1.8], [1.8, 0.8], [1.5, 2.1]]
    + [[3.0, 2.4], [3.8, 3.2], [3.0, 3.7], [4.2, 2.5], [2.6, 3.0]]
)
EM_START = np.full(2, 0.5), np.array([[0.9, 2.4], [3.5, 1.8]]), np.stack([0.8 * np.eye(2)] * 2)


def draw_vae() -> plt.Figure:
    """A VAE: from an image to its reconstruction, and where each term of the elbo is computed."""
    figure, ax = _canvas(4.4)
    x = _picture(ax, 0.7, 3.0, "image $x$")
    encoder = _box(ax, (2.35, 3.0), "encoder", NETWORK, 1.2, (1.0, 0.64))
    q = _box(ax, (4.25, 3.0), "$q(z\\,|\\,x)$\n$\\mu(x),\\ \\sigma_z(x)$", CODE)
    z = _box(ax, (6.2, 3.0), "sample\n$z = \\mu + \\sigma_z\\,\\epsilon$", CODE)
    decoder = _box(ax, (8.1, 3.0), "decoder", NETWORK, 1.2, (0.64, 1.0))
    x_hat = _picture(ax, 9.6, 3.0, "mean image $\\hat{x}$", blur=3)
    kl = "$\\mathrm{KL}(q(z\\,|\\,x)\\;\\Vert\\;p(z))$\ncompares $q$ with the prior"
    kl = _box(ax, (4.25, 1.3), kl, TERM, 2.2)
    elbo = _box(ax, (6.95, 1.3), "elbo", width=0.9)
    fit = "log-likelihood $\\log p(x\\,|\\,z)$\ncompares $x$ with $\\hat{x}$"
    fit = _box(ax, (9.6, 1.3), fit, TERM, 2.2)
    _arrow(ax, x, encoder, q, z, decoder, x_hat, fit, elbo)
    _arrow(ax, _box(ax, (6.2, 4.05), "$\\epsilon \\sim N(0, I)$", heights=(0.45, 0.45)), z)
    _arrow(ax, _box(ax, (1.95, 1.3), "prior\n$p(z) = N(0, I)$", width=1.5), kl, elbo)
    _arrow(ax, q, kl)
    _route(ax, [(0.7, 2.6), (0.7, 0.35), (9.6, 0.35), (9.6, 0.95)], INK)
    _write(ax, 5.9, 1.5, "−", size=15)
    _write(ax, 7.95, 1.5, "+", size=15)
    return figure


def draw_latent_optimization() -> plt.Figure:
    """Amortized: one encoder for all images. Latent optimization: a table, a row an image."""
    figure, ax = _canvas(5.3)
    title = {"weight": "bold", "ha": "left", "size": 12}
    _write(ax, 0.1, 5.1, "Amortized VAE: one encoder network for all images", **title)
    _write(ax, 0.1, 2.6, "Latent optimization: no encoder, a table of codes", **title)
    for y, low in ((4.15, 3.25), (1.35, 0.15)):
        decoder = _box(ax, (6.7, y), "decoder", NETWORK, 1.2, (0.64, 1.0))
        x_hat = _picture(ax, 8.4, y, "$\\hat{x}_i$", blur=3)
        elbo = _box(ax, (10.0, y), "elbo of $x_i$", width=1.2)
        _route(ax, [(10.0, y - 0.35), (10.0, low), (6.7, low), (6.7, y - 0.41)])
        _write(ax, 8.4, low + 0.17, "gradient", color=GRADIENT)
        _write(ax, 5.7, y + 0.17, "$z_i$")
        _arrow(ax, (4.5, y, 1.4, 0.36), decoder, x_hat, elbo)
    encoder = _box(ax, (2.4, 4.15), "encoder", NETWORK, 1.2, (1.0, 0.64))
    code = _box(ax, (4.5, 4.15), "$\\mu_i,\\ \\log\\sigma_i^2$", CODE, heights=(0.36, 0.36))
    _arrow(ax, _picture(ax, 0.6, 4.15, "$x_i$"), encoder, code)
    _route(ax, [(6.7, 3.25), (2.4, 3.25), (2.4, 3.74)])
    for row, name in enumerate(("1", "", "i", "", "N"), start=-2):
        text = f"$\\mu_{name},\\ \\log\\sigma_{name}^2$" if name else "⋮"
        face = to_rgba(CODE, 0.7) if name == "i" else CODE
        _box(ax, (4.5, 1.35 - 0.36 * row), text, face, heights=(0.36, 0.36))
    _route(ax, [(6.7, 0.15), (2.4, 0.15), (2.4, 1.35), (3.8, 1.35)])
    _write(ax, 1.2, 1.35, "one row for each\ntraining image;\n$x_i$ changes row $i$")
    return figure


def draw_importance_sampling() -> plt.Figure:
    """Weights of samples from a q that fits the posterior, and from a narrow q beside it."""
    figure = plt.figure(figsize=(10.8, 5.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 2))
    z, noise = np.linspace(-2, 3.2, 400), np.array([-1.4, -0.6, 0.1, 0.8, 1.7])
    cases = ("$q$ fits the posterior", (1.0, 0.6)), ("$q$ is too narrow and displaced", NARROW)
    for (top, low), (title, q) in zip(axes.T, cases, strict=True):
        samples = q[0] + q[1] * noise
        weights = EVIDENCE * norm.pdf(samples, *POSTERIOR) / norm.pdf(samples, *q)
        top.fill_between(z, norm.pdf(z, *POSTERIOR), alpha=0.3, color=IMAGE)
        top.plot(z, norm.pdf(z, *q), "--", color=CODE, lw=2)
        top.plot(samples, np.zeros(5), "o", color=INK, clip_on=False, zorder=3)
        top.set_title(f"{title}: ess {weights.sum() ** 2 / (weights**2).sum():.1f} of 5")
        low.stem(samples, weights, GRADIENT, basefmt=" ")
        low.axhline(EVIDENCE, color=INK, ls=":")
        found = f"log of the mean weight: {np.log(weights.mean()):.2f}"
        low.set_title(f"{found}   (true $\\log p(x)$: {np.log(EVIDENCE):.2f})".replace("-", "−"))
        low.set(xlabel="latent $z$", ylim=(0, 0.28))
    axes[0, 0].set(ylabel="density", ylim=(0, 1.3))
    axes[1, 0].set(ylabel="weight\n$w = p(x, z)\\,/\\,q(z\\,|\\,x)$")
    _write(axes[0, 0], 1.95, 0.55, "posterior $p(z\\,|\\,x)$", ha="left")
    _write(axes[0, 0], 0.2, 0.55, "proposal $q(z\\,|\\,x)$", ha="right")
    _write(axes[0, 0], -1.9, 1.18, "dots: five samples from $q$", ha="left")
    _write(axes[1, 0], -1.9, EVIDENCE + 0.025, "$p(x)$", ha="left")
    return figure


def draw_annealing() -> plt.Figure:
    """From q to the posterior in small steps, with chains that follow and their log weights."""
    figure = plt.figure(figsize=(10.8, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    z, betas, true = np.linspace(-2, 3.2, 400), np.linspace(0, 1, 65), np.log(EVIDENCE)
    chains, log_weights = anneal_chains(betas)
    for beta in betas[::8]:
        ridge = beta + 0.19 * norm.pdf(z, *anneal_normal(beta))
        colour = plt.colormaps["viridis"](0.1 + 0.75 * beta)
        left.fill_between(z, beta, ridge, color=colour, alpha=0.75, lw=0, zorder=3 - beta)
        left.plot(z, ridge, color="white", lw=1, zorder=3 - beta)
    left.plot(chains[::8], betas[::8], "o-", color=INK, lw=0.7, ms=4, zorder=4)
    left.grid(False)
    left.set(xlabel="latent $z$", ylabel="$\\beta$", yticks=betas[::16], ylim=(-0.04, 1.22))
    left.set_title("Chains follow $f_\\beta \\propto q(z\\,|\\,x)^{1-\\beta}\\,p(x, z)^\\beta$")
    _write(left, -2.15, 0.07, "start: $q(z\\,|\\,x)$", ha="left")
    _write(left, -2.15, 1.07, "end: posterior $p(z\\,|\\,x)$", ha="left")
    right.plot(log_weights, betas, "o-", color=GRADIENT, lw=1.4, markevery=[-1])
    right.axvline(true, color=INK, ls=":")
    right.set(title="The log weight adds up 64 small steps", xlabel="log weight so far, in nats")
    found = f"log of the\nmean weight: {np.log(np.exp(log_weights[-1]).mean()):.2f}"
    _write(right, 0.03, 0.1, found.replace("-", "−"), ha="left", transform=right.transAxes)
    _write(right, true, 1.15, f"true $\\log p(x)$: −{-true:.2f} ", ha="right")
    return figure


def anneal_normal(beta: float) -> tuple[float, float]:
    """Mean and standard deviation of q(z)^(1 - beta) p(x, z)^beta, where q is NARROW."""
    parts = (1 - beta) / NARROW[1] ** 2, beta / POSTERIOR[1] ** 2
    return (parts[0] * NARROW[0] + parts[1] * POSTERIOR[0]) / sum(parts), sum(parts) ** -0.5


def anneal_chains(betas: Array, seed: int = 0, size: int = 5) -> tuple[Array, Array]:
    """Codes and log weights so far of chains, (betas, chains). Each move keeps its density."""
    rng = np.random.default_rng(seed)
    codes, log_weights = [NARROW[0] + NARROW[1] * rng.normal(size=size)], [np.zeros(size)]
    for before, beta in itertools.pairwise(betas):
        ratio = EVIDENCE * norm.pdf(codes[-1], *POSTERIOR) / norm.pdf(codes[-1], *NARROW)
        log_weights.append(log_weights[-1] + (beta - before) * np.log(ratio))
        mean, std = anneal_normal(beta)
        codes.append(mean + 0.6 * (codes[-1] - mean) + 0.8 * std * rng.normal(size=size))
    return np.array(codes), np.array(log_weights)


def draw_em() -> plt.Figure:
    """One step of EM on eleven points: the start, the E step, the M step."""
    figure = plt.figure(figsize=(10.8, 3.9), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    before, shares, after = em_step(EM_POINTS, *EM_START)
    panels = (
        ("Start: two guessed Gaussians", EM_START, before, np.ones(11)),
        ("E step: responsibilities (pies)", EM_START, before, shares[:, 0]),
        ("M step: new means, covariances", after, em_step(EM_POINTS, *after)[0], shares[:, 0]),
    )
    turn = np.linspace(0, 2 * np.pi, 100)
    for ax, (title, (_, means, covariances), value, shown) in zip(axes, panels, strict=True):
        for k, (mean, root) in enumerate(zip(means, np.linalg.cholesky(covariances), strict=True)):
            edge = mean[:, None] + 2 * root @ [np.cos(turn), np.sin(turn)]
            ax.fill(*edge, fc=to_rgba(f"C{2 * k}", 0.08), ec=f"C{2 * k}", lw=2)
            ax.plot(*mean, "X", color=f"C{2 * k}", ms=11, mec="white", zorder=5)
        for point, share in zip(EM_POINTS, 360 * shown, strict=True):
            ax.add_patch(Wedge(point, 0.14, 0, share, fc="0.5" if ax is axes[0] else "C0"))
            ax.add_patch(Wedge(point, 0.14, share, 360, fc="C2"))
        ax.set_title(f"{title}\nlog-likelihood {value:.1f} nats".replace(" -", " −"))
        ax.set(xlabel="$x_1$", xlim=(-1.2, 5.6), ylim=(-0.7, 5), aspect="equal")
    for start, end in zip(EM_START[1], after[1], strict=True):
        _route(axes[2], [start, end - 0.25 * (end - start) / np.linalg.norm(end - start)], INK)
    axes[0].set_ylabel("$x_2$")
    return figure


def em_step(points: Array, *mixture: Array) -> tuple[float, Array, tuple[Array, ...]]:
    """Log-likelihood (nats), responsibilities, and the next weights, means and covariances."""
    gaussians = zip(*mixture, strict=True)
    joint = np.array([w * multivariate_normal(m, c).pdf(points) for w, m, c in gaussians]).T
    shares = joint / joint.sum(1, keepdims=True)
    means = np.array([np.average(points, 0, share) for share in shares.T])
    covariances = np.array([np.cov(points.T, aweights=share, ddof=0) for share in shares.T])
    return np.log(joint.sum(1)).sum(), shares, (shares.mean(0), means, covariances)


def _canvas(height: float) -> tuple[plt.Figure, plt.Axes]:
    """An empty drawing, a unit an inch."""
    figure = plt.figure(figsize=(10.8, height), layout="none")
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, 10.8), ylim=(0, height))
    ax.set_axis_off()
    return figure, ax


def _write(ax: plt.Axes, x: float, y: float, text: str, **style) -> None:
    ax.text(x, y, text, **{"ha": "center", "va": "center", "color": INK, "size": 11} | style)


def _box(ax: plt.Axes, at: tuple, text: str, face="white", width=1.4, heights=(0.7, 0.7)) -> Place:
    """A box with text, as high as heights at its left and right."""
    (x, y), (left, right) = at, (heights[0] / 2, heights[1] / 2)
    corners = np.array([[-width, -left], [-width, left], [width, right], [width, -right]])
    face = to_rgba(face, 0.35) if face in (CODE, NETWORK, TERM) else face
    ax.add_patch(Polygon(at + corners * (0.5, 1), fc=face, ec=INK, lw=1.2, joinstyle="round"))
    _write(ax, x, y, text)
    return x, y, width, left + right


def _picture(ax: plt.Axes, x: float, y: float, text: str, blur: float = 1.0) -> Place:
    """A drawn seven, with text above it."""
    t, (rows, columns, _) = np.linspace(0, 1, 80), np.mgrid[:28, :28, :1]
    line = np.interp(t, [0, 0.45, 1], [7, 20, 12]), np.interp(t, [0, 0.45, 1], [7, 7, 22])
    ink = (1.5 - np.hypot(columns - line[0], rows - line[1]).min(-1)).clip(-blur, blur)
    ax.imshow(ink, "gray", aspect="auto", extent=(x - 0.4, x + 0.4, y - 0.4, y + 0.4))
    _write(ax, x, y + 0.57, text)
    return _box(ax, (x, y), "", "none", 0.8, (0.8, 0.8))


def _arrow(ax: plt.Axes, *places: Place) -> None:
    """From the edge of each box to that of the next: to the right, to the left, or down."""
    for (x0, y0, width0, height0), (x1, y1, width1, height1) in itertools.pairwise(places):
        side = np.sign(x1 - x0) / 2
        down = 0 if side else 0.5
        start = x0 + side * width0, y0 - down * height0
        _route(ax, [start, (x1 - side * width1, y1 + down * height1)], INK)


def _route(ax: plt.Axes, points: list[tuple[float, float]], colour: str = GRADIENT) -> None:
    """A line through these points, with a head at the last."""
    ax.plot(*zip(*points[:-1], strict=True), color=colour, lw=1.5)
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.5, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", points[-1], points[-2], arrowprops=style)
