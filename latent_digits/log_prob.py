"""log p(x): the evidence, estimated by importance sampling and by annealing."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from latent_digits.checks import require_floats, require_positive, require_posterior, require_same_shape, require_whole
from latent_digits.densities import gaussian_log_density


class LogProb(NamedTuple):
    """log p(x) of each image as importance weights give it: float64 tensors (batch,) on the CPU."""

    log_prob: Tensor  # nats
    ess: Tensor  # effective sample size of the weights, from 1 to their number
    std_error: Tensor  # of log_prob, in nats; infinite for a single weight


def importance_log_prob(
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    decode: Callable[[Tensor], Tensor],
    sigma: float = 0.4,
    num_samples: int = 1000,
    generator: torch.Generator | None = None,
) -> LogProb:
    """log p(x) ~ log 1/M sum_m p(x|z_m) p(z_m) / q(z_m|x) in nats, with M = num_samples draws z_m of q(z|x).

    x: (batch, *event); q(z|x) = N(mu, diag exp logvar), mu and logvar (batch, d); decode: (S, d) -> (S, *event), the
    mean of p(x|z) = N(decode(z), sigma^2 I); p(z) = N(0, I). Burda et al. 2016, equation 8: on average a lower
    bound, with M = 1 the elbo, that rises to log p(x) with M. At most 2,000 draws are decoded at a time.
    `generator` must be on the device of x. Raises TypeError or ValueError for num_samples < 1, a sigma that is not
    positive and finite, shapes that do not fit together and an x or q that is not finite, and FloatingPointError for
    images with a weight that is nan or infinite, or with none above zero.
    """
    require_whole(num_samples=num_samples)
    require_posterior(x, mu, logvar, sigma)
    batches = list(zip(x.split(200), mu.split(200), logvar.split(200), strict=True))
    parts = []
    for batch in tqdm(batches, desc="importance sampling", unit="batch", leave=False, disable=len(batches) < 5):
        n, at_once = len(batch[0]), max(1, 2_000 // len(batch[0]))
        sums = [torch.full((n,), -math.inf, dtype=torch.float64)] * 2
        for done in range(0, num_samples, at_once):
            log_weights = draw_log_weights(*batch, decode, sigma, min(at_once, num_samples - done), generator)
            sums = [torch.logaddexp(*pair) for pair in zip(sums, log_power_sums(log_weights), strict=True)]
        parts.append(log_mean_weight(*sums, num_samples))
    return LogProb(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def draw_log_weights(x, mu, logvar, decode, sigma: float, draws: int, generator) -> Tensor:
    """log importance weights of `draws` samples z ~ q(z|x) for each image: (draws, batch), float64, on the CPU."""
    require_whole(draws=draws)
    require_posterior(x, mu, logvar, sigma)
    x, mu, logvar = (torch.cat([value] * draws) for value in (x, mu, logvar))  # (draws x batch, ...)
    u = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
    with torch.no_grad():
        log_weights = log_weight(x, u, mu, logvar, decode, sigma)
    return log_weights.cpu().double().unflatten(0, (draws, -1))  # (draws x batch,) -> (draws, batch)


def log_weight(x, u, mu, logvar, decode, sigma: float) -> Tensor:
    """log p(x|z) p(z) / q(z|x) in nats, at z = mu + deviation u, which has density N(u; 0, I) / deviation: (batch,).

    From u, as z - mu would be lost in rounding where q is narrow. The constants of p(z) and q(z|x) cancel.
    """
    z = mu + (0.5 * logvar).exp() * u  # (batch, d)
    log_prior_over_q = 0.5 * (u.square() - z.square() + logvar).sum(1)
    return gaussian_log_density(x, decode(z), sigma) + log_prior_over_q


def log_power_sums(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log sum w and log sum w^2. (draws, batch) -> 2 x (batch,)."""
    return log_weights.logsumexp(0), (2 * log_weights).logsumexp(0)


def log_mean_weight(log_sum: Tensor, log_sum_of_squares: Tensor, count: int) -> LogProb:
    """What `count` weights say of their mean, from log sum w and log sum w^2, each (batch,).

    ess = (sum w)^2 / sum w^2 (Kong 1992); the standard error is that of the mean weight, divided by it.
    """
    if not log_sum.isfinite().all():
        broken = int((~log_sum.isfinite()).sum())
        raise FloatingPointError(
            f"{broken} images have a weight that is not finite, or none above 0: check x and decode"
        )
    ess = torch.exp(2 * log_sum - log_sum_of_squares)
    spread = (1 / ess - 1 / count).clamp(min=0)  # rounding can take it below zero where all weights are equal
    std_error = (spread * count / (count - 1)).sqrt() if count > 1 else torch.full_like(ess, math.inf)
    return LogProb(log_sum - math.log(count), ess, std_error)


