"""The benchmark: that it compares like with like, and counts as by hand."""

import functools
import itertools
import json
import os
import sys
from types import SimpleNamespace

import arithmetic
import bench
import device
import published
import pytest
import scaling
import sides
import torch

import helpers as h
from latent_digits.networks import PixelUpscale
from study.settings import PROJECT
from study.sweep import locally


class Known:
    """In place of a worker: what it measures is known."""

    def __init__(self, side, **options):
        self.side, self.options = side, options

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    ("seconds", "reached", "equal", "met"),
    [
        ((1, 9), (5, 5), False, True),
        ((1, 7), (5, 5), False, False),
        ((1, 9), (4.8, 5), False, False),
        ((1, 9), (5.2, 5), False, True),
        ((1, 9), (5.2, 5), True, False),
        ((1, 9), (5.05, 5), True, True),
    ],
)
def test_a_target_is_met_by_speed_and_quality_together(monkeypatch, seconds, reached, equal, met):
    turns = []

    class Pair(Known):
        def measure(self):
            turns.append(self.side[-4:])
            return seconds[self.side == "row_peer"]

        def finish(self):
            return {"quality": reached[self.side == "row_peer"], "peak": 1.0}

    monkeypatch.setattr(bench, "Worker", Pair)
    found = bench.compare(bench.Row("row", "row", 8, "nats", 0.1, equal=equal), pairs=2)
    assert found["ratio"] == seconds[1] / seconds[0]
    assert found["met"] is met
    assert turns == ["ours", "peer", "peer", "ours", "ours", "peer"]  # one each for warming up, then in turn


def test_a_rate_is_work_per_second(monkeypatch):
    class Rate(Known):
        def measure(self):
            return 2.0 if self.side == "row_ours" else 1.0

        def finish(self):
            return {"quality": 30.0 if self.side == "row_ours" else 20.0, "peak": 1.0}

    monkeypatch.setattr(bench, "Worker", Rate)
    assert bench.compare(bench.Row("row", "row", 0.5, "GFLOP", 0.0, as_rate=True), pairs=1)["ratio"] == 15 / 20


def test_growth_gives_the_slope_between_logarithms(monkeypatch):
    class Quadratic(Known):
        def measure(self):
            return self.options["components"] ** 2 / 100

        def finish(self):
            return {"above": self.options["components"] ** 0.5}

    monkeypatch.setattr(bench, "Worker", Quadratic)
    found = bench.grow("em_ours", "components", [1, 10, 100], "components", repeats=2)
    assert found["slope"] == pytest.approx(2)
    assert found["memory slope"] == pytest.approx(0.5)
    figure = bench.draw_growth({"components": found})
    assert all(ax.get_xscale() == ax.get_yscale() == "log" for ax in figure.axes)


def copy_of(peer):
    """The weights of a PlainVAE in our own model."""
    ours = h.mlp_vae(20, hidden=(400,))
    both = zip(peer.mu.parameters(), peer.logvar.parameters(), strict=True)
    theirs = [*peer.hidden.parameters(), *map(torch.cat, both), *peer.back.parameters(), *peer.out.parameters()]
    with torch.no_grad():
        for mine, its in zip(ours.parameters(), theirs, strict=True):
            mine.copy_(its)
    return ours


def test_both_sides_of_the_vae_are_the_same_model_with_the_same_loss(monkeypatch):
    peer = sides.PlainVAE()
    ours, x = copy_of(peer), torch.rand(7, 1, 28, 28, generator=h.make_generator(0))
    eps = torch.randn(7, 20, generator=h.make_generator(1))
    monkeypatch.setattr(torch, "randn_like", lambda _: eps)
    loss = sides.plain_vae_loss(*peer(x)[:1], x, *peer(x)[1:])
    config = h.VAEConfig(likelihood="bernoulli")
    terms = h.vae_objective(ours, x, None, config, h.make_generator(1))
    assert terms["loss"].sum().item() == pytest.approx(loss.item(), rel=1e-5)


