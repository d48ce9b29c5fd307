"""Numbers for images: what a classifier reads in them, and how far they are from real ones."""

import functools
from numbers import Integral, Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from latent_digits.batches import in_batches
from latent_digits.checks import (
    require_between,
    require_digits,
    require_finite,
    require_unit,
    require_whole,
)


@torch.no_grad()
def features_and_probabilities(
    classifier: nn.Module, x: Float[Tensor, "n 1 28 28"]
) -> tuple[Float[Tensor, "n features"], Float[Tensor, "n 10"]]:
    """Penultimate features and class probabilities, by a classifier in evaluation mode.

    Raises ValueError for what is not in [0, 1].
    """
    require_unit(x=x)
    features = in_batches(classifier.features, x)
    return features, classifier.head(features).softmax(1)


def class_probabilities(
    classifier: nn.Module, x: Float[Tensor, "n 1 28 28"]
) -> Float[Tensor, "n 10"]:
    """The classifier's probability of each digit."""
    return features_and_probabilities(classifier, x)[1]


def class_consistency(
    classifier: nn.Module, x_hat: Float[Tensor, "n 1 28 28"], labels: Int64[Tensor, " n"]
) -> float:
    """Share of reconstructions that are read as the digit they were made from, in [0, 1].

    Raises ValueError for what is not images in [0, 1] and their digits.
    """
    require_digits(labels=labels)
    return (class_probabilities(classifier, x_hat).argmax(1) == labels).float().mean().item()


def class_share(probabilities: Float[Tensor, "n 10"]) -> Float[Tensor, "10"]:
    """Share of images that are read as each digit; they sum to one.

    Raises ValueError for what is not class probabilities.
    """
    require_finite(probabilities=probabilities)
    sums = probabilities.sum(1)
    if probabilities.min() < 0 or (sums - 1).abs().max() > 1e-3:
        raise ValueError(
            "probabilities must be at least 0 and sum to 1, as a softmax does, got rows with sum "
            f"{sums.min():.3g} and entries down to {probabilities.min():.3g}"
        )
    return torch.bincount(probabilities.argmax(1).cpu(), minlength=10).double() / len(probabilities)


def sharpness(x: Float[Tensor, "batch 1 h w"]) -> float:
    """Mean squared Laplacian of the pixels: what blur takes away."""
    kernel = x.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    return F.conv2d(x, kernel[None, None]).square().mean().item()


def active_dimensions(mu: Float[Tensor, "n d"], threshold: Real = 0.01) -> Tensor:
    """Which latents move with the image: Var_x(E[z|x]) > threshold. Returns bool (d,).

    Burda et al. 2016, "Importance weighted autoencoders", section 5.2. Raises ValueError for fewer
    than two rows, entries that are not finite, and a negative threshold.
    """
    require_finite(mu=mu)
    require_whole(2, **{"len(mu)": len(mu)})
    require_between(0, threshold=threshold)
    return mu.var(0) > threshold


def frechet_distance(features_a: Float[Tensor, "n d"], features_b: Float[Tensor, "m d"]) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with covariances A and B: Heusel et al. 2017,
    equation 6, there on Inception features. Raises ValueError when a set has fewer than two rows,
    or an entry is not finite.
    """
    require_finite(features_a=features_a, features_b=features_b)
    rows = {"len(features_a)": len(features_a), "len(features_b)": len(features_b)}
    require_whole(2, **rows)
    a, b = features_a.cpu().double(), features_b.cpu().double()
    cov_a, cov_b = torch.atleast_2d(torch.cov(a.T)), torch.atleast_2d(torch.cov(b.T))  # (d, d)
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2), and the latter is symmetric
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    mean_gap = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(mean_gap + cov_a.trace() + cov_b.trace() - 2 * cross))


class PrecisionRecall(NamedTuple):
    """Two shares, each in [0, 1]."""

    precision: float  # of the images that could be real ones
    recall: float  # of the real ones that could be such images


def precision_recall(
    features: Float[Tensor, "n d"], real_features: Float[Tensor, "m d"], k: Integral = 3
) -> PrecisionRecall:
    """How many of the images lie among real ones (precision), and of real ones among them (recall).

    A set covers what is as near to one of its points as that point's k-th nearest other:
    Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative
    models", equations 1 and 2. Both shares depend on the sizes of the sets: compare equal ones
    only. Raises ValueError for entries that are not finite, k < 1, and sets of k rows or fewer.
    """
    require_finite(features=features, real_features=real_features)
    require_whole(k=k)
    rows = {"len(features)": len(features), "len(real_features)": len(real_features)}
    require_whole(k + 1, **rows)
    features, real_features = finest(features, real_features)
    shift = real_features.mean(0)  # small numbers lose fewest digits
    a, b = features - shift, real_features - shift
    return PrecisionRecall(covered(a, b, k), covered(b, a, k))


def covered(points: Float[Tensor, "n d"], by: Float[Tensor, "m d"], k: Integral) -> float:
    """Share of points that are as near to some row of `by` as that row's k-th nearest other."""
    # the nearest of all is the row itself
    radii = in_batches(lambda some: torch.cdist(some, by).kthvalue(k + 1).values, by)
    inside = in_batches(lambda some: (torch.cdist(some, by) <= radii).any(1), points)
    return inside.float().mean().item()


def finest(*tensors: Tensor) -> list[Tensor]:
    """These in the finest of their number formats, and at least in float32."""
    dtype = functools.reduce(torch.promote_types, [one.dtype for one in tensors], torch.float32)
    return [one.to(dtype) for one in tensors]


class Nearest(NamedTuple):
    """For each point the nearest of some others."""

    distance: Float[Tensor, " n"]  # Euclidean, in the points' unit
    index: Int64[Tensor, " n"]  # which one it is


def nearest(x: Float[Tensor, " n *event"], others: Float[Tensor, " m *event"]) -> Nearest:
    """For each x the nearest of the others, images or features. Of equally near ones, any.

    What is copied from training images is nearer to them than new images are: Meehan et al. 2020,
    "A non-parametric test to detect data-copying in generative models". Raises ValueError for
    entries that are not finite.
    """
    require_finite(x=x, others=others)
    x, others = finest(x.flatten(1), others.flatten(1))
    return Nearest(*in_batches(lambda some: tuple(torch.cdist(some, others).min(1)), x))


def image_quality(
    features: Float[Tensor, "n d"],
    probabilities: Float[Tensor, "n 10"],
    real_features: Float[Tensor, "m d"],
) -> dict[str, float]:
    """Images in numbers: distance to real ones, the classifier's confidence, shares of the digits.

    features and probabilities are those of the images, and real_features those of real ones, as
    `features_and_probabilities` has them. Low confidence: below 90 %. Raises ValueError for fewer
    than two images.
    """
    confidence, share = probabilities.max(1).values, class_share(probabilities)
    return {
        "Fréchet distance": frechet_distance(features, real_features),
        "confidence (%)": 100 * confidence.mean().item(),
        "low confidence (%)": 100 * (confidence < 0.9).float().mean().item(),
        "rarest digit (%)": 100 * share.min().item(),
        "most frequent digit (%)": 100 * share.max().item(),
    }
