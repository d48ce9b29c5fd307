"""The Gaussian mixture against scikit-learn's, closed forms and torch.distributions."""

import copy
import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.cluster import kmeans_plusplus
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import pairwise_distances_argmin
from sklearn.mixture import GaussianMixture as Peer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import distributions

import helpers as h
from latent_digits import em
from latent_digits import mixture as mixture_module
from latent_digits.em import (
    Gaussians,
    JointDensity,
    cholesky,
    count_features,
    in_parts,
    maximize_likelihood,
    split_widest,
    standardize,
)

TYPES = ("full", "diag", "spherical")


def blobs(seed=0, count=4, size=3, each=150, distance=3.0):
    """Samples (count * each, size) of `count` Gaussians, each with a covariance of its own."""
    rng = np.random.default_rng(seed)
    means = distance * rng.normal(size=(count, size))
    return np.concatenate([rng.normal(size=(each, size)) @ rng.normal(size=(size, size)) + mean for mean in means])


def own_start(covariance_type, means):
    """weights_init, means_init and precisions_init."""
    count, size = means.shape
    precision = {"full": np.eye(size), "diag": np.ones(size), "spherical": np.ones(())}[covariance_type]
    weights = np.arange(1, count + 1) / np.arange(1, count + 1).sum()
    return {"weights_init": weights, "means_init": means, "precisions_init": np.stack([precision] * count)}


def assert_same_mixture(ours, peer, x):
    for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(peer, name), rtol=1e-8, atol=1e-8, err_msg=name)
    for name in ("n_iter_", "converged_", "n_features_in_"):
        assert getattr(ours, name) == getattr(peer, name)
    assert ours.lower_bound_ == pytest.approx(peer.lower_bound_, rel=1e-8)
    for name in ("score_samples", "predict_proba", "predict", "score", "bic", "aic"):
        np.testing.assert_allclose(getattr(ours, name)(x), getattr(peer, name)(x), rtol=1e-8, atol=1e-8, err_msg=name)


@parametrize_with_checks(
    [
        h.GaussianMixture(),
        h.GaussianMixture(2, covariance_type="diag", init_params="k-means++"),
        h.GaussianMixture(2, covariance_type="spherical", init_params="random_from_data", max_iter=200),
    ]
)
def test_it_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("components", [1, 4, 7])
def test_with_nothing_but_a_seed_it_takes_scikit_learns_path(covariance_type, components):
    x = blobs()
    ours, peer = (
        kind(components, covariance_type=covariance_type, tol=1e-5, max_iter=300, random_state=3).fit(x)
        for kind in (h.GaussianMixture, Peer)
    )
    assert ours.n_iter_ > 1
    assert_same_mixture(ours, peer, x)


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_same_start_and_iterations_give_the_same_mixture(covariance_type):
    x = blobs(seed=1)
    start = own_start(covariance_type, x[[0, 200, 310, 590]])
    for iterations, reg in itertools.product((1, 2, 40), (0.0, 0.3)):
        settings = {"covariance_type": covariance_type, "max_iter": iterations, "tol": 0.0, "reg_covar": reg}
        assert_same_mixture(h.GaussianMixture(4, **settings, **start).fit(x), Peer(4, **settings, **start).fit(x), x)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_fitted_mixture_can_be_continued():
    x = blobs()
    whole = h.GaussianMixture(4, tol=0, max_iter=12, random_state=0).fit(x)
    half = h.GaussianMixture(4, tol=0, max_iter=5, random_state=0).fit(x)
    start = {"weights_init": half.weights_, "means_init": half.means_}
    start["precisions_init"] = np.linalg.inv(half.covariances_)
    rest = h.GaussianMixture(4, tol=0, max_iter=7, n_init=3, **start).fit(x)
    np.testing.assert_allclose(half.lower_bounds_ + rest.lower_bounds_, whole.lower_bounds_)
    np.testing.assert_allclose(rest.covariances_, whole.covariances_)


def test_part_of_a_start_may_be_given():
    x = blobs(seed=1)
    for name, value in own_start("full", x[[0, 200, 310, 590]]).items():
        start = {name: value, "random_state": 0}
        assert_same_mixture(h.GaussianMixture(4, **start).fit(x), Peer(4, **start).fit(x), x)


@given(st.integers(0, 10_000), st.sampled_from(TYPES), st.integers(1, 6), st.integers(1, 4))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_likelihood_never_falls(seed, covariance_type, components, size):
    x = blobs(seed, count=3, size=size, each=40, distance=1.5)
    settings = {"covariance_type": covariance_type, "tol": 0.0, "max_iter": 30, "reg_covar": 1e-9}
    mixture = h.GaussianMixture(components, init_params="k-means++", random_state=seed, **settings).fit(x)
    assert np.diff(mixture.lower_bounds_).min() > -1e-7
    assert mixture.lower_bounds_[-1] <= mixture.score(x) + 1e-7  # the last step is not in lower_bounds_
    np.testing.assert_allclose(mixture.predict_proba(x).sum(1), 1)
    assert mixture.weights_.sum() == pytest.approx(1)
    assert (mixture.weights_ > 0).all()


