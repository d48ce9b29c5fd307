"""log p(x), the evidence: estimated by importance sampling, and by annealing."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latent_digits.batches import in_batches
from latent_digits.checks import (
    own_numbers,
    require_finite,
    require_gradient,
    require_positive,
    require_whole,
)
from latent_digits.densities import GaussianLikelihood, Posterior, validate
from latent_digits.gradients import gradients
from latent_digits.random import normal_like


@runtime_checkable
class Likelihood(Protocol):
    """p(x|z), and with it, where a prior other than N(0, I) is meant, what to multiply N(0, I) by.

    A GaussianLikelihood, WithPrior, or what has a `log_prob` like theirs.
    """

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """(batch, *event), (batch, d) -> (batch,) in nats."""


class LogProb(NamedTuple):
    """log p(x) of each image as importance weights give it: float64 (batch,) on the CPU.

    std_error is what the draws know of their own spread. It covers the truth where q is as wide as
    the posterior or wider. Where q is too narrow the draws miss a part of the posterior, at any
    number: the error is then larger, and a small ess is the only sign, if any.
    """

    log_prob: Tensor  # nats
    ess: Tensor  # effective sample size of the weights, from 1 to their number
    std_error: Tensor  # of log_prob, in nats; infinite for a single weight


def importance_log_prob(
    x: Float[Tensor, " batch *event"],
    mu: Float[Tensor, "batch d"],
    logvar: Float[Tensor, "batch d"],
    decode: Callable[[Tensor], Tensor],
    sigma: Real = 0.4,
    num_samples: Integral = 1000,
    generator: torch.Generator | None = None,
) -> LogProb:
    """log p(x) ~ log 1/M sum_m p(x|z_m) p(z_m) / q(z_m|x) in nats, with M = num_samples draws of q.

    q(z|x) = N(mu, diag exp logvar); decode: (S, d) -> (S, *event), the mean of
    p(x|z) = N(decode(z), sigma^2 I); p(z) = N(0, I). Burda et al. 2016, equation 8: on average a
    lower bound, with M = 1 the elbo, that rises to log p(x) with M. Its standard error says too
    little where q is too narrow, see LogProb. At most 2,000 draws are decoded at a time.
    `generator` must be on the device of x. Raises ValueError for numbers that make no sense and an
    x or q that is not finite, and FloatingPointError for images with a weight that is nan or
    infinite, or with none above zero.
    """
    require_positive(sigma=sigma)
    likelihood = GaussianLikelihood(decode, sigma)
    return estimate_log_prob(x, Posterior(mu, logvar), likelihood, num_samples, generator)


def estimate_log_prob(
    x: Float[Tensor, " batch *event"],
    posterior: Posterior,
    likelihood: Likelihood,
    num_samples: Integral,
    generator: torch.Generator | None,
) -> LogProb:
    """`importance_log_prob` for any likelihood and, by `WithPrior`, any prior."""
    require_sound(x, posterior, likelihood)
    require_whole(num_samples=num_samples)
    how = likelihood, num_samples, generator
    return in_batches(
        lambda x, *q: estimate_batch(x, Posterior(*q), *how),
        x,
        *posterior,
        desc="importance sampling",
    )


def require_sound(x: Tensor, posterior: Posterior, likelihood: Likelihood) -> None:
    """Raise ValueError when x or q(z|x) is not finite, or a likelihood's sigma not positive."""
    validate(x, *posterior, getattr(likelihood, "sigma", 1.0))


