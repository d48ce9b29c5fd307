"""The assignment's models, trained as the notebooks have them, or taken from the cache."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn

from latent_digits.checks import require_choice, require_whole
from latent_digits.data import Data, balanced_subset, read_digits
from latent_digits.densities import Posterior
from latent_digits.latents import LatentConfig, LatentRun, fit_latents, pca_posterior
from latent_digits.mnist import CorruptFileError, read_mnist
from latent_digits.networks import VAE, Classifier, build, conv_vae, mlp_vae, without_encoder
from latent_digits.optimizers import RowAdam
from latent_digits.random import make_generator, normal_like
from latent_digits.training import (
    Objective,
    Run,
    TrainConfig,
    VAEConfig,
    classification_objective,
    fit,
    vae_objective,
)
from study.cache import recall
from study.report import STYLE, Report, say
from study.settings import SOURCES, Settings, path_of


def load_data(
    source: str = "auto",
    root: str | Path | None = None,
    per_class: int = 2000,
    seed: int = 0,
    test_size: int | None = None,
) -> Data:
    """A training set of `per_class` images of each digit, in random order, and the test set.

    source: "mnist"; "digits" (scikit-learn's 8x8 scans); "auto" (MNIST where it is on disk or can
    be downloaded, else digits, and says so). root: the folder that MNIST's files are in, in
    torchvision's layout or another, else $MNIST_ROOT (relative to the project), else data/.
    test_size: keep the first images only; None keeps all. Raises ValueError for an unknown source,
    sizes below 1 or more images than a class has, and OSError where MNIST is asked for and cannot
    be had, or where a file of it is damaged, another or cannot be read.
    """
    require_choice(SOURCES, source=source)
    require_whole(per_class=per_class, test_size=1 if test_size is None else test_size)
    if root is None:
        root = path_of(MNIST_ROOT=os.environ.get("MNIST_ROOT") or "data")
    name = "digits" if source == "digits" else "mnist"
    try:
        train_x, train_y, test_x, test_y = (
            read_digits() if name == "digits" else read_mnist(Path(root))
        )
    except CorruptFileError:
        raise
    except OSError as error:
        if source == "mnist":
            raise
        say(f"{error}. Using scikit-learn's digits in place of MNIST.")
        name, (train_x, train_y, test_x, test_y) = "digits", read_digits()
    chosen = balanced_subset(train_y, per_class, make_generator(seed))
    return Data(name, train_x[chosen], train_y[chosen], test_x[:test_size], test_y[:test_size])


def begin(notebook: str) -> tuple[Settings, Data, Report]:
    """What a notebook starts with: settings from the environment, data, and its report.

    From here on its figures have the style of latent_digits.mplstyle, and no table is cut short.
    """
    settings = Settings.from_environment()
    pd.set_option("display.max_rows", 100, "display.max_colwidth", None, "display.width", 120)
    plt.style.use(STYLE)
    wanted = {"per_class": settings.per_class, "test_size": settings.test_size}
    data = load_data(settings.source, seed=settings.seed, **wanted).to(settings.device)
    return settings, data, Report(notebook, settings, data)


def fit_classifier(data: Data, settings: Settings) -> Run:
    """The classifier of notebook 01, which the other notebooks judge pictures with."""
    return fit_model(
        build(Classifier, **settings.built), classification_objective, data, TrainConfig(), settings
    )


def fit_conv_vae(data: Data, settings: Settings) -> Run:
    """The assignment's VAE, of notebook 02: convolutional, 200 latents, Gaussian likelihood."""
    return fit_vae(build(conv_vae, **settings.built), data, VAEConfig(), settings)


def fit_mlp_vae(data: Data, settings: Settings, *, beta: float = 3.0, epochs: int = 100) -> Run:
    """The fully connected VAE of notebook 02: 8 latents, cross entropy + beta * KL."""
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
    return fit_vae(build(mlp_vae, **settings.built), data, config, settings)


def fit_vae(model: VAE, data: Data, config: VAEConfig, settings: Settings) -> Run:
    """Train a VAE as `settings` say."""
    return fit_model(model, vae_objective, data, config, settings)


def fit_model(
    model: nn.Module, objective: Objective, data: Data, config: TrainConfig, settings: Settings
) -> Run:
    """`fit` as `settings` say, or what it found before."""
    run, _ = recall(
        fit,
        model,
        objective,
        data,
        settings.scaled(config),
        seed=settings.seed,
        cache=settings.cache,
    )
    return run


def fit_conv_latents(data: Data, settings: Settings) -> LatentRun:
    """The decoder of `fit_conv_vae`, trained by latent optimization: the cure of notebook 03."""
    model = without_encoder(build(conv_vae, **settings.built))
    config = settings.scaled(LatentConfig())
    start = pca_posterior(data.train_x, model.latent_size, config.sigma)(data.train_x)
    run, _ = recall(
        fit_latents, model, start, data, config, seed=settings.seed, cache=settings.cache
    )
    return run


def as_written_config() -> LatentConfig:
    """Latent optimization as the assignment has it: the codes move at the decoder's rate."""
    rates = VAEConfig()
    return LatentConfig(
        batch_size=96,
        learning_rate=rates.learning_rate,
        weight_decay=rates.weight_decay,
        code_learning_rate=rates.learning_rate,
        antithetic=False,
        refining_steps=0,
    )


def draw_start(n: int, settings: Settings, latent_size: int = 200) -> Posterior:
    """Codes as the assignment starts them: n means from N(0, I), variances 1.

    From a seed of their own, or they would be the noise of estimates. Raises ValueError for sizes
    that are no whole numbers of at least 1.
    """
    require_whole(n=n, latent_size=latent_size)
    generator = make_generator(1_000 + settings.seed)
    zeros = torch.zeros(n, latent_size, dtype=torch.float32, device="cpu")
    mu = normal_like(zeros, generator).to(settings.device)
    return Posterior(mu, torch.zeros_like(mu))


def fit_as_written(data: Data, settings: Settings) -> LatentRun:
    """The same decoder by latent optimization as it is written, which collapses: see notebook 03.

    The codes start from `draw_start`, and Adam moves them.
    """
    model = without_encoder(build(conv_vae, **settings.built))
    start = draw_start(len(data.train_x), settings, model.latent_size)
    config = settings.scaled(as_written_config())
    options = {"optimizer": RowAdam, "seed": settings.seed, "cache": settings.cache}
    run, _ = recall(fit_latents, model, start, data, config, **options)
    return run
