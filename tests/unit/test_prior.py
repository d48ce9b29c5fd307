"""The fitted prior in nats: in importance weights, and as a split of the KL divergence."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import helpers as h


def gaussian_prior(mean, variances, informative):
    """One Gaussian over the informative latents, as if it had been fitted."""
    mixture = h.GaussianMixture(1).fit(np.random.default_rng(0).normal(size=(50, len(mean))))
    mixture.means_, mixture.covariances_ = np.array([mean]), np.diag(variances)[None]
    return h.FittedPrior(mixture, torch.tensor(informative), h.make_generator(0))


MEAN, VARIANCES = [1.0, -0.5], [0.3, 2.0]
PRIOR = gaussian_prior(MEAN, VARIANCES, [True, False, True])


def test_log_ratio_is_that_of_two_densities():
    z = torch.randn(20, 3, generator=h.make_generator(1), dtype=torch.float64)
    used = z[:, [0, 2]].numpy()
    expected = multivariate_normal(MEAN, np.diag(VARIANCES)).logpdf(used) - multivariate_normal(np.zeros(2)).logpdf(
        used
    )
    assert np.allclose(PRIOR.log_ratio(z).numpy(), expected)


def test_log_ratio_refuses_what_wants_a_gradient():
    with pytest.raises(ValueError, match="z must not require a gradient"):
        PRIOR.log_ratio(torch.zeros(2, 3, requires_grad=True))


def linear_model(sigma=0.5):
    """x = W z + noise with orthogonal columns, z ~ PRIOR: 40 images, log p(x), and the exact posterior."""
    generator = h.make_generator(2)
    basis, _ = torch.linalg.qr(torch.randn(6, 3, generator=generator, dtype=torch.float64))
    lengths = torch.tensor([1.5, 0.8, 1.0], dtype=torch.float64)
    weights = basis * lengths
    mean = torch.tensor([MEAN[0], 0.0, MEAN[1]], dtype=torch.float64)
    variances = torch.tensor([VARIANCES[0], 1.0, VARIANCES[1]], dtype=torch.float64)
    z = mean + variances.sqrt() * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    x = z @ weights.T + sigma * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    marginal = multivariate_normal(
        (weights @ mean).numpy(), (weights * variances @ weights.T).numpy() + sigma**2 * np.eye(6)
    )
    precision = 1 / variances + lengths**2 / sigma**2
    mu = (x @ weights / sigma**2 + mean / variances) / precision
    posterior = h.Posterior(mu, (-precision.log()).expand(40, 3))
    return (
        x,
        torch.from_numpy(marginal.logpdf(x.numpy())),
        posterior,
        h.GaussianLikelihood(lambda z: z @ weights.T, sigma),
    )


def test_with_the_prior_one_draw_of_the_exact_posterior_gives_the_exact_value():
    x, truth, posterior, likelihood = linear_model()
    found = h.estimate_log_prob(x, posterior, h.WithPrior(likelihood, PRIOR), 1, h.make_generator(3)).log_prob
    assert torch.allclose(found, truth, atol=1e-6)


def test_with_the_prior_importance_sampling_comes_to_the_exact_value_from_a_wrong_q():
    x, truth, (mu, logvar), likelihood = linear_model()
    wrong = h.Posterior(mu + 0.2, logvar + 0.5)
    found = h.estimate_log_prob(x, wrong, h.WithPrior(likelihood, PRIOR), 20_000, h.make_generator(3))
    assert ((found.log_prob - truth).abs() < 5 * found.std_error).all()
    plain = h.importance_log_prob(x, *wrong, likelihood.decode, likelihood.sigma, 20_000, h.make_generator(3))
    assert (plain.log_prob - truth).abs().mean() > 0.1  # N(0, I) is another prior


def test_the_sigma_of_a_likelihood_with_a_prior_is_checked():
    x, _, posterior, likelihood = linear_model()
    with pytest.raises(ValueError, match="sigma must be a positive"):
        h.estimate_log_prob(x, posterior, h.WithPrior(likelihood._replace(sigma=0), PRIOR), 1, None)


def channel(noise, n=4_000, signal=2.0):
    """z = x + noise of this variance, two latents, x ~ N(0, signal): q(z|x) of n images."""
    mu = math.sqrt(signal) * torch.randn(n, 2, generator=h.make_generator(4))
    return mu, torch.full((n, 2), math.log(noise))


def within(values, expected, errors=4.5):
    """Whether the mean of values is the expected one, within so many standard errors."""
    return abs(values.mean() - expected) < errors * values.std() / len(values) ** 0.5


def test_prior_gap_on_a_gaussian_channel():
    total = 2.5
    density = gaussian_prior([0.0, 0.0], [total, total], [True, True])
    kl, gap, information = h.prior_gap(*channel(0.5, 20_000), density, h.make_generator(5))
    assert within(information, 2 * 0.5 * math.log(1 + 2.0 / 0.5))
    assert within(gap, 2 * 0.5 * (total - 1 - math.log(total)))
    assert torch.allclose(kl, gap + information)


def test_a_density_that_does_not_fit_gives_a_smaller_gap():
    right, wrong = (gaussian_prior([0.0, 0.0], [v, v], [True, True]) for v in (2.5, 1.2))
    gaps = [h.prior_gap(*channel(0.5), r, h.make_generator(5)).gap.mean() for r in (right, wrong)]
    assert gaps[1] < gaps[0] - 0.1


def test_index_information_on_a_gaussian_channel():
    found = h.index_information(*channel(2.0), h.make_generator(6))
    assert within(found, 2 * 0.5 * math.log(1 + 2.0 / 2.0))


def test_index_information_agrees_with_densities_that_are_summed_one_by_one():
    mu, logvar = channel(0.5, 30)
    logvar = logvar + 0.3 * torch.randn(30, 2, generator=h.make_generator(7))
    z = h.reparameterize(mu, logvar, h.make_generator(8))
    logs = torch.distributions.Normal(mu, (0.5 * logvar).exp()).log_prob(z[:, None]).sum(2)  # (z, image)
    expected = logs.diagonal() - (logs.logsumexp(1) - math.log(30))
    assert torch.allclose(h.index_information(mu, logvar, h.make_generator(8)).float(), expected, atol=1e-4)


def test_index_information_is_at_most_log_n():
    found = h.index_information(*channel(1e-8, 500), h.make_generator(6))
    assert torch.allclose(found, torch.full_like(found, math.log(500)))
