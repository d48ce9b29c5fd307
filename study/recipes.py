"""The assignment's models, trained as the notebooks have them, or taken from the cache."""

import os
from pathlib import Path

from latent_digits.checks import require_choice, require_whole
from latent_digits.data import SOURCES, Data, balanced_subset, read_digits
from latent_digits.latents import LatentConfig, LatentRun, fit_latents, pca_posterior
from latent_digits.mnist import DamagedFile, fetch_mnist, read_mnist
from latent_digits.networks import VAE, Classifier, build, conv_vae, mlp_vae, without_encoder
from latent_digits.random import make_generator
from latent_digits.training import Run, TrainConfig, VAEConfig, classification_objective, fit, vae_objective
from study.settings import PROJECT, Settings


def load_data(
    source: str = "auto",
    root: str | Path | None = None,
    per_class: int = 2000,
    seed: int = 0,
    test_size: int | None = None,
) -> Data:
    """A class-balanced training set of `per_class` images of each digit, in random order, and the test set.

    source: "mnist"; "digits" (scikit-learn's 8x8 scans); "auto" (MNIST where it is on disk or can be
    downloaded, else digits, and says so). root: MNIST's folder in torchvision's layout, else
    $MNIST_ROOT (relative to the project), else data/. test_size: keep the first images only; None keeps all.
    Raises ValueError for an unknown source, sizes below 1 or more images than a class has, and OSError where
    MNIST is asked for and cannot be had, or where a file of it is damaged or cannot be read.
    """
    require_choice(SOURCES, source=source)
    require_whole(per_class=per_class, test_size=1 if test_size is None else test_size)
    root = Path(root) if root is not None else PROJECT / (os.environ.get("MNIST_ROOT") or "data")
    name, note = source, ""
    if source != "digits":
        try:
            fetch_mnist(root / "MNIST" / "raw")
            name = "mnist"
        except DamagedFile:
            raise
        except OSError as error:
            if source == "mnist":
                raise
            name, note = "digits", f"MNIST is not in {root.name}/ and could not be downloaded ({error})."
            print(f"{note} Using scikit-learn's digits in its place.")
    train_x, train_y, test_x, test_y = read_mnist(root) if name == "mnist" else read_digits()
    chosen = balanced_subset(train_y, per_class, make_generator(seed))
    return Data(name, train_x[chosen], train_y[chosen], test_x[:test_size], test_y[:test_size], note)


def fit_classifier(data: Data, settings: Settings) -> Run:
    """The classifier of notebook 01, which the other notebooks judge pictures with."""
    model = build(Classifier, seed=settings.seed)
    return fit(model, classification_objective, data, settings.scaled(TrainConfig()), **settings.training)


def fit_conv_vae(data: Data, settings: Settings) -> Run:
    """The assignment's VAE, of notebook 02: convolutional, 200 latents, Gaussian likelihood."""
    model = build(conv_vae, seed=settings.seed)
    return fit_vae(model, data, VAEConfig(), settings)


def fit_mlp_vae(data: Data, settings: Settings, *, beta: float = 3.0, epochs: int = 100) -> Run:
    """The fully connected VAE of notebook 02: 8 latents, cross entropy + beta * KL, a constant learning rate."""
    config = VAEConfig(
        epochs=epochs,
        batch_size=32,
        learning_rate=5e-4,
        one_cycle=False,
        weight_decay=0.0,
        likelihood="bernoulli",
        beta=beta,
        snapshots=(),
    )
    return fit_vae(build(mlp_vae, seed=settings.seed), data, config, settings)


def fit_vae(model: VAE, data: Data, config: VAEConfig, settings: Settings) -> Run:
    """Train a VAE as `settings` say."""
    config = settings.scaled(config)
    return fit(model, vae_objective, data, config, **settings.training)


def fit_conv_latents(data: Data, settings: Settings) -> LatentRun:
    """The decoder of `fit_conv_vae`, trained by latent optimization: the cure of notebook 03."""
    model = without_encoder(build(conv_vae, seed=settings.seed))
    config = settings.scaled(LatentConfig())
    start = pca_posterior(data.train_x, model.latent_size, config.sigma)(data.train_x)
    return fit_latents(model, start, data, config, **settings.training)
