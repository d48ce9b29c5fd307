"""Inference: a q(z|x) of its own for every image, found by optimization."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from latent_digits.checks import (
    require_between,
    require_finite,
    require_floats,
    require_positive,
    require_posterior,
    require_whole,
)
from latent_digits.data import Data, one_per_class, thin
from latent_digits.densities import elbo_terms, gaussian_log_likelihood, kl_divergence, reparameterize
from latent_digits.networks import VAE
from latent_digits.random import make_generator
from latent_digits.training import CURVE_SIZE, TrainConfig, Trainer, copy_weights
from study.cache import run_or_recall


@dataclass(frozen=True)
class LatentConfig(TrainConfig):
    """Settings of latent optimization: a decoder and one free code (mu, logvar) per training image."""

    epochs: int = 30
    batch_size: int = 48
    learning_rate: float = 4e-3
    warm_up: float = 0.05
    weight_decay: float = 0.15
    snapshots: tuple[int, ...] = (1, 5, 10, 20, 30)
    sigma: float = 0.4  # of the Gaussian likelihood
    code_rate: float = 0.6  # peak step size of the codes, which rises and falls with the decoder's
    steps_per_visit: int = 1  # of each code, every time its image is in the batch; the decoder takes one
    antithetic: bool = True  # two mirrored samples of q per step in place of one
    kl_warm_up: int = 0  # epochs in which the weight of the KL divergence rises to one
    settling_steps: int = 15  # of each code in the last epoch, in which the decoder stays as it is

    def __post_init__(self):
        super().__post_init__()
        require_whole(0, settling_steps=self.settling_steps, kl_warm_up=self.kl_warm_up)
        require_whole(1 + bool(self.settling_steps), epochs=self.epochs)
        require_whole(steps_per_visit=self.steps_per_visit)
        require_positive(code_rate=self.code_rate, sigma=self.sigma)


class LatentRun(NamedTuple):
    """Latent optimization, finished."""

    model: VAE  # without an encoder, in evaluation mode
    mu: Tensor  # (N, d): q(z|x) of every training image
    logvar: Tensor  # (N, d)
    history: pd.DataFrame  # one row per epoch: train_<term>, of thinned data
    snapshots: dict[int, dict]  # epoch -> {"state": weights, "mu": codes (10, d) of the first image of each digit}
    seconds: float


class NaturalGradient:
    """Natural-gradient steps on the rows of a table of codes; no state but the codes themselves.

    For a Gaussian q the natural gradient preconditions with q's own covariance: mu moves by covariance
    times gradient, and the precision towards 1 + E[curvature] (Khan and Rue 2023, "The Bayesian learning
    rule"). The precision moves at a third of the rate, its gradient being the noisier, and by a second-order
    step that cannot make it negative (Lin, Schmidt and Khan 2020, "Handling the positive-definite constraint in
    the Bayesian learning rule"). No bad estimate throws a code far: in one step a mean moves by at
    most one standard deviation, and the precision grows to at most 2.5 times what it was.
    """

    def __init__(self, codes: Tensor):
        require_codes(codes)
        self.codes = codes  # (n, 2 d): mu | logvar

    def step(self, rows: Tensor, gradient: Tensor, rate: float) -> None:
        """Move codes[rows] against `gradient`, that of the loss, (len(rows), 2 d)."""
        require_step(self.codes, rows, gradient, rate)
        mu, logvar = self.codes[rows].chunk(2, dim=1)  # 2 x (batch, d)
        grad_mu, grad_logvar = gradient.chunk(2, dim=1)
        change = (2 / 3 * rate * grad_logvar).clamp(max=1.0)
        precision = (1 + change + change.square() / 2) / logvar.exp()
        deviation = (0.5 * logvar).exp()
        step = (rate * grad_mu / precision).clamp(-deviation, deviation)
        self.codes[rows] = torch.cat([mu - step, -precision.log()], 1)


class RowAdam:
    """Adam (Kingma and Ba 2015) on the rows of a table, each with its own moments and step count.

    A step reads and writes only the rows it is given: its cost does not grow with the table.
    """

    def __init__(self, codes: Tensor, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        require_codes(codes)
        self.codes, self.betas, self.eps = codes, betas, eps
        self.moments = torch.zeros_like(codes), torch.zeros_like(codes)
        self.steps = torch.zeros(len(codes), 1, device=codes.device)

    def step(self, rows: Tensor, gradient: Tensor, rate: float) -> None:
        """Move codes[rows] against `gradient`, that of the loss, (len(rows), 2 d)."""
        require_step(self.codes, rows, gradient, rate)
        self.steps[rows] += 1
        corrected = []
        for moment, beta, value in zip(self.moments, self.betas, (gradient, gradient.square()), strict=True):
            moment[rows] = torch.lerp(value, moment[rows], beta)
            corrected.append(moment[rows] / (1 - beta ** self.steps[rows]))
        self.codes[rows] -= rate * corrected[0] / (corrected[1].sqrt() + self.eps)


def require_codes(codes: Tensor) -> None:
    """Raise TypeError or ValueError for what is not codes (n, 2 d)."""
    require_floats("n 2d", codes=codes)
    if codes.shape[1] % 2:
        raise ValueError(f"codes has shape {tuple(codes.shape)}: give it (n, 2 d), mu and logvar side by side")


def require_step(codes: Tensor, rows: Tensor, gradient: Tensor, rate: float) -> None:
    """Raise an error for what is not a step of codes[rows]."""
    require_between(0, rate=rate)
    if gradient.shape != (len(rows), codes.shape[1]):
        raise ValueError(f"gradient has shape {tuple(gradient.shape)}: give it {(len(rows), codes.shape[1])}")
    require_finite(gradient.sum(1), gradient=gradient)


def latent_terms(decode, x: Tensor, codes: Tensor, sigma: float, generator, antithetic=False, beta=1.0):
    """The elbo's terms, each (batch,), for free codes (batch, 2 d), with one or two samples of q(z|x).

    Antithetic samples mu + sigma eps and mu - sigma eps: what is odd in eps cancels in the gradients' noise.
    """
    mu, logvar = codes.chunk(2, dim=1)  # (batch, 2 d) -> 2 x (batch, d)
    z = reparameterize(mu, logvar, generator)
    samples = [z, 2 * mu - z] if antithetic else [z]
    log_likelihood = gaussian_log_likelihood(torch.cat([x] * len(samples)), decode(torch.cat(samples)), sigma)
    log_likelihood = log_likelihood.unflatten(0, (len(samples), -1)).mean(0)  # (samples x batch,) -> (batch,)
    return elbo_terms(log_likelihood, kl_divergence(mu, logvar), beta)


def latent_elbo(decode, x: Tensor, mu: Tensor, logvar: Tensor, sigma: float = 0.4, seed: int = 0) -> dict[str, Tensor]:
    """The elbo and its terms, each (n,), of images x (n, 1, 28, 28) under q(z|x) = N(mu, diag exp logvar), each (n, d).

    Always with the same noise for the same seed; two antithetic samples per image. Raises
    TypeError or ValueError for what does not fit together, and FloatingPointError where a term is not finite.
    """
    require_posterior(x, mu, logvar, sigma)
    generator = make_generator(seed, x.device)
    pairs = zip(x.split(200), torch.cat([mu, logvar], 1).split(200), strict=True)
    with torch.no_grad():
        batches = [latent_terms(decode, *pair, sigma, generator, antithetic=True) for pair in pairs]
    return {name: torch.cat([terms[name] for terms in batches]) for name in batches[0]}


def pca_posterior(x: Tensor, latent_size: int, sigma: float = 0.4) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The exact q(z|x) of the linear model that fits images x (n, *event) best, as a function of images.

    Probabilistic PCA with its noise fixed at sigma (Tipping and Bishop 1999, sections 3.1 and 3.2): along a principal
    direction of variance l > sigma^2, mu is sqrt(l - sigma^2) / l times the coordinate, and the variance
    sigma^2 / l; the other latents have the prior's 0 and 1. Raises TypeError or ValueError for images that are not
    float and finite, two at least, and for a latent_size or sigma that is not positive.
    """
    require_floats("n ...", x=x)
    require_whole(2, **{"len(x)": len(x)})
    require_whole(latent_size=latent_size)
    require_positive(sigma=sigma)
    flat = x.cpu().flatten(1).double()  # (n, pixels)
    mean = flat.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov(flat.T))  # ascending
    size = min(latent_size, len(variances))
    variances = variances.flip(0)[:size].clamp(min=sigma**2)
    directions = directions.flip(1)[:, :size] * ((variances - sigma**2).sqrt() / variances)  # (pixels, size)
    unused = (0, latent_size - size)

    def posterior(images: Tensor) -> tuple[Tensor, Tensor]:
        require_floats(f"n {' '.join(map(str, x.shape[1:]))}", images=images)
        mu = F.pad((images.cpu().flatten(1).double() - mean) @ directions, unused).float()
        logvar = F.pad((sigma**2 / variances).log(), unused).float()
        return mu.to(images.device), logvar.expand_as(mu).to(images.device, copy=True)

    return posterior


def infer_latents(
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
    *,
    latent_size: int | None = None,
    sigma: float = 0.4,
    steps: int = 100,
    rate: float = 0.3,
    generator: torch.Generator | None = None,
    batch_size: int = 200,
) -> tuple[Tensor, Tensor]:
    """q(z|x) = N(mu, diag exp logvar) for images x (n, *event) under a fixed decoder: (mu, logvar), each (n, d).

    decode: (S, d) -> (S, *event), the mean of p(x|z) = N(decode(z), sigma^2 I). Each q climbs its own elbo
    in `steps` natural-gradient steps of a size that falls from `rate` to zero along a cosine, from
    `start`, (mu, logvar), or from the prior in `latent_size` dimensions. What it comes near is a local optimum.
    `generator` must be on the device of x. Raises TypeError or ValueError for an x, start or latent_size that do not
    fit together and for numbers that make no sense, and FloatingPointError when a code stops being finite.
    """
    require_floats("n ...", x=x)
    require_whole(steps=steps, batch_size=batch_size, latent_size=1 if latent_size is None else latent_size)
    require_positive(rate=rate)
    if start is None and latent_size is None:
        raise ValueError("start and latent_size are both None: give the q to start from, or its number of dimensions")
    if start is None:
        start = (x.new_zeros(len(x), latent_size),) * 2
    require_posterior(x, *start, sigma)
    if latent_size not in (None, start[0].shape[1]):
        raise ValueError(f"latent_size is {latent_size}, but start has {start[0].shape[1]} columns: give one of them")
    codes = torch.cat(start, 1).detach()  # (n, 2 d)
    climb(decode, x, codes, NaturalGradient(codes), sigma, steps, rate, generator, batch_size=batch_size, bar=True)
    return codes.chunk(2, dim=1)


def climb(
    decode, x, codes, optimizer, sigma, steps, rate, generator, antithetic=True, batch_size=200, bar=False
) -> None:
    """Take `steps` steps of every code, in place, under a fixed decoder, of a size that falls from `rate` to zero."""
    batches = torch.arange(len(x), device=x.device).split(batch_size)
    for rows in tqdm(batches, desc="inferring latents", unit="batch", leave=False, disable=not bar):
        for step in range(steps):
            q = codes[rows].requires_grad_()
            try:
                with torch.enable_grad():
                    loss = latent_terms(decode, x[rows], q, sigma, generator, antithetic)["loss"].sum()
                (gradient,) = torch.autograd.grad(loss, q)
                optimizer.step(rows, gradient, rate * 0.5 * (1 + math.cos(math.pi * step / steps)))
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"step {step + 1} of the codes: {error}; or lower rate (now {rate:g})"
                ) from error
    require_finite(codes, codes=codes)


