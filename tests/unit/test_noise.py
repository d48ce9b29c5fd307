"""The noise of the pixels: sigma in closed form against a search and autograd, grey values against counting."""

import math

import pytest
import torch
from torch import distributions

import helpers as h


def pictures(count=6, seed=1):
    return torch.rand(count, 1, 28, 28, generator=h.make_generator(seed))


def small_vae(seed=0):
    return h.build(h.mlp_vae, latent_size=3, hidden=(8,), seed=seed)


def test_no_other_sigma_gives_a_higher_likelihood():
    x, x_hat = pictures(seed=1).double(), pictures(seed=2).double()

    def likelihood(sigma):
        return distributions.Normal(x_hat, sigma).log_prob(x).sum().item()

    best = h.optimal_sigma(x, x_hat)
    assert best == pytest.approx((x - x_hat).square().mean().item() ** 0.5)
    assert likelihood(best) > max(likelihood(best * factor) for factor in (0.5, 0.99, 1.01, 2))


def test_optimal_sigma_finds_the_sigma_of_the_noise():
    x_hat = pictures(100)
    noise = torch.randn(x_hat.shape, generator=h.make_generator(3))
    assert h.optimal_sigma(x_hat + 0.07 * noise, x_hat) == pytest.approx(0.07, rel=0.02)


def gradient_of(loss, model):
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_no_gradient_is_missing_through_sigma():
    """Autograd through log of the mean squared error, in which sigma moves with the weights."""
    model, x, config = small_vae(), pictures(), h.VAEConfig()
    terms = h.sigma_vae_objective(model, x, None, config, h.make_generator(5))
    held = gradient_of(terms["loss"].mean(), model)

    mu, logvar = model.encode(x)
    x_hat = model.decode(h.reparameterize(mu, logvar, h.make_generator(5)))
    error = (x - x_hat).square().mean()
    log_likelihood = -392 * (error.log() + 1 + math.log(2 * math.pi))
    loss = h.kl_divergence(mu, logvar).mean() - log_likelihood
    torch.testing.assert_close(terms["loss"].mean(), loss)
    torch.testing.assert_close(held, gradient_of(loss, model), rtol=1e-4, atol=1e-4)


def test_the_terms_are_those_of_vae_objective_under_that_sigma():
    model, x = small_vae(), pictures()
    terms = h.sigma_vae_objective(model, x, None, h.VAEConfig(), h.make_generator(5))
    with torch.no_grad():
        x_hat = model.decode(h.reparameterize(*model.encode(x), h.make_generator(5)))
    config = h.VAEConfig(sigma=h.optimal_sigma(x, x_hat))
    expected = h.vae_objective(model, x, None, config, h.make_generator(5))
    assert set(terms) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(terms[name], values)


def test_it_trains_and_its_sigma_shrinks():
    y = torch.arange(40) % 10
    x = (y / 10).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()  # one number says all
    data = h.Data("mnist", x, y, x, y)
    model = h.build(h.mlp_vae, latent_size=3, hidden=(64,), seed=0)
    before = h.fitted_sigma(model, x, h.make_generator(0))
    config = h.VAEConfig(epochs=60, batch_size=8, learning_rate=5e-3, weight_decay=0.0, snapshots=())
    run = h.fit(model, h.sigma_vae_objective, data, config)
    after = h.fitted_sigma(run.model, x, h.make_generator(0))
    assert after < 0.5 * before
    assert run.history["train_elbo"].iloc[-1] > run.history["train_elbo"].iloc[0]


def test_the_fitted_sigma_is_the_best_for_the_elbo_of_all_images():
    model, x = small_vae(), pictures(450)  # more than one batch
    best = h.fitted_sigma(model, x, h.make_generator(0))

    def elbo(sigma):
        terms = h.evaluate(model, h.vae_objective, x, torch.zeros(450).long(), h.VAEConfig(sigma=sigma))
        return terms["elbo"].mean().item()

    assert elbo(best) > max(elbo(best * 0.95), elbo(best * 1.05))


def test_dequantized_values_keep_their_grey_level():
    levels = torch.arange(256).repeat(20)
    x = h.dequantize((levels / 255)[:, None], h.make_generator(0))
    assert (256 * x).floor().squeeze(1).int().equal(levels.int())
    assert x.min() >= 0
    assert x.max() < 1
    within = 256 * x.squeeze(1) - levels
    assert within.mean().item() == pytest.approx(0.5, abs=0.02)
    assert within.std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_the_fitted_sigma_is_that_of_samples_of_q():
    """Not of its means, whose error is smaller."""
    model, x = small_vae(), pictures()
    q = model.encode(x)
    sampled = model.decode(h.reparameterize(*q, h.make_generator(0)))
    found = h.fitted_sigma(model, x, h.make_generator(0))
    assert found == pytest.approx(h.optimal_sigma(x, sampled), rel=1e-6)
    assert found != pytest.approx(h.optimal_sigma(x, model.decode(q.mu)), rel=1e-5)
