"""A result that is kept is the one that would be computed; what cannot be identified is computed each time."""

import functools
import os
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import helpers as h
from latent_digits import training
from small import small_vae
from study import cache, identity
from study.cache import recall
from study.files import cached

TINY_VAE = h.VAEConfig(epochs=1, batch_size=50, snapshots=(1,))


def fit_small(data, folder, config=TINY_VAE, objective=h.vae_objective, seed=0, **built):
    model = h.build(small_vae, seed=seed, **built)
    return recall(h.fit, model, objective, data, config, seed=seed, cache=folder)[0]


@pytest.fixture
def trainings(monkeypatch):
    """Grows by one with each training."""
    calls, run = [], training.Trainer.run

    @functools.wraps(run)
    def counted(self):
        calls.append(1)
        return run(self)

    monkeypatch.setattr(training.Trainer, "run", counted)
    monkeypatch.setattr(identity, "IMPORTED", identity.as_imported())
    return calls


def same(first, second):
    """Whether two runs are the same, but for the time they took."""
    weights = ([*run.model.state_dict().values(), *run.snapshots[1].values()] for run in (first, second))
    return first.history.equals(second.history) and all(map(torch.equal, *weights))


def test_a_kept_run_is_the_same_run(data, tmp_path, trainings):
    first, again = fit_small(data, tmp_path), fit_small(data, tmp_path)
    assert len(trainings) == 1
    assert same(first, again)
    assert first.seconds == again.seconds
    assert not again.model.training
    assert type(again) is training.Run
    assert again.history.index.name == "epoch"
    x = data.test_x[:3]
    assert torch.equal(first.model.reconstruct(x), again.model.reconstruct(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {"config": replace(TINY_VAE, sigma=0.5)},
        lambda _: {"config": replace(TINY_VAE, epochs=2)},
        lambda _: {"seed": 1},
        lambda _: {"dtype": "bfloat16"},
        lambda data: {"data": replace(data, train_x=data.train_x.flip(0), train_y=data.train_y.flip(0))},
        lambda data: {"data": replace(data, test_x=1 - data.test_x)},
    ],
    ids=["setting", "epochs", "seed", "format", "data", "test data"],
)
def test_any_change_trains_anew(data, tmp_path, trainings, change):
    fit_small(data, tmp_path)
    fit_small(**{"data": data, "folder": tmp_path} | change(data))
    assert len(trainings) == 2


def test_the_machines_arithmetic_is_in_the_key(data, tmp_path, trainings):
    fit_small(data, tmp_path)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        fit_small(data, tmp_path)
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(trainings) == 2


# --- what cannot be identified is computed each time: the second result is that of an empty cache ---

SCALE = 1.0


def scaled_objective(model, x, y, config, generator):
    """Of a module that is not ours, as a notebook is, and reads a variable of it."""
    terms = h.vae_objective(model, x, y, config, generator)
    return terms | {"loss": SCALE * terms["loss"]}


def weighted(weight):
    def objective(model, x, y, config, generator):
        terms = h.vae_objective(model, x, y, config, generator)
        return terms | {"loss": weight * terms["loss"]}

    return objective


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, *args):
        return weighted(self.weight)(*args)


def partial_objective(weight):
    return functools.partial(lambda weight, *args: weighted(weight)(*args), weight)


class Acting(nn.Module):
    """A model of a notebook, with a function as an attribute."""

    def __init__(self, act):
        super().__init__()
        self.body, self.act = small_vae(), act

    def encode(self, x):
        return self.body.encode(self.act(x))

    def decode(self, z):
        return self.body.decode(z)


@pytest.mark.parametrize("make", [weighted, Weighted, partial_objective], ids=["closure", "callable", "partial"])
def test_an_objective_that_cannot_be_identified_is_followed_each_time(data, tmp_path, trainings, make):
    with pytest.warns(UserWarning, match="fit is computed each time, and not kept, as"):
        runs = [fit_small(data, tmp_path, objective=make(weight)) for weight in (1.0, 0.1)]
    assert len(trainings) == 2
    assert not same(*runs)
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.filterwarnings("ignore:fit is computed each time")
def test_an_objective_that_reads_a_variable_of_the_notebook_is_followed_each_time(data, tmp_path, monkeypatch):
    first = fit_small(data, tmp_path, objective=scaled_objective)
    monkeypatch.setitem(globals(), "SCALE", 0.1)
    assert not same(first, fit_small(data, tmp_path, objective=scaled_objective))


