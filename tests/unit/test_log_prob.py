"""log p(x): the estimators against a linear-Gaussian model, where it is known in closed form."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import distributions

import helpers as h
from latent_digits.log_prob import estimate_annealed, value_and_gradient


class Linear:
    """x = W z + noise: images x (n, 6), log p(x) (n,), and the exact posterior of each image, which is factorised."""

    def __init__(self, images=40, seed=1):
        generator = h.make_generator(seed)
        directions, _ = torch.linalg.qr(torch.randn(6, 3, generator=generator, dtype=torch.float64))
        self.weights, self.sigma = directions * torch.tensor([2.0, 1.0, 0.5]), 0.7  # orthogonal: no correlations
        self.z = torch.randn(images, 3, generator=generator, dtype=torch.float64)
        noise = torch.randn(images, 6, generator=generator, dtype=torch.float64)
        self.x = self.decode(self.z) + self.sigma * noise
        covariance = self.weights @ self.weights.T + self.sigma**2 * torch.eye(6)
        self.truth = distributions.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(self.x)
        variance = 1 / (1 + self.weights.square().sum(0) / self.sigma**2)
        self.mu = self.x @ self.weights * variance / self.sigma**2
        self.logvar = variance.log().expand_as(self.mu).clone()

    def decode(self, z):
        return z @ self.weights.T

    @property
    def likelihood(self):
        return h.GaussianLikelihood(self.decode, self.sigma)

    def estimate(self, num_samples, mu=None, logvar=None, seed=0):
        mu, logvar = self.mu if mu is None else mu, self.logvar if logvar is None else logvar
        return h.importance_log_prob(
            self.x, mu, logvar, self.decode, self.sigma, num_samples, generator=h.make_generator(seed)
        )

    def wrong(self):
        """A q with a known KL divergence from the posterior, and that divergence."""
        mu, logvar = self.mu + 0.5 * (0.5 * self.logvar).exp(), self.logvar + math.log(1.5)
        return (mu, logvar), 1.5 * (1.5 - 1 - math.log(1.5) + 0.25)


def counted(decode):
    """`decode`, and how many z each of its calls had."""
    sizes = []
    return lambda z: sizes.append(len(z)) or decode(z), sizes


@pytest.fixture(scope="module")
def linear():
    return Linear()


def test_one_sample_is_exact_where_q_is_the_posterior(linear):
    for num_samples in (1, 7):
        torch.testing.assert_close(linear.estimate(num_samples).log_prob, linear.truth)
    torch.testing.assert_close(linear.estimate(7).ess, torch.full((40,), 7.0, dtype=torch.float64))
    torch.testing.assert_close(linear.estimate(7).std_error, torch.zeros(40).double(), atol=1e-6, rtol=0)


def test_it_is_scikit_learns_score_of_a_linear_model():
    generator = h.make_generator(0)
    x = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(6, 6, generator=generator, dtype=torch.float64)
    pca = PCA(2).fit(x.numpy())
    directions, mean, noise = torch.from_numpy(pca.components_), torch.from_numpy(pca.mean_), pca.noise_variance_**0.5
    variances = torch.from_numpy(pca.explained_variance_)
    scale = (variances - noise**2).sqrt()
    mu = (x - mean) @ directions.T * scale / variances
    logvar = (noise**2 / variances).log().expand_as(mu)
    run = h.importance_log_prob(x, mu, logvar, lambda z: mean + z * scale @ directions, noise, num_samples=1)
    torch.testing.assert_close(run.log_prob, torch.from_numpy(pca.score_samples(x.numpy())))


def test_one_sample_is_the_elbo_on_average(linear):
    q, divergence = linear.wrong()
    estimates = torch.stack([linear.estimate(1, *q, seed=seed).log_prob for seed in range(500)])
    error = (estimates - linear.truth).mean(1)  # one mean per repeat
    assert abs(error.mean() + divergence) < 4 * error.std() / 500**0.5
    assert divergence > 20 * error.std() / 500**0.5


def test_it_agrees_within_three_standard_errors_and_they_are_as_large_as_the_errors(linear):
    q, _ = linear.wrong()
    runs = [linear.estimate(1000, *q, seed=seed) for seed in range(50)]
    error = torch.stack([run.log_prob for run in runs]) - linear.truth  # (repeats, images)
    claimed = torch.stack([run.std_error for run in runs])
    assert ((error.abs() < 3 * claimed).double().mean()) > 0.985
    assert (error.square().mean() / claimed.square().mean()).sqrt() == pytest.approx(1, abs=0.1)


def test_it_rises_with_the_number_of_samples_and_its_error_shrinks_like_the_root(linear):
    q, _ = linear.wrong()
    sizes = [1, 4, 16, 64, 256]
    errors = [torch.stack([linear.estimate(M, *q, seed=s).log_prob for s in range(100)]) - linear.truth for M in sizes]
    bias = torch.stack([error.mean() for error in errors])
    assert (bias.diff() > 0).all()
    spread = torch.stack([error.square().mean().sqrt() for error in errors])
    torch.testing.assert_close(spread[-1] / spread[-2], torch.tensor(0.5).double(), atol=0.08, rtol=0)


def test_ess_is_that_of_the_weights(linear):
    q, _ = linear.wrong()
    run = linear.estimate(200, *q)  # decoded in rounds of 50
    generator = h.make_generator(0)
    weights = [h.draw_log_weights(linear.x, h.Posterior(*q), linear.likelihood, 50, generator) for _ in range(4)]
    weights = torch.cat(weights).exp()  # (samples, images)
    torch.testing.assert_close(run.log_prob, weights.mean(0).log())
    torch.testing.assert_close(run.ess, weights.sum(0).square() / weights.square().sum(0))
    torch.testing.assert_close(run.std_error, weights.std(0) / 200**0.5 / weights.mean(0))


def test_two_weights_know_their_error(linear):
    q, _ = linear.wrong()
    run = linear.estimate(2, *q)
    weights = h.draw_log_weights(linear.x, h.Posterior(*q), linear.likelihood, 2, h.make_generator(0)).exp()
    torch.testing.assert_close(run.std_error, weights.std(0) / 2**0.5 / weights.mean(0))


def test_a_thousand_samples_by_default(linear):
    decode, decoded = counted(linear.decode)
    h.importance_log_prob(linear.x, linear.mu, linear.logvar, decode)
    assert sum(decoded) == 40 * 1000


def test_constants_are_in(linear):
    """log N(x; 0, sigma^2 I) where the decoder ignores z, whatever q is."""
    q = torch.full((40, 2), 0.3).double(), torch.full((40, 2), 0.2).double()
    run = h.importance_log_prob(
        linear.x, *q, lambda z: torch.zeros(len(z), 6).double(), 0.7, 20_000, h.make_generator(0)
    )
    expected = distributions.Normal(0.0, 0.7).log_prob(linear.x).sum(1)
    torch.testing.assert_close(run.log_prob, expected, atol=0.02, rtol=0)


def test_weights_out_of_reach_of_floats_stay_finite(linear):
    """exp of these log weights is zero in any format; their log-sum-exp is not."""
    far = linear.x + 1_000
    run = h.importance_log_prob(far, linear.mu, linear.logvar, linear.decode, linear.sigma, 50, h.make_generator(0))
    assert (run.log_prob < -1e6).all()
    assert run.log_prob.isfinite().all()
    assert run.std_error.isfinite().all()


@given(st.integers(1, 450), st.integers(1, 300), st.integers(0, 3))
@example(29, 300, 0)  # 69 samples of each at a time would be one too many
def test_memory_is_bounded_whatever_the_sizes(images, num_samples, seed):
    generator = h.make_generator(seed)
    decode, decoded = counted(lambda z: z @ torch.ones(2, 3))
    x, zeros = torch.randn(images, 3, generator=generator), torch.zeros(images, 2)
    run = h.importance_log_prob(x, zeros, zeros, decode, 0.5, num_samples, generator)
    assert sum(decoded) == images * num_samples
    assert max(decoded) <= 2_000
    assert (run.ess <= num_samples * (1 + 1e-9)).all()
    assert (run.ess >= 1 - 1e-9).all()


def test_many_images_go_in_batches_and_in_order():
    """With q the posterior every value is exact, whichever batch it was in."""
    linear = Linear(images=450)
    torch.testing.assert_close(linear.estimate(3).log_prob, linear.truth)


def test_the_generator_sets_the_result(linear):
    q, _ = linear.wrong()
    first, again, other = (linear.estimate(5, *q, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.log_prob, again.log_prob)
    assert not torch.equal(first.log_prob, other.log_prob)


def test_images_keep_their_shape_for_the_decoder(data):
    model = h.build(h.mlp_vae, seed=0)
    x = data.test_x[:5]
    q = h.in_batches(model.encode, x)
    run = h.importance_log_prob(x, *q, model.decode, num_samples=4, generator=h.make_generator(0))
    z = h.reparameterize(*(torch.cat([part] * 4) for part in q), h.make_generator(0)).view(4, 5, -1)
    log_weights = []
    for draw in z:
        log_q = distributions.Normal(q[0], (0.5 * q[1]).exp()).log_prob(draw).sum(1)
        log_prior = distributions.Normal(0.0, 1.0).log_prob(draw).sum(1)
        pixels = distributions.Normal(model.decode(draw), 0.4).log_prob(x).sum((1, 2, 3))
        log_weights.append(pixels + log_prior - log_q)
    expected = torch.stack(log_weights).logsumexp(0) - math.log(4)
    torch.testing.assert_close(run.log_prob, expected.double(), atol=1e-3, rtol=1e-5)
    assert not run.log_prob.requires_grad


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_log_weight_is_that_of_torchs_densities(linear, shift):
    u, mu, logvar = (torch.randn(40, 3, generator=h.make_generator(s), dtype=torch.float64) + shift for s in range(3))
    q = distributions.Normal(mu, (0.5 * logvar).exp())
    z = q.mean + q.stddev * u
    expected = distributions.Normal(0.0, 1.0).log_prob(z).sum(1) - q.log_prob(z).sum(1)
    expected += distributions.Normal(linear.decode(z), linear.sigma).log_prob(linear.x).sum(1)
    weight = h.log_weight(linear.x, u, h.Posterior(mu, logvar), linear.likelihood)
    torch.testing.assert_close(weight, expected)


# Annealed importance sampling


def anneal(linear, q=None, seed=0, **options):
    mu, logvar = q or linear.wrong()[0]
    options = {"chains": 20, "temperatures": 20, "generator": h.make_generator(seed)} | options
    return annealed(linear.x, mu, logvar, linear.decode, linear.sigma, **options)


def annealed(x, mu, logvar, decode, sigma=0.4, *, exact=None, generator=None, **settings):
    """annealed_log_prob, called as importance_log_prob is."""
    q, likelihood = h.Posterior(mu, logvar), h.GaussianLikelihood(decode, sigma)
    return h.annealed_log_prob(x, q, likelihood, h.Annealing(**settings), exact=exact, generator=generator)


def test_annealing_finds_the_truth_from_a_wrong_q(linear):
    run, acceptance = anneal(linear, temperatures=100)
    torch.testing.assert_close(run.log_prob, linear.truth, atol=0.15, rtol=0)
    assert 0.9 < acceptance <= 1


def test_annealing_from_the_prior_needs_no_q(linear):
    prior = torch.zeros(40, 3).double(), torch.zeros(40, 3).double()
    run, _ = anneal(linear, prior, temperatures=300)
    error = run.log_prob - linear.truth
    assert error.mean().abs() < 0.1
    assert error.abs().max() < 1


def test_one_step_of_annealing_is_importance_sampling(linear):
    """With b going from 0 to 1 at once, the weights are those of draws from q, whatever the move after them."""
    q, _ = linear.wrong()
    annealed, _ = anneal(linear, temperatures=1, chains=50)
    torch.testing.assert_close(annealed.log_prob, linear.estimate(50, *q).log_prob)
    torch.testing.assert_close(annealed.std_error, linear.estimate(50, *q).std_error)


def test_one_step_backwards_weighs_the_exact_draw_itself(linear):
    q, _ = linear.wrong()
    run, _ = anneal(linear, q, temperatures=1, chains=1, exact=linear.z)
    weight = h.log_weight(linear.x, (linear.z - q[0]) / (0.5 * q[1]).exp(), h.Posterior(*q), linear.likelihood)
    torch.testing.assert_close(run.log_prob, weight)


@pytest.mark.parametrize(("temperatures", "images"), [(1, 40), (4, 40), (1, 250)])
def test_tiny_steps_of_annealing_are_all_accepted(temperatures, images):
    linear = Linear(images)  # 250: in batches
    _, acceptance = anneal(linear, temperatures=temperatures, step_size=1e-6)
    assert acceptance == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("backwards", [False, True])
def test_annealing_decodes_once_for_each_leapfrog_of_each_temperature(linear, backwards):
    decode, decoded = counted(linear.decode)
    exact = linear.z if backwards else None
    annealed(linear.x, *linear.wrong()[0], decode, linear.sigma, exact=exact, chains=2, temperatures=7, leapfrogs=3)
    assert decoded == [1, *[80] * (1 + 7 * 3)]  # one row first, to see that it has a gradient


def test_as_many_chains_as_decode_at_once_take_one_image_at_a_time(linear):
    decode, decoded = counted(linear.decode)
    q = linear.mu[:3], linear.logvar[:3]
    annealed(linear.x[:3], *q, decode, linear.sigma, chains=2000, temperatures=1, leapfrogs=1)
    assert decoded == [1, *[2000] * 6]


def test_annealing_by_default(linear):
    q, _ = linear.wrong()
    arguments = linear.x[:3], q[0][:3], q[1][:3], linear.decode
    default = annealed(*arguments, generator=h.make_generator(0))
    options = {"chains": 10, "temperatures": 100, "leapfrogs": 5, "step_size": 0.2}
    assert default[1] == annealed(*arguments, 0.4, **options, generator=h.make_generator(0))[1]


def test_annealing_forwards_and_backwards_encloses_the_truth():
    """On average over images simulated from the model, and so tightly that a wrong sign or density would show."""
    linear = Linear(images=400, seed=3)
    lower, _ = anneal(linear, temperatures=8, chains=2)
    upper, _ = anneal(linear, temperatures=8, chains=2, exact=linear.z)
    below, above = lower.log_prob - linear.truth, upper.log_prob - linear.truth
    assert below.mean() < 0 < above.mean()
    assert above.mean() - below.mean() < 0.2
    assert -0.1 < below.mean() + above.mean() < 0.1


def test_a_hamiltonian_move_leaves_its_density_as_it_is():
    """Started in N(0, I) exp(b log_ratio), here again a Gaussian, many moves keep mean and variance."""
    b, n = 0.6, 40_000
    generator = h.make_generator(0)

    def log_ratio(u):  # so that the density is that of N(b / (1 + b), 1 / (1 + b))
        return -0.5 * (u - 1).square().sum(1)

    mean, variance = b / (1 + b), 1 / (1 + b)
    u = mean + variance**0.5 * torch.randn(n, 2, generator=generator)
    state = (u, *value_and_gradient(log_ratio, u))
    rates = []
    for _ in range(5):
        state, accepted = h.hamiltonian_move(log_ratio, state, b, h.Annealing(leapfrogs=3, step_size=0.9), generator)
        rates.append(accepted.float().mean())
    torch.testing.assert_close(state[0].mean(0), torch.full((2,), mean), atol=0.02, rtol=0)
    torch.testing.assert_close(state[0].var(0), torch.full((2,), variance), atol=0.02, rtol=0)
    torch.testing.assert_close(state[1], log_ratio(state[0]))
    torch.testing.assert_close(state[2], 1 - state[0])
    assert 0.5 < sum(rates) / 5 < 0.99  # some moves were refused: accepting all would not have kept the density
    assert (state[0] != u).all(1).float().mean() > 0.9


def test_a_hamiltonian_move_is_a_leapfrog_in_double_precision():
    """Without the likelihood (b = 0) one step is u - s^2 u / 2 + s p, with momenta p of the same format as u."""
    u = torch.randn(50, 2, generator=h.make_generator(1), dtype=torch.float64)
    zeros = torch.zeros(50).double(), torch.zeros(50, 2).double()
    (moved, *_), accepted = h.hamiltonian_move(
        lambda u: 0 * u.sum(1),
        (u, *zeros),
        0.0,
        h.Annealing(leapfrogs=1, step_size=0.01),
        generator := h.make_generator(0),
    )
    momentum = torch.randn(50, 2, generator=(again := h.make_generator(0)), dtype=torch.float64)
    torch.testing.assert_close(moved, u - 0.5 * 0.01**2 * u + 0.01 * momentum, rtol=1e-12, atol=1e-12)
    assert accepted.all()
    torch.rand(50, generator=again, dtype=torch.float64)  # what decides on each
    assert torch.equal(generator.get_state(), again.get_state())


def test_a_move_into_the_impossible_is_refused():
    def log_ratio(u):
        return torch.where(u[:, 0] > 0, math.nan, 0.0) * u[:, 0]

    u = -torch.ones(100, 1)
    state, accepted = h.hamiltonian_move(
        log_ratio,
        (u, *value_and_gradient(log_ratio, u)),
        1.0,
        h.Annealing(leapfrogs=3, step_size=0.3),
        h.make_generator(0),
    )
    assert (state[0] <= 0).all()
    assert accepted.any()
    assert not accepted.all()


def test_the_share_of_accepted_moves_is_each_images_own(linear):
    q, annealing = h.Posterior(linear.mu, linear.logvar), h.Annealing(chains=3, temperatures=2)
    *found, accepted = estimate_annealed(linear.x, q, linear.likelihood, annealing, h.make_generator(0))
    assert [part.shape for part in found] == [(40,)] * 3
    assert accepted.shape == (40,)
    assert ((accepted >= 0) & (accepted <= 1)).all()


def test_annealing_goes_in_batches_and_is_set_by_its_generator():
    linear = Linear(images=250)
    first, again, other = (
        anneal(linear, q=(linear.mu, linear.logvar), seed=seed, temperatures=2, leapfrogs=1) for seed in (0, 0, 1)
    )  # 20 chains: 100 images at a time
    assert torch.equal(first[0].log_prob, again[0].log_prob)
    torch.testing.assert_close(first[0].log_prob, linear.truth)  # q is the posterior: all weights are equal
    assert first[1] != other[1]


# Errors


def inputs(n=5, d=3):
    return torch.rand(n, 6), torch.zeros(n, d), torch.zeros(n, d)


BOTH = pytest.mark.parametrize("estimator", [h.importance_log_prob, annealed])


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, m, v: (x, m[1:], v[1:]), "parameter 'mu'"),
        (lambda x, m, v: (x, m[:, :, None], v), "parameter 'mu'"),
        (lambda x, m, v: (x[:0], m[:0], v[:0]), "x must not be empty"),
        (lambda x, m, v: (x, m, v[:, 1:]), "parameter 'logvar'"),
        (lambda x, m, v: (x, m / 0, v), "mu must be finite, got 15 entries"),
        (lambda x, m, v: (x, m, v + math.inf), "logvar must be finite, got 15 entries"),
        (lambda x, m, v: (x[:, 1:], m, v), "parameter 'x_hat'"),
    ],
)
def test_what_does_not_fit_is_refused(estimator, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        estimator(*change(*inputs()), lambda z: z @ torch.ones(3, 6))


@BOTH
@pytest.mark.parametrize("sigma", [0.0, -0.4, math.inf, math.nan])
def test_a_sigma_that_is_no_deviation_is_refused(estimator, sigma):
    with pytest.raises(ValueError, match=f"sigma must be a positive, finite number, got {sigma}"):
        estimator(*inputs(), lambda z: z @ torch.ones(3, 6), sigma)


@pytest.mark.parametrize("count", [0, -3])
def test_counts_below_one_are_refused(count):
    with pytest.raises(ValueError, match=f"num_samples must be a whole number of at least 1, got {count}"):
        h.importance_log_prob(*inputs(), lambda z: z @ torch.ones(3, 6), num_samples=count)
    for name in ("chains", "temperatures", "leapfrogs"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got {count}"):
            annealed(*inputs(), lambda z: z @ torch.ones(3, 6), **{name: count})
    with pytest.raises(ValueError, match=f"step_size must be a positive, finite number, got {count}"):
        annealed(*inputs(), lambda z: z @ torch.ones(3, 6), step_size=count)


def test_exact_draws_must_fit():
    with pytest.raises(TypeError, match="parameter 'exact'"):
        annealed(*inputs(), lambda z: z @ torch.ones(3, 6), exact=torch.zeros(4, 3))


@BOTH
def test_weights_that_are_not_finite_are_reported(estimator):
    def broken(value):  # for two of the five images
        return lambda z: torch.where(z[:, :1] > 10, value, z @ torch.ones(3, 6))

    x, mu, logvar = inputs()
    mu[:2] = 20
    for value in (math.nan, math.inf):
        with pytest.raises(FloatingPointError, match="got others for 2 images"):
            estimator(x, mu, logvar, broken(value))


def test_a_single_weight_knows_no_error_of_its_own(linear):
    q, _ = linear.wrong()
    run = linear.estimate(1, *q)
    assert run.std_error.isinf().all()
    torch.testing.assert_close(run.ess, torch.ones(40).double())
