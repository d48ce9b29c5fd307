"""Ten groups found without a label, for several VAEs: `make groups` writes benchmarks/groups.json.

Each VAE of notebook 02 is trained, or taken from the cache; what notebook 06 does with one is done with each of SEEDS.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics.cluster import contingency_matrix

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import helpers as h
from study.files import atomic_write
from study.settings import PROJECT

SEEDS, COUNTS, STARTS = range(5), (10, 20, 50, 100, 200), range(3)


def latents(settings, data):
    """Informative latents: three draws of each training image, the mean of each test image."""
    vae = h.fit_conv_vae(data, settings).model
    train, test = (h.in_batches(vae.encode, x) for x in (data.train_x, data.test_x))
    used, generator = h.informative_latents(*train), h.make_generator(settings.seed)
    draws = [h.reparameterize(*train, generator)[:, used].double().numpy() for _ in range(3)]
    return draws, test.mu[:, used].double().numpy()


def measure(settings, data):
    """Of one VAE: the number of components that held-out latents ask for, and accuracies from each start of EM."""
    draws, test = latents(settings, data)
    fitted_to, kept = np.concatenate(draws), len(draws[0]) * 9 // 10
    held = {
        k: fit(np.concatenate([draw[:kept] for draw in draws]), k, 0).score_samples(draws[0][kept:]) for k in COUNTS
    }
    best, labels, rows = h.fewest_components(held), data.test_y.numpy(), []
    for start in STARTS:
        mixture = fit(fitted_to, best, start)
        group = h.cut_components(mixture.predict_proba(fitted_to), 10)
        groups = h.group_shares(mixture.predict_proba(test), group).argmax(1)
        ten = fit_ten(fitted_to, start).predict(test)
        rows.append({"ten groups, one-to-one": h.matched_accuracy(labels, groups)})
        rows[-1]["ten components, one-to-one"] = h.matched_accuracy(labels, ten)
        rows[-1]["ten components, named by majority"] = contingency_matrix(labels, ten).max(0).sum() / len(labels)
    accuracies = {name: [round(100 * row[name], 2) for row in rows] for name in rows[0]}
    held = {k: values.mean() for k, values in held.items()}
    return {"components": best, "held-out log-likelihood (nats)": held, "accuracy (%)": accuracies}


def fit(z, k, seed):
    """The mixture of many components of notebook 06."""
    return h.GaussianMixture(k, reg_covar=0.05, max_iter=1000, random_state=seed).fit(z)


def fit_ten(z, seed):
    """The mixture of ten components of notebook 06."""
    return h.GaussianMixture(10, tol=1e-5, max_iter=3000, random_state=seed).fit(z)


def describe(found):
    """What the file says, in words: for notebook 06 and COMPARISON.md."""
    table = {
        name: np.array([seed["accuracy (%)"][name] for seed in found["seeds"].values()])  # (VAEs, starts)
        for name in ("ten groups, one-to-one", "ten components, one-to-one", "ten components, named by majority")
    }
    groups, alone, named = table.values()
    listed = ", ".join(f"{mean:.1f}" for mean in groups.mean(1))
    ranges = [f"{values.mean():.1f} % ({values.min():.1f} to {values.max():.1f})" for values in (alone, named)]
    return (
        f"The VAEs of {len(groups)} seeds reach {listed} %, each in the mean of {groups.shape[1]} starts of EM. "
        f"Their mean is {groups.mean():.1f} %, and the worst start of all has {groups.min():.1f} %. "
        f"Ten components alone reach {ranges[0]} one-to-one, "
        f"and {ranges[1]} where each is named by the majority of its images."
    )


def main():
    """A line for each seed, and the file."""
    torch.set_num_threads(1)  # as in `make run`: models in the cache are found by it
    settings, found = h.Settings.from_environment(), {}
    for seed in SEEDS:
        data = h.load_data("mnist", seed=seed)
        found[seed] = measure(replace(settings, seed=seed), data)
        print(json.dumps({"seed": seed} | found[seed]), flush=True)
    text = json.dumps({"dtype": settings.dtype, "seeds": found}, indent=1)
    atomic_write(PROJECT / "benchmarks" / "groups.json", text.encode() + b"\n")
    print(describe(json.loads(text)))


if __name__ == "__main__":
    main()
