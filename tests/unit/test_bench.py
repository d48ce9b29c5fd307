"""The benchmark: that it compares like with like, and that the README shows what it found."""

import bench
import pytest
import sides
import torch

import helpers as h


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
    data = h.load_data("digits", per_class=30)
    monkeypatch.setattr(h, "read_mnist", lambda _: (data.train_x, data.train_y, data.test_x, data.test_y))
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
    before, visit = quality(), h.Trainer.visit
    monkeypatch.setattr(h.Trainer, "visit", lambda self, rows, *a: batches.append(rows) or visit(self, rows, *a))
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