def small_mnist(monkeypatch):
    data = h.load_data("digits", per_class=60)
    monkeypatch.setattr(sides, "read_mnist", lambda _: (data.train_x, data.train_y, data.test_x, data.test_y))
    monkeypatch.setattr(h, "load_data", lambda *_, **__: data)
    return data


def test_both_sides_of_latent_optimization_start_alike_and_learn(monkeypatch):
    small_mnist(monkeypatch)
    monkeypatch.setattr(sides, "STEPS", 20)
    starts = []
    for steps, quality in (sides.latents_ours(), sides.latents_peer()):
        starts.append(quality())
        steps()
        assert quality() > starts[-1] + 1
    assert starts[0] == pytest.approx(starts[1], abs=1e-3)


def test_an_epoch_of_ours_visits_every_image_once_in_batches_of_128(monkeypatch):
    data, batches = small_mnist(monkeypatch), []
    epoch, quality = sides.vae_epoch_ours()
    before, visit = quality(), h.Trainer.training_step
    monkeypatch.setattr(
        h.Trainer, "training_step", lambda self, rows, *a: batches.append(rows) or visit(self, rows, *a)
    )
    epoch()
    assert quality() > before + 1
    assert {len(rows) for rows in batches[:-1]} == {128}
    assert torch.cat(batches).sort().values.tolist() == list(range(len(data.train_x)))


def test_reaching_a_target_ends_training_and_missing_it_is_an_error():
    accuracies = iter([0.5, 0.992, 0.999])
    assert sides.reach(accuracies) == 0.992
    assert next(accuracies) == 0.999
    with pytest.raises(RuntimeError, match=r"98\.00%: 99% was not reached"):
        sides.reach(iter([0.5, 0.98]))


# --- the table, and what misses its target ---


def found_row(name="row", met=True, limit=""):
    numbers = {"ours (s)": 1.0, "peer (s)": 4.0, "ratio": 4.0, "min": 3.0, "max": 5.0, "target": 8, "slack": 0.0}
    sides_of = {"ours (MB)": 100, "peer (MB)": 200, "ours reaches": 1.0, "peer reaches": 1.0}
    return {"row": name, "quality": "nats", "met": met, "limit": limit} | numbers | sides_of


def test_what_misses_its_target_is_listed_with_what_limits_it():
    rows = [found_row("good", limit="unused"), found_row("slow", met=False, limit="physics")]
    runs = {"float32": {"minutes": 18.0, "memory (GB)": 1.6}, "bfloat16": {"minutes": 12.0, "memory (GB)": 1.5}}
    found = {"rows": rows, "run": runs}
    assert bench.limits(found).splitlines() == [
        "- **slow**: physics.",
        f"- **`make run` from nothing, float32**: {bench.RUN_LIMIT}.",
    ]
    _, _, good, slow, float32, bfloat16 = bench.markdown(found).splitlines()
    assert "8 ✓" in good
    assert "8 ✗" in slow
    assert "| 18.0 minutes | – | – | 18 minutes, 1.5 GB a notebook ✗ | every check | 1.6 GB |" in float32
    assert "12 minutes, 1.5 GB a notebook ✓" in bfloat16


def test_only_what_is_asked_for_is_measured_and_only_in_formats_that_are_fast(monkeypatch):
    taken = []
    monkeypatch.setattr(bench, "formats", lambda: ["float32"])
    monkeypatch.setattr(bench, "compare", lambda row, _: taken.append(row.dtype) or found_row(row.label))
    monkeypatch.setattr(bench, "full_run", lambda dtype: {"minutes": 1, "memory (GB)": 1})
    monkeypatch.setattr(arithmetic, "measure", lambda *_: {"01": {"rest": 4}})
    found = {"rows": [found_row(bench.ROWS[0].label), found_row(bench.ROWS[-1].label)], "run": {}, "arithmetic": {}}
    steps = list(bench.measurements(found, ["cnn", "em", "run", "arithmetic"], 1))
    assert taken == ["float32"] + 18 * [""]
    assert len(steps) == len(taken) + 2
    labels = [row["row"] for row in found["rows"]]
    assert labels == sorted(labels, key=[row.label for row in bench.ROWS].index)
    assert len(set(labels)) == len(labels) == len(taken) + 2
    assert set(found["run"]) == {"float32"}
    assert found["arithmetic"] == {"01": {"rest": 4}}


