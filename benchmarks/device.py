"""The course on one device: seconds of each part, whether its floor holds, and what is copied within a step.

Needs the course alone, no notebook: python benchmarks/device.py MNIST_ROOT cuda bfloat16 0 1 2 (seeds). Prints JSON.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latent_digits.batches import in_batches
from latent_digits.data import Data, balanced_subset
from latent_digits.latents import LatentConfig, LatentTrainer, fit_latents, infer_latents, latent_elbo, pca_posterior
from latent_digits.log_prob import importance_log_prob
from latent_digits.metrics import class_consistency
from latent_digits.mnist import read_mnist
from latent_digits.networks import Classifier, build, conv_vae, without_encoder
from latent_digits.optimizers import NaturalGradient
from latent_digits.random import make_generator
from latent_digits.training import (
    TrainConfig,
    Trainer,
    VAEConfig,
    classification_objective,
    evaluate,
    fit,
    vae_objective,
)

FLOORS = {  # of the mean over seeds, on MNIST
    "accuracy (%)": 99.40,
    "validation elbo (nats)": -51.0,
    "classes kept (%)": 99.0,
    "elbo, latent optimization minus amortized (nats)": -2.0,
    "log p(x), test (nats)": -46.3,
    "log p(x), ones (nats)": -25.0,
}
PER_DIGIT = 80  # test images whose log p(x) is estimated


def read_data(root: str, seed: int) -> Data:
    """2,000 training images of each digit, and all test images."""
    train_x, train_y, *test = read_mnist(Path(root))
    chosen = balanced_subset(train_y, 2000, make_generator(seed))
    return Data("mnist", train_x[chosen], train_y[chosen], *test)


def timed(function: Callable, *args, **options) -> tuple[object, float]:
    """A result, and the seconds until the device has it."""
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    finish()
    start = time.perf_counter()
    result = function(*args, **options)
    finish()
    return result, round(time.perf_counter() - start, 2)


def measure(data: Data, seed: int, device: str, dtype: str) -> tuple[dict[str, float], dict[str, float]]:
    """What the parts reach under one seed, and their seconds."""
    data, built, seconds = data.to(device), {"seed": seed, "device": device, "dtype": dtype}, {}
    classifier = build(Classifier, **built)
    _, seconds["classifier"] = timed(fit, classifier, classification_objective, data, TrainConfig(), seed=seed)
    terms = evaluate(classifier, classification_objective, data.test_x, data.test_y, TrainConfig())
    reached = {"accuracy (%)": 100 * terms["accuracy"].mean().item()}

    vae, config = build(conv_vae, **built), VAEConfig()
    _, seconds["VAE"] = timed(fit, vae, vae_objective, data, config, seed=seed)
    elbo = evaluate(vae, vae_objective, data.test_x, data.test_y, config)["elbo"]
    reached["validation elbo (nats)"] = elbo.mean().item()

    decoder, project = without_encoder(build(conv_vae, **built)), pca_posterior(data.train_x, vae.latent_size)
    free, seconds["latent optimization"] = timed(
        fit_latents, decoder, project(data.train_x), data, LatentConfig(), seed=seed
    )
    x_hat = in_batches(free.model.decode, free.mu)
    reached["classes kept (%)"] = 100 * class_consistency(classifier, x_hat, data.train_y)
    own = latent_elbo(free.model.decode, data.train_x, free.mu, free.logvar)["elbo"].mean()
    amortized = latent_elbo(vae.decode, data.train_x, *in_batches(vae.encode, data.train_x))["elbo"].mean()
    reached["elbo, latent optimization minus amortized (nats)"] = (own - amortized).item()

    some = balanced_subset(data.test_y.cpu(), PER_DIGIT, make_generator(seed)).to(device)
    x, generator = data.test_x[some], make_generator(seed, device)
    start = in_batches(vae.encode, x)
    q, seconds["20 steps of q"] = timed(infer_latents, vae.decode, x, start, steps=20, generator=generator)
    found, seconds["log p(x)"] = timed(importance_log_prob, x, *q, vae.decode, generator=generator)
    # of all test images: the elbo is known of each, and what log p(x) is above it is the mean of some
    gain, one = found.log_prob - elbo[some].cpu(), data.test_y == 1
    reached["log p(x), test (nats)"] = (elbo.mean() + gain.mean()).item()
    reached["log p(x), ones (nats)"] = (elbo[one].mean() + gain[one[some].cpu()].mean()).item()
    return {name: round(value, 3) for name, value in reached.items()}, seconds


def copies(data: Data, device: str, dtype: str, steps: int = 20) -> dict[str, dict[str, float]]:
    """Copies between the processor and the device in one step of each training."""
    data, generator = data.to(device), make_generator(0, device)
    mu = torch.zeros(len(data.train_x), 200, device=device)
    codes = torch.cat([mu, mu], 1)
    classifier, vae = (build(kind, seed=0, device=device, dtype=dtype).train() for kind in (Classifier, conv_vae))
    trainers = {
        "classifier": Trainer(classifier, classification_objective, data, TrainConfig(), generator),
        "VAE": Trainer(vae, vae_objective, data, VAEConfig(), generator),
        "latent optimization": LatentTrainer(
            without_encoder(vae), codes, NaturalGradient(codes), data, LatentConfig(), generator
        ),
    }
    found = {}
    for name, trainer in trainers.items():
        batch = torch.arange(trainer.config.batch_size, device=device)
        trainer.training_step(batch)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            for _ in range(steps):
                trainer.training_step(batch)
            torch.cuda.synchronize()
        kinds = Counter(event.name for event in seen.events() if re.match("Memcpy (HtoD|DtoH)", event.name))
        found[name] = {kind: count / steps for kind, count in kinds.items()}
    return found


def main() -> None:
    """Print what was found as JSON, a line a seed. Ends with 1 where a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="MNIST's folder")
    parser.add_argument("device", choices=["cpu", "cuda", "mps"])
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("seeds", type=int, nargs="+")
    given = parser.parse_args()
    where = given.device, given.dtype
    card = torch.cuda.get_device_name() if given.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(json.dumps({"device": card, "dtype": given.dtype, "torch": torch.__version__}), flush=True)
    if given.device == "cuda":
        print(json.dumps({"copies in a step": copies(read_data(given.root, 0), *where)}), flush=True)
    reached = []
    for seed in given.seeds:
        found, seconds = measure(read_data(given.root, seed), seed, *where)
        reached.append(found)
        print(json.dumps({"seed": seed, "reached": found, "seconds": seconds}), flush=True)
    means = {name: sum(found[name] for found in reached) / len(reached) for name in FLOORS}
    missed = [name for name, floor in FLOORS.items() if means[name] < floor]
    print(json.dumps({"means": means, "missed": missed}), flush=True)
    sys.exit(int(bool(missed)))


if __name__ == "__main__":
    main()
