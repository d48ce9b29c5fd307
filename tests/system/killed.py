"""What test_kill.py kills: a module of its own, as its processes import it as they start."""

import matplotlib.pyplot as plt
import torch
import torch._dynamo  # optimizers import it when the first is made, which takes longer than all the rest

import helpers as h
from study.identity import source_hash

# taken apart before the fork: what is to be killed is the training and writing
source_hash("latent_digits.latents")

CONFIG = h.VAEConfig(epochs=2, batch_size=20, snapshots=(1, 2))
LATENTS = h.LatentConfig(epochs=2, batch_size=20, snapshots=(1,), refining_steps=2)


def work(folder):
    """Train a VAE and free codes, estimate log p(x), report: all through caches and files in `folder`."""
    torch.set_num_threads(1)
    generator = h.make_generator(0)
    x, y = torch.rand(60, 1, 28, 28, generator=generator), torch.arange(60) % 10
    data = h.Data("digits", x, y, x[:20], y[:20])
    model = h.build(h.mlp_vae, latent_size=4, hidden=(32,), seed=0)
    cache = folder / "cache"
    run, _ = h.recall(h.fit, model, h.vae_objective, data, CONFIG, cache=cache)
    start = torch.zeros(60, 4), torch.zeros(60, 4)
    free, _ = h.recall(h.fit_latents, h.without_encoder(model), start, data, LATENTS, cache=cache)
    q = h.in_batches(h.build(h.mlp_vae, latent_size=4, hidden=(32,), seed=1).encode, x)
    given = {"num_samples": 20, "generator": h.make_generator(0)}
    estimate, _ = h.recall(h.importance_log_prob, x, *q, free.model.decode, **given, cache=cache)
    settings = h.Settings(output=folder / "figures", cache=cache)
    report = h.Report("09_killed", settings, data)
    report.result("elbo", run.history["validation_elbo"].iloc[-1], "nats", digits=9)
    report.result("log p(x)", estimate.log_prob.mean(), "nats", digits=9)
    report.result("codes", free.mu.double().square().sum(), digits=9)
    figure = plt.figure()
    report.figure(figure, "empty")
    plt.close(figure)
    report.finish()
