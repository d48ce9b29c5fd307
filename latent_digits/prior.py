"""A mixture as the prior of latents, in place of N(0, I)."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latent_digits.batches import in_batches
from latent_digits.checks import require_finite, require_whole
from latent_digits.densities import (
    GaussianLikelihood,
    kl_divergence,
    kl_per_dimension,
    reparameterize,
)
from latent_digits.mixture import GaussianMixture
from latent_digits.precision import to_float64
from latent_digits.random import make_generator


@dataclass
class FittedPrior:
    """A mixture over the latents that carry information; the others keep N(0, 1)."""

    mixture: GaussianMixture
    informative: Bool[Tensor, " d"]
    generator: torch.Generator

    def informative_part(self, z: Float[Tensor, "n {len(self.informative)}"]) -> np.ndarray:
        """What the mixture is a density of: (n, informative latents)."""
        return to_float64(z[:, self.informative])

    def log_ratio(self, z: Float[Tensor, "n {len(self.informative)}"]) -> Float[Tensor, " n"]:
        """log p(z) - log N(z; 0, I) in nats, float64, on the CPU.

        The other latents have the same density under both. Raises ValueError for a z that wants a
        gradient, which scikit-learn's estimators do not give.
        """
        if z.requires_grad:
            raise ValueError("z must not require a gradient, got one that does: call z.detach()")
        part = self.informative_part(z)  # (n, informative latents)
        standard = -0.5 * ((part**2).sum(1) + part.shape[1] * math.log(2 * math.pi))
        return torch.from_numpy(self.mixture.score_samples(part) - standard)

    def complete(
        self,
        part: Float[np.ndarray, "n {self.informative.sum()}"],
        others: Float[Tensor, "n {len(self.informative)}"],
    ) -> Float[Tensor, "n {len(self.informative)}"]:
        """The z of which `part` is the informative part, with its other latents from `others`."""
        z = others.clone()
        z[:, self.informative] = torch.from_numpy(part).to(z)
        return z

    def component_means(self) -> Tensor:
        """The mean of every component as a z. (K, d)."""
        shape = len(self.mixture.means_), len(self.informative)
        zeros = torch.zeros(shape, dtype=torch.float32, device=self.informative.device)
        return self.complete(self.mixture.means_, zeros)

    def sample(self, n: Integral, components: Iterable | None = None) -> Tensor:
        """n new draws in random order, (n, d); of some components, in proportion to their weights.

        Raises ValueError for n < 1 and for components that are not there.
        """
        require_whole(n=n)
        mixture = copy.copy(self.mixture)
        if components is not None:
            chosen, count = [int(k) for k in components], len(mixture.weights_)
            if not chosen or not set(chosen) <= set(range(count)):
                raise ValueError(
                    f"components must be one or more from 0 to {count - 1}, got {chosen}"
                )
            for name in ("weights_", "means_", "covariances_"):
                setattr(mixture, name, getattr(mixture, name)[chosen])
            mixture.weights_ = mixture.weights_ / mixture.weights_.sum()
        drawn, _ = mixture.sample(n)  # in the order of the components
        shuffled = drawn[torch.randperm(n, generator=self.generator, device="cpu").numpy()]
        shape = n, len(self.informative)
        on_cpu = {"device": "cpu", "dtype": torch.float32}
        others = torch.randn(shape, generator=self.generator, **on_cpu)
        return self.complete(shuffled, others.to(self.informative.device))


class WithPrior(NamedTuple):
    """p(x|z) p(z) / N(z; 0, I): what makes an estimator that multiplies by N(0, I) take p(z)."""

    likelihood: GaussianLikelihood
    prior: FittedPrior

    @property
    def sigma(self) -> Real:
        """The likelihood's."""
        return self.likelihood.sigma

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Its logarithm (batch,) in nats."""
        return self.likelihood.log_prob(x, z) + self.prior.log_ratio(z).to(x)


class PriorGap(NamedTuple):
    """What the prior costs, of each z ~ q(z|x): float64 (n,), in nats."""

    kl_divergence: Tensor  # KL(q(z|x) || N(0, I))
    gap: Tensor  # log r(z) - log N(z; 0, I): on average at most KL(q(z) || N(0, I))
    information: Tensor  # log q(z|x) - log r(z): on average at least I(x; z)


def prior_gap(
    mu: Float[Tensor, "n d"],
    logvar: Float[Tensor, "n d"],
    density: FittedPrior,
    generator: torch.Generator | None = None,
) -> PriorGap:
    """The KL divergence of images that `density` has not seen, split in two by it.

    E KL(q(z|x) || p(z)) = I(x; z) + KL(q(z) || p(z)), q(z) the aggregate posterior (Hoffman and
    Johnson 2016, "ELBO surgery"). q(z) is not known: with a fitted r(z) in its place the second
    term is too small on average, and the first too large, by KL(q(z) || r(z)). One z of each
    q(z|x). Raises FloatingPointError where a q is not finite.
    """
    kl = kl_divergence(mu, logvar).cpu().double()
    gap = density.log_ratio(reparameterize(mu, logvar, generator))
    return PriorGap(kl, gap, kl - gap)


def index_information(
    mu: Float[Tensor, "n d"], logvar: Float[Tensor, "n d"], generator: torch.Generator | None = None
) -> Float[Tensor, " n"]:
    """log q(z_i|x_i) - log 1/n sum_j q(z_i|x_j), z_i ~ q(z|x_i), float64: on average I(i; z), nats.

    The information of z on which of these n images it is of. No entry exceeds log n, however much
    z says of x (Hoffman and Johnson 2016, section 3).
    """
    z = reparameterize(mu, logvar, generator).double()
    mu, logvar = mu.double(), logvar.double()
    precision = (-logvar).exp()  # (n, d)
    # log q(z|x_j) without its constant, by products: (z - mu)^2 p = z^2 p - 2 z mu p + mu^2 p
    constant = (mu.square() * precision + logvar).sum(1)

    def of_rows(z: Tensor, own: Tensor) -> Tensor:
        logs = z @ (mu * precision).T - 0.5 * (z.square() @ precision.T + constant)  # (batch, n)
        return logs.gather(1, own[:, None])[:, 0] - logs.logsumexp(1) + math.log(len(mu))

    own = torch.arange(len(mu), device=mu.device)
    return in_batches(of_rows, z, own)


def informative_latents(
    mu: Float[Tensor, "n d"], logvar: Float[Tensor, "n d"]
) -> Bool[Tensor, " d"]:
    """The latents of q(z|x) that carry more than 0.1 nats on average, or the most of all.

    Not all that are active (`active_dimensions`): a latent may move with the image and tell next to
    nothing of it. Raises ValueError for entries that are not finite.
    """
    require_finite(mu=mu, logvar=logvar)
    kl = kl_per_dimension(mu, logvar).mean(0)
    return kl >= kl.max().clamp(max=0.1)


def fit_prior(
    mu: Float[Tensor, "n d"],
    logvar: Float[Tensor, "n d"],
    n_components: Integral,
    seed: Integral = 0,
    draws: Integral = 1,
) -> FittedPrior:
    """A Gaussian mixture fitted to the aggregate posterior (1/N) sum_i q(z|x_i).

    To be sampled in place of N(0, I). Fitted, with full covariances, to `draws` draws from each
    q(z|x_i), over the informative latents. seed: of these draws, of EM's start, and of all that is
    sampled. "Ex-post density estimation" of Ghosh et al. 2020. Raises ValueError for a q that is
    not finite, for draws < 1, and for fewer draws in all than components.
    """
    require_whole(draws=draws)
    require_finite(mu=mu, logvar=logvar)
    generator, mu, logvar = make_generator(seed, mu.device), mu.detach(), logvar.detach()
    z = torch.cat([reparameterize(mu, logvar, generator) for _ in range(draws)])
    mixture = GaussianMixture(n_components, max_iter=500, random_state=np.random.RandomState(seed))
    sampling = make_generator(int(seed) + 1)
    prior = FittedPrior(mixture, informative_latents(mu, logvar), sampling)
    mixture.fit(prior.informative_part(z))
    return prior
