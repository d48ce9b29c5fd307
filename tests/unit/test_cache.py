"""A result that is kept is the one that would be computed; what cannot be identified is computed each time."""

import functools
import os
import textwrap
import types
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import helpers as h
from latent_digits import data as data_module
from latent_digits import networks, training
from small import small_vae
from study import cache
from study.cache import decisive, recall, source_hash
from study.files import atomic_write, cached

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
    monkeypatch.setattr(cache, "IMPORTED", cache.as_imported())
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


PATCHES = {
    "a function": (training, "random_affine", lambda x, generator: x),
    "a function where it is defined": (data_module, "random_affine", lambda x, generator: x),
    "another of ours": (training, "make_generator", h.one_per_class),
    "a library": (training, "math", types.SimpleNamespace(ceil=lambda x: 1)),
    "a method": (networks.VAE, "decode", lambda self, z: self.decode_logits(z).sigmoid()),
    "an inherited method": (networks.VAE, "forward", lambda self, z: z),
    "a class": (training, "VAEConfig", object),
    "a constant": (training, "CURVE_SIZE", 20),
    "a default of a class": (networks.Network, "dtype", "bfloat16"),
}


@pytest.mark.parametrize("patch", PATCHES)
def test_patched_code_is_noticed(monkeypatch, patch):
    holder, name, value = PATCHES[patch]
    known = cache.identify([h.fit, h.build(small_vae, seed=0)])
    monkeypatch.setattr(holder, name, value, raising=False)
    with pytest.raises(cache.Unidentified):
        cache.identify([h.fit, h.build(small_vae, seed=0)])
    monkeypatch.undo()
    assert cache.identify([h.fit, h.build(small_vae, seed=0)]) == known


def test_patched_code_is_run_each_time(data, tmp_path, monkeypatch):
    first = fit_small(data, tmp_path)
    monkeypatch.setattr(training, "kl_per_dimension", lambda mu, logvar: 0 * mu)
    with pytest.warns(UserWarning, match="computed each time"):
        assert not same(first, fit_small(data, tmp_path))


def test_code_that_was_edited_after_its_import_is_not_what_was_run(data, tmp_path, trainings, monkeypatch):
    first, read = fit_small(data, tmp_path), cache.source_of
    monkeypatch.setattr(cache, "source_of", lambda name: f"{read(name)}\nNEW = 1\n")
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


MAKERS = {  # of a value, from a small whole number
    "bool": bool,
    "int": int,
    "float": float,
    "text": str,
    "none": lambda n: None,
    "tuple": lambda n: (n, 0.5),
    "list": lambda n: [n, 0.5],
    "dict": lambda n: {"a": n},
    "generator": h.make_generator,
    "integers": torch.arange,
    "floats": lambda n: torch.arange(n).float(),
    "row": lambda n: torch.arange(n)[None],
    "array": np.arange,
    "config": lambda n: h.VAEConfig(sigma=0.1 + n),
    "other config": lambda n: h.LatentConfig(sigma=0.1 + n),
    "code": lambda n: [h.vae_objective, h.NaturalGradient, h.RowAdam, nn.Linear][n],
    "format": lambda n: [torch.float32, torch.float64, torch.bfloat16, torch.int64][n],
    "network": lambda n: h.build(small_vae, seed=n),
    "classifier": lambda n: h.build(h.Classifier, 2, 4, seed=n),
    "number": torch.tensor,
    "method": lambda n: h.build(small_vae, seed=n).decode,
    "other method": lambda n: h.build(small_vae, seed=n).encode,
}
VALUES = st.tuples(st.sampled_from(sorted(MAKERS)), st.integers(0, 3))


@given(VALUES, VALUES)
def test_values_that_differ_are_told_apart_and_equal_ones_are_not(first, second):
    values = [MAKERS[kind](n) for kind, n in (first, second)]
    equal = first == second or {first[0], second[0]} == {"none"}
    equal |= {first[0], second[0]} == {"bool"} and bool(first[1]) == bool(second[1])
    assert (cache.identify(values[0]) == cache.identify(values[1])) == equal


def test_numbers_of_numpy_are_numbers():
    assert cache.identify(np.float64(0.5)) == cache.identify(0.5)
    assert cache.identify(np.int64(3)) == cache.identify(3)


# --- code ---


def test_what_decides_no_result_is_in_no_hash():
    with_text = textwrap.dedent('''
        def f(x):
            """Say."""
            # why
            require_positive(x=x)
            data.validate()
            if x > 3:
                raise ValueError("too large")
            warnings.warn("large")
            with located(f"step {x}", rate=x):
                return tqdm(x, desc="slow", unit="batch")
    ''')
    assert decisive(with_text) == "def f(x):\n    if x > 3:\n        pass\n    with located():\n        return tqdm(x)"
    assert decisive('class A(Exception):\n    """Only this."""\n') == "class A(Exception):\n    pass"


FIT = "latent_digits.training"


