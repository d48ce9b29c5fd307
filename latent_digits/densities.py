"""Likelihoods, the KL divergence, and the elbo that they make, in nats.

Log-probabilities and KL divergences have shape (batch,): they are summed over event dimensions,
and averaged once, at the very end. elbo = log_likelihood - kl_divergence.
"""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from latent_digits.checks import (
    require_finite,
    require_finite_result,
    require_positive,
    require_unit,
)
from latent_digits.random import normal_like


class Posterior(NamedTuple):
    """q(z|x) = N(mu, diag exp logvar) of some images."""

    mu: Tensor  # (batch, d)
    logvar: Tensor  # (batch, d)

    def std(self) -> Tensor:
        """Standard deviations (batch, d)."""
        return (0.5 * self.logvar).exp()

    def repeat(self, times: Integral) -> "Posterior":
        """Those of all images, `times` over: (times x batch, d)."""
        return Posterior(*(torch.cat([value] * times) for value in self))


class GaussianLikelihood(NamedTuple):
    """p(x|z) = N(decode(z), sigma^2 I)."""

    decode: Callable[[Tensor], Tensor]  # (batch, d) -> (batch, *event)
    sigma: Real

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) (batch,) in nats, finite or not."""
        return gaussian_log_density(x, self.decode(z), self.sigma)


def validate(
    x: Float[Tensor, " batch *event"],
    mu: Float[Tensor, "batch d"],
    logvar: Float[Tensor, "batch d"],
    sigma: Real,
) -> None:
    """Raise ValueError when sigma is not positive, or x or q(z|x) not finite."""
    require_positive(sigma=sigma)
    require_finite(x=x, mu=mu, logvar=logvar)


def gaussian_log_likelihood(
    x: Float[Tensor, "batch size *event"], x_hat: Float[Tensor, "batch size *event"], sigma: Real
) -> Float[Tensor, " batch"]:
    """log N(x; x_hat, sigma^2 I) in nats, constant included.

    Raises ValueError when sigma is not positive, and FloatingPointError where the result is not
    finite.
    """
    require_positive(sigma=sigma)
    log_likelihood = gaussian_log_density(x, x_hat, sigma)
    require_finite_result(log_likelihood, x=x, x_hat=x_hat)
    return log_likelihood


def gaussian_log_density(
    x: Float[Tensor, "batch size *event"], x_hat: Float[Tensor, "batch size *event"], sigma: Real
) -> Float[Tensor, " batch"]:
    """`gaussian_log_likelihood`, finite or not.

    For chains, which may stray to where a decoder overflows and turn back, and for the training
    loop, which looks at its loss.
    """
    sigma = float(sigma)  # whose square as a small integer of numpy might overflow
    squared_error = (x - x_hat).square().flatten(1).sum(1)  # (batch, *event) -> (batch,)
    log_normalizer = math.log(sigma) + 0.5 * math.log(2 * math.pi)
    return -0.5 * squared_error / sigma**2 - math.prod(x.shape[1:]) * log_normalizer


def bernoulli_log_likelihood(
    x: Float[Tensor, "batch size *event"], logits: Float[Tensor, "batch size *event"]
) -> Float[Tensor, " batch"]:
    """log Bernoulli(x; sigmoid(logits)) in nats.

    A log-likelihood when x is 0 or 1. For grey values in between it is a cross entropy: no density
    integrates to one with it (Loaiza-Ganem and Cunningham 2019, "The continuous Bernoulli").
    Raises ValueError when x leaves [0, 1], and FloatingPointError where the result is not finite.
    """
    require_unit(x=x)
    log_likelihood = bernoulli_log_mass(x, logits)
    require_finite_result(log_likelihood, logits=logits)
    return log_likelihood


def bernoulli_log_mass(x: Tensor, logits: Tensor) -> Tensor:
    """`bernoulli_log_likelihood`, unchecked: for the training loop, which looks at its loss."""
    # (batch, *event) -> (batch,)
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def kl_divergence(
    mu: Float[Tensor, "batch d *more"], logvar: Float[Tensor, "batch d *more"]
) -> Float[Tensor, " batch"]:
    """KL(N(mu, diag exp logvar) || N(0, I)) in nats.

    Kingma and Welling 2014, appendix B. Raises FloatingPointError where the result is not finite.
    """
    kl = kl_per_dimension(mu, logvar).flatten(1).sum(1)  # (batch, d, ...) -> (batch,)
    require_finite_result(kl, mu=mu, logvar=logvar)
    return kl


def kl_per_dimension(
    mu: Float[Tensor, "batch d *more"], logvar: Float[Tensor, "batch d *more"]
) -> Float[Tensor, "batch d *more"]:
    """The KL divergence before the sum over dimensions, in nats: every entry is at least 0."""
    # expm1 keeps the entry exact, and not below zero, where logvar is close to 0
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def reparameterize(
    mu: Float[Tensor, "batch d *more"],
    logvar: Float[Tensor, "batch d *more"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch d *more"]:
    """z = mu + sigma * eps with eps ~ N(0, I): a sample of q(z|x) that lets gradients through.

    Kingma and Welling 2014, section 2.4. Raises FloatingPointError where the result is not finite.
    """
    z = sample_posterior(mu, logvar, generator)
    # where logvar is -inf z is finite all the same
    require_finite_result(z + logvar, mu=mu, logvar=logvar)
    return z


def sample_posterior(mu: Tensor, logvar: Tensor, generator: torch.Generator | None) -> Tensor:
    """`reparameterize`, unchecked: for the training loop, which looks at its loss."""
    return mu + torch.exp(0.5 * logvar) * normal_like(mu, generator)


def elbo_terms(log_likelihood: Tensor, kl: Tensor, beta: Real = 1.0) -> dict[str, Tensor]:
    """The elbo, its two terms, and the loss that `beta` makes of them: each (batch,), in nats."""
    loss = beta * kl - log_likelihood
    terms = {"log_likelihood": log_likelihood, "kl_divergence": kl}
    return {"loss": loss, "elbo": log_likelihood - kl} | terms