def fit_network(network, data, folder):
    return recall(h.fit, network, h.vae_objective, data, TINY_VAE, cache=folder)[0]


def with_attribute(value):
    network = h.build(small_vae, seed=0)
    network.extra = value
    return network


def with_hook():
    network = h.build(small_vae, seed=0)
    network.encoder.register_forward_hook(lambda module, args, output: 2 * output)
    return network


def with_function():
    network = h.build(small_vae, seed=0)
    network.decoder[1].forward = torch.tanh
    return network


@pytest.mark.parametrize(
    "make",
    [
        lambda: h.build(Acting, torch.relu, seed=0),
        lambda: with_attribute([1.0]),
        lambda: with_attribute({"rate": 1.0}),
        lambda: with_attribute(torch.ones(2)),
        lambda: with_attribute(torch.relu),
        lambda: with_attribute(nn.functional.gelu),
        with_hook,
        with_function,
    ],
    ids=["class", "list", "dict", "tensor", "builtin", "function", "hook", "patched method"],
)
def test_a_network_that_cannot_be_identified_is_trained_each_time(data, tmp_path, trainings, make):
    for _ in range(2):
        with pytest.warns(UserWarning, match="computed each time"):
            fit_network(make(), data, tmp_path)
    assert len(trainings) == 2


def test_networks_are_told_apart_by_all_that_they_hold(data, tmp_path, trainings):
    frozen = h.build(small_vae, seed=0)
    frozen.encoder[1].weight.requires_grad_(False)
    for network in (with_attribute(1.0), with_attribute(2.0), with_attribute((1, "a")), frozen):
        fit_network(network, data, tmp_path)
    assert len(trainings) == 4


def test_patched_code_is_run_each_time(data, tmp_path, monkeypatch):
    first = fit_small(data, tmp_path)
    monkeypatch.setattr(training, "kl_per_dimension", lambda mu, logvar: 0 * mu)
    with pytest.warns(UserWarning, match="computed each time"):
        assert not same(first, fit_small(data, tmp_path))


def test_code_that_was_edited_after_its_import_is_not_what_was_run(data, tmp_path, trainings, monkeypatch):
    first, read = fit_small(data, tmp_path), identity.source_of
    monkeypatch.setattr(identity, "source_of", lambda name: f"{read(name)}\nNEW = 1\n")
    assert same(first, fit_small(data, tmp_path))
    assert len(trainings) == 1


def test_what_cannot_be_identified_is_said_once_for_a_loop(data, tmp_path, trainings):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for weight in (1.0, 0.5, 0.1):
            fit_small(data, tmp_path, objective=weighted(weight))
    assert len(said) == 1


def test_without_a_cache_nothing_is_asked_or_kept(data, tmp_path, trainings):
    fit_small(data, None, objective=weighted(1.0))
    assert len(trainings) == 1


def test_draws_without_a_generator_are_not_kept(tmp_path):
    x, mu = torch.rand(3, 1, 28, 28), torch.zeros(3, 4)
    model = h.build(small_vae, seed=0).eval()
    with pytest.warns(UserWarning, match="generator is None"):
        recall(h.importance_log_prob, x, mu, mu, model.decode, num_samples=3, cache=tmp_path)


def test_a_result_that_cannot_be_kept_is_returned_all_the_same(tmp_path):
    x = torch.randn(40, 2, generator=h.make_generator(0))
    with pytest.warns(
        UserWarning, match="fit_prior is computed each time, and not kept, as its result has a FittedPrior"
    ):
        prior, _ = recall(h.fit_prior, x, x, 1, cache=tmp_path)
    assert prior.sample(3).shape == (3, 2)
    assert not list(tmp_path.glob("*.pt"))