@given(st.integers(0, 10_000), st.sampled_from(TYPES))
def test_the_density_is_that_of_torch(seed, covariance_type):
    x = blobs(seed, each=30)
    mixture = h.GaussianMixture(3, covariance_type=covariance_type, max_iter=300, random_state=seed).fit(x)
    covariances = torch.from_numpy(mixture.covariances_)
    if covariance_type == "spherical":
        covariances = covariances[:, None].expand(-1, 3)
    if covariance_type != "full":
        covariances = torch.diag_embed(covariances)
    reference = distributions.MixtureSameFamily(
        distributions.Categorical(torch.from_numpy(mixture.weights_)),
        distributions.MultivariateNormal(torch.from_numpy(mixture.means_), covariances),
    )
    points = np.concatenate([x, 10 * x, x + 1e4])
    expected = reference.log_prob(torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(mixture.score_samples(points), expected, rtol=1e-9, atol=1e-6)
    assert mixture.score(x) == pytest.approx(expected[: len(x)].mean())


def test_one_component_is_the_mean_and_covariance_of_the_data():
    x = blobs(seed=2)
    mixture = h.GaussianMixture(reg_covar=0.25).fit(x)
    np.testing.assert_allclose(mixture.means_[0], x.mean(0))
    np.testing.assert_allclose(mixture.covariances_[0], np.cov(x.T, bias=True) + 0.25 * np.eye(3))
    assert mixture.weights_.tolist() == [1.0]


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("largest", [0, 13])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scale_and_distance_from_zero_cost_no_accuracy(rotated, largest):
    """The same data after an affine map to mean 1e6 and a covariance of condition 1e8: the same clustering."""
    x = np.round(blobs(size=4) * 2**16) / 2**16  # with these maps nothing is rounded off when y is stored
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    scales = 2.0 ** (largest + np.array([-13, -9, -4, 0]))
    rotation = hadamard if rotated else np.eye(4)
    y = x * scales @ rotation + 2**20
    np.testing.assert_array_equal((y - 2**20) @ rotation.T / scales, x)
    settings = {"reg_covar": 0.0, "tol": 0.0, "max_iter": 25}
    start, inverse = own_start("full", x[[0, 200, 310, 590]]), rotation.T / scales
    plain = h.GaussianMixture(4, **settings, **start).fit(x)
    start |= {"means_init": y[[0, 200, 310, 590]], "precisions_init": np.stack([inverse @ inverse.T] * 4)}
    mapped = h.GaussianMixture(4, **settings, **start).fit(y)
    log_volume = np.log(scales).sum()
    np.testing.assert_allclose(np.add(mapped.lower_bounds_, log_volume), plain.lower_bounds_, atol=1e-9)
    np.testing.assert_allclose(mapped.predict_proba(y), plain.predict_proba(x), atol=1e-6)
    # means_ at 1e6 are stored to 1e-10, which is 1e-6 of the smallest deviation
    np.testing.assert_allclose(mapped.score_samples(y) + log_volume, plain.score_samples(x), atol=3e-5)


@given(st.integers(-150, 145))
def test_the_unit_of_the_data_does_not_matter(exponent):
    x = blobs()
    plain, scaled = (h.GaussianMixture(4, reg_covar=0.0, random_state=0).fit(y) for y in (x, x * 10.0**exponent))
    assert scaled.lower_bound_ + 3 * exponent * math.log(10) == pytest.approx(plain.lower_bound_, abs=1e-9)
    np.testing.assert_allclose(scaled.predict_proba(x * 10.0**exponent), plain.predict_proba(x), atol=1e-9)


@given(st.tuples(*[st.integers(-45, 45)] * 3))
def test_columns_may_have_any_units(exponents):
    x, scales = blobs(), 10.0 ** np.array(exponents)
    start = own_start("full", x[[0, 200, 310, 590]])
    plain = h.GaussianMixture(4, reg_covar=0.0, **start).fit(x)
    start |= {"means_init": start["means_init"] * scales, "precisions_init": np.stack([np.diag(scales**-2)] * 4)}
    scaled = h.GaussianMixture(4, reg_covar=0.0, **start).fit(x * scales)
    assert scaled.lower_bound_ + np.log(scales).sum() == pytest.approx(plain.lower_bound_, abs=1e-9)
    np.testing.assert_allclose(scaled.predict_proba(x * scales), plain.predict_proba(x), atol=1e-9)


def with_dependent_column(scale):
    x = blobs(count=2) * scale
    return np.c_[x, x.sum(1)]


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_mixture_of_dependent_columns_can_be_used(scale):
    x = with_dependent_column(scale)
    mixture = h.GaussianMixture(2, random_state=0).fit(x)
    assert np.isfinite(mixture.score_samples(x)).all()
    assert mixture.sample(10)[0].shape == (10, 4)


@pytest.mark.parametrize("scale", [1e5, 1e6, 1e7])
def test_a_mixture_that_could_not_be_used_is_refused(scale):
    """The regularisation is lost beside such variances, in coordinates of their own or when these are left."""
    with pytest.raises(ValueError, match="got a singular one"):
        h.GaussianMixture(2, random_state=0).fit(with_dependent_column(scale))


@pytest.mark.filterwarnings("error")
def test_tables_float32_and_integers_are_taken():
    x = np.round(blobs() * 10).astype(int)
    reference = h.GaussianMixture(2, random_state=0).fit(x.astype(float))
    table = pd.DataFrame(x, columns=["a", "b", "c"])
    for kind in (x, x.astype(np.float32), torch.from_numpy(x), table):
        mixture = h.GaussianMixture(2, random_state=0).fit(kind)
        np.testing.assert_array_equal(mixture.means_, reference.means_)
        assert mixture.score_samples(kind).dtype == np.float64
    with pytest.raises(ValueError, match="feature names should match"):
        mixture.predict(table[["b", "a", "c"]])


def test_singular_components_cost_no_accuracy():
    """With fewer samples than dimensions, a component has only the regularisation in most directions."""
    x = np.random.default_rng(0).normal(size=(300, 15)) * 4
    ours, peer = (kind(60, random_state=0, max_iter=500).fit(x) for kind in (h.GaussianMixture, Peer))
    assert_same_mixture(ours, peer, x)


WIDE = {
    "a constant column": lambda rng: np.c_[rng.normal(size=(500, 64)), np.ones(500)],
    "64 columns": lambda rng: rng.normal(size=(500, 64)),
    "100 columns in parts": lambda rng: rng.normal(size=(4000, 100)),
    "pixels": lambda rng: load_digits().data,
}


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("case", WIDE)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_wide_data_and_constant_columns_take_scikit_learns_path(case, covariance_type):
    x = WIDE[case](np.random.default_rng(0))
    settings = {"covariance_type": covariance_type, "tol": 0.0, "max_iter": 5, "random_state": 0}
    ours, peer = (kind(4, **settings).fit(x) for kind in (h.GaussianMixture, Peer))
    np.testing.assert_allclose(ours.lower_bounds_, peer.lower_bounds_, rtol=1e-8)
    for name in ("weights_", "means_", "covariances_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(peer, name), rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(ours.score_samples(x), peer.score_samples(x), rtol=1e-6)


def test_features_are_left_out_where_they_cost_more_than_they_save():
    """The fit is the same with them and without."""
    for block, components, expected in ((1, 1, True), (12, 4, True), (13, 4, False), (48, 99, True), (49, 99, False)):
        (part, features), *_ = in_parts(torch.zeros(1, 20, block, dtype=torch.float64), components)
        assert part.shape == (1, 20, block)
        assert (features is not None) == expected
    u = torch.from_numpy(blobs())[None]
    mixture = h.GaussianMixture(4, max_iter=300).fit(blobs())._mixture()
    log_p, sums = h.expectation_step([(u, None)], mixture)
    together, about_zero = h.expectation_step([(u, h.quadratic_features(u))], mixture)
    torch.testing.assert_close(log_p, together)
    fitted, same = (h.maximization_step(kind, mixture, lambda c: c) for kind in (sums, about_zero))
    for ours, theirs in zip(fitted, same, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_for_blocks_that_are_alike_the_sums_of_squares_suffice():
    x = np.random.default_rng(0).normal(size=(300, 5)) * [1, 2, 3, 4, 5]
    mixture = h.GaussianMixture(3, covariance_type="spherical", random_state=0, max_iter=300).fit(x)
    u, mixture = mixture._blocks(x), mixture._mixture()
    (log_p, sums), (same, apart) = (
        h.expectation_step([(u, h.quadratic_features(u, alike))], mixture) for alike in (True, False)
    )
    assert h.quadratic_features(u, alike=True).shape == (300, 1 + 5 + 1)
    torch.testing.assert_close(log_p, same)
    torch.testing.assert_close(sums.first, apart.first)
    torch.testing.assert_close(sums.second, apart.second.mean(1, keepdim=True).expand_as(apart.second))


@pytest.mark.parametrize("keep", [2**27, 0])
def test_only_spherical_covariances_share_their_squares(monkeypatch, keep):
    seen, original = [], h.quadratic_features
    monkeypatch.setattr(em, "quadratic_features", lambda u, alike=False: seen.append(alike) or original(u, alike))
    for covariance_type in TYPES:
        seen.clear()
        h.GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(blobs())
        assert set(seen) == {covariance_type == "spherical"}
    u = torch.from_numpy(blobs(count=3, size=2)).T[:, :, None]  # (2, n, 1)
    means = torch.stack([u[:, 0], u[:, 0] + 1e4])  # the second component is dead
    start = Gaussians(torch.full((2,), 0.5).double(), means, torch.ones(2, 2, 1, 1).double())
    monkeypatch.setattr(em, "MOST_KEPT", keep)
    for options in ({}, {"alike": False}, {"alike": True}):
        seen.clear()
        maximize_likelihood(u, start, lambda c: 0 * c + c.mean(1, keepdim=True), 1e-3, 300, **options)
        assert set(seen) == {options.get("alike", False)}


def two_of(means, deviations, size):
    """A mixture of two Gaussians, each with one mean and one standard deviation in all of `size` dimensions."""
    means, variances = (torch.tensor(values, dtype=torch.float64) for values in (means, np.square(deviations)))
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    return Gaussians(
        weights, means.view(2, 1, 1).expand(-1, size, 1), variances.view(2, 1, 1, 1).expand(-1, size, 1, 1)
    )


@pytest.mark.parametrize(
    ("means", "deviations", "size", "narrow"),
    [
        ([1e5, 0.0], [1e-3, 1.0], 3, [0]),
        ([1e8, 1e8], [1e-3, 1e3], 3, [0, 1]),  # squares cancel to an error of a million
        ([1.0, 1e6], [1e-6, 1.0], 80, [0, 1]),  # one is denser than the other by over 1,000 nats
    ],
)
def test_components_are_narrow_for_their_own_samples_only(means, deviations, size, narrow):
    """Near them nothing cancels, and elsewhere they have no responsibility, whatever the error."""
    noise = np.random.default_rng(0).normal(size=(size, 2, 50, 1))
    u = torch.from_numpy(noise * np.reshape(deviations, (2, 1, 1)) + np.reshape(means, (2, 1, 1))).flatten(1, 2)
    mixture = two_of(means, deviations, size)
    assert JointDensity(mixture).narrow == narrow
    (together, sums), (alone, apart) = (h.expectation_step([(u, f)], mixture) for f in (h.quadratic_features(u), None))
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    fitted, same = (h.maximization_step(kind, mixture, lambda c: c) for kind in (sums, apart))
    for ours, theirs in zip(fitted, same, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_wide_blocks_are_taken_in_parts_of_two_mebibytes():
    parts = [part for part, _ in in_parts(torch.zeros(1, 6000, 64, dtype=torch.float64), 1)]
    assert [part.shape[1] for part in parts] == [4096, 1904]


@pytest.mark.parametrize("covariance_type", TYPES)
def test_arrays_may_lie_in_memory_in_any_way(covariance_type, tmp_path):
    x = blobs()
    np.memmap(tmp_path / "x", x.dtype, "w+", shape=x.shape)[:] = x
    reference = h.GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(x)
    mapped = np.memmap(tmp_path / "x", x.dtype, "r", shape=x.shape)
    for same in (np.asfortranarray(x), np.flip(np.flip(x, 1).copy(), 1), np.repeat(x, 2, axis=0)[::2], mapped):
        mixture = h.GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(same)
        np.testing.assert_array_equal(mixture.means_, reference.means_)
        np.testing.assert_array_equal(mixture.score_samples(same), reference.score_samples(x))
        np.testing.assert_array_equal(mixture.predict(same), reference.predict(x))
    for init_params in ("k-means++", "random_from_data"):
        h.GaussianMixture(2, init_params=init_params, covariance_type=covariance_type, max_iter=300).fit(mapped)


@pytest.mark.cases
@pytest.mark.parametrize("covariance_type", TYPES)
def test_h2_a_single_column_or_row_that_is_flipped_is_taken(covariance_type):
    """NumPy calls such arrays C-contiguous, and their strides are negative all the same."""
    x = blobs()[:, :1]
    mixture = h.GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(x)
    same = h.GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(np.flip(x, 1))
    np.testing.assert_array_equal(mixture.means_, same.means_)
    np.testing.assert_array_equal(mixture.predict(np.flip(x[:1], (0, 1))), mixture.predict(x[:1]))


@pytest.mark.cases
@pytest.mark.parametrize(("n_components", "published"), [(1, -829.978), (2, -574.018), (3, -580.839)])
def test_i2_the_fits_of_iris_that_mclust_publishes(n_components, published):
    """Twice the log-likelihood less the penalty, as mclust has it for its model VVV of 1, 2 and 3 components."""
    x = load_iris().data
    mixture = h.GaussianMixture(n_components, tol=1e-9, reg_covar=0, max_iter=5000, n_init=5, random_state=0).fit(x)
    assert -mixture.bic(x) == pytest.approx(published, abs=6e-4)


@pytest.mark.cases
def test_i2_it_works_within_a_pipeline_and_a_grid_search():
    x = np.random.default_rng(0).permutation(blobs())
    pipeline = make_pipeline(StandardScaler(), h.GaussianMixture(random_state=0))
    grid = {"gaussianmixture__n_components": [1, 2, 3], "gaussianmixture__covariance_type": ["full", "diag"]}
    peer = make_pipeline(StandardScaler(), Peer(random_state=0))
    ours, theirs = (GridSearchCV(kind, grid, cv=3).fit(x) for kind in (pipeline, peer))
    assert ours.best_params_ == theirs.best_params_
    assert ours.best_score_ == pytest.approx(theirs.best_score_, abs=1e-3)
    np.testing.assert_array_equal(ours.predict(x).shape, (len(x),))
    twin = copy.deepcopy(ours.best_estimator_)
    np.testing.assert_array_equal(twin.predict_proba(x), ours.best_estimator_.predict_proba(x))
    count = "gaussianmixture__n_components"
    assert clone(ours.best_estimator_).get_params()[count] == ours.best_params_[count]


def test_points_far_from_all_components_have_a_density():
    x = blobs()
    ours, peer = (kind(4, random_state=0).fit(x) for kind in (h.GaussianMixture, Peer))
    far = np.array([[1e4, 0, 0], [0, -1e8, 1e8]])
    np.testing.assert_allclose(ours.score_samples(far), peer.score_samples(far), rtol=1e-9)
    np.testing.assert_array_equal(ours.predict(far), peer.predict(far))


@pytest.mark.parametrize("distance", [1e5, 1e7, 1e9])
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_clusters_a_billion_deviations_apart_keep_their_shapes(distance, covariance_type):
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(2, 100, 3)) * [1.0, 2.0, 0.5]
    far = far + distance
    mixture = h.GaussianMixture(2, covariance_type=covariance_type, reg_covar=0.0, random_state=0)
    mixture.fit(np.concatenate([near, far]))
    expected = []
    for cluster in (near, far):  # the log-likelihood of a Gaussian at its own samples: minus its entropy
        covariance = np.cov(cluster.T, bias=True)
        covariance = covariance if covariance_type == "full" else np.diag(np.diag(covariance))
        expected.append(math.log(0.5) - 0.5 * np.linalg.slogdet(2 * math.pi * math.e * covariance)[1])
    assert mixture.lower_bound_ == pytest.approx(np.mean(expected), abs=1e-5)
    assert mixture.predict(np.stack([near[0], far[0]])).tolist() in ([0, 1], [1, 0])


def kept_and_anew(monkeypatch, *args):
    """maximize_likelihood with features that are kept between iterations, and with those that are computed anew."""
    found = []
    for most in (2**28, 0):
        monkeypatch.setattr(em, "MOST_KEPT", most)
        found.append(maximize_likelihood(*args))
    return found


def test_wide_data_go_through_in_parts(monkeypatch):
    """Where the features would not fit into memory they are computed anew in every iteration."""
    generator = h.make_generator(0)
    u = torch.randn(3, 9000, 2, generator=generator, dtype=torch.float64)
    start = Gaussians(torch.ones(2).double() / 2, u[:, :2].transpose(0, 1), torch.eye(2).expand(2, 3, 2, 2).double())
    kept, anew = kept_and_anew(monkeypatch, u, start, lambda covariances: covariances, 0.0, 5)
    assert kept[1] == anew[1]
    for ours, theirs in zip(kept[0], anew[0], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(torch.cat([features for _, features in in_parts(u, 99)]), h.quadratic_features(u))


def dead_start(x, components=3):
    """A start of which only the first component is near the data."""
    return own_start("full", np.concatenate([x[:1], x[:1] + 1e4 * np.arange(1, components)[:, None]]))


@pytest.mark.parametrize("covariance_type", TYPES)
def test_dead_components_are_used_where_that_raises_the_likelihood(covariance_type):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(n, 2)) + centre for n, centre in ((200, -8.0), (200, 8.0), (50, [8.0, -8.0]))])
    start = own_start(covariance_type, np.concatenate([x[:1], x[:2] + 1e4]))
    settings = {"covariance_type": covariance_type, "tol": 1e-4, "max_iter": 300}
    mixture = h.GaussianMixture(3, **settings, **start).fit(x)
    left_dead = Peer(3, **settings, **start).fit(x)
    assert np.sort(left_dead.weights_)[1] < 1e-10
    np.testing.assert_allclose(np.sort(mixture.weights_), [1 / 9, 4 / 9, 4 / 9], atol=1e-3)
    assert mixture.converged_
    assert np.diff(mixture.lower_bounds_).min() > -1e-9
    assert mixture.lower_bound_ > left_dead.lower_bound_ + 0.5


def test_a_dead_component_comes_back_in_parts_too(monkeypatch):
    u = torch.from_numpy(blobs(count=3, size=2))[None]
    means = torch.stack([u[:, 0], u[:, 0] + 1e4])
    start = Gaussians(torch.full((2,), 0.5).double(), means, torch.eye(2).double().expand(2, 1, 2, 2))
    kept, anew = kept_and_anew(monkeypatch, u, start, lambda c: c, 1e-3, 300)
    assert kept[0].weights.min() > 0.1
    assert kept[1] == anew[1]


def test_nineteen_dead_components_come_back():
    x = blobs(count=20, size=2, each=60, distance=20.0)
    mixture = h.GaussianMixture(20, max_iter=1000, **dead_start(x, 20)).fit(x)
    assert mixture.weights_.min() > 1e-3
    assert np.diff(mixture.lower_bounds_).min() > -1e-9
    assert mixture.lower_bound_ > h.GaussianMixture(20, random_state=0).fit(x).lower_bound_ - 0.3


def test_a_dead_component_stays_dead_where_half_a_component_would_not_be_likelier():
    x = np.random.default_rng(0).normal(size=(2000, 2))
    mixture = h.GaussianMixture(2, max_iter=300, **dead_start(x, 2)).fit(x)
    assert 0 < mixture.weights_[1] < 1e-10
    assert mixture.converged_
    np.testing.assert_allclose(mixture.covariances_[1], np.eye(2), atol=1e-12)  # as it was given, no spike
    np.testing.assert_allclose(mixture.means_[1], x[0] + 1e4)
    assert mixture.lower_bound_ == pytest.approx(Peer().fit(x).lower_bound_)


def test_the_halves_of_a_split_keep_mean_and_covariance():
    rng = np.random.default_rng(0)
    roots = torch.from_numpy(rng.normal(size=(3, 1, 2, 2)))
    mixture = Gaussians(torch.tensor([0.5, 0.5 - 1e-9, 1e-9]).double(), roots[:, :, 0], roots @ roots.mT)
    split = split_widest(mixture, 2)

    def moments(mixture):
        mean = torch.einsum("k,kgi->gi", mixture.weights, mixture.means)
        offset = mixture.means - mean
        spread = mixture.covariances + offset[..., :, None] * offset[..., None, :]
        return mean, torch.einsum("k,kgij->gij", mixture.weights, spread)

    for before, after in zip(moments(mixture), moments(split), strict=True):
        torch.testing.assert_close(after, before, atol=1e-7, rtol=0)
    assert (torch.linalg.eigvalsh(split.covariances) > 0).all()
    assert split.weights[2] > 0.2
    alive = split_widest(mixture._replace(weights=torch.tensor([0.5, 0.4, 0.1]).double()), 2)
    torch.testing.assert_close(alive.weights.sum(), torch.tensor(1.0).double())


DUPLICATES = np.repeat([[0.1, 1 / 3], [2.2, -1.7], [5.3, 5.9]], 10, axis=0)
SINGULAR = {
    "duplicates": (DUPLICATES, 3),
    "fewer distinct points than components": (DUPLICATES, 5),
    "a constant column": (np.c_[blobs(), np.full(600, 0.1)], 4),
    "a dependent column": (np.c_[blobs(), blobs().sum(1)], 4),
    "as many components as points": (blobs()[::100], 6),
    "all alike": (np.full((10, 2), 7.0), 2),
}


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("case", SINGULAR)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_singular_data_are_fitted_with_the_regularisation(case, covariance_type):
    x, components = SINGULAR[case]
    mixture = h.GaussianMixture(components, covariance_type=covariance_type, random_state=0).fit(x)
    peer = Peer(components, covariance_type=covariance_type, random_state=0).fit(x)
    assert np.isfinite(mixture.score_samples(x)).all()
    assert np.isfinite(mixture.score_samples(x + 1)).all()
    assert mixture.lower_bound_ >= peer.lower_bound_ - 1e-5
    assert mixture.sample(5)[0].shape == (5, x.shape[1])


@pytest.mark.parametrize("case", SINGULAR)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_singular_data_without_regularisation_are_refused_with_the_remedy(case):
    x, components = SINGULAR[case]
    message = (
        "^covariances must be positive definite, got a singular one, as a component's samples coincide or lie in a "
        "plane: raise reg_covar, lower n_components, or drop constant and dependent columns$"
    )
    with pytest.raises(ValueError, match=message):
        h.GaussianMixture(components, reg_covar=0.0, random_state=0).fit(x)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_samples_that_coincide_are_refused_without_regularisation(covariance_type):
    with pytest.raises(ValueError, match="got a singular one"):
        h.GaussianMixture(1, covariance_type=covariance_type, reg_covar=0.0).fit(np.full((10, 2), 7.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_components": 0}, "n_components must be a whole number of at least 1, got 0"),
        ({"n_components": 2.5}, "n_components must be a whole number of at least 1, got 2.5"),
        ({"warm_start": True}, "warm_start must be one of False, got True"),
        ({"verbose": 1}, "verbose must be one of False, got 1"),
        ({"max_iter": 0}, "max_iter must be a whole number of at least 1, got 0"),
        ({"n_init": -1}, "n_init must be a whole number of at least 1, got -1"),
        ({"tol": -1e-3}, "tol must be a finite number of at least 0, got -0.001"),
        ({"tol": "small"}, "tol must be a finite number of at least 0, got 'small'"),
        ({"reg_covar": math.nan}, "reg_covar must be a finite number of at least 0, got nan"),
        ({"reg_covar": math.inf}, "reg_covar must be a finite number of at least 0, got inf"),
        ({"covariance_type": "tied"}, "covariance_type must be one of 'full', 'diag', 'spherical', got 'tied'"),
        (
            {"init_params": "random"},
            "init_params must be one of 'kmeans', 'k-means.*', 'random_from_data', got 'random'",
        ),
        ({"n_components": 601}, "X must have at least n_components = 601 rows, got n_samples = 600"),
        ({"weights_init": [1.0]}, r"weights_init must be finite, of shape \(2,\), got shape \(1,\)"),
        ({"weights_init": [0.5, 0.6]}, "weights_init must be positive numbers whose sum is 1, got"),
        ({"weights_init": [1.0, 0.0]}, "weights_init must be positive numbers whose sum is 1, got"),
        ({"means_init": np.zeros((2, 2))}, r"means_init must be finite, of shape \(2, 3\), got shape \(2, 2\)"),
        ({"means_init": np.full((2, 3), math.nan)}, "means_init must be finite"),
        ({"precisions_init": np.ones(2)}, r"precisions_init must be finite, of shape \(2, 3, 3\), got shape \(2,\)"),
        (
            {"precisions_init": -np.stack([np.eye(3)] * 2)},
            "^precisions_init must be symmetric and positive definite, as inverses of covariances are, "
            "got a matrix that is not$",
        ),
        ({"precisions_init": np.stack([np.eye(3) + np.eye(3, k=1) / 2] * 2)}, "precisions_init must be symmetric"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        h.GaussianMixture(**({"n_components": 2} | settings)).fit(blobs())


def test_bad_data_are_refused():
    x, mixture = blobs(), h.GaussianMixture(2)
    with pytest.raises(NotFittedError, match="fit"):
        mixture.predict(x)
    with pytest.raises(NotFittedError, match="fit"):
        mixture.sample()
    with pytest.raises(ValueError, match="X contains NaN"):
        mixture.fit(np.where(x > 3, math.nan, x))
    with pytest.raises(ValueError, match="X contains infinity"):
        mixture.fit(np.where(x > 3, math.inf, x))
    with pytest.raises(ValueError, match=r"X must not overflow when squared, got entries up to 1\.\d+e\+201"):
        mixture.fit(x / np.abs(x).max() * 1.1e201)
    with pytest.raises(ValueError, match="1 sample"):
        mixture.fit(x[:1])
    with pytest.raises(ValueError, match="expecting 3 features"):
        mixture.fit(x).predict(x[:, :2])
    with pytest.raises(ValueError, match="n_samples must be a whole number of at least 1, got 0"):
        mixture.sample(0)


def test_it_says_when_it_has_not_settled():
    x = blobs()
    with pytest.warns(ConvergenceWarning, match="not settled to tol=1e-12 in max_iter=3 iterations: raise one of them"):
        mixture = h.GaussianMixture(4, tol=1e-12, max_iter=3, random_state=0).fit(x)
    assert (mixture.converged_, mixture.n_iter_, len(mixture.lower_bounds_)) == (False, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert h.GaussianMixture(4, random_state=0).fit(x).converged_


def test_of_several_runs_the_best_is_kept():
    x = blobs(count=8, each=40)
    settings = {"init_params": "random_from_data", "max_iter": 300}
    rng = np.random.RandomState(5)
    singles = [h.GaussianMixture(8, random_state=rng, **settings).fit(x).lower_bound_ for _ in range(5)]
    best = h.GaussianMixture(8, random_state=np.random.RandomState(5), n_init=5, **settings).fit(x)
    assert min(singles) < max(singles) - 0.01
    assert best.lower_bound_ == max(singles)
    assert best.lower_bound_ == best.lower_bounds_[-1]


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random_from_data"])
def test_every_start_finds_separate_clusters(init_params):
    x = np.concatenate([np.random.default_rng(k).normal(size=(100, 2)) + 40 * k for k in range(2)])
    mixture = h.GaussianMixture(2, init_params=init_params, random_state=0).fit(x)
    np.testing.assert_allclose(np.sort(mixture.means_[:, 0]), [x[:100, 0].mean(), x[100:, 0].mean()])
    assert len(set(mixture.fit_predict(x)[:100])) == 1


@pytest.mark.parametrize("init_params", ["k-means++", "random_from_data"])
def test_a_first_clustering_is_by_the_nearest_of_the_samples_drawn(init_params):
    x = blobs(count=5) + 100
    mixture = h.GaussianMixture(5, init_params=init_params)
    if init_params == "k-means++":
        _, chosen = kmeans_plusplus(x - x.mean(0), 5, random_state=np.random.RandomState(3))
    else:
        chosen = np.random.RandomState(3).choice(len(x), 5, replace=False)
    found = mixture._labels(x, np.random.RandomState(3))
    np.testing.assert_array_equal(found, pairwise_distances_argmin(x, x[chosen]))


def test_as_many_samples_as_components_are_each_drawn_once():
    x = np.random.default_rng(0).normal(size=(8, 2))
    for seed in range(5):
        labels = h.GaussianMixture(8, init_params="random_from_data")._labels(x, np.random.RandomState(seed))
        assert sorted(labels.tolist()) == list(range(8))


def test_a_start_is_made_of_the_moments_of_each_cluster():
    """In parts of the samples, too: 20,000 in ten dimensions are several."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 10)) @ rng.normal(size=(10, 10))
    labels = torch.from_numpy(rng.integers(0, 3, len(x)))
    mixture = h.GaussianMixture(3)
    assert len(list(in_parts(mixture._blocks(x), 99))) > 2
    start = mixture._start(labels, mixture._blocks(x), lambda covariances: covariances)
    for k in range(3):
        own = x[labels == k]
        np.testing.assert_allclose(start.weights[k], len(own) / len(x))
        np.testing.assert_allclose(start.means[k, 0], own.mean(0), atol=1e-10)
        np.testing.assert_allclose(start.covariances[k, 0], np.cov(own.T, bias=True), rtol=1e-9, atol=1e-9)


def test_coordinates_take_any_centre_and_variances_to_0_and_1():
    rng = np.random.default_rng(0)
    roots = torch.from_numpy(rng.normal(size=(3, 2, 4, 4)) * [1e-3, 1.0, 1e3, 1e6])  # columns of different units
    covariances = roots.mT @ roots  # (K, g, b, b)
    centre, variances = torch.from_numpy(rng.normal(size=(2, 1, 4))), covariances[0].diagonal(dim1=1, dim2=2)[:, None]
    coordinates = standardize(centre, variances)
    assert (coordinates.apply(centre) == 0).all()
    ones = torch.ones(2, 4).double()
    torch.testing.assert_close(coordinates.shrink(covariances)[0].diagonal(dim1=1, dim2=2), ones)
    torch.testing.assert_close(coordinates.log_volume(), 0.5 * variances.log().sum())
    mixture = Gaussians(torch.ones(3).double() / 3, torch.from_numpy(rng.normal(size=(3, 2, 4))), covariances)
    torch.testing.assert_close(coordinates.invert(coordinates.transform(mixture)), mixture)
    constant = standardize(centre, torch.zeros_like(variances))
    assert torch.equal(constant.scale, torch.ones_like(centre))


@pytest.mark.parametrize("covariance_type", TYPES)
def test_coordinates_have_zero_in_the_middle_of_each_column_and_variances_of_1(covariance_type):
    x = blobs() * [1.0, 10.0, 100.0] + 5
    mixture = h.GaussianMixture(covariance_type=covariance_type)
    u = mixture._coordinates(mixture._blocks(x)).apply(mixture._blocks(x))
    u = u.transpose(0, 1).flatten(1)  # (g, n, b) -> (n, d)
    assert (u == 0).any(0).all()
    assert (u.mean(0).abs() < 0.5).all()
    variances = u.var(0, correction=0)
    if covariance_type == "spherical":  # one unit for all: the variances are 1 in their mean
        torch.testing.assert_close(variances / variances[0], torch.from_numpy(x.var(0) / x.var(0)[0]))
        variances = variances.mean()
    torch.testing.assert_close(variances, torch.ones_like(variances))


@pytest.mark.parametrize("components", [1, 2, 3, 5])
@pytest.mark.parametrize("columns", [[1], [0, 2]])
@pytest.mark.parametrize("value", [-999_999, 1e8])
def test_h2_what_is_missing_may_be_coded_by_a_far_number(value, columns, components):
    """scikit-learn's results, where a component's width in one column is a trillionth of the data's."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) + 3 * rng.integers(0, 2, (500, 1))
    for column in columns:
        x[rng.random(500) < 0.3, column] = value
    ours = h.GaussianMixture(components, random_state=0).fit(x)
    theirs = Peer(components, random_state=0).fit(x)
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), atol=1e-6)


def test_h2_tensors_are_taken_as_arrays_are():
    x = torch.from_numpy(blobs())
    expected = h.GaussianMixture(2, random_state=0).fit(x.numpy()).score_samples(x.numpy())
    found = h.GaussianMixture(2, random_state=0).fit(x.clone().requires_grad_()).score_samples(x.requires_grad_())
    np.testing.assert_array_equal(found, expected)
    assert len(h.GaussianMixture(2, random_state=0).fit(x.bfloat16()).means_) == 2


def test_h2_so_far_away_that_squares_overflow_the_density_is_zero():
    mixture = h.GaussianMixture(2, random_state=0).fit(blobs())
    assert (mixture.score_samples(np.full((2, 3), 1e200)) == -np.inf).all()


def test_components_are_narrow_from_a_hundred_thousand_deviations_from_zero():
    """One at a time, whatever the unit, and whatever the others are."""
    deviations = torch.tensor([10.0, 1e-3, 1.0, 10.0, 1e-3]).double()
    means = torch.tensor([5e4, 5e4, 0.0, 2e5, 2e5]).double() * deviations
    shape = (5, 1, 1)
    mixture = Gaussians(torch.full((5,), 0.2).double(), means.view(shape), deviations.square().view(*shape, 1))
    assert JointDensity(mixture).narrow == [3, 4]
    two = Gaussians(mixture.weights, mixture.means.expand(5, 2, 1), mixture.covariances.expand(5, 2, 1, 1))
    assert JointDensity(two).narrow == [3, 4]  # twice the square of 5e4 is less than 1e10,
    covariances = torch.diag_embed(two.covariances[..., 0, 0])[:, None]  # (5, 1, 2, 2)
    joined = Gaussians(mixture.weights, mixture.means.expand(5, 1, 2), covariances)
    assert JointDensity(joined).narrow == [0, 1, 3, 4]  # 4 times is not: in a block there are products of columns


@given(groups=st.integers(1, 3), samples=st.integers(1, 40), block=st.integers(1, 48))
@example(groups=1, samples=40, block=4)
def test_features_come_in_parts_that_fit_the_cache(groups, samples, block):
    u = torch.randn(groups, 1000 * samples if block < 5 else samples, block, generator=h.make_generator(0)).double()
    parts = list(in_parts(u, 99))
    assert torch.equal(torch.cat([part for part, _ in parts], 1), u)
    for part, features in parts:
        assert torch.equal(features, h.quadratic_features(part))
        assert features.shape == (part.shape[1], count_features(u))
        assert features.numel() <= 2**18 or len(features) <= 16
    for _, features in parts[:-1]:  # and none is smaller than it must be
        assert features.numel() + features.shape[1] > 2**18


def test_features_are_kept_between_iterations_where_there_is_room(monkeypatch):
    u, computed, original = torch.from_numpy(blobs())[None], [], h.quadratic_features  # 600 samples, 10 features each
    monkeypatch.setattr(em, "quadratic_features", lambda *a: computed.append(1) or original(*a))
    start = Gaussians(torch.full((2,), 0.5).double(), u[0, :2, None], torch.eye(3).double().expand(2, 1, 3, 3))
    results = {}
    for keep, times in ((6001, 1), (6000, 7)):
        monkeypatch.setattr(em, "MOST_KEPT", keep)
        results[keep] = maximize_likelihood(u, start, lambda covariances: covariances, 0.0, 7)
        assert len(computed) == times
        computed.clear()
    assert results[6000][1] == results[6001][1]


def test_two_samples_are_enough():
    mixture = h.GaussianMixture(1, covariance_type="diag").fit([[0.0, 1.0], [2.0, 5.0]])
    np.testing.assert_allclose(mixture.covariances_, [[1.0, 4.0]], rtol=1e-5)


def test_without_a_tolerance_every_iteration_is_made():
    with pytest.warns(ConvergenceWarning):
        mixture = h.GaussianMixture(1, tol=0, max_iter=9).fit(blobs())
    assert mixture.lower_bounds_[-1] == pytest.approx(mixture.lower_bounds_[-2], abs=1e-12)
    assert mixture.n_iter_ == 9


def test_a_start_that_is_given_in_full_is_taken_once_and_as_it_is(monkeypatch):
    x, runs, original = blobs(), [], maximize_likelihood
    monkeypatch.setattr(mixture_module, "maximize_likelihood", lambda *a, **k: runs.append(a) or original(*a, **k))
    monkeypatch.setattr(h.GaussianMixture, "_labels", lambda *a: pytest.fail("it looked for a start of its own"))
    given = {"n_components": 2, "n_init": 3, "means_init": x[:2].round().astype(int)}
    # thirds, as exact as they were written; whole numbers are numbers, too
    given |= {"weights_init": [0.3333333, 0.6666666], "precisions_init": np.stack([3 * np.eye(3, dtype=int)] * 2)}
    whole = h.GaussianMixture(**given, max_iter=200).fit(x)
    assert len(runs) == 1
    given |= {"means_init": x[:2].round(), "precisions_init": np.stack([3 * np.eye(3)] * 2)}
    np.testing.assert_array_equal(whole.means_, h.GaussianMixture(**given, max_iter=200).fit(x).means_)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_precision_may_be_asymmetric_by_rounding_and_by_no_more(scale):
    def fit(upper, lower):
        precision = scale * np.array([[2.0, upper], [lower, 2.0]])
        return h.GaussianMixture(1, precisions_init=precision[None]).fit(blobs(size=2))

    fit(1.0, 1.000001)
    fit(0.0, 0.000001)
    for upper, lower in ((1.0, 1.000005), (0.5, 0.3), (0.0, 0.1)):
        with pytest.raises(ValueError, match=r"precisions_init must be symmetric"):
            fit(upper, lower)


def test_arrays_of_other_libraries_are_not_promised():
    assert not h.GaussianMixture(init_params="random_from_data").__sklearn_tags__().array_api_support


@pytest.mark.parametrize("entry", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("size", [1, 2])
def test_what_has_no_factors_is_refused(entry, size):
    matrices = torch.eye(size).double().repeat(3, 1, 1)
    torch.testing.assert_close(cholesky(4 * matrices), 2 * matrices)
    matrices[1, 0, 0] = entry
    with pytest.raises(ValueError, match="it is singular"):
        cholesky(matrices, "it is singular")


def test_one_sample_is_drawn_by_default():
    drawn, components = h.GaussianMixture(2, random_state=0).fit(blobs()).sample()
    assert (drawn.shape, components.shape) == ((1, 3), (1,))


@pytest.mark.parametrize("covariance_type", TYPES)
def test_samples_have_the_moments_of_the_mixture(covariance_type):
    x = blobs()
    mixture = h.GaussianMixture(4, covariance_type=covariance_type, random_state=0).fit(x)
    drawn, components = mixture.sample(100_000)
    assert (np.diff(components) >= 0).all()
    for k in range(4):
        own = drawn[components == k]
        assert len(own) / len(drawn) == pytest.approx(mixture.weights_[k], abs=0.01)
        np.testing.assert_allclose(own.mean(0), mixture.means_[k], atol=0.1)
        covariance = mixture.covariances_[k]
        if covariance_type != "full":
            covariance = np.diag(np.broadcast_to(covariance, 3))
        np.testing.assert_allclose(np.cov(own.T), covariance, atol=0.05 * covariance.max() + 0.02)


def test_a_seed_repeats_its_samples_and_a_random_state_goes_on():
    x = blobs()
    seeded = h.GaussianMixture(2, random_state=0).fit(x)
    np.testing.assert_array_equal(seeded.sample(5)[0], seeded.sample(5)[0])
    going_on = h.GaussianMixture(2, random_state=np.random.RandomState(0)).fit(x)
    assert not np.array_equal(going_on.sample(5)[0], going_on.sample(5)[0])
    first, second = (h.GaussianMixture(2, random_state=0).fit(x) for _ in range(2))
    np.testing.assert_array_equal(first.means_, second.means_)


def test_a_chosen_component_of_a_fitted_prior_is_sampled_alone():
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(900, 3, generator=generator) * torch.tensor([0.2, 0.3, 0.0])
    mu[:300, 0] += 4
    mu[300:600, 0] -= 4
    prior = h.fit_prior(mu, torch.tensor([-3.0, -3.0, 0.0]).expand(900, 3), 3, draws=2)
    means = prior.component_means()
    assert prior.informative.tolist() == [True, True, False]
    assert means.shape == (3, 3)
    assert (means[:, 2] == 0).all()
    right, left = int(means[:, 0].argmax()), int(means[:, 0].argmin())
    alone = prior.sample(2000, [right])
    torch.testing.assert_close(alone.mean(0), means[right], atol=0.1, rtol=0)
    assert alone[:, 2].std() == pytest.approx(1, abs=0.1)
    both = prior.sample(2000, [right, left])
    assert (both[:, 0].abs() > 2).all()
    share = float((both[:, 0] > 0).float().mean())
    assert share == pytest.approx(prior.mixture.weights_[right] / prior.mixture.weights_[[right, left]].sum(), abs=0.05)
    assert prior.mixture.means_.shape == (3, 2)  # the prior itself is as it was
    for wrong in ([], [3], [-1]):
        with pytest.raises(ValueError, match=r"components must be one or more from 0 to 2, got \["):
            prior.sample(5, wrong)


def test_a_fitted_prior_takes_at_least_one_draw():
    with pytest.raises(ValueError, match="draws must be a whole number of at least 1, got 0"):
        h.fit_prior(torch.zeros(5, 2), torch.zeros(5, 2), 1, draws=0)


def test_more_draws_fit_a_prior_closer_to_the_aggregate_posterior():
    generator = torch.Generator().manual_seed(0)
    mu, logvar = 2 * torch.randn(60, 2, generator=generator), torch.zeros(60, 2)
    covariance = torch.cov(mu.T, correction=0) + torch.eye(2)
    gaps = [
        np.abs(h.fit_prior(mu, logvar, 1, draws=draws).mixture.covariances_[0] - covariance.numpy()).max()
        for draws in (1, 200)
    ]
    assert gaps[1] < 0.3 * gaps[0]
