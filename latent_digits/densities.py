"""Likelihoods, the KL divergence, and the elbo that they make, in nats."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_digits.checks import require_finite, require_floats, require_positive, require_same_shape


def gaussian_log_likelihood(x: Tensor, x_hat: Tensor, sigma: float) -> Tensor:
    """log N(x; x_hat, sigma^2 I) in nats, constant included. x and x_hat (batch, *event) -> (batch,).

    Raises TypeError or ValueError when sigma is not positive, or for shapes and types that do not fit together, and
    FloatingPointError where the result is not finite.
    """
    require_positive(sigma=sigma)
    require_floats("n ...", finite=False, x=x, x_hat=x_hat)
    log_likelihood = gaussian_log_density(x, x_hat, sigma)
    require_finite(log_likelihood, x=x, x_hat=x_hat)
    return log_likelihood


def gaussian_log_density(x: Tensor, x_hat: Tensor, sigma: float) -> Tensor:
    """`gaussian_log_likelihood`, finite or not.

    For chains, which may stray to where a decoder overflows and turn back, and for the training loop, which looks at
    its loss.
    """
    require_same_shape(x, x_hat, "x_hat")
    squared_error = (x - x_hat).square().flatten(1).sum(1)  # (batch, *event) -> (batch,)
    return -0.5 * squared_error / sigma**2 - x[0].numel() * (math.log(sigma) + 0.5 * math.log(2 * math.pi))


def bernoulli_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    """log Bernoulli(x; sigmoid(logits)) in nats. x and logits (batch, *event) -> (batch,).

    A log-likelihood when x is 0 or 1. For grey values in between it is a cross entropy: no density
    integrates to one with it (Loaiza-Ganem and Cunningham 2019, "The continuous Bernoulli").
    Raises TypeError or ValueError when shapes or types do not fit together or x leaves [0, 1], and
    FloatingPointError where the result is not finite.
    """
    require_floats("n ...", finite=False, x=x, logits=logits)
    require_same_shape(x, logits, "logits")
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"x spans [{x.min():.3g}, {x.max():.3g}]: scale it into [0, 1]")
    log_likelihood = bernoulli_log_mass(x, logits)
    require_finite(log_likelihood, x=x, logits=logits)
    return log_likelihood


def bernoulli_log_mass(x: Tensor, logits: Tensor) -> Tensor:
    """`bernoulli_log_likelihood`, unchecked: for the training loop, which looks at its loss."""
    # (batch, *event) -> (batch,)
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, diag exp logvar) || N(0, I)) in nats. mu and logvar (batch, d) -> (batch,).

    Kingma and Welling 2014, appendix B. Raises TypeError or ValueError when shapes or types do not fit together, and
    FloatingPointError where the result is not finite.
    """
    kl = kl_per_dimension(mu, logvar).flatten(1).sum(1)
    require_finite(kl, mu=mu, logvar=logvar)
    return kl


def kl_per_dimension(mu: Tensor, logvar: Tensor) -> Tensor:
    """The KL divergence before the sum over dimensions, in nats: same shape as mu, every entry >= 0.

    Raises TypeError or ValueError when shapes or types do not fit together.
    """
    require_floats("n ...", finite=False, mu=mu, logvar=logvar)
    require_same_shape(mu, logvar, "logvar")
    # expm1 keeps the entry exact, and not below zero, where logvar is close to 0
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def reparameterize(mu: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """z = mu + sigma * eps with eps ~ N(0, I): a sample of q(z|x) through which gradients reach mu and logvar.

    mu and logvar (batch, d) -> (batch, d). Kingma and Welling 2014, section 2.4. Raises TypeError or ValueError when
    shapes or types do not fit together, and FloatingPointError where the result is not finite.
    """
    require_floats("n ...", finite=False, mu=mu, logvar=logvar)
    require_same_shape(mu, logvar, "logvar")
    z = draw_posterior(mu, logvar, generator)
    require_finite(z + logvar, mu=mu, logvar=logvar)  # where logvar is -inf z is finite all the same
    return z


def draw_posterior(mu: Tensor, logvar: Tensor, generator: torch.Generator | None) -> Tensor:
    """`reparameterize`, unchecked: for the training loop, which looks at its loss."""
    eps = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
    return mu + torch.exp(0.5 * logvar) * eps


def elbo_terms(log_likelihood: Tensor, kl: Tensor, beta: float = 1.0) -> dict[str, Tensor]:
    """The elbo, its two terms, and the loss that `beta` makes of them: each (batch,), in nats."""
    loss = beta * kl - log_likelihood
    return {"loss": loss, "elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl_divergence": kl}