def test_autocast_and_the_default_format_are_in_the_key(data, tmp_path, trainings):
    fit_small(data, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        fit_small(data, tmp_path)
    assert len(trainings) == 2


# --- what a call does to its arguments is part of its result ---


def test_a_generator_goes_on_where_the_call_left_it(tmp_path):
    x, mu = torch.rand(3, 1, 28, 28), torch.zeros(3, 4)
    model, found = h.build(small_vae, seed=0).eval(), []
    for _ in range(2):
        generator = h.make_generator(5)
        options = {"num_samples": 7, "generator": generator}
        result, seconds = recall(h.importance_log_prob, x, mu, mu, model.decode, **options, cache=tmp_path)
        found.append((result.log_prob, torch.randn(3, generator=generator), torch.tensor(seconds)))
    assert all(map(torch.equal, *found))
    assert type(result).__name__ == "LogProb"


@settings(max_examples=15)
@given(
    st.sampled_from(["x", "mu", "logvar", "sigma", "num_samples", "seed", "model", "training"]),
    st.integers(1, 5),
)
def test_whatever_changes_the_second_result_is_that_of_an_empty_cache(tmp_path_factory, changed, amount):
    def estimate(folder, **change):
        values = {"sigma": 0.4, "num_samples": 5, "seed": 0, "model": 0, "training": False} | change
        model = h.build(h.conv_vae, 4, width=2, hidden=8, seed=values["model"]).train(values["training"])
        x, mu, logvar = (torch.rand(3, *shape, generator=h.make_generator(9)) for shape in ((1, 28, 28), (4,), (4,)))
        moved = {"x": x, "mu": mu, "logvar": logvar}
        moved |= {name: moved[name] + 0.1 * change[name] for name in moved if name in change}
        options = {"num_samples": values["num_samples"], "generator": h.make_generator(values["seed"])}
        sigma = values["sigma"] * values.get("scale", 1)
        return recall(h.importance_log_prob, *moved.values(), model.decode, sigma, **options, cache=folder)[0].log_prob

    folder = tmp_path_factory.mktemp("cache")
    change = {changed: True if changed == "training" else 0.1 * amount if changed == "sigma" else amount}
    estimate(folder)
    assert torch.equal(estimate(folder, **change), estimate(None, **change))


FORGED = {
    "a call": {"result": {"tuple": [1], "type": ("os", "nice")}, "seconds": 0.0, "states": []},
    "what a module of ours imports": {"result": {"tuple": [1], "type": ("latent_digits.latents", "tqdm")}},
    "a function of ours": {"result": {"tuple": [1], "type": ("study.cache", "recall")}},
    "no module": {"result": {"tuple": [1], "type": ("none", "x")}},
    "too few parts": {"result": {"tuple": [1], "type": ("latent_digits.densities", "Posterior")}},
    "no such network": {"result": {"network": 9}},
    "another record": {"value": 1},
}


@pytest.mark.parametrize("record", FORGED.values(), ids=FORGED)
def test_a_forged_file_calls_nothing_and_is_replaced(tmp_path, monkeypatch, record):
    mu, called = torch.zeros(3, 4), []
    monkeypatch.setattr(os, "nice", lambda *_: called.append(1))

    def draw():
        return recall(h.reparameterize, mu, mu, h.make_generator(0), cache=tmp_path)[0]

    expected = draw()
    (path,) = tmp_path.glob("*.pt")
    path.unlink()
    cached(path, lambda: record)
    with pytest.warns(UserWarning, match="is computed again"):
        assert torch.equal(draw(), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(draw(), expected)
    assert called == []


def test_generators_and_modes_are_left_as_the_call_left_them_wherever_they_are():
    """Within lists, dicts and data classes, too; and each part of a network has its own mode."""
    model, generator = h.build(small_vae, seed=0), h.make_generator(0)
    part = {"a": [model.decode], "b": h.Posterior(generator, None)}
    assert list(cache.within(part)) == [model, generator]
    model.eval()
    model.decoder.train()
    state = cache.state_of(model)
    model.train()
    cache.restore(model, state)
    assert (model.training, model.encoder.training, model.decoder.training) == (False, False, True)
