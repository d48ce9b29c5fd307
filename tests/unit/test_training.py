"""Networks and the training loop."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import helpers as h
from latent_digits import training
from latent_digits.networks import VAE, PixelUpscale
from latent_digits.precision import DTYPES
from latent_digits.random import seeded
from latent_digits.training import make_schedule
from small import small_vae

TINY = h.TrainConfig(epochs=2, batch_size=50, snapshots=(1, 2))
TINY_VAE = h.VAEConfig(epochs=3, batch_size=50, snapshots=(1, 3))


def fit_small(data, config=TINY_VAE, seed=0, objective=h.vae_objective, dtype="float32"):
    return h.fit(h.build(small_vae, seed=seed, dtype=dtype), objective, data, config, seed=seed)


def test_network_shapes():
    x = torch.rand(5, 1, 28, 28)
    classifier = h.Classifier()
    assert classifier.features(x).shape == (5, 128)
    assert classifier(x).shape == (5, 10)
    for vae, latents in ((h.conv_vae(), 200), (h.conv_vae(16), 16), (h.mlp_vae(), 8)):
        mu, logvar = vae.encode(x)
        assert mu.shape == logvar.shape == (5, latents)
        x_hat = vae.decode(mu)
        assert x_hat.shape == x.shape
        assert x_hat.min() >= 0
        assert x_hat.max() <= 1
        torch.testing.assert_close(vae.eval().reconstruct(x), vae.decode(vae.encode(x)[0]))
        torch.testing.assert_close(vae.decode(mu), torch.sigmoid(vae.decode_logits(mu)))


def test_a_pixel_upscale_is_a_transposed_convolution():
    with seeded(0):
        ours = PixelUpscale(3)
    torchs = nn.ConvTranspose2d(3, 1, 4, stride=2, padding=1)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 5, 4, generator=h.make_generator(0), requires_grad=True)
    weights = torch.randn(2, 1, 10, 8, generator=h.make_generator(1))
    outputs, gradients = [], []
    for layer in (ours, torchs):
        outputs.append(layer(x))
        gradients.append(torch.autograd.grad((weights * outputs[-1]).sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)
    with torch.autocast("cpu", torch.bfloat16):
        ours_error, torchs_error = ((layer(x) - outputs[1]).square().mean().sqrt() for layer in (ours, torchs))
    assert 0 < ours_error < 2 * torchs_error


def test_mlp_vae_has_the_layers_of_the_source():
    vae = h.mlp_vae()
    sizes = [(layer.in_features, layer.out_features) for layer in vae.modules() if isinstance(layer, nn.Linear)]
    encoder, decoder = [(784, 392), (392, 196), (196, 98), (98, 16)], [(8, 98), (98, 196), (196, 392), (392, 784)]
    assert sizes == encoder + decoder


def test_build_is_set_by_its_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (h.build(small_vae, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["encoder.1.weight"], other["encoder.1.weight"])


def test_a_network_multiplies_in_its_format_and_returns_float32(data):
    x = data.test_x[:8]
    for model in (h.build(h.conv_vae, seed=0).eval(), h.build(h.Classifier, seed=0).eval()):
        call = model.encode if isinstance(model, VAE) else lambda x, model=model: (model(x), model.features(x))
        precise = call(x)
        model.dtype = "bfloat16"
        coarse = call(x)
        for exact, rounded in zip(precise, coarse, strict=True):
            assert rounded.dtype == torch.float32
            assert 0 < (exact - rounded).abs().max() < 0.05 * exact.abs().max()
    assert h.without_encoder(h.build(h.conv_vae, seed=0)).dtype == "float32"


def test_fit_trains_in_the_format_of_the_network(data):
    config = h.VAEConfig(epochs=1, snapshots=())
    models = {dtype: h.build(h.mlp_vae, seed=0, dtype=dtype) for dtype in DTYPES}
    runs = {dtype: h.fit(model, h.vae_objective, data, config) for dtype, model in models.items()}
    assert {dtype: run.model.dtype for dtype, run in runs.items()} == {dtype: dtype for dtype in DTYPES}
    elbos = [run.history["validation_elbo"].iloc[-1] for run in runs.values()]
    assert elbos[0] != elbos[1]
    assert abs(elbos[0] - elbos[1]) < 0.05 * abs(elbos[0])


def test_an_unknown_likelihood_is_refused():
    with pytest.raises(ValueError, match="likelihood must be one of 'gaussian', 'bernoulli', got 'laplace'"):
        h.VAEConfig(likelihood="laplace")


def test_classification_objective_counts_and_scores(data, generator):
    model = h.Classifier(width=4).eval()
    terms = h.classification_objective(model, data.train_x, data.train_y, TINY, generator)
    logits = model(data.train_x)
    expected = -logits.log_softmax(1)[torch.arange(len(logits)), data.train_y]
    torch.testing.assert_close(terms["loss"], expected)
    assert terms["accuracy"].mean().item() == pytest.approx((logits.argmax(1) == data.train_y).float().mean().item())


def test_the_vae_learns(data):
    untrained = h.evaluate(h.build(small_vae, seed=0), h.vae_objective, data.test_x, data.test_y, TINY_VAE)
    run = fit_small(data, replace(TINY_VAE, epochs=25, learning_rate=5e-3))
    final = h.evaluate(run.model, h.vae_objective, data.test_x, data.test_y, TINY_VAE)
    # the best constant image: what a decoder that ignores z can reach
    constant = h.gaussian_log_likelihood(data.test_x, data.train_x.mean(0).expand_as(data.test_x), 0.4).mean()
    assert final["elbo"].mean() > constant + 5 > untrained["elbo"].mean()
    assert run.history["validation_elbo"].iloc[-1] == pytest.approx(final["elbo"].mean().item(), abs=2)


def test_the_classifier_learns(data):
    config = h.TrainConfig(epochs=6, batch_size=40)
    run = h.fit(h.build(h.Classifier, 8, 32, seed=0), h.classification_objective, data, config)
    assert run.history["validation_accuracy"].iloc[-1] > 0.7
    assert run.history["train_loss"].iloc[-1] < run.history["train_loss"].iloc[0]


def test_history_and_snapshots(data):
    run = fit_small(data)
    assert list(run.history.index) == [1, 2, 3]
    terms = ["loss", "elbo", "log_likelihood", "kl_divergence"]
    assert set(run.history) == {f"{side}_{term}" for side in ("train", "validation") for term in terms}
    assert list(run.snapshots) == [1, 3]
    assert all(torch.equal(run.snapshots[3][k], v) for k, v in run.model.state_dict().items())
    assert not torch.equal(run.snapshots[1]["encoder.1.weight"], run.snapshots[3]["encoder.1.weight"])
    assert not run.model.training
    assert run.seconds > 0


def test_curves_are_of_some_images_evenly_spaced(data, monkeypatch):
    monkeypatch.setattr(training, "CURVE_SIZE", 20)
    run = fit_small(data)
    some = replace(data, **{name: getattr(data, name)[:: len(data.train_x) // 20] for name in ("train_x", "train_y")})
    some = replace(some, **{name: getattr(data, name)[:: len(data.test_x) // 20] for name in ("test_x", "test_y")})
    last = run.history.iloc[-1].to_dict()
    assert last == pytest.approx(h.evaluate_splits(run.model, h.vae_objective, some, TINY_VAE))
    assert last["validation_elbo"] != h.evaluate_splits(run.model, h.vae_objective, data, TINY_VAE)["validation_elbo"]


def test_the_same_seed_gives_the_same_run_and_another_does_not(data):
    def classifier_run(seed):
        torch.rand(3)  # dropout must not depend on where the global generator stands
        model = h.build(h.Classifier, 4, seed=0)
        return h.fit(model, h.classification_objective, data, TINY, seed=seed).history

    first, again, other = classifier_run(0), classifier_run(0), classifier_run(1)
    assert first.equals(again)
    assert not first.equals(other)
    assert fit_small(data).history.equals(fit_small(data).history)


def test_evaluation_does_not_depend_on_batches_or_leave_training_noise(data):
    model = h.build(h.Classifier, 4, seed=0)
    whole = h.evaluate(model, h.classification_objective, data.test_x, data.test_y, TINY, batch_size=1000)
    parts = h.evaluate(model, h.classification_objective, data.test_x, data.test_y, TINY, batch_size=7)
    torch.testing.assert_close(whole["loss"], parts["loss"])
    assert len(whole["loss"]) == len(data.test_x)


def test_a_loss_that_is_not_finite_stops_training(data):
    def objective(model, x, y, config, generator):
        terms = h.vae_objective(model, x, y, config, generator)
        objective.steps += 1
        return terms | {"loss": terms["loss"] * (float("nan") if objective.steps == 3 else 1)}

    objective.steps = 0
    with pytest.raises(
        FloatingPointError,
        match=r"stopped at epoch 1, step 3: loss must be finite, got nan.*learning_rate \(now 0.0024\)",
    ):
        fit_small(data, objective=objective)


def test_one_cycle_ends_low_and_a_constant_rate_stays(data):
    for one_cycle in (True, False):
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-2)
        schedule = make_schedule(optimizer, replace(TINY, one_cycle=one_cycle, learning_rate=1e-2), total=20)
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        if one_cycle:
            assert max(rates) == pytest.approx(1e-2)
            assert rates[-1] < 1e-5
        else:
            assert set(rates) == {1e-2}


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("warm_up", [0.1, 0.3])
def test_one_cycle_also_fits_very_short_runs(steps, warm_up):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = make_schedule(optimizer, h.TrainConfig(warm_up=warm_up), 2 * steps)
    for _ in range(2 * steps):
        assert 0 <= optimizer.param_groups[0]["lr"] < 1
        optimizer.step()
        schedule.step()


def test_smoke_variant():
    assert h.VAEConfig().smoke() == replace(h.VAEConfig(), epochs=2, snapshots=(1, 2))
    assert h.TrainConfig().smoke().snapshots == ()
