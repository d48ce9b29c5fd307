"""What the classifier loses on photos of MNIST's digits, and where MNIST's own rule has them (CASES, kinds E and I)."""

import numpy as np
import pytest
import torch
from PIL import Image

import helpers as h

pytestmark = pytest.mark.cases


@pytest.fixture(scope="module")
def judged():
    """A thousand test images, their digits, and the classifier of notebook 01."""
    settings = h.Settings.from_environment()
    data = h.load_data(settings.source)
    if data.name != "mnist":
        pytest.skip("MNIST is not here")
    return data.test_x[:1000], data.test_y[:1000], h.fit_classifier(data, settings).model


def accuracy(classifier, x, y):
    return 100 * (h.class_probabilities(classifier, x).argmax(1) == y).float().mean().item()


def resized(image, side, how=Image.Resampling.BILINEAR):
    return np.array(Image.fromarray(image).resize((side, side), how))


def placed(image, rng):
    """At a random size of 14 to 56 pixels, anywhere on a larger background."""
    side = int(rng.integers(14, 57))
    field = np.zeros((100, 120), np.uint8)
    top, left = rng.integers(0, 100 - side), rng.integers(0, 120 - side)
    field[top : top + side, left : left + side] = resized(image, side)
    return field


def in_colour(image, rng):
    """Two colours that can be told apart, in uneven light."""
    ink, paper = rng.uniform(0, 1, (2, 3))
    while np.linalg.norm(ink - paper) < 0.4:
        ink, paper = rng.uniform(0, 1, (2, 3))
    share = placed(image, rng)[:, :, None] / 255
    light = np.linspace(0.7, 1, 120)[None, :, None]
    return (light * (share * ink + (1 - share) * paper) + rng.normal(0, 0.01, (100, 120, 3))).clip(0, 1)


PHOTOS = {
    "as it is": lambda image, rng: image,
    "inverted": lambda image, rng: 255 - image,
    "shifted": lambda image, rng: np.roll(image, rng.integers(-4, 5, 2), (0, 1)),
    **{f"{side} pixels": lambda image, rng, side=side: resized(image, side) for side in (14, 20, 28, 40, 56)},
    "14 pixels, coarse": lambda image, rng: resized(image, 14, Image.Resampling.NEAREST),
    "56 pixels, inverted": lambda image, rng: 255 - resized(image, 56, Image.Resampling.BICUBIC),
    "small on a large page": placed,
    "grey on grey": lambda image, rng: 0.8 - 0.4 * placed(image, rng) / 255,
    "in colour": in_colour,
}


@pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)
def test_e3_the_classifier_loses_at_most_two_points_on_photos(judged, photo):
    x, y, classifier = judged
    rng = np.random.default_rng(0)
    images = (x[:, 0].numpy() * 255).round().astype(np.uint8)
    read = torch.cat([h.prepare_digit(photo(image, rng)) for image in images])
    assert accuracy(classifier, read, y) >= accuracy(classifier, x, y) - 2


def test_i1_mnist_has_its_mass_at_pixel_14_to_half_a_pixel_and_so_has_a_photo(judged):
    x, axis = judged[0], torch.arange(28.0)
    photos = torch.cat([h.prepare_digit(image) for image in 1 - x[:200]])
    for images in (x, photos):
        mass = images[:, 0].sum((1, 2))
        for centre in (images[:, 0].sum(2) @ axis / mass, images[:, 0].sum(1) @ axis / mass):
            assert centre.mean() == pytest.approx(14, abs=0.08)
            assert (centre - 14).abs().max() < 0.53
