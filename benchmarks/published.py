"""A VAE as the field's table has it: Burda et al. 2016, "Importance weighted autoencoders", table 1.

784-200-200-50 with tanh, one stochastic layer, k = 1, on all 60,000 images, binarised afresh at each visit. The paper
trains 3,280 epochs at a rate that falls in steps; here it is a cycle of EPOCHS, an hour and a half on one core. Then
log p(x) of the test images, binarised once, by L = 5,000 importance weights, and by annealing on some of them.
`make published` writes benchmarks/published.json and published.png.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import helpers as h
from latent_digits.densities import bernoulli_log_mass
from latent_digits.mnist import read_mnist
from latent_digits.networks import VAE
from study.files import atomic_write
from study.settings import PROJECT, path_of

PUBLISHED = -86.76  # nats: Burda et al. 2016, table 1, VAE, one stochastic layer, k = 1
EPOCHS, SAMPLES, ANNEALED = 800, 5_000, 500


class BernoulliLikelihood(NamedTuple):
    """p(x|z) = Bernoulli(x; sigmoid(decode_logits(z)))."""

    decode_logits: nn.Module

    def log_prob(self, x, z):
        """log p(x|z) (batch,) in nats."""
        return bernoulli_log_mass(x, self.decode_logits(z))


def published_vae(latent_size=50, hidden=200):
    """The paper's network with one stochastic layer (section 5.1), its initial weights Glorot's, as there."""
    encoder = nn.Sequential(nn.Flatten(), *layers(784, hidden), nn.Linear(hidden, 2 * latent_size))
    decoder = nn.Sequential(*layers(latent_size, hidden), nn.Linear(hidden, 784), nn.Unflatten(1, (1, 28, 28)))
    vae = VAE(encoder, decoder, latent_size)
    for module in vae.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return vae


def layers(inputs, hidden):
    """Two layers of tanh."""
    return [nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()]


def binarised_objective(model, x, y, config, generator):
    """The elbo of images that are binarised afresh: each pixel is 1 with the probability of its grey value."""
    return h.vae_objective(model, torch.bernoulli(x, generator=generator), y, config, generator)


def log_prob(model, x, seed, samples):
    """log p(x) of binarised images by importance sampling, with the encoder's q."""
    q = h.Posterior(*h.in_batches(model.encode, x))
    generator = h.make_generator(seed, x.device)
    return h.estimate_log_prob(x, q, BernoulliLikelihood(model.decode_logits), samples, generator)


def annealed(model, x, seed):
    """The same by annealing, and the share of moves that were accepted."""
    q = h.Posterior(*h.in_batches(model.encode, x))
    annealing = h.Annealing(chains=10, temperatures=200)
    how = BernoulliLikelihood(model.decode_logits), annealing
    return h.annealed_log_prob(x, q, *how, generator=h.make_generator(seed, x.device))


def mean_and_error(values):
    """Mean and standard error over images, in nats."""
    return {"mean (nats)": values.mean().item(), "standard error": (values.std() / len(values) ** 0.5).item()}


def measure(settings, epochs, samples, annealed_images):
    """Train, then estimate."""
    seed, device = settings.seed, settings.device
    root = path_of(MNIST_ROOT=os.environ.get("MNIST_ROOT") or "data")
    data = h.Data("mnist", *read_mnist(root)).to(device)
    marks = sorted({max(1, round(epochs * share)) for share in (0.00125, 0.004, 0.01, 0.03, 0.1, 0.3, 0.6, 1)})
    config = h.VAEConfig(
        epochs=epochs,
        batch_size=100,
        learning_rate=3e-3,
        weight_decay=0.0,
        likelihood="bernoulli",
        snapshots=tuple(marks),
    )
    run = h.fit(h.build(published_vae, seed=seed, device=device), binarised_objective, data, config, seed=seed)
    test = torch.bernoulli(data.test_x, generator=h.make_generator(seed + 1, device))
    curve, model = {}, h.build(published_vae, seed=seed, device=device).eval()
    for epoch, state in run.snapshots.items():
        model.load_state_dict(state)
        curve[epoch] = log_prob(model, test[:1_000], seed, samples // 5).log_prob.mean().item()
    began = time.perf_counter()
    estimate = log_prob(run.model, test, seed, samples)
    seconds = time.perf_counter() - began
    by_annealing, accepted = annealed(run.model, test[:annealed_images], seed)
    gain = by_annealing.log_prob - estimate.log_prob[:annealed_images]
    return {
        "published (nats)": PUBLISHED,
        "epochs": epochs,
        "seed": seed,
        "training (s)": run.seconds,
        "validation elbo (nats)": run.history["validation_elbo"].to_dict(),
        "log p(x) by epoch (nats)": curve,
        "log p(x)": mean_and_error(estimate.log_prob) | {"images": len(test), "weights": samples, "seconds": seconds},
        "effective samples": estimate.ess.mean().item(),
        "annealing minus importance sampling": mean_and_error(gain) | {"images": len(gain), "accepted": accepted},
    }


def draw(found):
    """The value against epochs, beside the published one."""
    figure, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    elbo = {int(epoch): value for epoch, value in found["validation elbo (nats)"].items()}
    curve = {int(epoch): value for epoch, value in found["log p(x) by epoch (nats)"].items()}
    ax.plot(elbo.keys(), elbo.values(), color="C0", label="elbo, 2,000 test images")
    ax.plot(curve.keys(), curve.values(), "o-", color="C1", label="log p(x), 1,000 test images, 1,000 weights")
    value, weights = found["log p(x)"]["mean (nats)"], found["log p(x)"]["weights"]
    ax.plot(found["epochs"], value, "k*", ms=11, label=f"log p(x), all test images, {weights:,} weights: {value:.2f}")
    ax.axhline(PUBLISHED, color="gray", ls="--", label=f"Burda et al. 2016, 3,280 epochs: {PUBLISHED}")
    ax.set(xlabel="epoch", ylabel="mean over test images (nats)", xscale="log", ylim=(-120, -84))
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", fontsize=8)
    return figure


def describe(found):
    """What was found, in words: for COMPARISON.md."""
    value, gain = found["log p(x)"], found["annealing minus importance sampling"]
    return (
        f"{value['mean (nats)']:.2f} ± {value['standard error']:.2f} nats after {found['epochs']:,} epochs, "
        f"by {value['weights']:,} weights on {value['images']:,} test images; annealing finds "
        f"{gain['mean (nats)']:+.2f} ± {gain['standard error']:.2f} nats more on {gain['images']} of them"
    ).replace("-", "−")


def main():
    """Measure, and write down what was found."""
    settings = h.Settings.from_environment()
    found = measure(settings, *((2, 20, 10) if settings.quick else (EPOCHS, SAMPLES, ANNEALED)))
    folder = settings.output if settings.quick else PROJECT / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "published.json", (json.dumps(found, indent=1) + "\n").encode())
    draw(found).savefig(folder / "published.png", dpi=110)
    print(describe(found))


if __name__ == "__main__":
    main()