def fit_latents(
    model: VAE,
    start: tuple[Tensor, Tensor],
    data: Data,
    config: LatentConfig,
    *,
    optimizer: type = NaturalGradient,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    cache: Path | None = None,
) -> LatentRun:
    """Train a decoder together with one free q(z|x) per training image, from `start`, (mu, logvar), each (N, d).

    Latent optimization: Bojanowski et al. 2018, with a Gaussian in place of each point. `optimizer` moves
    the codes: NaturalGradient, RowAdam, or a class like them. Cached as `fit` does.
    Raises TypeError or ValueError when `start` or `data` do not fit, and FloatingPointError, with epoch and step, when
    a loss stops being finite.
    """
    require_posterior(data.train_x, *start, config.sigma)
    if start[0].shape[1] != model.latent_size:
        raise ValueError(f"mu has shape {tuple(start[0].shape)}: give it {(len(data.train_x), model.latent_size)}")
    where = {"seed": seed, "device": device, "dtype": dtype, "cache": cache}
    record = run_or_recall(train_latents, model, optimizer, data, config, *start, **where)
    history = pd.DataFrame(record["history"]).set_index("epoch")
    codes = (record["codes"].to(device)).chunk(2, dim=1)
    return LatentRun(model.eval(), *codes, history, record["snapshots"], record["seconds"])


