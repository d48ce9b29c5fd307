"""Expectation and maximisation (EM) of a mixture of Gaussians, on tensors of float64.

Dempster, Laird and Rubin 1977; Bishop 2006, section 9.2.2. Where columns are few, a step is one
matrix product over all components, of samples' quadratic features: 1, u_i and u_i u_j.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from scipy.linalg.lapack import dtrtri
from torch import Tensor

MOST_COLUMNS = 48  # of a block whose quadratic features are worth their cost
MOST_KEPT = 2**27  # features (1 GiB), which are then not computed anew in each iteration
SINGULAR = (
    "covariances must be positive definite, got a singular one, as a component's samples "
    "coincide or lie in a plane: raise reg_covar, lower n_components, or drop constant and "
    "dependent columns"
)


class Gaussians(NamedTuple):
    """A mixture of K Gaussians over d = g b dimensions, independent between g blocks of b.

    Full covariances are one block of d dimensions, diagonal ones d blocks of 1: the same code
    serves both.
    """

    weights: Tensor  # (K,), positive, their sum is 1
    means: Tensor  # (K, g, b)
    covariances: Tensor  # (K, g, b, b)


def multiply(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """a (..., m, b) @ b (..., b, b); a diagonal b may be given as (..., 1, b), which is faster."""
    return a * b if b.shape[-2] == 1 else a @ b


def identity_like(a: Tensor) -> Tensor:
    """The unit matrix (b, b) for a (..., b)."""
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def gram(v: np.ndarray) -> Tensor:
    """v^T v: (..., n, b) -> (..., b, b).

    By numpy, which knows a matrix beside its own transpose: half the work.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # as in torch
        if v.shape[-1] == 1:
            return torch.from_numpy((v * v).sum(-2, keepdims=True))
        return torch.from_numpy(v.swapaxes(-1, -2) @ v)


class Coordinates(NamedTuple):
    """u = (x - centre) / scale, column by column: units, and the distance from zero, do not matter.

    Columns are not mixed: where some code what is missing by -999999, a component may be narrow
    along one of them, and no digits are left for that between axes.
    """

    centre: Tensor  # (g, 1, b)
    scale: Tensor  # (g, 1, b), positive

    def apply(self, x: Tensor) -> Tensor:
        """x (g, n, b) -> u (g, n, b)."""
        return (x - self.centre) / self.scale

    def shrink(self, covariances: Tensor) -> Tensor:
        """Covariances (..., g, b, b) of x as those of u."""
        return covariances / self.scale / self.scale.mT

    def transform(self, mixture: Gaussians) -> Gaussians:
        """A mixture over x as the mixture over u."""
        means = self.apply(mixture.means.transpose(0, 1)).transpose(0, 1)
        return Gaussians(mixture.weights, means, self.shrink(mixture.covariances))

    def invert(self, mixture: Gaussians) -> Gaussians:
        """A mixture over u as the mixture over x."""
        means = mixture.means * self.scale[:, 0] + self.centre[:, 0]
        covariances = mixture.covariances * self.scale * self.scale.mT
        return Gaussians(mixture.weights, means, covariances)

    def log_volume(self) -> Tensor:
        """log p(u) - log p(x), the same everywhere."""
        return self.scale.log().sum()


def standardize(centre: Tensor, variances: Tensor) -> Coordinates:
    """Coordinates around a centre (g, 1, b), with variances (g, 1, b) of 1.

    Constant columns keep their unit.
    """
    return Coordinates(centre, torch.where(variances > 0, variances.sqrt(), 1.0))


