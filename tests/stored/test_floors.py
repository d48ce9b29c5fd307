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
    "03_latent_optimization": {
        "class consistency as written, training images": (-ANY, 25),
        "class consistency cured, training images": (98, ANY),
    },
    "04_sampling": {
        "Fréchet distance, samples after the last epoch": (-ANY, 900),
        "most frequent digit after the first epoch": (40, ANY),
        "most frequent digit after the last epoch": (-ANY, 25),
        "rarest digit after the last epoch": (1, ANY),
        "low-confidence pictures, z from the aggregate posterior": (-ANY, 15),
    },
}


@pytest.mark.parametrize(
    ("notebook", "result"), [(name, result) for name, bounds in BOUNDS.items() for result in bounds]
)
def test_a_result_is_within_its_bounds(notebook, result):
    (value,) = [row["value"] for row in RESULTS[notebook]["results"] if row["result"] == result]
    least, most = BOUNDS[notebook][result]
    assert least <= value <= most