def train_latents(model, optimizer_of_codes, data, config, mu, logvar, seed, device) -> dict:
    """The training behind `fit_latents`."""
    codes = torch.cat([mu, logvar], 1).detach().to(device)  # (N, 2 d)
    generator = make_generator(seed, device)
    trainer = LatentTrainer(model, codes, optimizer_of_codes(codes), data.to(device), config, generator)
    return trainer.run() | {"codes": codes.cpu()}


class LatentTrainer(Trainer):
    """Latent optimization at work: decoder weights and codes (N, 2 d), each with an optimizer of its own."""

    def __init__(self, model: VAE, codes: Tensor, of_codes, data: Data, config: LatentConfig, generator):
        super().__init__(model, latent_terms, data, config, generator)
        self.codes, self.of_codes = codes, of_codes
        self.shown = one_per_class(data.train_y) if config.snapshots else None

    @property
    def learning_epochs(self) -> int:
        """Epochs in which the weights change: all but the last, if the codes settle in it."""
        return self.config.epochs - bool(self.config.settling_steps)

    def run_epoch(self, epoch: int) -> None:
        """Visit every code once, in random order; in the last epoch settle them."""
        if epoch == self.config.epochs and self.config.settling_steps:
            with self.at(epoch, "of settling"):
                self.settle()
        else:
            super().run_epoch(epoch)

    def visit(self, batch: Tensor, epoch: int = 1, step: int = 1) -> None:
        """`steps_per_visit` steps of the codes of one batch; the decoder takes one, with the last."""
        config = self.config
        beta = min(1.0, epoch / config.kl_warm_up) if config.kl_warm_up else 1.0
        rate = config.code_rate * self.schedule.get_last_lr()[0] / config.learning_rate
        x = self.data.train_x[batch]
        for remaining in reversed(range(config.steps_per_visit)):
            q = self.codes[batch].requires_grad_()  # (batch, 2 d)
            with self.at(epoch, step):
                terms = self.objective(self.model.decode, x, q, config.sigma, self.generator, config.antithetic, beta)
                loss = terms["loss"].mean()
                if remaining:
                    (gradient,) = torch.autograd.grad(loss, q)
                else:
                    self.optimizer.zero_grad()
                    loss.backward()
                    gradient = q.grad
                    self.optimizer.step()
                gradient = gradient * len(batch)  # each code's own, whatever the batch size
                self.of_codes.step(batch, gradient, rate)

    def settle(self) -> None:
        """Take `settling_steps` steps of every code under the decoder as it is."""
        config = self.config
        self.model.eval()
        steps, rate, sigma = config.settling_steps, config.code_rate / 2, config.sigma
        decode, optimizer = self.model.decode, self.of_codes
        climb(decode, self.data.train_x, self.codes, optimizer, sigma, steps, rate, self.generator, config.antithetic)

    def measure(self) -> dict[str, float]:
        """The elbo's terms, averaged over some training images, two samples of q for each."""
        self.model.eval()
        x, q = (thin(rows, CURVE_SIZE // 2) for rows in (self.data.train_x, self.codes))
        terms = latent_elbo(self.model.decode, x, *q.chunk(2, dim=1), self.config.sigma)
        return {f"train_{name}": float(values.mean()) for name, values in terms.items()}

    def snapshot(self) -> dict:
        """Weights, and the means of the codes of the first image of each digit."""
        return {"state": copy_weights(self.model), "mu": self.codes[self.shown, : self.model.latent_size].cpu()}
