"""Latent optimization: codes, their optimizers, inference with a fixed decoder."""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import distributions, nn

import helpers as h
from latent_digits import latents
from latent_digits.networks import VAE
from latent_digits.training import copy_weights
from small import small_decoder

TINY = h.LatentConfig(epochs=6, batch_size=50, snapshots=(1, 6), refining_steps=5)


def pca_start(data, latent_size=4):
    return h.pca_posterior(data.train_x, latent_size)(data.train_x)


def fit_small(data, config=TINY, start=None, model=None, **options):
    return h.fit_latents(model or small_decoder(), start or pca_start(data), data, config, **options)


@pytest.fixture(scope="module")
def linear():
    """A linear decoder (3 latents, 6 pixels), images, and the exact posterior: mean (n, 3) and covariance (3, 3)."""
    generator = torch.Generator().manual_seed(1)
    weights, sigma = torch.randn(6, 3, generator=generator), 0.7
    x = torch.randn(40, 6, generator=generator)
    covariance = torch.linalg.inv(torch.eye(3) + weights.T @ weights / sigma**2)
    mean = x @ weights @ covariance / sigma**2  # (40, 3)
    return weights, sigma, x, mean, covariance


def best_factorised(mean, covariance):
    """The factorised Gaussian with the largest elbo for a Gaussian posterior: Bishop 2006, section 10.1.2."""
    return mean, -torch.linalg.inv(covariance).diagonal().log().expand_as(mean)


def test_infer_latents_finds_the_best_factorised_posterior(linear):
    weights, sigma, x, mean, covariance = linear
    mu, logvar = h.infer_latents(
        lambda z: z @ weights.T, x, latent_size=3, sigma=sigma, steps=2000, rate=0.1, generator=h.make_generator(0)
    )
    best_mu, best_logvar = best_factorised(mean, covariance)
    torch.testing.assert_close(mu, best_mu, atol=0.02, rtol=0)
    torch.testing.assert_close(logvar.mean(0), best_logvar[0], atol=0.05, rtol=0)
    assert logvar.std(0).max() < 0.15  # what is left of the noise


@pytest.mark.parametrize(("pixels", "latents", "scale"), [(6, 3, 1.0), (784, 50, 0.1), (1, 1, 10.0), (10, 2, 0.1)])
def test_infer_latents_does_not_diverge_where_curvature_is_high(pixels, latents, scale):
    """From the prior, with the defaults: precisions here go from 2 to several hundred."""
    generator, sigma = h.make_generator(2), 0.4
    weights = scale * torch.randn(pixels, latents, generator=generator)
    z = torch.randn(100, latents, generator=generator)
    x = z @ weights.T + sigma * torch.randn(100, pixels, generator=generator)
    covariance = torch.linalg.inv(torch.eye(latents) + weights.T @ weights / sigma**2)
    best = best_factorised(x @ weights @ covariance / sigma**2, covariance)
    found = h.infer_latents(lambda z: z @ weights.T, x, latent_size=latents, generator=h.make_generator(0))
    elbo, largest = (h.latent_elbo(lambda z: z @ weights.T, x, *q, sigma)["elbo"].mean().item() for q in (found, best))
    assert elbo == pytest.approx(largest, abs=0.5)