def test_the_arithmetic_is_counted_from_an_empty_cache_on_one_thread(monkeypatch):
    before, seen = dict(os.environ), []
    monkeypatch.setattr(arithmetic, "execute", lambda *_, **__: seen.append(dict(os.environ)) or {})
    arithmetic.measure(os.environ | {"DATA": "digits", "CACHE": "full"}, [PROJECT / "any.ipynb"])
    (environ,) = seen
    assert (environ["DATA"], environ["OMP_NUM_THREADS"]) == ("digits", "1")
    assert environ["CACHE"] != "full"
    assert dict(os.environ) == before
    assert bench.full_scale().keys().isdisjoint({"DTYPE", "QUICK", "DATA"})


def test_scikit_learn_computes_in_the_format_that_its_rows_name():
    for side, digits in ((sides.em_peer, 1e-12), (sides.em_float32, 1e-3)):
        ours, peer = sides.em_ours(2, 3), side(2, 3)
        for unit, _ in (ours, peer):
            unit()
        difference = abs(ours[1]() - peer[1]())
        assert difference < digits
        assert (difference == pytest.approx(0, abs=1e-12)) == (side is sides.em_peer)


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
@pytest.mark.parametrize("columns", ["50 columns", bench.CONSTANT])
def test_both_sides_of_em_fit_the_same_wide_data(columns, covariance_type):
    data = {"columns": columns, "covariance_type": covariance_type}
    ours, peer = (side(3, 2, **data) for side in (sides.em_ours, sides.em_peer))
    for unit, _ in (ours, peer):
        unit()
    assert ours[1]() == pytest.approx(peer[1](), abs=1e-6)
    x = sides.samples(columns)
    assert x.shape == (1000, int(columns[:2]))
    assert (x.std(0) == 0).sum() == ("constant" in columns)


# --- the arithmetic: parts, operations, the table ---


def metered(seconds):
    """A meter of a clock that its test turns."""
    return arithmetic.Meter(lambda: 10 * seconds[0])


def test_what_is_spent_goes_to_the_innermost_part():
    clock = [0.0]
    meter = metered(clock)

    def spend(part, function=lambda: None):
        def work():
            clock[0] += 1
            function()
            clock[0] += 1

        return meter.watched(part, work)

    spend("training", spend("curves", spend("curves")))()
    assert dict(meter.spent) == {"rest": 0, "training": 20, "curves": 40}


def test_inference_counts_as_itself_only_where_nothing_else_is_at_work():
    clock = [0.0]
    meter = metered(clock)
    for outer in ("sampling", "rest"):
        with meter.inside(outer), meter.inside(arithmetic.INFERENCE), meter.inside(arithmetic.INFERENCE):
            clock[0] += 1
    assert meter.spent["sampling"] == meter.spent[arithmetic.INFERENCE] == 10


def test_a_part_that_fails_is_at_work_no_longer():
    meter = metered([0.0])
    with pytest.raises(FloatingPointError), meter.inside("training"):
        raise FloatingPointError
    assert meter.part == "rest"


def watched_copy(meter):
    """A stand-in for helpers that is watched: its classes are subclasses, so that the real ones stay as they are."""
    names = {name.partition(".")[0] for names in arithmetic.PARTS.values() for name in names.split()}
    modules = [module for name, module in sys.modules.items() if name.startswith("latent_digits.")]
    kinds = {name: next(vars(module)[name] for module in modules if name in vars(module)) for name in names}
    kinds = {name: type(name, (kind,), {}) if isinstance(kind, type) else kind for name, kind in kinds.items()}
    stand_in = SimpleNamespace(**kinds)
    meter.watch(stand_in)
    return stand_in


