"""What decides a result is told from whatever would decide another."""

import textwrap
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import helpers as h
from latent_digits import data as data_module
from latent_digits import networks, training
from small import small_vae
from study import identity
from study.identity import decisive, source_hash

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
    known = identity.identify([h.fit, h.build(small_vae, seed=0)])
    monkeypatch.setattr(holder, name, value, raising=False)
    with pytest.raises(identity.Unidentified):
        identity.identify([h.fit, h.build(small_vae, seed=0)])
    monkeypatch.undo()
    assert identity.identify([h.fit, h.build(small_vae, seed=0)]) == known


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
    assert (identity.identify(values[0]) == identity.identify(values[1])) == equal


def test_a_layout_in_memory_is_told_from_another():
    """Other kernels run on it, and round in another way."""
    x = torch.zeros(2, 3, 4, 4)
    assert identity.identify(x) != identity.identify(x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    ("holder", "name"), [("cudnn", "allow_tf32"), ("cudnn", "benchmark"), ("cudnn", "deterministic")]
)
def test_switches_of_the_arithmetic_are_told_apart(monkeypatch, holder, name):
    before, holder = identity.arithmetic(), getattr(torch.backends, holder)
    monkeypatch.setattr(holder, name, not getattr(holder, name))
    assert identity.arithmetic() != before


def test_numbers_of_numpy_are_numbers():
    assert identity.identify(np.float64(0.5)) == identity.identify(0.5)
    assert identity.identify(np.int64(3)) == identity.identify(3)


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
    assert decisive("f(x, desc=1, unit=2)") == "f(x, desc=1, unit=2)"
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
        ("training", "    model.eval()\n", "    model.train()\n", True),
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
    before, read = source_hash(FIT), identity.source_of
    name = f"latent_digits.{module}"
    assert old in read(name)
    edited = read(name).replace(old, new)
    monkeypatch.setattr(identity, "source_of", lambda other: edited if other == name else read(other))
    assert (source_hash(FIT) != before) == changes


def modules_behind(module):
    """Those that are read for a hash."""
    names = []
    source_hash(module, read=lambda name: names.append(name) or identity.source_of(name))
    return names


@pytest.mark.parametrize("module", ["study.cache", "study.report", "study.widgets", "latent_digits.figures"])
def test_what_keeps_and_shows_is_in_no_key(module):
    for function in (h.fit, h.fit_latents, h.importance_log_prob, h.annealed_log_prob, h.infer_latents):
        assert module not in modules_behind(function.__module__)


def test_no_module_of_the_course_is_changed_as_it_is_used(data):
    h.fit(h.build(small_vae, seed=0), h.vae_objective, data, h.VAEConfig(epochs=1, batch_size=50, snapshots=(1,)))
    h.GaussianMixture(2, random_state=0).fit(data.train_x[:50, 0, 10].numpy()).predict(data.test_x[:3, 0, 10].numpy())
    for name in identity.IMPORTED:
        assert identity.unpatched_source(name)


# --- files ---
