"""Likelihoods and KL against torch.distributions and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions, nn

import helpers as h
from latent_digits.densities import elbo_terms
from small import small_vae

shapes = st.sampled_from([(1, 1), (3, 5), (4, 1, 7, 6), (2, 784)])


@given(shape=shapes, sigma=st.floats(0.01, 10), seed=st.integers(0, 100))
def test_gaussian_log_likelihood(shape, sigma, seed):
    x, x_hat = torch.randn(2, *shape, generator=h.make_generator(seed), dtype=torch.float64)
    expected = distributions.Normal(x_hat, sigma).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(h.gaussian_log_likelihood(x, x_hat, sigma), expected)


def test_gaussian_ceiling_of_an_image_is_its_constant():
    x = torch.rand(3, 1, 28, 28)
    expected = torch.full((3,), -392 * math.log(2 * math.pi * 0.16))
    torch.testing.assert_close(h.gaussian_log_likelihood(x, x, 0.4), expected)
    assert expected[0].item() == pytest.approx(-2.08, abs=0.01)


@given(shape=shapes, seed=st.integers(0, 100))
def test_bernoulli_log_likelihood(shape, seed):
    generator = h.make_generator(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    x = (torch.rand(shape, generator=generator) < 0.5).double()
    expected = distributions.Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(h.bernoulli_log_likelihood(x, logits), expected)


def test_bernoulli_is_finite_where_the_decoder_saturates():
    x = torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(h.bernoulli_log_likelihood(x, torch.tensor([[200.0, -200.0]])), torch.tensor([-400.0]))


@given(shape=shapes, seed=st.integers(0, 100))
def test_kl_divergence(shape, seed):
    mu, logvar = 2 * torch.randn(2, *shape, generator=h.make_generator(seed), dtype=torch.float64)
    q = distributions.Normal(mu, torch.exp(0.5 * logvar))
    each = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(h.kl_per_dimension(mu, logvar), each)
    torch.testing.assert_close(h.kl_divergence(mu, logvar), each.flatten(1).sum(1))


@given(mu=st.floats(-1e3, 1e3), logvar=st.floats(-80, 80))
def test_kl_is_never_negative(mu, logvar):
    assert h.kl_divergence(torch.tensor([[mu]]), torch.tensor([[logvar]])).item() >= 0


def test_kl_is_zero_only_at_the_prior():
    zero = torch.zeros(1, 200)
    assert h.kl_divergence(zero, zero).item() == 0
    assert h.kl_divergence(zero, zero + 1e-4).item() == pytest.approx(200 * 2.5e-9, rel=1e-2)


def test_kl_per_dimension_shows_which_is_infinite():
    mu, logvar = torch.zeros(2, 3), torch.zeros(2, 3)
    logvar[1, 2] = -math.inf
    assert h.kl_per_dimension(mu, logvar).isinf().nonzero().tolist() == [[1, 2]]


def test_kl_matches_monte_carlo(generator):
    mu, logvar = torch.tensor([[0.7, -1.2]]), torch.tensor([[0.5, -1.0]])
    z = h.reparameterize(mu.repeat(200_000, 1), logvar.repeat(200_000, 1), generator)
    q = distributions.Normal(mu, torch.exp(0.5 * logvar))
    ratios = (q.log_prob(z) - distributions.Normal(0.0, 1.0).log_prob(z)).sum(1)
    error = ratios.std() / len(z) ** 0.5
    assert abs(ratios.mean() - h.kl_divergence(mu, logvar)) < 4 * error


def test_reparameterize_has_the_right_moments_and_gradients(generator):
    mu = torch.full((100_000, 2), 1.5, requires_grad=True)
    logvar = torch.full((100_000, 2), math.log(0.25), requires_grad=True)
    z = h.reparameterize(mu, logvar, generator)
    assert z.mean().item() == pytest.approx(1.5, abs=0.01)
    assert z.std().item() == pytest.approx(0.5, abs=0.01)
    z.sum().backward()
    assert torch.equal(mu.grad, torch.ones_like(mu))
    torch.testing.assert_close(logvar.grad, (z - mu).detach() / 2)  # dz / dlogvar = sigma eps / 2


def test_reparameterize_draws_in_the_format_of_mu():
    mu = torch.rand(3, 4, generator=h.make_generator(1), dtype=torch.float64)
    eps = torch.randn(3, 4, generator=h.make_generator(0), dtype=torch.float64)
    assert torch.equal(h.reparameterize(mu, 0 * mu, h.make_generator(0)), mu + eps)


def test_reparameterize_is_set_by_its_generator():
    mu = torch.zeros(3, 4)
    draws = [h.reparameterize(mu, mu, h.make_generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_vaes_objective_is_made_of_torchs_densities(likelihood):
    model = h.build(small_vae, seed=0).eval()
    x = torch.rand(7, 1, 28, 28, generator=h.make_generator(1))
    config = h.VAEConfig(likelihood=likelihood, sigma=0.3, beta=3.0)
    terms = h.vae_objective(model, x, None, config, h.make_generator(0))
    mu, logvar = model.encode(x)
    z = h.reparameterize(mu, logvar, h.make_generator(0))
    if likelihood == "gaussian":
        pixels = distributions.Normal(model.decode(z), 0.3).log_prob(x)
    else:  # of values between 0 and 1, too
        pixels = -nn.functional.binary_cross_entropy_with_logits(model.decode_logits(z), x, reduction="none")
    log_likelihood = pixels.sum((1, 2, 3))
    q, prior = distributions.Normal(mu, (0.5 * logvar).exp()), distributions.Normal(0.0, 1.0)
    kl = distributions.kl_divergence(q, prior).sum(1)
    expected = {"log_likelihood": log_likelihood, "kl_divergence": kl, "elbo": log_likelihood - kl}
    torch.testing.assert_close(terms, expected | {"loss": 3 * kl - log_likelihood})


def test_the_loss_is_the_negative_elbo_unless_the_kl_is_weighted():
    terms = elbo_terms(torch.tensor([-3.0]), torch.tensor([2.0]))
    assert {name: value.item() for name, value in terms.items()} == {
        "loss": 5.0,
        "elbo": -5.0,
        "log_likelihood": -3.0,
        "kl_divergence": 2.0,
    }


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: h.gaussian_log_likelihood(a, b, 1.0),
        h.bernoulli_log_likelihood,
        h.kl_divergence,
        h.reparameterize,
    ],
)
def test_a_result_that_is_not_finite_is_reported_with_its_argument(function, position):
    arguments = [torch.ones(2, 3), torch.ones(2, 3)]
    arguments[position][0, 1] = math.nan
    with pytest.raises((FloatingPointError, ValueError), match="must be finite, got 1 entries"):
        function(*arguments)


@pytest.mark.parametrize("sigma", [0, -0.4])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(ValueError, match=f"sigma must be a positive, finite number, got {sigma}"):
        h.gaussian_log_likelihood(torch.zeros(1, 2), torch.zeros(1, 2), sigma)


def test_pixels_outside_the_unit_interval():
    with pytest.raises(ValueError, match=r"x must be in \[0, 1\], got values from 0 to 255"):
        h.bernoulli_log_likelihood(torch.tensor([[0.0, 255.0]]), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda a, b: h.gaussian_log_likelihood(a, b, 1.0), "x_hat"),
        (h.bernoulli_log_likelihood, "logits"),
        (h.kl_divergence, "logvar"),
        (h.reparameterize, "logvar"),
    ],
)
def test_shapes_must_agree(call, name):
    with pytest.raises(TypeError, match=f"parameter '{name}'"):
        call(torch.zeros(2, 3), torch.zeros(2, 1))
