"""A few groups of a mixture's many components, found without a label.

Where components share images they are one thing in several pieces: their overlap is a graph, and
spectral clustering cuts it where it is thinnest.
"""

from collections.abc import Mapping
from numbers import Integral

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.stats import sem
from sklearn.cluster import SpectralClustering
from sklearn.metrics.cluster import contingency_matrix

from latent_digits.checks import require_whole


def fewest_components(held_out: Mapping[Integral, Float[np.ndarray, " n"]]) -> int:
    """The fewest components that are not clearly worse than the best: one standard error.

    held_out: the log-likelihood of each of n held-out points, by number of components. The standard
    error is that of the mean difference from the best (the one-standard-error rule: Breiman et al.
    1984, "Classification and Regression Trees", section 3.4.3). Raises ValueError for fewer than
    two points.
    """
    require_whole(2, **{"number of points": min(map(len, held_out.values()))})
    best = max(held_out.values(), key=np.mean)
    close = [k for k, values in held_out.items() if (gap := best - values).mean() <= sem(gap)]
    return min(close)


def component_overlap(responsibilities: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "K K"]:
    """How alike two components share images: the cosine of their responsibilities; 0 with itself.

    Raises ValueError for responsibilities that are no shares.
    """
    low, sums = responsibilities.min(), responsibilities.sum(1)
    if not (low >= 0 and np.allclose(sums, 1, atol=1e-6)):
        raise ValueError(
            "responsibilities must be at least 0 and sum to 1, got rows with sum "
            f"{sums.min():.3g} and entries down to {low:.3g}"
        )
    products = responsibilities.T @ responsibilities  # (K, K)
    lengths = np.sqrt(products.diagonal()).clip(1e-100)  # 0 of a component without an image
    overlap = products / np.outer(lengths, lengths)
    np.fill_diagonal(overlap, 0.0)
    return overlap


def cut_components(
    responsibilities: Float[np.ndarray, "n K"], groups: Integral, seed: Integral = 0
) -> Int[np.ndarray, " K"]:
    """The group, 0 to groups - 1, of each component: a normalised cut of their overlap.

    Spectral clustering (Ng, Jordan and Weiss 2002) of `component_overlap`. A component without an
    image is in group 0. seed: of its k-means. Raises ValueError for fewer components than groups,
    and for responsibilities that are no shares.
    """
    require_whole(groups, **{"number of components": responsibilities.shape[1]})
    group, used = np.zeros(responsibilities.shape[1], np.int64), responsibilities.any(0)
    cut = SpectralClustering(groups, affinity="precomputed", random_state=seed)
    # never 0: a graph in several pieces has no one cut
    overlap = component_overlap(responsibilities[:, used]).clip(min=1e-9)
    group[used] = cut.fit_predict(overlap)
    return group


def group_shares(
    responsibilities: Float[np.ndarray, "n K"], group: Int[np.ndarray, " K"]
) -> Float[np.ndarray, "n groups"]:
    """The share of each image that each group of components has: sums of responsibilities."""
    return responsibilities @ np.eye(group.max() + 1)[group]


def matched_accuracy(labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> float:
    """The share of images whose group stands for their digit, in the best one-to-one assignment.

    Of groups to digits, found on the same images, as is customary. In [0, 1].
    """
    counts = contingency_matrix(labels, groups)
    return counts[linear_sum_assignment(counts, maximize=True)].sum() / counts.sum()