def test_latent_elbo_is_the_closed_form_for_a_linear_decoder(linear):
    weights, sigma, x, mean, covariance = linear
    mu, logvar = best_factorised(mean, covariance)
    terms = [h.latent_elbo(lambda z: z @ weights.T, x, mu, logvar, sigma, seed=seed) for seed in range(2000)]
    assert torch.equal(h.latent_elbo(lambda z: z @ weights.T, x, mu, logvar, sigma)["elbo"], terms[0]["elbo"])
    codes = torch.cat([mu, logvar], 1)
    pair = h.latent_terms(
        h.GaussianLikelihood(lambda z: z @ weights.T, sigma), x, codes, h.make_generator(0), antithetic=True
    )
    torch.testing.assert_close(terms[0]["elbo"], pair["elbo"], atol=0.2, rtol=0)  # bfloat16 where it is fast
    estimate = torch.stack([t["elbo"] for t in terms]).mean(0)
    spread = ((weights.square() @ logvar.exp().T).sum(0)) / (2 * sigma**2)  # tr(W diag(var) W') / 2 sigma^2
    expected = distributions.Normal(mu @ weights.T, sigma).log_prob(x).sum(1) - spread
    q = distributions.Normal(mu, (0.5 * logvar).exp())
    expected = expected - distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(estimate, expected, atol=0.1, rtol=0)
    evidence = distributions.MultivariateNormal(torch.zeros(6), weights @ weights.T + sigma**2 * torch.eye(6))
    assert (expected < evidence.log_prob(x)).all()  # a factorised q leaves the posterior's correlations out


def test_antithetic_samples_cancel_what_is_odd(linear):
    """For a linear decoder the gradient with respect to mu has no noise at all."""
    weights, sigma, x, _, _ = linear
    codes = torch.cat([torch.zeros(40, 3), torch.full((40, 3), -1.0)], 1)
    gradients = {}
    for antithetic in (True, False):
        for seed in (0, 1):
            q = codes.clone().requires_grad_()
            terms = h.latent_terms(
                h.GaussianLikelihood(lambda z: z @ weights.T, sigma), x, q, h.make_generator(seed), antithetic
            )
            gradients[antithetic, seed] = torch.autograd.grad(terms["loss"].sum(), q)[0][:, :3]
    torch.testing.assert_close(gradients[True, 0], gradients[True, 1], atol=1e-4, rtol=1e-4)
    assert (gradients[False, 0] - gradients[False, 1]).abs().max() > 0.1
    torch.testing.assert_close(gradients[True, 0], -(x - codes[:, :3] @ weights.T) @ weights / sigma**2)


def test_latent_terms_are_those_of_the_elbo(data):
    model, x = small_decoder(), data.train_x[:7]
    codes = torch.randn(7, 8, generator=h.make_generator(3))
    mu, logvar = codes.chunk(2, 1)
    terms = h.latent_terms(h.GaussianLikelihood(model.decode, 0.4), x, codes, h.make_generator(0), beta=0.5)
    z = h.reparameterize(mu, logvar, h.make_generator(0))
    kl = h.kl_divergence(mu, logvar)
    one = h.gaussian_log_likelihood(x, model.decode(z), 0.4)
    torch.testing.assert_close(terms["elbo"], one - kl)
    torch.testing.assert_close(terms["loss"], 0.5 * kl - one)
    both = h.latent_terms(h.GaussianLikelihood(model.decode, 0.4), x, codes, h.make_generator(0), antithetic=True)
    other = h.gaussian_log_likelihood(x, model.decode(mu - (z - mu)), 0.4)
    torch.testing.assert_close(both["log_likelihood"], (one + other) / 2)
    assert {t.shape for t in both.values()} == {(7,)}


