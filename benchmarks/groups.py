"""Ten groups found without a label, for several VAEs: python benchmarks/groups.py 0 1 2 3 4 (seeds). Prints JSON.

Each VAE of notebook 02 is trained, or taken from the cache; what notebook 06 does with one is done with each.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import helpers as h

COUNTS, STARTS = (10, 20, 50, 100), range(3)


def latents(settings, data):
    """Informative latents: three draws and the mean of each training image, the mean of each test image."""
    vae = h.fit_conv_vae(data, settings).model
    train, test = (h.in_batches(vae.encode, x) for x in (data.train_x, data.test_x))
    used, generator = h.informative_latents(*train), h.make_generator(settings.seed)
    draws = [h.reparameterize(*train, generator)[:, used].double().numpy() for _ in range(3)]
    return draws, train.mu[:, used].double().numpy(), test.mu[:, used].double().numpy()


def measure(settings, data):
    """Of one VAE: the number of components that held-out latents ask for, and the accuracy from each start of EM."""
    draws, train, test = latents(settings, data)
    kept = len(train) * 9 // 10
    held = {k: fit(np.concatenate([draw[:kept] for draw in draws]), k, 0).score(draws[0][kept:]) for k in COUNTS}
    best, labels, accuracies = max(held, key=held.get), data.test_y.numpy(), []
    for start in STARTS:
        mixture = fit(np.concatenate(draws), best, start)
        group = h.cut_components(mixture.predict_proba(train), 10)
        answers = h.group_shares(mixture.predict_proba(test), group).argmax(1)
        accuracies.append(round(100 * h.matched_accuracy(labels, answers), 2))
    return {"components": best, "held-out log-likelihood (nats)": held, "accuracy (%)": accuracies}


def fit(z, k, seed):
    """The mixture of notebook 06."""
    return h.GaussianMixture(k, reg_covar=0.05, max_iter=1000, random_state=seed).fit(z)


def main():
    """A line for each seed."""
    torch.set_num_threads(1)  # as in `make run`: models in the cache are found by it
    settings = h.Settings.from_environment()
    for seed in map(int, sys.argv[1:]):
        data = h.load_data("mnist", seed=seed)
        found = measure(replace(settings, seed=seed), data)
        print(json.dumps({"seed": seed} | found), flush=True)


if __name__ == "__main__":
    main()
