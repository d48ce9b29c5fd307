"""E of CASES: precisions, number types and modes of torch that users bring along."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

import helpers as h
from latent_digits.data import random_affine

pytestmark = pytest.mark.cases
CONFIG = h.VAEConfig(epochs=1, batch_size=50, snapshots=())
LATENT = h.LatentConfig(epochs=2, batch_size=50, snapshots=(), refining_steps=1)
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.fixture(scope="module")
def data():
    return h.load_data("digits", per_class=10, test_size=20)


@contextlib.contextmanager
def default_float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def in_float64(data):
    return data.map(lambda values: values.double() if values.is_floating_point() else values)


def small_vae(**options):
    return h.build(h.mlp_vae, 4, hidden=(16,), **{"seed": 0} | options).eval()


def train(data, **options):
    """The last validation loss of a small VAE."""
    seed = options.pop("seed", 0)
    return h.fit(small_vae(**options), h.vae_objective, data, CONFIG, seed=seed).history["validation_loss"].iloc[-1]


def search(x, vae, **options):
    return h.infer_latents(vae.decode, x, latent_size=4, steps=3, generator=h.make_generator(0), **options)


def annealed(x, vae, decode=None):
    mu = x.new_zeros(len(x), 4)
    settings = h.Annealing(chains=2, temperatures=3)
    likelihood = h.GaussianLikelihood(decode or vae.decode, 0.4)
    return h.annealed_log_prob(x, h.Posterior(mu, mu), likelihood, settings, generator=h.make_generator(0))[0].log_prob


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_e1_numbers_of_numpy_are_numbers(data, kind):
    assert train(data, seed=kind(3)) == train(data, seed=3)
    vae = small_vae(seed=kind(0))
    assert torch.equal(small_vae().encode(data.test_x).mu, vae.encode(data.test_x).mu)
    assert torch.equal(h.in_batches(vae.encode, data.test_x, batch_size=kind(7)).mu, vae.encode(data.test_x).mu)
    assert len(search(data.test_x, vae, batch_size=kind(7)).mu) == 20
    numbers = {"epochs": kind(1), "batch_size": kind(50), "learning_rate": np.float32(1e-3), "sigma": np.float64(0.4)}
    config = h.VAEConfig(**numbers, snapshots=(kind(1),))
    run = h.fit(small_vae(), h.vae_objective, data, config)
    assert list(run.snapshots) == [1]
    assert run.history.notna().all(axis=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_e2_images_in_float64_are_read_as_those_in_float32(data, dtype):
    exact = in_float64(data)
    assert train(exact, dtype=dtype) == pytest.approx(train(data, dtype=dtype), rel=1e-3)
    vae, classifier = small_vae(dtype=dtype), h.build(h.Classifier, seed=0, dtype=dtype).eval()
    assert torch.equal(vae.encode(exact.test_x).mu, vae.encode(data.test_x).mu)
    assert vae.decode(torch.zeros(2, 4, dtype=torch.float64)).dtype == torch.float32
    assert torch.equal(h.class_probabilities(classifier, exact.test_x), h.class_probabilities(classifier, data.test_x))


def test_e2_searches_in_float64_find_what_those_in_float32_do(data):
    vae, x = small_vae(), data.test_x
    start = h.Posterior(torch.zeros(20, 4), torch.zeros(20, 4))
    expected = h.infer_latents(vae.decode, x, start, steps=200, rate=0.1, generator=h.make_generator(0))
    for images, dtype in ((x.double(), torch.float64), (x, torch.float64), (x.double(), torch.float32)):
        begin = tuple(part.to(dtype) for part in start)
        found = h.infer_latents(vae.decode, images, begin, steps=200, rate=0.1, generator=h.make_generator(0))
        torch.testing.assert_close(found.mu.float(), expected.mu, atol=0.1, rtol=0.1)  # other noise
    codes = h.pca_posterior(data.train_x, 4)(data.train_x)
    for data_too in (data, in_float64(data)):
        bare = h.without_encoder(small_vae())
        run = h.fit_latents(bare, tuple(part.double() for part in codes), data_too, LATENT)
        assert run.mu.dtype == torch.float64
        assert run.mu.isfinite().all()


def test_e2_row_adam_in_float64_is_adam_to_its_last_digits():
    codes = torch.randn(3, 4, generator=h.make_generator(0), dtype=torch.float64)
    ours, theirs = codes.clone(), codes.clone().requires_grad_()
    row_adam, adam = h.RowAdam(ours), torch.optim.Adam([theirs], lr=0.01)
    for step in range(20):
        theirs.grad = torch.cos(theirs.detach() + step)
        row_adam.step(torch.arange(3), theirs.grad, 0.01)
        adam.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_e3_a_default_of_float64_changes_no_type(data):
    with default_float64():
        assert h.load_data("digits", per_class=10, test_size=20).train_x.dtype == torch.float32
        vae = small_vae()
        assert {weights.dtype for weights in vae.parameters()} == {torch.float32}
        for dtype in ("float32", "bfloat16"):
            assert np.isfinite(train(data, dtype=dtype))
        assert search(data.test_x, vae).mu.dtype == torch.float32
        assert annealed(data.test_x, vae).isfinite().all()
        codes = h.pca_posterior(data.train_x, 4)(data.train_x)
        assert h.fit_latents(h.without_encoder(vae), codes, data, LATENT).mu.dtype == torch.float32
        prior = h.fit_prior(*codes, 2)
        assert prior.sample(3).dtype == prior.component_means().dtype == torch.float32
        assert h.rasterize([[(0, 0), (5, 9)]]).dtype == h.prepare_digit(data.test_x[0, 0]).dtype == torch.float32
        assert h.draw_start(3, h.Settings()).mu.dtype == torch.float32


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_e4_gradients_are_found_in_every_mode(data, mode):
    vae = small_vae()
    codes = h.pca_posterior(data.train_x, 4)(data.train_x)
    expected = train(data), search(data.test_x, vae).mu, annealed(data.test_x, vae)
    expected_run = h.fit_latents(h.without_encoder(small_vae()), codes, data, LATENT)
    with mode():
        own = data.map(torch.clone)  # made in this mode, too
        assert train(own) == expected[0]
        assert torch.equal(search(own.test_x, vae).mu, expected[1])
        assert torch.equal(annealed(own.test_x, vae), expected[2])
        start = tuple(part.clone() for part in codes)
        run = h.fit_latents(h.without_encoder(small_vae()), start, own, LATENT)
        assert torch.equal(run.mu, expected_run.mu)


def without_gradient(vae):
    """Decoders through which none flows to z."""

    def under_no_grad(z):
        with torch.no_grad():
            return vae.decode(z)

    return {
        "in_batches": lambda z: h.in_batches(vae.decode, z),
        "no_grad": under_no_grad,
        "detached z": lambda z: vae.decode(z.detach()),
        "detached x_hat": lambda z: vae.decode(z).detach(),
        "constant": lambda z: torch.zeros(len(z), 1, 28, 28),
    }


@pytest.mark.parametrize("name", without_gradient(None))
def test_e5_a_decoder_without_a_gradient_is_refused_by_name(data, name):
    """The search would answer with the prior, as if no image had been seen."""
    vae = small_vae()
    decode = without_gradient(vae)[name]
    with pytest.raises(ValueError, match="decode must let gradients through to z"):
        h.infer_latents(decode, data.test_x, latent_size=4, steps=3)
    with pytest.raises(ValueError, match="likelihood must let gradients through to z"):
        annealed(data.test_x, vae, decode)


def test_e5_a_loss_without_a_gradient_is_refused(data):
    def detached(model, x, y, config, generator):
        return {name: term.detach() for name, term in h.vae_objective(model, x, y, config, generator).items()}

    with pytest.raises(ValueError, match="objective must return a loss with a gradient"):
        h.fit(small_vae(), detached, data, CONFIG)


@pytest.mark.parametrize("value", [torch.tensor(3), torch.tensor([3]), np.array(3), "3", None, 3.5])
def test_e6_what_is_no_number_is_refused_by_name(data, value):
    vae = small_vae()
    for name, call in {
        "seed": lambda: h.fit(vae, h.vae_objective, data, CONFIG, seed=value),
        "steps": lambda: h.infer_latents(vae.decode, data.test_x, latent_size=4, steps=value),
        "epochs": lambda: h.VAEConfig(epochs=value),
        "batch_size": lambda: h.in_batches(vae.encode, data.test_x, batch_size=value),
    }.items():
        with pytest.raises((ValueError, TypeError), match=name):
            call()


@pytest.mark.parametrize(("height", "width"), [(28, 28), (28, 84), (60, 20)])
def test_i2_angles_are_kept_in_images_that_are_not_square(height, width):
    """A bar through the middle is turned by the angle that was drawn, as torch's own rotation is in squares."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    bar = ((x.abs() < 1.5) & (y.abs() < 9)).float() if height >= width else ((y.abs() < 1.5) & (x.abs() < 9)).float()
    bars = bar.expand(16, 1, height, width)
    moved = random_affine(bars, h.make_generator(0), degrees=30, scale=0, shift=0)
    angle = torch.deg2rad(30 * (2 * torch.rand(16, generator=h.make_generator(0)) - 1))
    for image, expected in zip(moved[:, 0], angle, strict=True):
        weight = image / image.sum()
        xx, yy, xy = ((weight * a * b).sum() for a, b in ((x, x), (y, y), (x, y)))
        found = 0.5 * torch.atan2(2 * xy, xx - yy)  # the axis of largest variance
        found = found if width > height else (found + torch.pi / 2 + torch.pi / 2) % torch.pi - torch.pi / 2
        assert found.item() == pytest.approx(-expected.item(), abs=0.03)


def test_e2_a_network_in_float64_stays_exact(data):
    exact = small_vae().double()
    assert exact.encode(data.test_x).mu.dtype == torch.float64
    assert isinstance(exact, nn.Module)