def test_row_adam_is_torchs_adam_when_every_row_is_visited():
    generator = h.make_generator(0)
    codes = torch.randn(5, 6, generator=generator)
    reference = nn.Parameter(codes.clone())
    adam, rows = torch.optim.Adam([reference], lr=0.1), torch.arange(5)
    optimizer = h.RowAdam(codes)
    for _ in range(10):
        reference.grad = torch.randn(5, 6, generator=generator)
        optimizer.step(rows, reference.grad, 0.1)
        adam.step()
    torch.testing.assert_close(codes, reference.detach())


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True), min_size=1, max_size=8))
def test_each_row_has_an_adam_of_its_own(visits):
    """What happens to a row depends only on its own gradients: dense Adam on that row alone."""
    generator = h.make_generator(0)
    codes = torch.randn(6, 4, generator=generator)
    alone = [nn.Parameter(row.clone()) for row in codes]
    adams = [torch.optim.Adam([row], lr=0.1) for row in alone]
    optimizer = h.RowAdam(codes)
    for visit in visits:
        gradient = torch.randn(len(visit), 4, generator=generator)
        optimizer.step(torch.tensor(visit), gradient, 0.1)
        for row, row_gradient in zip(visit, gradient, strict=True):
            alone[row].grad = row_gradient.clone()
            adams[row].step()
    torch.testing.assert_close(codes, torch.stack([row.detach() for row in alone]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("optimizer", [h.RowAdam, h.NaturalGradient])
def test_rows_outside_the_batch_stay_as_they_are(optimizer):
    codes = torch.randn(8, 4, generator=h.make_generator(0))
    before = codes.clone()
    stepper = optimizer(codes)
    for _ in range(3):
        stepper.step(torch.tensor([1, 5]), torch.ones(2, 4), 0.1)
    others = [0, 2, 3, 4, 6, 7]
    assert torch.equal(codes[others], before[others])
    assert not torch.isclose(codes[[1, 5]], before[[1, 5]]).any()


def test_the_natural_gradient_solves_a_quadratic_in_one_full_step():
    """Independent latents: mu goes to the posterior mean, and the precision moves towards its own."""
    curvature, target = torch.tensor([[3.0, 0.5]]), torch.tensor([[1.0, -2.0]])
    solution = curvature * target / (1 + curvature)
    mu, precision = solution + 0.3, torch.tensor([[4.0, 1.5]])  # the precision is right, mu is not
    codes = torch.cat([mu, -precision.log()], 1)

    def gradient():
        mu, logvar = codes.chunk(2, 1)
        grad_mu = curvature * (mu - target) + mu
        return torch.cat([grad_mu, 0.5 * ((1 + curvature) * logvar.exp() - 1)], 1)

    h.NaturalGradient(codes).step(torch.tensor([0]), gradient(), 1.0)
    torch.testing.assert_close(codes[:, :2], solution)
    torch.testing.assert_close(codes[:, 2:], -precision.log())
    codes[:, 2:] = -math.log(2.0)
    h.NaturalGradient(codes).step(torch.tensor([0]), gradient(), 0.3)
    # an exponential step: S + a + a^2 / 2S, where a = 0.1 (1 + curvature - S)
    change = 0.1 * (1 + curvature - 2)
    torch.testing.assert_close(codes[:, 2:].neg().exp(), 2 + change + change.square() / 4)


def test_a_mean_moves_by_at_most_one_deviation():
    codes = torch.tensor([[0.0, 0.0, math.log(0.25), 0.0]])
    h.NaturalGradient(codes).step(torch.tensor([0]), torch.tensor([[1e6, -1e6, 0.0, 0.0]]), 0.3)
    torch.testing.assert_close(codes[0, :2], torch.tensor([-0.5, 1.0]))


def test_the_precision_grows_boundedly_and_stays_positive():
    codes = torch.zeros(1, 6)
    gradient = torch.tensor([[0.0, 0.0, 0.0, 1e9, -5.0, -0.5]])
    h.NaturalGradient(codes).step(torch.tensor([0]), gradient, 0.3)
    torch.testing.assert_close(codes[0, 3:].neg().exp(), torch.tensor([2.5, 0.5, 0.905]))


def test_pca_posterior_is_that_of_the_best_linear_model(data):
    """Against the posterior worked out from scikit-learn's components; unused latents keep the prior."""
    sigma, x = 0.4, data.train_x
    pca = PCA(10).fit(x.flatten(1).double().numpy())
    variances = torch.from_numpy(pca.explained_variance_)
    scale = (variances - sigma**2).clamp(min=0).sqrt()
    weights = torch.from_numpy(pca.components_).T * scale  # (784, 10): x = mean + W z + noise
    covariance = torch.linalg.inv(torch.eye(10).double() + weights.T @ weights / sigma**2)
    centred = x.flatten(1).double() - torch.from_numpy(pca.mean_)
    mean = centred @ weights @ covariance / sigma**2
    mu, logvar = h.pca_posterior(x, 10, sigma)(x)
    torch.testing.assert_close(mu.abs().double(), mean.abs(), atol=2e-3, rtol=1e-3)  # directions have no sign
    torch.testing.assert_close(logvar[0].double(), covariance.diagonal().log(), atol=1e-4, rtol=1e-4)
    mu, logvar = h.pca_posterior(x, 900, sigma)(data.test_x)
    assert mu.shape == logvar.shape == (len(data.test_x), 900)
    kept = int((torch.linalg.eigvalsh(torch.cov(x.flatten(1).double().T)) > sigma**2).sum())
    assert (logvar[0] < -1e-6).sum() == kept
    assert mu[:, kept:].abs().max() == 0


def test_latent_optimization_learns(data):
    run = fit_small(data, replace(TINY, epochs=20))
    assert run.history["train_elbo"].iloc[-1] > run.history["train_elbo"].iloc[0] + 20
    elbo = h.latent_elbo(run.model.decode, data.train_x, run.mu, run.logvar)["elbo"].mean().item()
    assert elbo == pytest.approx(
        run.history["train_elbo"].iloc[-1], abs=0.5
    )  # the history is in bfloat16 where it is fast
    blob = h.gaussian_log_likelihood(data.train_x, data.train_x.mean(0).expand_as(data.train_x), 0.4).mean().item()
    assert elbo > blob + 10  # better than the mean image for all
    assert not torch.equal(run.mu, pca_start(data)[0])


@pytest.mark.parametrize("steps", [1, 3])
def test_each_training_step_takes_its_steps_and_the_decoder_one(data, steps):
    taken = {"codes": 0, "decoder": 0}

    class Counting(h.NaturalGradient):
        def step(self, rows, gradient, rate):
            taken["codes"] += 1
            super().step(rows, gradient, rate)

    model = small_decoder()
    config = replace(TINY, epochs=2, steps_per_batch=steps, refining_steps=0)
    codes = torch.cat(pca_start(data), 1)
    trainer = h.LatentTrainer(model, codes, Counting(codes), data, config, h.make_generator(0))
    trainer.optimizer.register_step_post_hook(lambda *_: taken.update(decoder=taken["decoder"] + 1))
    trainer.run_epoch(1)
    assert taken == {"codes": 8 * steps, "decoder": 8}  # 400 images in batches of 50


def test_the_last_epoch_refines_the_codes_alone(data):
    codes = torch.cat(pca_start(data), 1)
    model = small_decoder()
    trainer = h.LatentTrainer(model, codes, h.NaturalGradient(codes), data, TINY, h.make_generator(0))
    weights, before = copy_weights(model), codes.clone()
    elbo = h.latent_elbo(model.decode, data.train_x, *codes.chunk(2, 1))["elbo"].mean()
    trainer.refine_codes()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert not torch.equal(codes, before)
    assert h.latent_elbo(model.decode, data.train_x, *codes.chunk(2, 1))["elbo"].mean() > elbo + 1


def spy_on_latent_terms(monkeypatch):
    """The (sigma, antithetic, beta) of every call."""
    calls, original = [], h.latent_terms

    def spy(likelihood, x, codes, generator, antithetic=False, beta=1.0):
        calls.append((likelihood.sigma, antithetic, beta))
        return original(likelihood, x, codes, generator, antithetic, beta)

    monkeypatch.setattr(latents, "latent_terms", spy)
    return calls


def test_settings_reach_every_step(data, monkeypatch):
    calls = spy_on_latent_terms(monkeypatch)
    codes = torch.cat(pca_start(data), 1)
    config = replace(TINY, sigma=0.7, antithetic=False, kl_warm_up=4)
    trainer = h.LatentTrainer(small_decoder(), codes, h.RowAdam(codes), data, config, h.make_generator(0))
    for epoch in (1, 2, 4, 6):
        calls.clear()
        trainer.run_epoch(epoch)
        assert set(calls) == {(0.7, False, min(1.0, epoch / 4))}
    calls.clear()
    trainer.refine_codes()
    assert set(calls) == {(0.7, False, 1.0)}
    calls.clear()
    h.fit_latents(small_decoder(), pca_start(data), data, replace(config, epochs=2))
    assert {sigma for sigma, _, _ in calls} == {0.7}


class Recorder:
    """Records the rates it is given."""

    def __init__(self, codes):
        self.rates = []

    def step(self, rows, gradient, rate):
        self.rates.append(rate)


def test_the_codes_rate_follows_the_decoders_and_refining_has_its_own(data):
    codes = torch.cat(pca_start(data), 1)
    recorder, rates_of_decoder = Recorder(codes), []
    trainer = h.LatentTrainer(small_decoder(), codes, recorder, data, TINY, h.make_generator(0))
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates_of_decoder.append(optimizer.param_groups[0]["lr"])
    )
    for epoch in range(1, TINY.epochs):
        trainer.run_epoch(epoch)
    assert rates_of_decoder[-1] < 1e-2 * TINY.learning_rate  # the schedule ends before the epoch that refines
    expected = [TINY.code_learning_rate * rate / TINY.learning_rate for rate in rates_of_decoder]
    assert recorder.rates == pytest.approx(expected)
    recorder.rates.clear()
    trainer.refine_codes()
    falling = [TINY.code_learning_rate / 2 * 0.5 * (1 + math.cos(math.pi * step / 5)) for step in range(5)]
    assert recorder.rates == pytest.approx(falling * 2)  # 400 images in two batches


def test_a_code_moves_by_its_own_gradient_whatever_the_batch_size(data):
    """Without noise and with the decoder fixed, one epoch in batches of 20 or of 400 moves a code equally."""
    moved = []
    for batch_size in (20, 400):
        mu, _ = pca_start(data)
        codes = torch.cat([mu, torch.full_like(mu, -40.0)], 1)  # so small a variance that samples are the mean
        config = replace(TINY, batch_size=batch_size, learning_rate=1e-12, one_cycle=False)
        trainer = h.LatentTrainer(small_decoder(), codes, PlainGradient(codes), data, config, h.make_generator(0))
        trainer.run_epoch(1)
        moved.append(codes[:, :4] - mu)
    torch.testing.assert_close(moved[0], moved[1], atol=1e-3, rtol=2e-2)  # bfloat16 where it is fast
    assert moved[0].abs().max() > 1e-2


class PlainGradient:
    """Gradient descent on the means."""

    def __init__(self, codes):
        self.codes = codes

    def step(self, rows, gradient, rate):
        self.codes[rows, :4] -= 0.01 * gradient[:, :4]


def test_snapshots_hold_the_decoder_and_one_code_of_each_digit(data):
    run = fit_small(data)
    assert list(run.snapshots) == [1, 6]
    model = small_decoder(seed=9)
    model.load_state_dict(run.snapshots[6]["state"])
    torch.testing.assert_close(run.snapshots[6]["mu"], run.mu[h.one_per_class(data.train_y)])
    torch.testing.assert_close(model.decode(run.mu[:3]), run.model.decode(run.mu[:3]))
    assert not torch.equal(run.snapshots[1]["mu"], run.snapshots[6]["mu"])


def test_same_seed_same_codes_and_the_start_is_left_alone(data):
    start = pca_start(data)
    before = [value.clone() for value in start]
    first, again, other = (fit_small(data, start=start, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.mu, again.mu)
    assert torch.equal(first.logvar, again.logvar)
    assert not torch.equal(first.mu, other.mu)
    assert all(torch.equal(value, old) for value, old in zip(start, before, strict=True))


def test_a_kept_run_is_the_same_run(tmp_path):
    data = h.load_data("digits", per_class=10, test_size=100)
    start = pca_start(data)
    first, again = (
        h.recall(h.fit_latents, small_decoder(), start, data, TINY, optimizer=h.RowAdam, cache=tmp_path)[0]
        for _ in range(2)
    )
    assert torch.equal(first.mu, again.mu)
    assert first.seconds == again.seconds
    pictures = [run.model.decode(run.mu[:5]) for run in (first, again)]
    assert torch.equal(*pictures)
    assert torch.equal(first.snapshots[TINY.snapshots[0]]["mu"], again.snapshots[TINY.snapshots[0]]["mu"])


def test_conv_latents_run_at_the_scale_of_the_settings(settings):
    run = h.fit_conv_latents(h.load_data("digits", per_class=21, test_size=20), settings)
    assert run.mu.shape == run.logvar.shape == (210, 200)
    assert list(run.history.index) == [1, 2]


def test_codes_as_written_start_from_the_prior(settings):
    data = h.load_data("digits", per_class=21, test_size=20)
    run = h.fit_as_written(data, settings)
    start = torch.randn(210, 200, generator=h.make_generator(1_000 + settings.seed))
    assert torch.corrcoef(torch.stack([run.mu.flatten(), start.flatten()]))[0, 1] > 0.99
    assert run.model.encoder is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1}, "epochs must be a whole number of at least 2, got 1"),
        ({"epochs": 0, "refining_steps": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"steps_per_batch": 0}, "steps_per_batch must be a whole number of at least 1, got 0"),
        ({"refining_steps": -1}, "refining_steps must be a whole number of at least 0, got -1"),
        ({"kl_warm_up": -1}, "kl_warm_up must be a whole number of at least 0, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive, finite number, got 0.0"),
        ({"code_learning_rate": math.nan}, "code_learning_rate must be a positive, finite number, got nan"),
        ({"sigma": 0.0}, "sigma must be a positive, finite number, got 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(TINY, **changes)


def test_pca_posterior_refuses_a_sigma_that_is_no_deviation(data):
    with pytest.raises(ValueError, match="sigma must be a positive, finite number, got 0"):
        h.pca_posterior(data.train_x, 4, sigma=0)


@pytest.fixture(scope="module")
def two_clusters():
    """Means and log-variances of 4,000 q: latent 0 in two clusters, latent 1 correlated with it, latent 2 unused."""
    generator = torch.Generator().manual_seed(0)
    side = torch.randint(2, (4000,), generator=generator).float()
    first = 6 * side - 3 + 0.3 * torch.randn(4000, generator=generator)
    mu = torch.stack([first, -0.5 * first + 0.2, torch.zeros(4000)], 1)
    logvar = torch.tensor([0.04, 0.09, 1.0]).log().expand(4000, 3)
    return mu, logvar


def test_a_fitted_prior_is_the_aggregate_posterior(two_clusters):
    mu, logvar = two_clusters
    z = h.fit_prior(mu, logvar, 2).sample(20_000)
    assert z.shape == (20_000, 3)
    torch.testing.assert_close(z.mean(0), mu.mean(0), atol=0.15, rtol=0)
    aggregate = torch.cov(mu.T) + torch.diag(logvar[0].exp())  # law of total covariance
    torch.testing.assert_close(torch.cov(z.T), aggregate, atol=0.15, rtol=0)
    assert (z[:, 0].abs() < 1).float().mean() < 0.01  # nothing between the clusters, as one Gaussian would have it
    assert (h.fit_prior(mu, logvar, 1).sample(20_000)[:, 0].abs() < 1).float().mean() > 0.1


def test_draws_of_a_fitted_prior_are_mixed_new_each_time_and_set_by_the_seed(two_clusters):
    sample, again, other = (h.fit_prior(*two_clusters, 2, seed=seed).sample for seed in (0, 0, 1))
    first, second = sample(100), sample(100)
    assert 10 < (first[:50, 0] > 0).sum() < 40  # both clusters among the first half
    assert not torch.equal(first, second)
    assert torch.equal(first, again(100))
    assert not torch.equal(first, other(100))


def test_a_fitted_prior_takes_codes_that_carry_nothing():
    z = h.fit_prior(torch.zeros(300, 3), torch.zeros(300, 3), 1).sample(2000)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(3), atol=0.3, rtol=0)