def annealed_log_prob(
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    decode: Callable[[Tensor], Tensor],
    sigma: float = 0.4,
    *,
    exact: Tensor | None = None,
    chains: int = 10,
    temperatures: int = 100,
    leapfrogs: int = 5,
    step_size: float = 0.2,
    generator: torch.Generator | None = None,
) -> tuple[LogProb, float]:
    """log p(x) by annealed importance sampling, and the share of its moves that were accepted.

    Arguments as in `importance_log_prob`. Each of `chains` chains per image goes from q(z|x) to the posterior, through
    q(z|x)^(1-b) p(x, z)^b with b from 0 to 1 in `temperatures` steps; a step is weighed, then followed by a move of
    Hamiltonian Monte Carlo (Neal 2001; Wu et al. 2017). On average a lower bound, that relies less on q being like
    the posterior. `exact` (batch, d), one draw of each image's true posterior, known where x was drawn
    from the model, lets the chains run from there back to q: the result is on average an upper bound (Grosse et
    al. 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo"), whose std_error and ess leave
    out that an image's chains share their start. All chains of an image run at once.
    Raises as importance_log_prob does, and ValueError for a step_size that is not positive.
    """
    require_whole(chains=chains, temperatures=temperatures, leapfrogs=leapfrogs)
    require_positive(step_size=step_size)
    require_posterior(x, mu, logvar, sigma)
    if exact is not None:
        require_floats("n d", exact=exact)
        require_same_shape(mu, exact, "exact")
    path = torch.linspace(0, 1, temperatures + 1).tolist()
    parts, accepted = [], 0.0
    batches = torch.arange(len(x), device=x.device).split(max(1, 2_000 // chains))
    for rows in tqdm(batches, desc="annealing", unit="batch", leave=False, disable=len(batches) < 2):
        images, *q = (torch.cat([value[rows]] * chains) for value in (x, mu, logvar))  # (chains x batch, ...)
        end = None if exact is None else torch.cat([exact[rows]] * chains)
        log_weights, rate = anneal(
            images, *q, decode, sigma, path if end is None else path[::-1], end, leapfrogs, step_size, generator
        )
        log_weights = log_weights.unflatten(0, (chains, -1))  # (chains x batch,) -> (chains, batch)
        parts.append(log_mean_weight(*log_power_sums(log_weights), chains))
        accepted += rate * len(rows) / len(x)
    result = LogProb(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    if exact is not None:  # the weights were those of 1 / p(x)
        result = result._replace(log_prob=-result.log_prob)
    return result, accepted


def anneal(x, mu, logvar, decode, sigma, path, start, leapfrogs, step_size, generator) -> tuple[Tensor, float]:
    """Take one chain per row along `path`, from `start` or, where that is None, from draws of q(z|x), each (n, d).

    Chains live in u = (z - mu) / deviation, where q is N(0, I). Returns their log weights (n,) and the share of
    accepted moves.
    """

    def log_ratio(u):
        return log_weight(x, u, mu, logvar, decode, sigma)

    if start is None:
        u = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
    else:
        u = (start - mu) / (0.5 * logvar).exp()
    state = (u, *value_and_gradient(log_ratio, u))
    log_weights, accepted = torch.zeros(len(x), dtype=torch.float64), 0.0
    for before, after in itertools.pairwise(path):
        log_weights += (after - before) * state[1].cpu().double()
        state, rate = hamiltonian_move(log_ratio, state, after, leapfrogs, step_size, generator)
        accepted += rate / (len(path) - 1)
    return log_weights, accepted


def value_and_gradient(function, u: Tensor) -> tuple[Tensor, Tensor]:
    """function(u) (n,) and its gradient (n, d), without a graph."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = function(u)
        (gradient,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), gradient


def hamiltonian_move(log_ratio, state: tuple[Tensor, Tensor, Tensor], b: float, leapfrogs: int, step_size, generator):
    """One move of Hamiltonian Monte Carlo (Neal 2011) that leaves N(u; 0, I) exp(b log_ratio(u)) as it is.

    state: u (n, d), log_ratio(u) (n,) and its gradient (n, d). Returns the next state and the share of accepted moves.
    """
    u, value, gradient = state
    momentum = torch.randn(u.shape, generator=generator, device=u.device, dtype=u.dtype)
    energy = 0.5 * (u.square() + momentum.square()).sum(1) - b * value
    for _ in range(leapfrogs):
        momentum = momentum + 0.5 * step_size * (b * gradient - u)
        u = u + step_size * momentum
        value, gradient = value_and_gradient(log_ratio, u)
        momentum = momentum + 0.5 * step_size * (b * gradient - u)
    new_energy = 0.5 * (u.square() + momentum.square()).sum(1) - b * value
    uniform = torch.rand(len(u), generator=generator, device=u.device, dtype=u.dtype)
    accept = uniform.log() < energy - new_energy  # (n,); not where the new energy is nan
    shapes = (accept[:, None], accept, accept[:, None])
    moved = zip(shapes, (u, value, gradient), state, strict=True)
    return tuple(torch.where(*parts) for parts in moved), accept.float().mean().item()
