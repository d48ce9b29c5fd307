"""E of CASES: precisions, number types and modes of torch that users bring along."""

import contextlib
from fractions import Fraction

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


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_e1_sizes_of_numpy_build_networks(data, kind):
    vae = h.build(h.conv_vae, seed=0, latent_size=kind(200), width=kind(8), hidden=kind(150))
    assert vae.reconstruct(data.test_x).shape == data.test_x.shape
    assert vae.encode(data.test_x).mu.shape[1] == 200  # and not 2 * 200 modulo 256
    mlp = h.build(h.mlp_vae, seed=0, latent_size=kind(200), hidden=(kind(250),))
    assert mlp.reconstruct(data.test_x).shape == data.test_x.shape
    assert h.build(h.Classifier, kind(100), kind(8), seed=0)(data.test_x).shape == (20, 10)


def test_e1_rates_and_widths_of_numpy_are_numbers(data):
    vae, x = small_vae(), data.test_x
    assert torch.equal(search(x, vae, rate=np.float32(0.25)).mu, search(x, vae, rate=0.25).mu)
    sigma = np.uint8(20)  # whose square is 144
    assert torch.equal(h.gaussian_log_likelihood(x, x / 2, sigma), h.gaussian_log_likelihood(x, x / 2, 20))
    assert torch.equal(h.pca_posterior(x, 4, sigma)(x).logvar, h.pca_posterior(x, 4, 20)(x).logvar)
    q = torch.randn(60, 4, generator=h.make_generator(0)), torch.full((60, 4), -2.0)
    assert torch.equal(h.fit_prior(*q, 2, seed=np.uint8(255)).sample(3), h.fit_prior(*q, 2, seed=255).sample(3))


def test_e1_a_fraction_is_refused_where_it_would_end_in_a_type_error():
    with pytest.raises(ValueError, match=r"sigma must be a positive, finite number, got Fraction\(2, 5\)"):
        h.VAEConfig(sigma=Fraction(2, 5))
    with pytest.raises(ValueError, match="beta must be a finite number"):
        h.VAEConfig(beta=Fraction(1, 2))


