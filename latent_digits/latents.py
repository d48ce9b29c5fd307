"""Inference: a q(z|x) of its own for every image, found by optimization."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from latent_digits.batches import in_batches
from latent_digits.checks import (
    located,
    require_finite,
    require_finite_result,
    require_gradient,
    require_positive,
    require_whole,
    unchecked,
)
from latent_digits.data import Data, one_per_class, subsample
from latent_digits.densities import (
    GaussianLikelihood,
    Posterior,
    elbo_terms,
    gaussian_log_likelihood,
    kl_divergence,
    reparameterize,
    validate,
)
from latent_digits.gradients import gradients
from latent_digits.networks import VAE, copy_weights, device_of
from latent_digits.optimizers import NaturalGradient
from latent_digits.random import make_generator, seeded
from latent_digits.training import CURVE_SIZE, TrainConfig, Trainer


def latent_terms(
    likelihood: GaussianLikelihood,
    x: Float[Tensor, " batch *event"],
    codes: Float[Tensor, "batch codes"],
    generator: torch.Generator | None,
    antithetic: bool = False,
    beta: Real = 1.0,
) -> dict[str, Float[Tensor, " batch"]]:
    """The elbo's terms for free codes, with one or two samples of q(z|x).

    Antithetic samples mu + sigma eps and mu - sigma eps: what is odd in eps cancels in the
    gradients' noise.
    """
    mu, logvar = codes.chunk(2, dim=1)  # (batch, 2 d) -> 2 x (batch, d)
    z = reparameterize(mu, logvar, generator)
    samples = [z, 2 * mu - z] if antithetic else [z]
    x_hat = likelihood.decode(torch.cat(samples))
    copies = torch.cat([x] * len(samples))
    log_likelihood = gaussian_log_likelihood(copies, x_hat, likelihood.sigma)
    # (samples x batch,) -> (batch,)
    log_likelihood = log_likelihood.unflatten(0, (len(samples), -1)).mean(0)
    return elbo_terms(log_likelihood, kl_divergence(mu, logvar), beta)


def latent_elbo(
    decode: Callable[[Tensor], Tensor],
    x: Float[Tensor, " n *event"],
    mu: Float[Tensor, "n d"],
    logvar: Float[Tensor, "n d"],
    sigma: Real = 0.4,
    seed: Integral = 0,
) -> dict[str, Float[Tensor, " n"]]:
    """The elbo and its terms, of images under q(z|x) = N(mu, diag exp logvar).

    Always with the same noise for the same seed; two antithetic samples per image. Raises
    ValueError for what is not finite, and FloatingPointError where a term is not.
    """
    validate(x, mu, logvar, sigma)
    likelihood, generator = GaussianLikelihood(decode, sigma), make_generator(seed, x.device)
    terms = functools.partial(latent_terms, likelihood, generator=generator, antithetic=True)
    return in_batches(terms, x, torch.cat([mu, logvar], 1))


def pca_posterior(
    x: Float[Tensor, " n *event"], latent_size: Integral, sigma: Real = 0.4
) -> Callable[[Tensor], Posterior]:
    """The exact q(z|x) of the linear model that fits images best, as a function of images.

    Probabilistic PCA with its noise fixed at sigma (Tipping and Bishop 1999, sections 3.1 and 3.2):
    along a principal direction of variance l > sigma^2, mu is sqrt(l - sigma^2) / l times the
    coordinate, and the variance sigma^2 / l; the other latents have the prior's 0 and 1. Raises
    ValueError for fewer than two images, for some that are not finite, and for a latent_size or
    sigma that is not positive.
    """
    require_finite(x=x)
    require_whole(2, **{"len(x)": len(x)})
    require_whole(latent_size=latent_size)
    require_positive(sigma=sigma)
    sigma = float(sigma)
    flat = x.cpu().flatten(1).double()  # (n, pixels)
    mean = flat.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov(flat.T))  # ascending
    size = min(latent_size, len(variances))
    variances = variances.flip(0)[:size].clamp(min=sigma**2)
    scale = (variances - sigma**2).sqrt() / variances
    directions = directions.flip(1)[:, :size] * scale  # (pixels, size)
    unused = (0, latent_size - size)

    def posterior(images: Tensor) -> Posterior:
        if images.shape[1:] != x.shape[1:]:
            shape = ("n", *x.shape[1:])
            raise ValueError(f"images must have shape {shape}, got {tuple(images.shape)}")
        coordinates = (images.cpu().flatten(1).double() - mean) @ directions
        mu = F.pad(coordinates, unused).to(images)
        logvar = F.pad((sigma**2 / variances).log(), unused).to(images)
        return Posterior(mu, logvar.repeat(len(mu), 1))

    return posterior


def infer_latents(
    decode: Callable[[Tensor], Tensor],
    x: Float[Tensor, " n *event"],
    start: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]] | None = None,
    *,
    latent_size: Integral | None = None,
    sigma: Real = 0.4,
    steps: Integral = 100,
    rate: Real = 0.3,
    generator: torch.Generator | None = None,
    batch_size: Integral = 200,
) -> Posterior:
    """q(z|x) = N(mu, diag exp logvar) for images under a fixed decoder: (mu, logvar), each (n, d).

    decode: (S, d) -> (S, *event), the mean of p(x|z) = N(decode(z), sigma^2 I). Each q climbs its
    own elbo in `steps` natural-gradient steps of a size that falls from `rate` to zero along a
    cosine, from `start`, (mu, logvar), or from the prior in `latent_size` dimensions. What it comes
    near is a local optimum. `generator` must be on the device of x. Raises ValueError for a start
    and latent_size that do not fit together, for numbers that make no sense and for a decode that
    has no gradient, and FloatingPointError when a code stops being finite.
    """
    require_whole(steps=steps, batch_size=batch_size)
    require_positive(rate=rate)
    if start is None:
        require_whole(latent_size=latent_size)
        start = (x.new_zeros(len(x), latent_size),) * 2
    elif latent_size not in (None, start[0].shape[1]):
        raise ValueError(
            f"latent_size must be that of start, {start[0].shape[1]}, got {latent_size}"
        )
    validate(x, *start, sigma)
    require_gradient(start[0][:1], decode=decode)
    likelihood = GaussianLikelihood(decode, sigma)
    terms = functools.partial(latent_terms, likelihood, generator=generator, antithetic=True)
    rates = falling_rates(rate, steps)
    with located("infer_latents", rate=rate), gradients():
        codes = torch.cat(start, 1).detach()  # (n, 2 d)
        optimize_codes(terms, x, codes, NaturalGradient(codes), rates, batch_size)
    return Posterior(*codes.chunk(2, dim=1))


def falling_rates(rate: Real, steps: Integral) -> list[float]:
    """Sizes of steps that fall from `rate` to zero along a cosine."""
    return [float(rate) * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]


def optimize_codes(
    terms: Callable[[Tensor, Tensor], dict[str, Tensor]],
    x: Tensor,
    codes: Tensor,
    optimizer,
    rates: list[float],
    batch_size: Integral = 200,
) -> None:
    """Take steps of these rates of every code (n, 2 d), in place.

    terms: maps images and their codes to what has their "loss". optimizer: NaturalGradient,
    RowAdam, or what has a `step` like theirs.
    """
    batches = torch.arange(len(x), device=x.device).split(int(batch_size))
    for rows in tqdm(batches, desc="inferring latents", leave=False, unit="batch"):
        for step, rate in enumerate(rates):
            q = codes[rows].requires_grad_()
            with located(f"step {step + 1} of the codes"):
                with unchecked(step > 0):
                    loss = terms(x[rows], q)["loss"].sum()
                    (gradient,) = torch.autograd.grad(loss, q)
                optimizer.step(rows, gradient, rate)
    require_finite_result(codes, codes=codes)


@dataclass(frozen=True)
class LatentConfig(TrainConfig):
    """Settings of latent optimization: a decoder and one free code per training image."""

    epochs: Integral = 30
    batch_size: Integral = 48
    learning_rate: Real = 4e-3
    warm_up: Real = 0.05
    weight_decay: Real = 0.15
    snapshots: tuple[Integral, ...] = (1, 5, 10, 20, 30)
    sigma: Real = 0.4  # of the Gaussian likelihood
    code_learning_rate: Real = 0.6  # peak step of the codes, which rises and falls as the decoder's
    steps_per_batch: Integral = 1  # of the codes of a batch; the decoder takes one
    antithetic: bool = True  # two mirrored samples of q per step in place of one
    kl_warm_up: Integral = 0  # epochs in which the weight of the KL divergence rises to one
    refining_steps: Integral = (
        15  # of each code in the last epoch, in which the decoder stays as it is
    )

    def __post_init__(self):
        super().__post_init__()
        require_whole(0, refining_steps=self.refining_steps, kl_warm_up=self.kl_warm_up)
        require_whole(1 + bool(self.refining_steps), epochs=self.epochs)
        require_whole(steps_per_batch=self.steps_per_batch)
        require_positive(code_learning_rate=self.code_learning_rate, sigma=self.sigma)


class LatentRun(NamedTuple):
    """Latent optimization, finished."""

    model: VAE  # without an encoder, in evaluation mode
    mu: Tensor  # (N, d): q(z|x) of every training image
    logvar: Tensor  # (N, d)
    history: pd.DataFrame  # one row per epoch: train_<term>, of a subsample
    # epoch -> {"state": weights, "mu": codes (10, d), one of each digit}
    snapshots: dict[int, dict]
    seconds: Real


def fit_latents(
    model: VAE,
    start: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]],
    data: Data,
    config: LatentConfig,
    *,
    optimizer: type = NaturalGradient,
    seed: Integral = 0,
) -> LatentRun:
    """Train a decoder, in place, together with one free q(z|x) per training image, from `start`.

    start: (mu, logvar). Latent optimization: Bojanowski et al. 2018, with a Gaussian in place of
    each point. `optimizer` moves the codes: NaturalGradient, RowAdam, or a class like them. Raises
    ValueError when `start` or `data` do not fit, and FloatingPointError, with epoch and step, when
    a loss stops being finite.
    """
    data.validate()
    require_finite(mu=start[0], logvar=start[1])
    shape = (len(data.train_x), model.latent_size)
    if start[0].shape != shape:
        raise ValueError(f"mu must have shape {shape}, got {tuple(start[0].shape)}")
    device = device_of(model)
    with seeded(seed), gradients():
        codes = torch.cat(start, 1).detach().to(device)  # (N, 2 d)
        of_codes, generator = optimizer(codes), make_generator(seed, device)
        run = LatentTrainer(model, codes, of_codes, data.to(device), config, generator).run()
    mu, logvar = codes.chunk(2, dim=1)
    return LatentRun(run.model, mu, logvar, run.history, run.snapshots, run.seconds)


class LatentTrainer(Trainer):
    """Latent optimization at work: decoder weights and codes (N, 2 d) and their optimizers."""

    def __init__(self, model: VAE, codes, of_codes, data, config: LatentConfig, generator):
        super().__init__(model, latent_terms, data, config, generator)
        self.codes, self.of_codes = codes, of_codes
        self.likelihood = GaussianLikelihood(model.decode, config.sigma)
        self.shown = one_per_class(data.train_y) if config.snapshots else None

    @property
    def learning_epochs(self) -> int:
        """Epochs in which the weights change: all but the last, if the codes are refined in it."""
        return self.config.epochs - bool(self.config.refining_steps)

    def run_epoch(self, epoch: Integral) -> None:
        """Train on every code once, in random order; in the last epoch refine them."""
        if epoch == self.config.epochs and self.config.refining_steps:
            with located(f"training stopped at epoch {epoch}", **self.rates):
                self.refine_codes()
        else:
            super().run_epoch(epoch)

    def training_step(self, batch: Tensor, epoch: Integral = 1, step: Integral = 1) -> None:
        """`steps_per_batch` steps of the codes of one batch; the decoder takes one."""
        config = self.config
        beta = min(1.0, epoch / config.kl_warm_up) if config.kl_warm_up else 1.0
        rate = config.code_learning_rate * self.schedule.get_last_lr()[0] / config.learning_rate
        x = self.data.train_x[batch]
        for remaining in reversed(range(config.steps_per_batch)):
            q = self.codes[batch].requires_grad_()  # (batch, 2 d)
            with located(f"training stopped at epoch {epoch}, step {step}", **self.rates):
                noise = self.generator, config.antithetic
                loss = self.objective(self.likelihood, x, q, *noise, beta)["loss"].mean()
                if remaining:
                    (gradient,) = torch.autograd.grad(loss, q)
                else:
                    self.optimizer.zero_grad()
                    loss.backward()
                    gradient = q.grad
                    self.optimizer.step()
                gradient = gradient * len(batch)  # each code's own, whatever the batch size
                self.of_codes.step(batch, gradient, rate)

    def refine_codes(self) -> None:
        """Take `refining_steps` steps of every code under the decoder as it is."""
        self.model.eval()
        rates = falling_rates(self.config.code_learning_rate / 2, self.config.refining_steps)
        noise = {"generator": self.generator, "antithetic": self.config.antithetic}
        terms = functools.partial(self.objective, self.likelihood, **noise)
        optimize_codes(terms, self.data.train_x, self.codes, self.of_codes, rates)

    def measure(self) -> dict[str, float]:
        """The elbo's terms, averaged over some training images, two samples of q for each."""
        self.model.eval()
        x, q = (subsample(rows, CURVE_SIZE // 2) for rows in (self.data.train_x, self.codes))
        terms = latent_elbo(self.model.decode, x, *q.chunk(2, dim=1), self.config.sigma)
        return {f"train_{name}": float(values.mean()) for name, values in terms.items()}

    def snapshot(self) -> dict:
        """Weights, and the means of the codes of the first image of each digit."""
        mu = self.codes[self.shown, : self.model.latent_size].cpu()
        return {"state": copy_weights(self.model), "mu": mu}
