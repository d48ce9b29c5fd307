"""Numbers at the edges: finite, and right beside the same in float64 or a closed form."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import helpers as h


def closed_form_kl(mu, logvar):
    """In Python's own floats: 0.5 (mu^2 + exp(logvar) - 1 - logvar)."""
    return 0.5 * (mu**2 + math.expm1(logvar) - logvar)


@example(0.0, 0.0078125)
@given(st.floats(-(2.0**50), 2.0**50, width=32), st.floats(-80, 80, width=32))
def test_kl_of_very_narrow_and_very_wide_posteriors(mu, logvar):
    found = h.kl_divergence(torch.tensor([[mu]]), torch.tensor([[logvar]])).item()
    # where logvar is small expm1(logvar) and logvar nearly cancel, and what is left is their rounding to 24 bits
    rounding = 2.0**-23 * abs(logvar)
    assert found == pytest.approx(closed_form_kl(mu, logvar), rel=1e-5, abs=1e-12 + rounding)


@given(st.floats(-80, 80, width=32), st.integers(0, 50))
def test_samples_of_very_narrow_and_very_wide_posteriors(logvar, seed):
    mu = torch.full((4, 3), 0.5)
    z = h.reparameterize(mu, torch.full((4, 3), logvar), h.make_generator(seed))
    eps = torch.randn(4, 3, generator=h.make_generator(seed)).double()
    torch.testing.assert_close(z.double(), 0.5 + math.exp(0.5 * logvar) * eps, rtol=1e-5, atol=1e-6)


@given(st.floats(-80, 60, width=32), st.floats(-5, 5, width=32), st.integers(0, 50))
def test_weights_of_very_narrow_and_very_wide_posteriors(logvar, mu, seed):
    """Where q is narrow z - mu is lost in rounding; the weight is not."""
    u = torch.randn(6, 4, generator=h.make_generator(seed))
    x = torch.rand(6, 5, generator=h.make_generator(seed))
    weights = []
    for kind in (torch.float32, torch.float64):
        q = torch.full((6, 4), mu, dtype=kind), torch.full((6, 4), logvar, dtype=kind)
        decode = lambda z: torch.sigmoid(z.sum(1, keepdim=True)).expand(-1, 5)  # noqa: E731
        likelihood = h.GaussianLikelihood(decode, 0.4)
        weights.append(h.log_weight(x.to(kind), u.to(kind), h.Posterior(*q), likelihood))
    torch.testing.assert_close(weights[0].double(), weights[1], rtol=2e-5, atol=2e-3)


@pytest.mark.parametrize("sigma", [0.01, 0.4, 10.0])
@pytest.mark.parametrize("event", [(1, 28, 28), (784,)])
def test_784_dimensions_far_from_the_data(sigma, event):
    x = (torch.rand(3, *event, generator=h.make_generator(0)) < 0.2).float()
    for x_hat in (1 - x, x, torch.full_like(x, 1e4), torch.full_like(x, -1e4)):
        exact = -0.5 * ((x.double() - x_hat.double()) ** 2).flatten(1).sum(1) / sigma**2
        exact -= 784 * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
        torch.testing.assert_close(h.gaussian_log_likelihood(x, x_hat, sigma).double(), exact, rtol=1e-6, atol=1e-3)


@given(st.sampled_from([20.0, 1e2, 1e4, 1e30]), st.integers(0, 20))
def test_decoders_that_saturate(size, seed):
    x = torch.rand(3, 1, 28, 28, generator=h.make_generator(seed))
    x[:, :, ::2] = x[:, :, ::2].round()
    logits = size * (2 * torch.rand(x.shape, generator=h.make_generator(seed + 1)) - 1).sign()
    found = h.bernoulli_log_likelihood(x, logits)
    # log sigmoid(l) is 0 or l where l is this large, but for exp(-|l|)
    wide, pixels = logits.double(), x.double()
    exact = pixels * wide.clamp(max=0) - (1 - pixels) * wide.clamp(min=0) - torch.log1p(torch.exp(-wide.abs()))
    torch.testing.assert_close(found.double(), exact.flatten(1).sum(1), rtol=1e-5, atol=1e-3)
    gaussian = h.gaussian_log_likelihood(x, torch.sigmoid(logits), 0.4)
    exact = torch.distributions.Normal(torch.sigmoid(wide), 0.4).log_prob(pixels).flatten(1).sum(1)
    torch.testing.assert_close(gaussian.double(), exact, rtol=1e-6, atol=1e-3)


