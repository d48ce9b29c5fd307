"""Numbers for images: what a classifier reads in them, and how far they are from real ones."""

import torch
from torch import Tensor

from latent_digits.checks import (
    require_between,
    require_floats,
    require_images,
    require_labels,
    require_rows,
    require_whole,
)
from latent_digits.networks import Classifier
from latent_digits.training import in_batches


@torch.no_grad()
def judge(classifier: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """Penultimate features (n, feature_size) and class probabilities (n, 10), by a classifier in evaluation mode.

    Raises TypeError or ValueError for what is not images in [0, 1].
    """
    require_images(x=x)
    features = in_batches(classifier.features, x)
    return features, classifier.head(features).softmax(1)


def class_probabilities(classifier: Classifier, x: Tensor) -> Tensor:
    """The classifier's probability of each digit. (n, 1, 28, 28) -> (n, 10)."""
    return judge(classifier, x)[1]


def class_consistency(classifier: Classifier, x_hat: Tensor, labels: Tensor) -> float:
    """Share of reconstructions that the classifier reads as the digit they were made from, in [0, 1].

    Raises TypeError or ValueError for what is not images in [0, 1] and their labels.
    """
    require_labels(labels=labels)
    require_rows(len(x_hat), labels=labels)
    return (class_probabilities(classifier, x_hat).argmax(1) == labels).float().mean().item()


def class_share(probabilities: Tensor) -> Tensor:
    """Share of images that are read as each digit. Class probabilities (n, 10) -> (10,), sums to one.

    Raises TypeError or ValueError for what is not probabilities.
    """
    require_floats("n 10", probabilities=probabilities)
    if probabilities.min() < 0 or (probabilities.sum(1) - 1).abs().max() > 1e-3:
        raise ValueError(
            f"probabilities has rows that sum to {probabilities.sum(1).min():.3g} or entries below 0: "
            "give class probabilities, the softmax of logits"
        )
    return torch.bincount(probabilities.argmax(1).cpu(), minlength=10).double() / len(probabilities)


def active_dimensions(mu: Tensor, threshold: float = 0.01) -> Tensor:
    """Which latents move with the image: Var_x(E[z|x]) > threshold. mu (n, d) -> bool (d,).

    Burda et al. 2016, "Importance weighted autoencoders", section 5.2. Raises TypeError or ValueError for fewer than
    two rows, entries that are not finite, and a negative threshold.
    """
    require_floats("n d", mu=mu)
    require_whole(2, **{"len(mu)": len(mu)})
    require_between(0, threshold=threshold)
    return mu.var(0) > threshold


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features, (n, d) and (m, d).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with covariances A and B: Heusel et al. 2017,
    equation 6, there on Inception features. Raises TypeError or ValueError when d differs, a set has fewer than two
    rows, or an entry is not finite.
    """
    require_floats("n d", features_a=features_a, features_b=features_b)
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        if len(features) < 2 or features.shape[1] != features_a.shape[1]:
            raise ValueError(f"{name} has shape {tuple(features.shape)}: give both (n, d), n >= 2 and the same d")
    a, b = features_a.cpu().double(), features_b.cpu().double()
    cov_a, cov_b = torch.atleast_2d(torch.cov(a.T)), torch.atleast_2d(torch.cov(b.T))  # (d, d)
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2), and the latter is symmetric
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    mean_gap = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(mean_gap + cov_a.trace() + cov_b.trace() - 2 * cross))


def picture_quality(features: Tensor, probabilities: Tensor, real_features: Tensor) -> dict[str, float]:
    """Images in numbers: distance to real ones, the classifier's confidence, shares of the digits.

    features (n, feature_size) and probabilities (n, 10) are what `judge` says of the images, and real_features
    (m, feature_size) what it says of real ones. Doubtful: a confidence below 90 %. Raises ValueError for fewer than
    two images.
    """
    require_rows(len(features), probabilities=probabilities)
    confidence, share = probabilities.max(1).values, class_share(probabilities)
    return {
        "Fréchet distance": frechet_distance(features, real_features),
        "confidence (%)": 100 * confidence.mean().item(),
        "doubtful (%)": 100 * (confidence < 0.9).float().mean().item(),
        "rarest digit (%)": 100 * share.min().item(),
        "commonest digit (%)": 100 * share.max().item(),
    }