def test_watching_changes_no_names():
    stand_in = watched_copy(metered([0.0]))
    assert stand_in.infer_latents is not h.infer_latents
    assert stand_in.infer_latents.__qualname__ == h.infer_latents.__qualname__
    assert stand_in.Trainer.run_epoch.__qualname__ == h.Trainer.run_epoch.__qualname__


def test_training_and_its_curves_are_counted_as_by_hand():
    images, encoder, decoder = 6, [784, 5, 6], [3, 5, 784]  # the encoder gives two numbers for each latent
    epochs = 3  # of which one is counted
    x, y = torch.rand(images, 1, 28, 28, generator=h.make_generator(0)), torch.zeros(images, dtype=torch.long)
    data, config = h.Data("mnist", x, y, x, y), h.VAEConfig(batch_size=images, epochs=epochs, snapshots=())
    with arithmetic.make_counter() as counter:
        meter = arithmetic.Meter(counter.get_total_flops)
        Trainer = watched_copy(meter).Trainer
        Trainer(h.build(h.mlp_vae, 3, hidden=(5,), seed=0), h.vae_objective, data, config, h.make_generator(0)).run()
    forwards = sum(2 * images * a * b for pair in (encoder, decoder) for a, b in itertools.pairwise(pair))
    backwards = 2 * forwards - 2 * images * 784 * 5  # no gradient of the images
    assert meter.spent["training"] == epochs * (forwards + backwards)
    assert meter.spent["curves"] == epochs * 2 * forwards  # training and validation images
    assert meter.spent["rest"] == 0


def operations_of(function):
    with arithmetic.make_counter() as counter:
        function()
    return counter.get_total_flops()


def test_convolutions_are_counted_as_by_hand_forwards_and_backwards():
    x = torch.rand(2, 4, 7, 7, requires_grad=True)
    pairs = [
        (torch.nn.Conv2d(4, 6, 4, stride=2, padding=1), 9 * 4 * 6 * 16),  # for each of 3 x 3 outputs
        (torch.nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), 49 * 4 * 6 * 16),  # for each of 7 x 7 inputs
        (PixelUpscale(4), 49 * 4 * 16),
    ]
    for layer, multiplications in pairs:
        with torch.autocast("cpu", torch.bfloat16):
            assert operations_of(lambda layer=layer: layer(x).float().sum().backward()) == 3 * 2 * 2 * multiplications


def test_products_in_float64_with_vectors_and_distances_are_counted():
    a = torch.rand(3, 40, 50, dtype=torch.float64)
    assert operations_of(lambda: a @ a.mT) == 2 * 3 * 40 * 50 * 40
    assert operations_of(lambda: torch.einsum("kgi,kgj->kij", a, a)) == 2 * 3 * 50 * 40 * 50
    assert operations_of(lambda: a[0] @ a[0, 0]) == 2 * 40 * 50
    assert operations_of(lambda: a[0, 0] @ a[0, 0]) == 2 * 50
    assert operations_of(lambda: torch.cdist(a[0], a[1])) == 2 * 40 * 40 * 50


def test_a_gradient_of_the_input_alone_can_be_counted():
    x, layer = torch.rand(8, 5, requires_grad=True), torch.nn.Linear(5, 3)
    assert operations_of(lambda: torch.autograd.grad(layer(x).sum(), x)) == 2 * 2 * 8 * 5 * 3
    assert torch.autograd.gradcheck(layer.double(), x.detach().double().requires_grad_())
    with arithmetic.make_counter():
        assert torch.autograd.gradcheck(layer, x.detach().double().requires_grad_())


def test_the_table_has_a_row_for_each_notebook_and_for_all():
    found = {"02": {"rest": 0.0, "training": 2.5e12}, "01": {"training": 1e12}}
    head, _, *rows = (line.strip("| ").split(" | ") for line in arithmetic.markdown(found).splitlines())
    assert [row[0] for row in rows] == ["01", "02", "all"]
    by_name = [dict(zip(head, row, strict=True)) for row in rows]
    assert by_name[0]["training"] == by_name[0]["all"] == "1.00"
    assert by_name[0]["mixture"] == ""
    assert by_name[1]["rest"] == "0.00"
    assert by_name[2]["training"] == by_name[2]["all"] == "3.50"