@pytest.mark.parametrize(
    ("module", "old", "new", "changes"),
    [
        ("densities", "expm1(logvar)", "expm1(1 * logvar)", True),
        ("densities", "expm1(logvar)", "expm1( logvar)", False),
        ("densities", '"""z = mu', '"""Z = mu', False),
        ("checks", "must be a positive, finite number", "must be another number", False),
        ("training", "class TrainConfig:", "class TrainConfig(dict):", True),
        ("training", "@torch.no_grad()\ndef evaluate", "def evaluate", True),
        ("training", "CURVE_SIZE = 2_000", "CURVE_SIZE: int = 2_000", True),
        ("training", "CURVE_SIZE = 2_000", "CURVE_SIZE, OTHER = 2_000, 1", True),
        ("training", "CURVE_SIZE = 2_000", "CURVE_SIZE = 2_000\nCURVE_SIZE += 1", True),
        ("training", "CURVE_SIZE = 2_000", "CURVE_SIZE = 2_000\nif True:\n    CURVE_SIZE = 3", True),
        ("metrics", "torch.bincount(probabilities", "torch.bincount(1 * probabilities", False),
        ("optimizers", "2 / 3 * rate", "1 / 3 * rate", False),
        ("mixture", "abs_tol=1e-6", "abs_tol=1e-5", False),
    ],
)
def test_a_hash_is_of_all_code_that_is_reached_and_of_no_other(monkeypatch, module, old, new, changes):
    before, read = source_hash(FIT), cache.source_of
    name = f"latent_digits.{module}"
    assert old in read(name)
    edited = read(name).replace(old, new)
    monkeypatch.setattr(cache, "source_of", lambda other: edited if other == name else read(other))
    assert (source_hash(FIT) != before) == changes


def modules_behind(module):
    """Those that are read for a hash."""
    names = []
    source_hash(module, read=lambda name: names.append(name) or cache.source_of(name))
    return names


@pytest.mark.parametrize("module", ["study.cache", "study.report", "study.widgets", "latent_digits.figures"])
def test_what_keeps_and_shows_is_in_no_key(module):
    for function in (h.fit, h.fit_latents, h.importance_log_prob, h.annealed_log_prob, h.infer_latents):
        assert module not in modules_behind(function.__module__)


def test_no_module_of_the_course_is_changed_as_it_is_used(data):
    h.fit(h.build(small_vae, seed=0), h.vae_objective, data, TINY_VAE)
    h.GaussianMixture(2, random_state=0).fit(data.train_x[:50, 0, 10].numpy()).predict(data.test_x[:3, 0, 10].numpy())
    for name in cache.IMPORTED:
        assert cache.unpatched_source(name)


# --- files ---


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-10], lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:], lambda b: b""]
)
def test_a_damaged_file_is_noticed_and_rebuilt(tmp_path, damage):
    path = tmp_path / "kept.pt"
    expected = cached(path, lambda: {"weights": torch.arange(1000.0)})["weights"]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="is computed again: it is damaged"):
        found = cached(path, lambda: {"weights": torch.arange(1000.0)})["weights"]
    assert torch.equal(found, expected)
    assert torch.equal(cached(path, lambda: pytest.fail("it was not kept"))["weights"], expected)


def test_a_full_disk_costs_the_cache_but_not_the_result(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"could not be written, and is not kept: .*No space left"):
        result = cached(tmp_path / "kept.pt", lambda: {"value": 1})
    assert result == {"value": 1}
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_cache_files_cannot_run_code(tmp_path, capfd):
    class Harmful:
        def __reduce__(self):
            return (print, ("code from a cache file ran",))

    path = tmp_path / "kept.pt"
    cached(path, lambda: {"value": Harmful()})  # with the right checksum
    with pytest.warns(UserWarning, match="is computed again: it holds more than plain data"):
        assert cached(path, lambda: {"value": 1}) == {"value": 1}
    assert cached(path, dict) == {"value": 1}
    assert "ran" not in capfd.readouterr().out


def test_a_forged_file_calls_nothing(tmp_path, monkeypatch):
    """A file that names something to call is told from a result of ours, and computed again."""
    x, called = torch.zeros(3, 4), []
    monkeypatch.setattr(os, "nice", lambda *_: called.append(1))
    generator = h.make_generator(0)
    recall(h.reparameterize, x, x, generator, cache=tmp_path)
    (path,) = tmp_path.glob("*.pt")
    path.unlink()
    for module, name in (("os", "nice"), ("latent_digits.latents", "tqdm"), ("study.cache", "identify"), ("none", "x")):
        cached(path, lambda kind=(module, name): {"result": {"tuple": [1], "type": kind}, "seconds": 0.0, "states": []})
        with pytest.warns(UserWarning, match=f"as what was kept has a {module}.{name}"):
            found, _ = recall(h.reparameterize, x, x, h.make_generator(0), cache=tmp_path)
        assert torch.equal(found, h.reparameterize(x, x, h.make_generator(0)))
        path.unlink()
    assert called == []


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_atomic_write_removes_what_a_killed_process_left_and_nothing_that_is_being_written(tmp_path):
    old, new = tmp_path / ".file.a.part", tmp_path / ".file.b.part"
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (0, 0))
    atomic_write(tmp_path / "file", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", new.name}