@functools.cache
def pairs_of(block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns (pairs,) of a block's upper triangle, and each entry's place (b, b)."""
    i, j = torch.triu_indices(block, block, device="cpu")
    place = i.new_empty(block, block)
    place[i, j] = place[j, i] = torch.arange(len(i), device="cpu")
    return i, j, place


def quadratic_features(
    u: Float64[Tensor, "g n b"], alike: bool = False
) -> Float64[Tensor, "n features"]:
    """1, every u_i, and within blocks every u_i u_j with i <= j: 1 + g b + g b (b + 1) / 2 columns.

    The sufficient statistics of a Gaussian. alike: all blocks have the same covariance, and of
    their products u_i u_j the sums suffice.
    """
    x = u.transpose(0, 1)  # (n, g, b)
    products = [x[:, :, i : i + 1] * x[:, :, i:] for i in range(x.shape[2])]
    pairs = torch.cat(products, 2)  # (n, g, pairs), as torch.triu_indices
    if alike:
        pairs = pairs.sum(1)
    return torch.cat([torch.ones_like(x[:, 0, :1]), x.flatten(1), pairs.flatten(1)], 1)


def cholesky(matrices: Tensor, singular: str = SINGULAR) -> Tensor:
    """Lower factors (..., b, b), by numpy, whose LAPACK is the faster one.

    Raises ValueError, with the words `singular`, for a matrix that is not positive definite.
    """
    try:
        one = matrices.shape[-1] == 1
        factors = matrices.sqrt() if one else torch.from_numpy(np.linalg.cholesky(matrices.numpy()))
    except np.linalg.LinAlgError:
        raise ValueError(singular) from None
    if not (factors.isfinite().all() and (factors.diagonal(dim1=-2, dim2=-1) > 0).all()):
        raise ValueError(singular)
    return factors


def whitener(factors: Tensor) -> Tensor:
    """W (..., b, b) with W W^T the inverse of the matrices that have these lower factors."""
    if factors.shape[-1] == 1:
        return factors.reciprocal()
    if factors.shape[-1] > MOST_COLUMNS:
        upper = [factor.T for factor in factors.flatten(0, -3).numpy()]  # in the order of LAPACK
        inverses = np.stack([dtrtri(factor)[0].T for factor in upper])
        return torch.from_numpy(inverses).view_as(factors).mT
    return torch.linalg.solve_triangular(factors, identity_like(factors), upper=False).mT


class JointDensity:
    """log weights_k N(u; means_k, covariances_k) as a function of u: linear in its features.

    `narrow` lists the components so narrow beside their distance from zero that, among their own
    samples, squares would cancel to an error of a millionth or more; near them, the density is
    computed from u itself.
    """

    def __init__(self, mixture: Gaussians):
        self.mixture, factors = mixture, cholesky(mixture.covariances)
        self.whiteners, size = whitener(factors), mixture.means[0].numel()  # (K, g, b, b)
        log_roots = factors.diagonal(dim1=2, dim2=3).log().sum((1, 2))  # of determinants
        self.peak = mixture.weights.log() - log_roots - 0.5 * size * math.log(2 * math.pi)  # (K,)

    @functools.cached_property
    def squares(self) -> Tensor:
        """A bound (K,) on the terms u_i P_ij u_j within blocks, as |P_ij| <= sqrt(P_ii P_jj)."""
        precisions = self.whiteners.square().sum(3)  # their diagonals, (K, g, b)
        variances = self.mixture.covariances.diagonal(dim1=2, dim2=3)  # (K, g, b)
        squares = self.mixture.means.square() + variances
        return (precisions * squares).sqrt().sum(2).square().sum(1)

    @functools.cached_property
    def narrow(self) -> list[int]:
        """Those of which the squares are 1e10 or more, to sixteen digits."""
        return (self.squares > 1e10).nonzero().flatten().tolist()

    @functools.cached_property
    def coefficients(self) -> Tensor:
        """Of the features, (K, 1 + ...)."""
        precisions = multiply(self.whiteners, self.whiteners.mT)  # (K, g, b, b)
        linear = multiply(self.mixture.means[..., None, :], precisions).squeeze(2)  # (K, g, b)
        constant = self.peak - 0.5 * (linear * self.mixture.means).sum((1, 2))
        i, j, _ = pairs_of(precisions.shape[2])
        quadratic = -precisions[..., i, j] * torch.where(i == j, 0.5, 1.0)  # (K, g, pairs)
        return torch.cat([constant[:, None], linear.flatten(1), quadratic.flatten(1)], 1)

    def apart(self, features: Tensor | None) -> Iterable[int]:
        """The components that features do not serve: narrow ones, or all, where there are none."""
        return range(len(self.peak)) if features is None else self.narrow

    def __call__(self, u: Tensor, features: Tensor | None) -> Tensor:
        """u (g, n, b) and its features -> (n, K)."""
        count = len(self.peak)
        if features is None:
            result = u.new_empty(count, u.shape[1])  # (K, n)
        else:  # of blocks that are alike, the first one's coefficients serve the sums over blocks
            result = self.coefficients[:, : features.shape[1]] @ features.T  # (K, n)
            # below that a component has no responsibility, to the last digit, errors included
            reach = result.amax(0) - 750 - 1e-14 * self.squares.max() if self.narrow else None
        for k in self.apart(features):
            near = slice(None) if features is None else np.flatnonzero(~(result[k] < reach))
            offset = u.numpy()[:, near] - self.mixture.means[k, :, None].numpy()
            white = multiply(offset, self.whiteners[k].numpy())
            squares = torch.from_numpy(np.einsum("gnb,gnb->n", white, white))
            result[k, near] = self.peak[k] - 0.5 * squares
        return result.T


class Sums(NamedTuple):
    """Sums over samples of p(k|u), p(k|u) v and p(k|u) v v^T, where v = u - origins_k."""

    counts: Tensor  # (K,)
    first: Tensor  # (K, g, b)
    second: Tensor  # (K, g, b, b)
    origins: Tensor  # (K, g, b)

    def add(self, k: int, responsibility: Tensor, u: Tensor) -> None:
        """Samples u (g, n, b) to the sums of component k, by its `responsibility` (n,)."""
        # where dimensions are many, few have more than zero
        some = responsibility.numpy().nonzero()[0]
        own = responsibility.numpy()[some]
        offset = u.numpy()[:, some] - self.origins[k, :, None].numpy()  # (g, n, b)
        self.counts[k] += own.sum()
        self.first[k] += torch.from_numpy(own @ offset)
        offset *= np.sqrt(own)[:, None]
        self.second[k] += gram(offset)


def sums_of_features(sums: Tensor, groups: int, block: int) -> Sums:
    """Sums of responsibilities * features (K, 1 + ...), taken apart."""
    linear, products = sums[:, 1 : 1 + groups * block], sums[:, 1 + groups * block :]
    first = linear.unflatten(1, (groups, block))  # (K, g b) -> (K, g, b)
    pairs = products.unflatten(1, (-1, block * (block + 1) // 2))  # (K, g or 1, pairs)
    # a sum over blocks, to each its share
    pairs = (pairs * (pairs.shape[1] / groups)).expand(-1, groups, -1)
    return Sums(sums[:, 0], first, pairs[..., pairs_of(block)[2]], torch.zeros_like(first))


def expectation_step(
    parts: Iterable[tuple[Tensor, Tensor | None]], mixture: Gaussians
) -> tuple[Tensor, Sums]:
    """The E step: log p(u) (n,), and for each component the sums that the M step needs.

    parts: (u, its features or None), some samples each. Sums are about zero or, for components that
    are computed apart, their means.
    """
    log_joint, log_p, sums = JointDensity(mixture), [], 0
    own = Sums(*(torch.zeros_like(values) for values in mixture), mixture.means)
    for u, features in parts:
        joint = log_joint(u, features)  # (n, K)
        largest = joint.amax(1, keepdim=True)
        ratios = joint.sub_(largest).exp_()  # p(u, k) beside the largest, (n, K)
        total = ratios.sum(1, keepdim=True)
        log_p.append((largest + total.log())[:, 0])
        responsibilities = ratios.div_(total)  # p(k|u)
        if features is not None:
            sums = sums + responsibilities.T @ features
        for k in log_joint.apart(features):
            own.add(k, responsibilities[:, k], u)
    if features is not None:
        sums = sums_of_features(sums, *mixture.means.shape[1:])
        for k in log_joint.narrow:
            for total, part in zip(sums, own, strict=True):
                total[k] = part[k]
        own = sums
    return torch.cat(log_p), own


def maximization_step(sums: Sums, mixture: Gaussians, regularize: Callable) -> Gaussians:
    """The M step: the mixture that maximises the expected log-likelihood, regularised.

    A component that holds less than a tenth of a sample keeps its shape.
    """
    counts = sums.counts.clamp(min=10 * torch.finfo(sums.counts.dtype).eps)
    shift = sums.first / counts[:, None, None]
    covariances = sums.second / counts[:, None, None, None]
    covariances.addcmul_(shift[..., None], shift[..., None, :], value=-1)
    means, covariances, dead = sums.origins + shift, regularize(covariances), counts <= 0.1
    means[dead], covariances[dead] = mixture.means[dead], mixture.covariances[dead]
    return Gaussians(counts / counts.sum(), means, covariances)


def split_widest(mixture: Gaussians, dead: int) -> Gaussians:
    """Give the component `dead` one half of the widest, which is cut across its longest axis.

    The two halves together keep the mean and the covariance of the whole.
    """
    values, axes = torch.linalg.eigh(mixture.covariances)  # (K, g, b) ascending, (K, g, b, b)
    widths = mixture.weights[:, None] * values[..., -1]  # (K, g)
    source, group = divmod(int(widths.argmax()), widths.shape[1])
    offset = 0.8 * values[source, group, -1].sqrt() * axes[source, group, :, -1]  # (b,)
    weights, means, covariances = (values.clone() for values in mixture)
    weights[[source, dead]] = mixture.weights[source] / 2
    means[dead] = means[source]
    means[source, group] += offset
    means[dead, group] -= offset
    covariances[source, group] -= torch.outer(offset, offset)
    covariances[dead] = covariances[source]
    return Gaussians(weights / weights.sum(), means, covariances)


def count_features(u: Tensor) -> int:
    """The most columns of quadratic_features(u)."""
    return 1 + u.shape[0] * (u.shape[2] + u.shape[2] * (u.shape[2] + 1) // 2)


def in_parts(
    u: Tensor, components: int, alike: bool = False
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """u (g, n, b) in parts, with their features, or without, where these cost more than they save.

    A sample has b^2 / 2 of them, which serve all components at once: few columns or many components
    pay for that. Features of a part fit the processor's cache (2 MiB).
    """
    if u.shape[2] <= max(1, min(MOST_COLUMNS, 3 * components)):
        for part in u.split(max(16, 2**18 // count_features(u)), dim=1):
            yield part, quadratic_features(part, alike)
    else:
        yield from ((part, None) for part in u.split(max(1024, 2**18 // u.shape[2]), dim=1))


def maximize_likelihood(
    u: Tensor,
    mixture: Gaussians,
    regularize: Callable[[Tensor], Tensor],
    tol: float,
    max_iter: int,
    alike: bool = False,
) -> tuple[Gaussians, list[float], bool]:
    """EM from `mixture`, until the mean of log p(u) rises by less than `tol`.

    u: (g, n, b). alike: `regularize` makes blocks so. Returns the mixture, the mean log-likelihood
    before each iteration, and whether it converged.
    """
    count, few = len(mixture.means), u.shape[1] * count_features(u) < MOST_KEPT
    kept = list(in_parts(u, count, alike)) if few else None
    lower_bounds, settled = [-math.inf], False
    while not settled and len(lower_bounds) <= max_iter:
        log_p, sums = expectation_step(kept or in_parts(u, count, alike), mixture)
        lower_bounds.append(float(log_p.mean()))
        mixture = maximization_step(sums, mixture, regularize)
        settled = abs(lower_bounds[-1] - lower_bounds[-2]) < tol
        if settled and sums.counts.min() < 0.1:  # a dead component: is there a better use for it?
            trial = split_widest(mixture, int(sums.counts.argmin()))
            for _ in range(10):
                log_p, sums = expectation_step(kept or in_parts(u, count, alike), trial)
                trial = maximization_step(sums, trial, regularize)
            if log_p.mean() > lower_bounds[-1] + tol:
                mixture, settled = trial, False
    return mixture, lower_bounds[1:], settled
