"""What stored results may not fall below or rise above: it guards the notebooks, and proves nothing to readers."""

import json
import math

import pytest

from study.settings import PROJECT

RESULTS = json.loads((PROJECT / "figures" / "results.json").read_text(encoding="utf-8"))
ANY = math.inf
# notebook: {result: (least, most)}
BOUNDS = {
    "01_supervised_cnn": {
        "test accuracy": (99.2, ANY),
        "training accuracy above test accuracy": (-1, 1),
        "epoch of the lowest validation loss": (8, ANY),
    },
    "02_amortized_vae": {
        "validation elbo (200 latents)": (-51.5, ANY),
        "elbo gap, each digit counting the same": (-ANY, 4),
        "gap of class consistency, training − validation": (-ANY, 2),
        "validation elbo below its best in the last epoch": (-ANY, 0.5),
        "range of the KL divergence from epoch 10 on": (-ANY, 4),
        "growth of the reparameterized variance, 1 to 200 latents": (-ANY, 3),
        "fully connected VAE: class consistency, validation": (85, ANY),
    },
    "04_sampling": {
        "Fréchet distance, samples after the last epoch": (-ANY, 900),
        "most frequent digit after the first epoch": (40, ANY),
        "most frequent digit after the last epoch": (-ANY, 25),
        "rarest digit after the last epoch": (1, ANY),
        "low-confidence pictures, z from the aggregate posterior": (-ANY, 15),
    },
    "05_log_probability": {
        "mean error of one sample where the truth is known": (-2.2, -1.3),
        "power of M with which that error falls": (-0.6, -0.4),
        "amortization gap, two latents": (0, ANY),
        "what a mistake costs at least": (1, ANY),
        "its rise from the last but one M to the last": (-0.1, 1),
        "ess with an improved q, times that of the encoder's": (1.2, ANY),
        "what an improved q adds": (-0.3, ANY),
        "of its lead in elbo, log-likelihood": (0, ANY),
        "of its lead in elbo, KL divergence": (0, ANY),
        "correlation of ink and log p(x) within digits": (-ANY, -0.2),
        "lead of latent opt. over amortized, training images": (-3, 3),
        "log p(x), test images, amortized": (-47, ANY),
        "log p(x) of the digit 1, test images, amortized": (-27, ANY),
        "log p(x) of a model without latents, test images": (-208, -100),
        "lead of the cured model over the collapsed one": (30, ANY),
        "chosen σ": (0.036, 0.199),
        "closed-form σ, times the chosen one": (0.67, 1.5),
        "learned σ": (-ANY, 0.15),
        "ten nearest on the map that show the same digit": (75, ANY),
        "drawn digits that are read as meant, of 4": (4, 4),
    },
    "06_gaussian_mixture": {
        "MLP VAE, 10 clusters: test accuracy": (30, 90),
        "conv VAE, 10 clusters: test accuracy, soft vote": (65, ANY),
        "conv VAE, many clusters: test accuracy, soft vote": (95.5, ANY),
        "ten groups without a label: one-to-one accuracy, mean of the starts": (93, ANY),
        "100 clusters, 100 labels: test accuracy, soft vote": (90, ANY),
        "low confidence, VAE, 200 latents, mixture": (-ANY, 29.0),
        "low confidence, latent optimization, mixture": (-ANY, 32.7),
        "rarest digit among a mixture's draws": (7.5, ANY),
        "most frequent digit among a mixture's draws": (-ANY, 12.5),
        "digits that some component is called": (10, 10),
    },
}


@pytest.mark.parametrize(
    ("notebook", "result"), [(name, result) for name, bounds in BOUNDS.items() for result in bounds]
)
def test_a_result_is_within_its_bounds(notebook, result):
    (value,) = [row["value"] for row in RESULTS[notebook]["results"] if row["result"] == result]
    least, most = BOUNDS[notebook][result]
    assert least <= value <= most
