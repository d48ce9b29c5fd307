"""Metrics and figures' arithmetic."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import nn

import helpers as h
from latent_digits.figures import tile


class Reader(nn.Module):
    """A classifier whose answer is written in the first ten pixels."""

    def forward(self, x):
        return 5 * x.flatten(1)[:, :10]


class FeatureReader(nn.Module):
    """A classifier with the first ten pixels for features, and the features for logits."""

    features, head = Reader(), nn.Identity()


def images_of(digits):
    x = torch.zeros(len(digits), 1, 28, 28)
    x.flatten(1)[torch.arange(len(digits)), digits] = 1.0
    return x


@given(d=st.integers(1, 8), seed=st.integers(0, 100))
def test_frechet_distance_against_scipy(d, seed):
    generator = h.make_generator(seed)
    a = torch.randn(50, d, generator=generator) @ torch.randn(d, d, generator=generator)
    b = torch.randn(70, d, generator=generator) @ torch.randn(d, d, generator=generator) + 1
    cov_a, cov_b = np.cov(a.double().T).reshape(d, d), np.cov(b.double().T).reshape(d, d)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = (a.double().mean(0) - b.double().mean(0)).square().sum().item() + np.trace(cov_a + cov_b - 2 * root)
    assert h.frechet_distance(a, b) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert h.frechet_distance(b, a) == pytest.approx(h.frechet_distance(a, b), rel=1e-6, abs=1e-8)
    assert h.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_a_shift_and_a_scaling():
    a = torch.randn(1000, 3, generator=h.make_generator(0), dtype=torch.float64)
    assert h.frechet_distance(a, a + torch.tensor([3.0, 4.0, 0.0])) == pytest.approx(25)
    expected = sum((2 - 1) ** 2 * variance for variance in np.diag(np.cov(a.T)))
    assert h.frechet_distance(a, 2 * a) == pytest.approx(expected + a.mean(0).square().sum().item())


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((1, 2), (5, 2), r"len\(features_a\) must be a whole number of at least 2, got 1"),
        ((5, 2), (5, 3), "parameter 'features_b'"),
        ((5, 2), (1, 2), r"len\(features_b\) must be a whole number of at least 2, got 1"),
    ],
)
def test_frechet_distance_refuses_what_has_no_covariance(a, b, message):
    with pytest.raises((ValueError, TypeError), match=message):
        h.frechet_distance(torch.zeros(a), torch.zeros(b))


def test_class_consistency_and_share():
    x = images_of([0, 1, 2, 2, 9])
    assert h.class_consistency(FeatureReader(), x, torch.tensor([0, 1, 2, 3, 9])) == pytest.approx(0.8)
    probabilities = h.class_probabilities(FeatureReader(), x)
    share = h.class_share(probabilities)
    expected = torch.tensor([0.2, 0.2, 0.4, 0, 0, 0, 0, 0, 0, 0.2], dtype=torch.float64)
    torch.testing.assert_close(share, expected)
    torch.testing.assert_close(probabilities, (5 * x.flatten(1)[:, :10]).softmax(1))


def brute_precision_recall(a, b, k):
    """By the definition, point by point: the k-th nearest of the others, self left out."""

    def covered(points, by):
        radii = [np.sort([np.linalg.norm(p - q) for j, q in enumerate(by) if j != i])[k - 1] for i, p in enumerate(by)]
        return np.mean([any(np.linalg.norm(p - q) <= r for q, r in zip(by, radii, strict=True)) for p in points])

    return covered(a, b), covered(b, a)


@given(n=st.integers(5, 30), m=st.integers(5, 30), d=st.integers(1, 4), k=st.integers(1, 4), seed=st.integers(0, 100))
def test_precision_and_recall_against_the_definition(n, m, d, k, seed):
    generator = h.make_generator(seed)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    b = 0.7 * torch.randn(m, d, generator=generator, dtype=torch.float64) + 0.5
    assert h.precision_recall(a, b, k) == pytest.approx(brute_precision_recall(a.numpy(), b.numpy(), k))


def test_precision_and_recall_of_sets_that_are_known():
    generator = h.make_generator(0)
    modes = torch.randn(600, 8, generator=generator) + 100 * (torch.arange(600) % 2)[:, None]
    other = torch.randn(600, 8, generator=generator) + 100 * (torch.arange(600) % 2)[:, None]
    assert h.precision_recall(modes, modes) == (1, 1)
    assert h.precision_recall(modes, modes + 500) == (0, 0)
    precision, recall = h.precision_recall(modes, other)
    assert min(precision, recall) > 0.6
    one_of_two = h.precision_recall(modes[::2], other)
    assert one_of_two.precision == pytest.approx(h.precision_recall(modes[::2], other[::2]).precision, abs=0.01)
    assert one_of_two.recall == pytest.approx(recall / 2, abs=0.06)  # the other mode is missed
    doubled = h.precision_recall(torch.cat([modes[::2], other[::2] + 500]), modes)
    assert doubled == (0.5, 0.5)  # half are real, half of the real are there
    assert h.precision_recall(modes[:3] * 0, torch.randn(9, 8), k=2) != (1, 1)
    assert h.precision_recall(modes, other, k=5).precision > precision  # larger balls


def test_precision_and_recall_are_those_of_small_numbers_far_from_zero():
    a, b = (torch.randn(300, 4, generator=h.make_generator(seed)) for seed in (0, 1))
    assert h.precision_recall(a + 1000, b + 1000) == pytest.approx(h.precision_recall(a, b), abs=0.01)


def test_nearest_against_scikit_learn():
    generator = h.make_generator(0)
    x, others = torch.rand(450, 1, 4, 5, generator=generator), torch.rand(700, 1, 4, 5, generator=generator)
    found = h.nearest(x, others)
    expected = NearestNeighbors(n_neighbors=1).fit(others.flatten(1)).kneighbors(x.flatten(1))
    np.testing.assert_allclose(found.distance, expected[0][:, 0], rtol=1e-4)
    np.testing.assert_array_equal(found.index, expected[1][:, 0])
    copies = h.nearest(others[[5, 2, 2]] + 1e-3, others)
    assert copies.index.tolist() == [5, 2, 2]


def test_image_quality():
    x = images_of([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9])
    x[0] *= 0.1  # logits of 0.5 and 0: a hesitant answer
    features, probabilities = h.features_and_probabilities(FeatureReader(), x)
    assert torch.equal(features, 5 * x.flatten(1)[:, :10])
    torch.testing.assert_close(probabilities, features.softmax(1))
    quality = h.image_quality(features, probabilities, features)
    confidence = probabilities.max(1).values
    assert quality["Fréchet distance"] == pytest.approx(0, abs=1e-9)
    assert quality["confidence (%)"] == pytest.approx(100 * confidence.mean().item())
    assert confidence[0] < 0.16
    assert 0.9 < confidence[1:].min() < 1
    assert quality["low confidence (%)"] == pytest.approx(100 / 12)
    assert quality["rarest digit (%)"] == pytest.approx(100 / 12)
    assert quality["most frequent digit (%)"] == pytest.approx(300 / 12)
    shifted = h.image_quality(features, probabilities, features + 2)
    assert shifted["Fréchet distance"] == pytest.approx(40, rel=1e-6)


def test_sharpness_is_that_of_a_pixel_of_a_step_and_of_nothing():
    pixel = torch.zeros(1, 1, 5, 5)
    pixel[..., 2, 2] = 1  # seen by itself with -4, by its four neighbours with 1
    assert h.sharpness(pixel) == pytest.approx((16 + 4) / 9)
    ramp = torch.arange(25.0).view(1, 1, 5, 5) / 25
    assert h.sharpness(ramp) == pytest.approx(0, abs=1e-10)  # a slope is no edge
    images = torch.rand(3, 1, 28, 28, generator=h.make_generator(0))
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    assert h.sharpness(blurred) < 0.2 * h.sharpness(images)


def test_active_dimensions():
    generator = h.make_generator(0)
    mu = torch.randn(5000, 3, generator=generator) * torch.tensor([1.0, 0.05, 0.2]) + torch.tensor([0.0, 7.0, 0.0])
    assert h.active_dimensions(mu).tolist() == [True, False, True]


@given(n=st.integers(1, 25), batch_size=st.integers(1, 30))
def test_in_batches_is_the_function_itself(n, batch_size):
    x = torch.arange(3.0 * n).view(n, 3)
    assert torch.equal(h.in_batches(lambda b: 2 * b, x, batch_size=batch_size), 2 * x)
    first, second = h.in_batches(lambda b: (b, b.sum(1)), x, batch_size=batch_size)
    assert torch.equal(first, x)
    assert torch.equal(second, x.sum(1))


def test_in_batches_keeps_no_gradients():
    assert not h.in_batches(nn.Linear(3, 1), torch.ones(4, 3)).requires_grad


@given(n=st.integers(1, 12), columns=st.integers(1, 5))
def test_tile_puts_images_in_reading_order(n, columns):
    x = torch.arange(1.0, n + 1).view(n, 1, 1, 1).expand(n, 1, 4, 3) / 100
    picture = tile(x, columns)
    rows = -(-n // columns)
    assert picture.shape == (rows * 6 - 2, columns * 5 - 2)
    for i in range(n):
        row, column = divmod(i, columns)
        assert picture[row * 6, column * 5] == pytest.approx((i + 1) / 100)


def test_a_sheet_has_no_gaps():
    images = torch.rand(5, 1, 4, 3)
    sheet = tile(images, 2, gap=0)
    assert sheet.shape == (12, 6)
    assert (sheet[4:8, 3:6] == images[3, 0].numpy()).all()


def test_figures(data):
    figure = h.image_rows({"a": data.test_x[:4], "b": data.train_x[:4]}, columns="wxyz")
    assert [ax.get_ylabel() for ax in figure.axes] == ["a", "b"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list("wxyz")
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [3.0, 2.0], "validation_loss": [4.0, 3.0]})
    ax = plt.figure().add_subplot()
    h.plot_history(ax, history.set_index("epoch"), "loss", "loss (nats)", sign=-1)
    assert [list(line.get_ydata()) for line in ax.lines] == [[-3, -2], [-4, -3]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss (nats)")
    h.show_images(ax, data.test_x[:5], columns=2, title="five")
    assert ax.get_title() == "five"
    plt.close("all")