def test_e2_codes_too_coarse_for_small_steps_are_refused(data):
    for optimizer in (h.RowAdam, h.NaturalGradient):
        with pytest.raises(ValueError, match=r"codes must be float32 or float64, got torch\.bfloat16"):
            optimizer(torch.zeros(3, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"call \.float\(\) on the start, or on x"):
        search(data.test_x.bfloat16(), small_vae())


def test_e2_distances_are_taken_in_the_finer_of_two_precisions(data):
    x = data.test_x
    expected = h.nearest(x, data.train_x)
    for images, others in ((x.double(), data.train_x), (x, data.train_x.double())):
        found = h.nearest(images, others)
        assert found.distance.dtype == torch.float64
        torch.testing.assert_close(found.distance.float(), expected.distance, atol=1e-3, rtol=1e-3)
    assert h.nearest(x.bfloat16(), x.bfloat16()).distance.dtype == torch.float32
    features = x.flatten(1)
    assert h.precision_recall(features.double(), features) == h.precision_recall(features, features.double())


def test_e2_what_has_a_gradient_or_is_coarse_fits_a_prior():
    mu, logvar = torch.randn(60, 4, generator=h.make_generator(0)), torch.full((60, 4), -2.0)
    expected = h.fit_prior(mu, logvar, 2).sample(3)
    assert torch.equal(h.fit_prior(mu.clone().requires_grad_(), logvar, 2).sample(3), expected)
    assert h.fit_prior(mu.bfloat16(), logvar.bfloat16(), 2).sample(3).isfinite().all()


def test_e3_a_default_of_float64_draws_the_same_weights():
    expected = small_vae().state_dict()
    with default_float64():
        found = small_vae().state_dict()
        assert torch.get_default_dtype() == torch.float64
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


def test_e3_a_default_device_of_the_callers_own_changes_nothing(data):
    """On "meta", which computes nothing, whatever is made on the default device is noticed."""
    vae, codes = small_vae(), h.pca_posterior(data.train_x, 4)(data.train_x)
    settings = h.Settings()
    calls = {
        "data": lambda: h.load_data("digits", per_class=10, test_size=20).train_x,
        "training": lambda: h.fit(small_vae(), h.vae_objective, data, CONFIG).model.encode(data.test_x).mu,
        "search": lambda: search(data.test_x, vae).mu,
        "latents": lambda: h.fit_latents(h.without_encoder(small_vae()), codes, data, LATENT).mu,
        "annealing": lambda: annealed(data.test_x, vae),
        "importance": lambda: (
            h.estimate_log_prob(
                data.test_x, vae.encode(data.test_x), h.GaussianLikelihood(vae.decode, 0.4), 5, h.make_generator(0)
            ).log_prob
        ),
        "prior": lambda: h.fit_prior(*codes, 2).sample(3),
        "means": lambda: h.fit_prior(*codes, 2).component_means(),
        "start": lambda: h.draw_start(3, settings).mu,
        "strokes": lambda: h.rasterize([[(0, 0), (5, 9)]]),
        "photo": lambda: h.prepare_digit(data.test_x[0, 0]),
        "classes": lambda: h.class_probabilities(h.build(h.Classifier, seed=0).eval(), data.test_x),
        "nearest": lambda: h.nearest(data.test_x, data.train_x).distance,
    }
    for name, call in calls.items():
        expected = call()
        with default_device("meta"):
            found = call()
        assert torch.equal(found, expected), name


@pytest.mark.parametrize(
    ("name", "decode"),
    {
        "rounded": lambda z: small_vae().decode(z).round(),
        "compared": lambda z: (small_vae().decode(z) > 0.5).float() + 0 * z.sum(),
    }.items(),
)
def test_e5_a_decoder_whose_gradient_is_zero_is_refused(data, name, decode):
    """Every code would end at the prior."""
    with pytest.raises(ValueError, match="decode must let gradients through to z"):
        h.infer_latents(decode, data.test_x, latent_size=4, steps=3)


def test_e5_a_decoder_that_needs_no_latents_has_no_gradient_and_is_taken(data):
    found = h.infer_latents(lambda z: 0 * z.sum() + torch.ones(len(z), 1, 28, 28), data.test_x, latent_size=4, steps=3)
    assert torch.equal(found.mu, torch.zeros(20, 4))
    even = h.infer_latents(
        lambda z: (z**2).sum(1)[:, None, None, None].expand(-1, 1, 28, 28), data.test_x, latent_size=4
    )
    assert even.mu.isfinite().all()  # at zero, where it starts, the gradient is zero


@pytest.mark.parametrize(
    ("kind", "decode"),
    {"ndarray": lambda z: z.detach().numpy(), "tuple": lambda z: (z,), "NoneType": lambda z: None}.items(),
)
def test_e5_a_decoder_that_returns_no_tensor_is_refused(data, kind, decode):
    with pytest.raises(ValueError, match=f"decode must return a tensor, got a {kind}"):
        h.infer_latents(decode, data.test_x, latent_size=4, steps=3)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (lambda terms: terms["loss"], "a dict of terms with a 'loss', got a Tensor"),
        (lambda terms: {"elbo": terms["elbo"]}, r"a dict of terms with a 'loss', got \['elbo'\]"),
        (lambda terms: {"loss": terms["loss"].mean()}, r"one number for each image, \(50,\), got loss: torch.Size"),
        (lambda terms: terms | {"beta": 1.0}, r"one number for each image, \(50,\), got beta: float"),
    ],
)
def test_e6_an_objective_that_returns_something_else_is_refused(data, terms, said):
    with pytest.raises(ValueError, match=f"objective must return {said}"):
        h.fit(small_vae(), lambda *batch: terms(h.vae_objective(*batch)), data, CONFIG)


def test_e6_networks_devices_and_seeds_that_are_none_are_refused(data):
    with pytest.raises(ValueError, match="the network must have weights, got a Identity without"):
        h.fit(nn.Identity(), h.vae_objective, data, CONFIG)
    with pytest.raises(ValueError, match=r"factory must make a network.*got a Classifier that is made"):
        h.build(h.Classifier(), seed=0)
    with pytest.raises(ValueError, match="factory must make a network, got a dict"):
        h.build(dict, seed=0)
    for call in (lambda: h.build(h.mlp_vae, seed=0, device="gpu"), lambda: h.make_generator(0, "gpu")):
        with pytest.raises(ValueError, match="device must be one that is there, as cpu is, got 'gpu'"):
            call()
    for call in (lambda: small_vae(seed=2**64), lambda: h.make_generator(2**64)):
        with pytest.raises(ValueError, match=r"seed must be a whole number below 2\*\*64, got 18446744073709551616"):
            call()
    assert h.make_generator(2**64 - 1).initial_seed() == 2**64 - 1
    with pytest.raises(ValueError, match=r"len\(x\) must be a whole number of at least 1, got 0"):
        random_affine(data.test_x[:0], None)


@pytest.mark.parametrize("function", [lambda x: x.mean(), lambda x: x.numpy(), lambda x: x[:1], lambda x: 3])
def test_e6_a_function_of_batches_must_return_their_rows(data, function):
    with pytest.raises(ValueError, match="function must return tensors of 20 rows, got"):
        h.in_batches(function, data.test_x)


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