def test_a_model_without_encoder_says_what_to_do(data):
    with pytest.raises(TypeError, match="no encoder: find q"):
        small_decoder().encode(data.train_x[:2])


def test_bad_starts_are_refused(data):
    mu, logvar = pca_start(data)
    with pytest.raises(TypeError, match="parameter 'start'"):
        fit_small(data, start=(mu[1:], logvar))
    with pytest.raises(ValueError, match=r"mu must have shape \(400, 4\), got \(400, 3\)"):
        fit_small(data, start=(mu[:, 1:], logvar[:, 1:]))


@pytest.mark.parametrize("step", [3, 8])  # of 8 in an epoch: noticed in the next, or when the epoch is measured
def test_what_is_not_finite_stops_latent_optimization(data, step):
    class Broken(nn.Module):
        def forward(self, z):
            self.calls = getattr(self, "calls", 0) + self.training
            return z * (math.nan if self.calls > step else 1)

    model = small_decoder()
    model.decoder.insert(0, Broken())
    place = "epoch 1, step 4" if step < 8 else "epoch 2, step 1"
    with pytest.raises(FloatingPointError, match=rf"{place}: x_hat must be finite.* or code_learning_rate \(now 0.6\)"):
        fit_small(data, model=model)


def test_infer_latents_refuses_what_does_not_fit(data):
    decode, x = small_decoder().decode, data.test_x[:5]
    zeros = torch.zeros(5, 4)
    with pytest.raises(ValueError, match="latent_size must be a whole number of at least 1, got None"):
        h.infer_latents(decode, x)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        h.infer_latents(decode, x, latent_size=4, steps=0)
    with pytest.raises(TypeError, match="parameter 'start'"):
        h.infer_latents(decode, x, (zeros[1:], zeros[1:]))
    with pytest.raises(TypeError, match="parameter 'start'"):
        h.infer_latents(decode, x, (zeros, zeros[:, 1:]))
    with pytest.raises(ValueError, match="sigma must be a positive, finite number, got 0"):
        h.infer_latents(decode, x, latent_size=4, sigma=0)
    with pytest.raises(ValueError, match="x must not be empty"):
        h.infer_latents(decode, x[:0], latent_size=4)
    with pytest.raises(ValueError, match="latent_size must be that of start, 4, got 5"):
        h.infer_latents(decode, x, (zeros, zeros), latent_size=5)
    with pytest.raises(ValueError, match="x must be finite, got 3,920 entries"):
        h.infer_latents(decode, x * math.nan, latent_size=4)
    with pytest.raises(
        FloatingPointError,
        match=r"infer_latents: step 1 of the codes: x_hat must be finite.*; or lower rate \(now 0.3\)",
    ):
        h.infer_latents(lambda z: decode(z) * math.nan, x, latent_size=4)
    with pytest.raises(TypeError, match="parameter 'x_hat'"):
        h.infer_latents(lambda z: z, x, latent_size=4)


def test_infer_latents_is_set_by_its_generator_and_leaves_its_start_alone(data):
    decode, x = small_decoder().decode, data.test_x[:30]
    start = torch.zeros(30, 4), torch.zeros(30, 4)
    results = [h.infer_latents(decode, x, start, steps=3, generator=h.make_generator(s)) for s in (0, 0, 1)]
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], results[2][0])
    assert not any(value.any() for value in start)
    given_size = h.infer_latents(decode, x, latent_size=4, steps=3, generator=h.make_generator(0))
    assert torch.equal(given_size[1], results[0][1])
    with torch.no_grad():
        assert torch.equal(h.infer_latents(decode, x, start, steps=3, generator=h.make_generator(0))[0], results[0][0])


def test_dropout_is_on_only_while_the_decoder_learns(data):
    model = VAE(None, nn.Sequential(nn.Dropout(0.5), *small_decoder().decoder), 4)
    codes = torch.cat(pca_start(data), 1)
    trainer = h.LatentTrainer(model, codes, Recorder(codes), data, TINY, h.make_generator(0))
    trainer.run_epoch(1)
    assert model.training
    trainer.refine_codes()
    assert not model.training