def test_a_hundred_thousand_samples_in_bounded_memory():
    """In float32, against the closed form of a linear model and the same in float64."""
    generator, largest = h.make_generator(0), 0
    weights = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64) * 2
    covariance = weights @ weights.T + 0.49 * torch.eye(6)
    truth = torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(x)
    posterior = torch.linalg.inv(torch.eye(3) + weights.T @ weights / 0.49)
    mu = x @ weights @ posterior / 0.49
    logvar = (2 * posterior.diagonal()).log().expand_as(mu)  # too wide, and without the correlations

    def decode(z):
        nonlocal largest
        largest = max(largest, len(z))
        return z @ weights.T.to(z)

    found = {}
    for kind in (torch.float32, torch.float64):
        q = mu.to(kind), logvar.to(kind)
        found[kind] = h.importance_log_prob(x.to(kind), *q, decode, 0.7, 100_000, h.make_generator(1))
    for run in found.values():
        assert ((run.log_prob - truth).abs() < 4 * run.std_error).all()
        assert (run.std_error < 0.02).all()
        assert (run.ess > 1_000).all()
    assert largest <= 2_000


def test_weights_are_summed_in_float64():
    """A hundred thousand equal weights: their sum is exact only where it is not rounded to float32 on its way."""
    x, q = torch.zeros(1, 784), torch.zeros(1, 2)
    run = h.importance_log_prob(x, q, q, lambda z: torch.zeros(len(z), 784), 0.4, 100_000, h.make_generator(0))
    one = h.gaussian_log_likelihood(x, x, 0.4).double()
    torch.testing.assert_close(run.log_prob, one, rtol=0, atol=1e-6)
    torch.testing.assert_close(run.ess, torch.tensor([1e5]).double(), rtol=1e-9, atol=0)


def test_a_chain_that_strays_to_where_the_decoder_overflows_comes_back():
    """Far from zero the decoder is nan: moves that end there are refused, and the estimate is as without it."""
    generator = h.make_generator(0)
    x = torch.randn(5, 4, generator=generator)
    q = 0.5 * torch.ones(5, 2), torch.zeros(5, 2)

    def decode(z, limit=3.2):
        inside = (z.abs() < limit).all(1, keepdim=True)
        return torch.where(inside, z @ torch.ones(2, 4) / 2, math.nan)

    def anneal(decode):
        likelihood, settings = h.GaussianLikelihood(decode, 1.0), h.Annealing(chains=40, temperatures=30)
        return h.annealed_log_prob(x, h.Posterior(*q), likelihood, settings, generator=h.make_generator(1))

    run, rate = anneal(decode)
    whole, _ = anneal(lambda z: decode(z, math.inf))
    assert run.log_prob.isfinite().all()
    assert 0.5 < rate < 1
    torch.testing.assert_close(run.log_prob, whole.log_prob, rtol=0, atol=0.3)


# a loss that is not finite


class Broken(nn.Module):
    """Lets `good` training batches pass, and makes nan of all that follow."""

    def __init__(self, good):
        super().__init__()
        self.good, self.seen = good, 0

    def forward(self, x):
        self.seen += self.training
        return x * (math.nan if self.seen > self.good else 1)


@pytest.mark.parametrize(("good", "place"), [(0, "epoch 1, step 1"), (4, "epoch 1, step 5"), (11, "epoch 2, step 4")])
@pytest.mark.parametrize("kind", ["classifier", "VAE"])
def test_training_stops_where_the_loss_is_no_longer_finite(data, good, place, kind):
    """400 images in batches of 50: eight steps in an epoch."""
    if kind == "VAE":
        model, objective = h.build(h.mlp_vae, latent_size=4, hidden=(8,), seed=0), h.vae_objective
        model.encoder.insert(0, Broken(good))
        config = h.VAEConfig(epochs=3, batch_size=50)
    else:
        model, objective = h.build(h.Classifier, 2, 4, seed=0), h.classification_objective
        model.body.insert(0, Broken(good))
        config = h.TrainConfig(epochs=3, batch_size=50)
    with pytest.raises(
        FloatingPointError, match=rf"stopped at {place}: loss must be finite, got nan.*or lower learning_rate \(now 0.0"
    ):
        h.fit(model, objective, data, config)


def test_training_stops_where_its_last_step_ruined_the_weights(data):
    """No loss of a step tells: it is seen when the epoch is measured."""
    model = h.build(h.Classifier, 2, 4, seed=0)

    def ruin(model, x, y, config, generator):
        terms = h.classification_objective(model, x, y, config, generator)
        if model.training:
            ruin.steps += 1
            if ruin.steps == 8:  # finite, with a gradient that is not
                return terms | {"loss": terms["loss"] + (model.head.bias.sum() * 0).sqrt()}
        return terms

    ruin.steps = 0
    with pytest.raises(FloatingPointError, match=r"stopped at the end of epoch 1: train_loss must be finite, got nan"):
        h.fit(model, ruin, data, h.TrainConfig(epochs=2, batch_size=50))


def test_a_rate_that_is_far_too_high_is_named(data):
    model = h.build(h.mlp_vae, latent_size=4, hidden=(8,), seed=0)
    config = replace(h.VAEConfig(epochs=2, batch_size=50), learning_rate=1e30, one_cycle=False)
    with pytest.raises(
        FloatingPointError, match=r"stopped at epoch 1, step [23]: .*lower learning_rate \(now 1e\+30\)"
    ):
        h.fit(model, h.vae_objective, data, config)