def estimate_batch(
    x: Tensor,
    posterior: Posterior,
    likelihood: Likelihood,
    num_samples: Integral,
    generator: torch.Generator | None,
) -> LogProb:
    """`estimate_log_prob` of one batch: only sums of its weights are kept."""
    at_once = max(1, 2_000 // len(x))
    sums = [torch.full((len(x),), -math.inf, dtype=torch.float64, device="cpu")] * 2
    for done in range(0, num_samples, at_once):
        draws = min(at_once, num_samples - done)
        more = log_power_sums(draw_log_weights(x, posterior, likelihood, draws, generator))
        sums = [torch.logaddexp(*pair) for pair in zip(sums, more, strict=True)]
    return log_mean_weight(*sums, num_samples)


def draw_log_weights(
    x: Float[Tensor, " batch *event"],
    posterior: Posterior,
    likelihood: Likelihood,
    draws: Integral,
    generator: torch.Generator | None,
) -> Float[Tensor, "{draws} batch"]:
    """log importance weights of `draws` samples z ~ q(z|x) for each image, float64, on the CPU."""
    require_whole(draws=draws)
    require_sound(x, posterior, likelihood)
    x, posterior = torch.cat([x] * draws), posterior.repeat(draws)  # (draws x batch, ...)
    u = normal_like(posterior.mu, generator)
    with torch.no_grad():
        log_weights = log_weight(x, u, posterior, likelihood)
    # (draws x batch,) -> (draws, batch)
    return log_weights.cpu().double().unflatten(0, (draws, -1))


def log_weight(
    x: Float[Tensor, " batch *event"],
    u: Float[Tensor, "batch d"],
    posterior: Posterior,
    likelihood: Likelihood,
) -> Float[Tensor, " batch"]:
    """log p(x|z) p(z) / q(z|x) in nats, at z = mu + std u, which has density N(u; 0, I) / std.

    From u, as z - mu would be lost in rounding where q is narrow. The constants of p(z) and q(z|x)
    cancel.
    """
    z = posterior.mu + posterior.std() * u
    log_prior_over_q = 0.5 * (u.square() - z.square() + posterior.logvar).sum(1)
    return likelihood.log_prob(x, z) + log_prior_over_q


def log_power_sums(log_weights: Float[Tensor, "draws batch"]) -> tuple[Tensor, Tensor]:
    """log sum w and log sum w^2, each (batch,)."""
    return log_weights.logsumexp(0), (2 * log_weights).logsumexp(0)


def log_mean_weight(
    log_sum: Float[Tensor, " batch"], log_sum_of_squares: Float[Tensor, " batch"], count: Integral
) -> LogProb:
    """What `count` weights say of their mean, from log sum w and log sum w^2.

    ess = (sum w)^2 / sum w^2 (Kong 1992); the standard error is that of the mean weight, divided
    by it.
    """
    broken = int((~log_sum.isfinite()).sum())
    if broken:
        raise FloatingPointError(
            f"weights must be finite and not all 0, got others for {broken} images: see decode"
        )
    ess = torch.exp(2 * log_sum - log_sum_of_squares)
    # rounding can take it below zero where all weights are equal
    spread = (1 / ess - 1 / count).clamp(min=0)
    std_error = (
        (spread * count / (count - 1)).sqrt() if count > 1 else torch.full_like(ess, math.inf)
    )
    return LogProb(log_sum - math.log(count), ess, std_error)


# --- annealing ---


@dataclass(frozen=True)
class Annealing:
    """Settings of annealed importance sampling."""

    chains: Integral = 10  # of each image
    temperatures: Integral = 100  # steps from q to the posterior
    leapfrogs: Integral = 5  # of each move
    step_size: Real = 0.2  # of a leapfrog

    def __post_init__(self):
        require_whole(chains=self.chains, temperatures=self.temperatures, leapfrogs=self.leapfrogs)
        require_positive(step_size=self.step_size)
        own_numbers(self)


def annealed_log_prob(
    x: Float[Tensor, " batch *event"],
    posterior: Posterior,
    likelihood: Likelihood,
    annealing: Annealing,
    *,
    exact: Float[Tensor, "batch d"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[LogProb, float]:
    """log p(x) by annealed importance sampling, and the share of its moves that were accepted.

    Each chain of an image goes from q(z|x) to the posterior, through q(z|x)^(1-b) p(x, z)^b with b
    from 0 to 1; a step is weighed, then followed by a move of Hamiltonian Monte Carlo (Neal 2001;
    Wu et al. 2017). On average a lower bound that relies less on q being like the posterior.
    `exact`, one draw of each image's true posterior, known where x was drawn from the model, lets
    the chains run from there back to q: the result is on average an upper bound (Grosse et al.
    2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo"), whose std_error
    and ess leave out that an image's chains share their start. All chains of an image run at once.
    Raises as importance_log_prob does, and ValueError for a likelihood without a gradient.
    """
    require_sound(x, posterior, likelihood)
    if exact is not None:
        require_finite(exact=exact)
        if exact.shape != posterior.mu.shape:
            shapes = tuple(posterior.mu.shape), tuple(exact.shape)
            raise ValueError(f"exact must have mu's shape {shapes[0]}, got {shapes[1]}")

    images = (x, *posterior) if exact is None else (x, *posterior, exact)
    require_gradient(posterior.mu[:1], likelihood=functools.partial(likelihood.log_prob, x[:1]))
    how = likelihood, annealing, generator
    with gradients():
        *result, accepted = in_batches(
            lambda x, mu, logvar, *start: estimate_annealed(x, Posterior(mu, logvar), *how, *start),
            *images,
            batch_size=max(1, 2_000 // annealing.chains),
            desc="annealing",
        )
    return LogProb(*result), float(accepted.mean())


def estimate_annealed(
    x: Tensor,
    posterior: Posterior,
    likelihood: Likelihood,
    annealing: Annealing,
    generator: torch.Generator | None,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`annealed_log_prob` of one batch: what LogProb has, and each image's share of moves."""
    chains = annealing.chains
    images = torch.cat([x] * chains), posterior.repeat(chains)  # (chains x batch, ...)
    starts = None if start is None else torch.cat([start] * chains)
    found = anneal(*images, likelihood, annealing, starts, generator)
    # (chains x batch,) -> (chains, batch)
    log_weights, accepted = (values.unflatten(0, (chains, -1)) for values in found)
    result = log_mean_weight(*log_power_sums(log_weights), chains)
    sign = 1 if start is None else -1  # from exact draws the weights are those of 1 / p(x)
    return sign * result.log_prob, result.ess, result.std_error, accepted.mean(0)


def anneal(
    x: Float[Tensor, " n *event"],
    posterior: Posterior,
    likelihood: Likelihood,
    annealing: Annealing,
    start: Float[Tensor, "n d"] | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Take one chain per row from draws of q(z|x) to the posterior, or from `start` back to q.

    Chains live in u = (z - mu) / std, where q is N(0, I). Returns their log weights and the
    shares of their moves that were accepted, each (n,).
    """

    def log_ratio(u):
        return log_weight(x, u, posterior, likelihood)

    path = torch.linspace(0, 1, annealing.temperatures + 1, device="cpu").tolist()
    if start is None:
        u = normal_like(posterior.mu, generator)
    else:
        u, path = (start - posterior.mu) / posterior.std(), path[::-1]
    state = (u, *value_and_gradient(log_ratio, u))
    log_weights = accepted = torch.zeros(len(x), dtype=torch.float64, device="cpu")
    for before, after in itertools.pairwise(path):
        log_weights = log_weights + (after - before) * state[1].cpu().double()
        state, moved = hamiltonian_move(log_ratio, state, after, annealing, generator)
        accepted = accepted + moved.cpu() / annealing.temperatures
    return log_weights, accepted


def value_and_gradient(function: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """function(u) (n,) and its gradient (n, d), without a graph."""
    with gradients():
        u = u.detach().requires_grad_()
        value = function(u)
        (gradient,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), gradient


def hamiltonian_move(
    log_ratio: Callable[[Tensor], Tensor],
    state: tuple[Tensor, Tensor, Tensor],
    b: Real,
    annealing: Annealing,
    generator: torch.Generator | None,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """One move of Hamiltonian Monte Carlo (Neal 2011) that keeps N(u; 0, I) exp(b log_ratio(u)).

    state: u (n, d), log_ratio(u) (n,) and its gradient (n, d). Returns the next state and
    which moves were accepted (n,).
    """
    u, value, gradient = state
    step_size = annealing.step_size
    momentum = normal_like(u, generator)
    energy = 0.5 * (u.square() + momentum.square()).sum(1) - b * value
    for _ in range(annealing.leapfrogs):
        momentum = momentum + 0.5 * step_size * (b * gradient - u)
        u = u + step_size * momentum
        value, gradient = value_and_gradient(log_ratio, u)
        momentum = momentum + 0.5 * step_size * (b * gradient - u)
    new_energy = 0.5 * (u.square() + momentum.square()).sum(1) - b * value
    uniform = torch.rand(len(u), generator=generator, device=u.device, dtype=u.dtype)
    accept = uniform.log() < energy - new_energy  # (n,); not where the new energy is nan
    shapes = (accept[:, None], accept, accept[:, None])
    moved = zip(shapes, (u, value, gradient), state, strict=True)
    return tuple(torch.where(*parts) for parts in moved), accept
