"""I of CASES: what the tests of peers ask (tensorflow-probability's, torchmetrics', torch's own)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

import helpers as h
from latent_digits.log_prob import value_and_gradient

pytestmark = pytest.mark.cases
X, SIGMA = torch.tensor([[1.2]], dtype=torch.float64), 0.5


def wave(z):
    """A decoder that is not linear: the posterior has several hills, and no closed form."""
    return 2 * torch.sin(2 * z) + 0.3 * z


@pytest.fixture(scope="module")
def truth():
    """log p(x) of X under `wave`, by quadrature."""

    def joint(z):
        x_hat = 2 * math.sin(2 * z) + 0.3 * z
        return math.exp(-0.5 * (z**2 + ((1.2 - x_hat) / SIGMA) ** 2)) / (2 * math.pi * SIGMA)

    return math.log(integrate.quad(joint, -9, 9, limit=500)[0])


def estimates(num_samples, repeats, logvar=0.0):
    """log p(x) of X, many times over: (repeats,)."""
    mu = torch.zeros(repeats, 1, dtype=torch.float64)
    q = mu, torch.full_like(mu, logvar)
    found = h.importance_log_prob(X.expand(repeats, 1), *q, wave, SIGMA, num_samples, h.make_generator(0))
    return found


@pytest.mark.parametrize("num_samples", [1, 3, 10])
def test_i3_exp_log_prob_is_unbiased_whatever_the_number_of_samples(truth, num_samples):
    weights = (estimates(num_samples, 100_000).log_prob - truth).exp()
    error = weights.std() / len(weights) ** 0.5
    assert abs(weights.mean() - 1) < 4 * error
    assert error < 0.02


def test_i3_the_bound_rises_with_the_number_of_samples(truth):
    means = [estimates(num_samples, 20_000).log_prob.mean().item() for num_samples in (1, 3, 10, 30, 100)]
    assert means == sorted(means)
    assert means[0] < truth - 0.5
    assert means[-1] == pytest.approx(truth, abs=0.05)


def test_i4_the_standard_error_covers_the_truth_for_a_wide_q_and_not_for_a_narrow_one(truth):
    """As LogProb says: the draws do not see where a narrow q has none."""
    covered = {}
    for name, logvar in (("wide", 0.5), ("narrow", -4.0)):
        found = estimates(1_000, 500, logvar)
        covered[name] = ((found.log_prob - truth).abs() < 1.96 * found.std_error).double().mean().item()
    assert covered["wide"] > 0.9
    assert covered["narrow"] < 0.6
    assert "too narrow" in h.importance_log_prob.__doc__


def test_i3_annealing_finds_the_constant_of_a_target_that_is_no_gaussian(truth):
    q = h.Posterior(torch.zeros(200, 1, dtype=torch.float64), torch.zeros(200, 1, dtype=torch.float64))
    settings = h.Annealing(chains=20, temperatures=60, step_size=0.1)
    likelihood = h.GaussianLikelihood(wave, SIGMA)
    found, accepted = h.annealed_log_prob(X.expand(200, 1), q, likelihood, settings, generator=h.make_generator(0))
    assert accepted > 0.8
    weights = (found.log_prob - truth).exp()
    assert abs(weights.mean() - 1) < 4 * weights.std() / len(weights) ** 0.5
    assert found.log_prob.mean().item() == pytest.approx(truth, abs=0.1)


def test_i3_a_hamiltonian_trajectory_can_be_walked_back():
    """Leapfrogs with the momentum turned round end where they began, and keep volumes: so the moves are reversible."""
    settings, b = h.Annealing(leapfrogs=7, step_size=0.13), 0.6

    def log_ratio(u):
        return h.log_weight(X.expand(len(u), 1), u, h.Posterior(torch.zeros_like(u), torch.zeros_like(u)), likelihood)

    def walk(u, momentum):
        value, gradient = value_and_gradient(log_ratio, u)
        for _ in range(settings.leapfrogs):
            momentum = momentum + 0.5 * settings.step_size * (b * gradient - u)
            u = u + settings.step_size * momentum
            value, gradient = value_and_gradient(log_ratio, u)
            momentum = momentum + 0.5 * settings.step_size * (b * gradient - u)
        return u, momentum, value

    likelihood = h.GaussianLikelihood(wave, SIGMA)
    generator = h.make_generator(0)
    u = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    state = (u, *value_and_gradient(log_ratio, u))
    drawn = h.make_generator(1)
    moved, accept = h.hamiltonian_move(log_ratio, state, b, settings, drawn)
    momentum = torch.randn(50, 1, generator=h.make_generator(1), dtype=torch.float64)
    end, at_end, value = walk(u, momentum)
    assert 0.3 < accept.double().mean() < 1
    torch.testing.assert_close(moved[0][accept], end[accept])  # the walk is that of the library
    torch.testing.assert_close(moved[0][~accept], u[~accept])
    torch.testing.assert_close(moved[1][accept], value[accept])
    back, turned, _ = walk(end, -at_end)
    torch.testing.assert_close(back, u, rtol=0, atol=1e-10)
    torch.testing.assert_close(turned, -momentum, rtol=0, atol=1e-10)


@given(st.integers(2, 6), st.integers(7, 12))
def test_i3_the_frechet_distance_of_sets_without_full_rank(n, d):
    """Fewer features than their number, and features that are multiples of one another."""
    generator = h.make_generator(n * d)
    a, b = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    shift = torch.randn(d, generator=generator, dtype=torch.float64)
    assert h.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert h.frechet_distance(a, a + shift) == pytest.approx(shift.square().sum().item(), rel=1e-6)
    assert h.frechet_distance(a, b) == pytest.approx(h.frechet_distance(b, a), rel=1e-6)
    line = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    direction = torch.nn.functional.normalize(shift, dim=0)  # in one direction it is that of two variances
    found = h.frechet_distance(line * direction, 3 * line * direction)
    mean, deviation = line.mean().item(), line.std().item()
    assert found == pytest.approx((2 * mean) ** 2 + (2 * deviation) ** 2, rel=1e-6)


def test_i3_the_gradients_are_those_of_finite_differences():
    generator = h.make_generator(0)
    x, x_hat = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    mu, logvar = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    posterior = h.Posterior(mu, logvar)

    def sample(mu, logvar):
        return h.reparameterize(mu, logvar, h.make_generator(1))

    def weight(u):
        return h.log_weight(x[:, :2], u, posterior, h.GaussianLikelihood(torch.sin, SIGMA))

    for function, arguments in (
        (lambda x_hat: h.gaussian_log_likelihood(x, x_hat, 0.4), [x_hat]),
        (lambda logits: h.bernoulli_log_likelihood(x, logits), [x_hat]),
        (h.kl_divergence, [mu, logvar]),
        (sample, [mu, logvar]),
        (weight, [mu]),
    ):
        assert torch.autograd.gradcheck(function, [part.clone().requires_grad_() for part in arguments])