def test_notebooks_come_in_the_order_of_make_run():
    assert f"number,{' '.join(arithmetic.ORDER)}," in (PROJECT / "Makefile").read_text(encoding="utf-8")
    assert len(arithmetic.notebooks()) == len(list((PROJECT / "notebooks").glob("*.ipynb")))


def test_on_a_device_every_part_is_run_and_held_against_its_floor(monkeypatch, capsys):
    """In little: what is measured has its name, and an untrained model misses what it must."""
    x, y = torch.rand(40, 1, 28, 28, generator=h.make_generator(0)), torch.arange(40) % 10
    monkeypatch.setattr(device, "read_data", lambda *_: h.Data("mnist", x, y, x, y))
    monkeypatch.setattr(device, "PER_DIGIT", 2)
    monkeypatch.setattr(device, "TrainConfig", lambda: h.TrainConfig(epochs=1))
    monkeypatch.setattr(device, "VAEConfig", lambda: h.VAEConfig(epochs=1))
    monkeypatch.setattr(device, "LatentConfig", lambda: h.LatentConfig(epochs=2, snapshots=(), refining_steps=1))
    monkeypatch.setattr(device, "importance_log_prob", functools.partial(h.importance_log_prob, num_samples=2))
    monkeypatch.setattr(sys, "argv", ["device.py", "data", "cpu", "float32", "0", "1"])
    with pytest.raises(SystemExit, match="1"):
        device.main()
    _, first, second, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert [first["seed"], second["seed"]] == [0, 1]
    for name in device.FLOORS:
        assert end["means"][name] == pytest.approx((first["reached"][name] + second["reached"][name]) / 2)
    assert set(first["seconds"]) == {"classifier", "VAE", "latent optimization", "20 steps of q", "log p(x)"}
    assert "log p(x), test (nats)" in end["missed"]


def test_the_published_networks_log_prob_is_exact_where_its_latents_say_nothing():
    model = h.build(published.published_vae, 3, hidden=4, seed=0)
    for part, bias in ((model.encoder[-1], 0.0), (model.decoder[-2], 0.7)):  # q(z|x) = N(0, I), p(x|z) without z
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.constant_(part.bias, bias)
    x = torch.bernoulli(torch.full((5, 1, 28, 28), 0.3), generator=h.make_generator(1))
    exact = torch.distributions.Bernoulli(logits=torch.tensor(0.7)).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(published.log_prob(model, x, 0, 4).log_prob, exact.double(), atol=1e-3)
    found, _ = published.annealed(model, x, 0)
    assert torch.allclose(found.log_prob, exact.double(), atol=1e-3)


def test_the_published_networks_images_are_binarised_afresh_with_their_grey_values_as_probabilities(monkeypatch):
    seen = []
    monkeypatch.setattr(h, "vae_objective", lambda model, x, *_: seen.append(x))
    x, generator = torch.full((50, 1, 28, 28), 0.3), h.make_generator(2)
    for _ in range(2):
        published.binarised_objective(None, x, None, None, generator)
    assert all(((binary == 0) | (binary == 1)).all() for binary in seen)
    assert abs(seen[0].mean() - 0.3) < 0.02
    assert not seen[0].equal(seen[1])


def test_the_sweeps_own_cost_is_measured_over_all_tasks():
    found = scaling.measure(locally, 2, 10)
    assert found["ms for each task"] == pytest.approx(100 * found["seconds"])
    assert found["processor seconds"] >= 0
    stored = {"threads": {"10": found}, "dask": {"10": found}}
    *_, row = scaling.table(stored)
    assert row.startswith(f"| 10 | {found['seconds']:.2f} | {found['ms for each task']:.2f} |")
