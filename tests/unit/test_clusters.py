"""Groups of components against planted ones, and the best assignment against all there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import helpers as h
from latent_digits.clusters import component_overlap


def planted(sizes, images=400, leak=0.02, seed=0):
    """Responsibilities of components in groups of these sizes, and the group of each image and component.

    An image belongs to the components of one group in random shares, and to all others by `leak` in all.
    """
    rng = np.random.default_rng(seed)
    of_component = np.repeat(np.arange(len(sizes)), sizes)
    of_image = rng.integers(0, len(sizes), images)
    shares = rng.dirichlet(np.full(len(of_component), 0.3), images)
    own = shares * (of_component == of_image[:, None])
    return (1 - leak) * own / own.sum(1, keepdims=True) + leak * shares, of_image, of_component


def same_partition(first, second):
    return len(set(zip(first, second, strict=True))) == len(set(first)) == len(set(second))


@pytest.mark.parametrize("leak", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_are_found_whatever_their_sizes(seed, leak):
    """Where they share no image, too."""
    responsibilities, of_image, of_component = planted([2, 5, 9, 4], leak=leak, seed=seed)
    order = np.random.default_rng(seed).permutation(len(of_component))
    found = h.cut_components(responsibilities[:, order], 4)
    assert same_partition(found, of_component[order])
    answers = h.group_shares(responsibilities[:, order], found).argmax(1)
    assert h.matched_accuracy(of_image, answers) == 1


def test_overlap_is_the_cosine_of_responsibilities():
    responsibilities = np.array([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.2, 0.8, 0.0]])
    overlap = component_overlap(responsibilities)
    first, second, third, _ = responsibilities.T
    assert overlap[0, 1] == pytest.approx(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    assert overlap[1, 2] == pytest.approx(second @ third / np.linalg.norm(second) / np.linalg.norm(third))
    assert (overlap == overlap.T).all()
    assert (overlap.diagonal() == 0).all()
    assert (overlap[3] == 0).all()  # of a component without an image


def test_a_component_without_an_image_is_in_some_group():
    responsibilities, _, of_component = planted([3, 3])
    with_empty = np.concatenate([responsibilities, np.zeros((len(responsibilities), 1))], 1)
    found = h.cut_components(with_empty, 2)
    assert same_partition(found[:-1], of_component)


def test_shares_of_groups_are_sums():
    responsibilities = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    np.testing.assert_allclose(h.group_shares(responsibilities, np.array([1, 0, 1])), [[0.2, 0.8], [0.25, 0.75]])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_matched_accuracy_is_that_of_the_best_permutation(pairs):
    labels, groups = np.array(pairs).T
    best = max((np.array(names)[groups] == labels).mean() for names in itertools.permutations(range(4)))
    assert h.matched_accuracy(labels, groups) == pytest.approx(best)


@pytest.mark.parametrize("wrong", [np.full((3, 2), 0.6), np.array([[1.5, -0.5]]), np.full((3, 2), np.nan)])
def test_what_is_no_share_is_refused(wrong):
    with pytest.raises(ValueError, match="responsibilities must be at least 0 and sum to 1, got rows with sum"):
        h.cut_components(wrong, 2)


def test_more_groups_than_components_are_refused():
    with pytest.raises(ValueError, match="number of components must be a whole number of at least 5, got 4"):
        h.cut_components(np.full((3, 4), 0.25), 5)


def test_fewest_components_takes_what_is_within_one_standard_error_of_the_best():
    rng = np.random.default_rng(0)
    best = rng.normal(size=400)
    noise = rng.normal(size=400)
    noise = (noise - noise.mean()) / noise.std(ddof=1)  # a mean difference has a standard error of 0.05
    scores = {10: best - 0.2 + noise, 20: best - 0.04 + noise, 50: best, 100: best - 0.01 + noise}
    assert h.fewest_components(scores) == 20
    assert h.fewest_components(scores | {20: best - 0.06 + noise}) == 50
