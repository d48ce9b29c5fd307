"""Training: one loop for every model; an objective says what is minimised."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from latent_digits.checks import (
    require_between,
    require_choice,
    require_finite,
    require_images,
    require_labels,
    require_positive,
    require_rows,
    require_whole,
)
from latent_digits.data import Data, random_affine
from latent_digits.densities import (
    bernoulli_log_mass,
    draw_posterior,
    elbo_terms,
    gaussian_log_density,
    kl_per_dimension,
)
from latent_digits.random import make_generator
from study.cache import run_or_recall

CURVE_SIZE = 2_000  # images behind each point of a training curve: the data thinned to this size


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run with AdamW."""

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 6e-3  # the peak, under a one-cycle schedule
    one_cycle: bool = True
    warm_up: float = 0.3  # the share of the one-cycle schedule in which the rate rises
    weight_decay: float = 0.01
    snapshots: tuple[int, ...] = ()  # epochs after which a copy of the weights is kept

    def __post_init__(self):
        require_whole(epochs=self.epochs, batch_size=self.batch_size)
        require_whole(**{f"snapshots[{i}]": epoch for i, epoch in enumerate(self.snapshots)})
        require_positive(learning_rate=self.learning_rate)
        require_between(0, 1, warm_up=self.warm_up)
        require_between(0, weight_decay=self.weight_decay)

    def smoke(self) -> "TrainConfig":
        """The same in two epochs."""
        return replace(self, epochs=2, snapshots=(1, 2) if self.snapshots else ())


@dataclass(frozen=True)
class VAEConfig(TrainConfig):
    """Settings of a VAE's training run. The defaults are those of the assignment."""

    epochs: int = 30
    batch_size: int = 48
    learning_rate: float = 2.4e-3
    warm_up: float = 0.1
    weight_decay: float = 0.2
    snapshots: tuple[int, ...] = (1, 5, 10, 20, 30)
    likelihood: str = "gaussian"  # or "bernoulli"
    sigma: float = 0.4  # of the Gaussian likelihood
    beta: float = 1.0  # weight of the KL divergence in the loss (Higgins et al. 2017)

    def __post_init__(self):
        super().__post_init__()
        require_choice(("gaussian", "bernoulli"), likelihood=self.likelihood)
        require_positive(sigma=self.sigma)
        require_between(0, beta=self.beta)


class Run(NamedTuple):
    """A finished training run."""

    model: nn.Module  # in evaluation mode
    history: pd.DataFrame  # one row per epoch: train_<term> and validation_<term>, of thinned data
    snapshots: dict[int, dict[str, Tensor]]  # epoch -> weights, for load_state_dict
    seconds: float  # that the training took when it was run


# An objective maps (model, x, y, config, generator) to terms of shape (batch,); "loss" is minimised.
Objective = Callable[[nn.Module, Tensor, Tensor, TrainConfig, torch.Generator], dict[str, Tensor]]


def classification_objective(model, x, y, config, generator) -> dict[str, Tensor]:
    """Cross entropy in nats, and whether the most probable digit is right (0 or 1). Moves training images a little.

    Raises TypeError or ValueError for what is not images and their labels.
    """
    require_labels(y=y)
    require_rows(len(x), y=y)
    logits = model(random_affine(x, generator) if model.training else x)
    correct = (logits.argmax(1) == y).float()
    return {"loss": F.cross_entropy(logits, y, reduction="none"), "accuracy": correct}


def vae_objective(model, x, y, config, generator) -> dict[str, Tensor]:
    """-(log_likelihood - beta * kl_divergence), with one reparameterized sample of q(z|x) for each image.

    Kingma and Welling 2014, equation 10. The elbo is reported with beta = 1, whatever beta trains with.
    """
    mu, logvar = model.encode(x)
    z = draw_posterior(mu, logvar, generator)
    if config.likelihood == "gaussian":
        log_likelihood = gaussian_log_density(x, model.decode(z), config.sigma)
    else:
        log_likelihood = bernoulli_log_mass(x, model.decode_logits(z))
    return elbo_terms(log_likelihood, kl_per_dimension(mu, logvar).sum(1), config.beta)


def fit(
    model: nn.Module,
    objective: Objective,
    data: Data,
    config: TrainConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    cache: Path | None = None,
) -> Run:
    """Train `model` on `data`, or take the same run from `cache`.

    dtype: the format that the model multiplies matrices in, then and afterwards, "float32" or "bfloat16".
    Same run: same initial weights, architecture, code, config, seed, data, torch, device and dtype.
    Raises TypeError or ValueError for data that are not images and labels, and FloatingPointError, with epoch and
    step, when a loss stops being finite.
    """
    where = {"seed": seed, "device": device, "dtype": dtype, "cache": cache}
    record = run_or_recall(train, model, objective, data, config, **where)
    history = pd.DataFrame(record["history"]).set_index("epoch")
    return Run(model.eval(), history, record["snapshots"], record["seconds"])


class Trainer:
    """Training at work: a model, its optimizer, and the data and objective that it follows."""

    def __init__(self, model, objective, data, config, generator):
        self.model, self.objective, self.data = model, objective, data
        self.config, self.generator = config, generator
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        steps = math.ceil(len(data.train_x) / config.batch_size)
        self.schedule = make_schedule(self.optimizer, config, steps * self.learning_epochs)

    @property
    def learning_epochs(self) -> int:
        """Epochs in which the weights change."""
        return self.config.epochs

    def run_epoch(self, epoch: int) -> None:
        """Visit every training image once, in random order."""
        self.model.train()
        order = torch.randperm(len(self.data.train_x), generator=self.generator, device=self.data.train_x.device)
        for step, batch in enumerate(order.split(self.config.batch_size), 1):
            self.visit(batch, epoch, step)
            self.schedule.step()

    def visit(self, batch: Tensor, epoch: int = 1, step: int = 1) -> None:
        """One step of the weights on the images of a batch, given by their indices."""
        x, y = self.data.train_x[batch], self.data.train_y[batch]
        with self.at(epoch, step):
            loss = self.objective(self.model, x, y, self.config, self.generator)["loss"].mean()
            require_finite(loss, loss=loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @contextlib.contextmanager
    def at(self, epoch: int, step: int | str):
        """A FloatingPointError from inside tells where it was, and what might help."""
        try:
            yield
        except FloatingPointError as error:
            settings = vars(self.config).items()
            rates = " or ".join(f"{name} (now {value:g})" for name, value in settings if name.endswith("rate"))
            raise FloatingPointError(
                f"training stopped at epoch {epoch}, step {step}: {error}; or lower {rates}"
            ) from error

    def measure(self) -> dict[str, float]:
        """This epoch's row of the history."""
        return both_sides(self.model, self.objective, self.data.thinned(CURVE_SIZE), self.config)

    def snapshot(self) -> dict:
        """What is kept of an epoch in config.snapshots."""
        return copy_weights(self.model)

    def run(self) -> dict:
        """Train for all epochs. Returns what `cached` can keep."""
        start, history, snapshots = time.perf_counter(), [], {}
        epochs = range(1, self.config.epochs + 1)
        for epoch in tqdm(epochs, desc=f"training {type(self.model).__name__}", unit="epoch", leave=False):
            self.run_epoch(epoch)
            with self.at(epoch, "last"):
                row = self.measure()
                for name, value in row.items():
                    require_finite(torch.tensor(value), **{name: torch.tensor(value)})
            history.append({"epoch": epoch} | row)
            if epoch in self.config.snapshots:
                snapshots[epoch] = self.snapshot()
        seconds = time.perf_counter() - start
        return {"state": copy_weights(self.model), "history": history, "snapshots": snapshots, "seconds": seconds}


def train(model, objective, data, config, seed, device) -> dict:
    """The training behind `fit`: plain tensors, whole batches."""
    return Trainer(model, objective, data.to(device), config, make_generator(seed, device)).run()


def make_schedule(optimizer, config: TrainConfig, total: int) -> torch.optim.lr_scheduler.LRScheduler:
    """One cycle (Smith and Topin 2018) of straight lines over all `total` steps, or a constant rate."""
    if not config.one_cycle or total < 4:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    rising = max(config.warm_up, 2 / total)  # with a single rising step the scheduler would divide by zero
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=total, pct_start=rising, anneal_strategy="linear"
    )


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights, copied to the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def both_sides(model, objective, data: Data, config: TrainConfig) -> dict[str, float]:
    """All terms in evaluation mode, averaged over the training and over the validation images."""
    sides, means = {"train": (data.train_x, data.train_y), "validation": (data.test_x, data.test_y)}, {}
    for side, (x, y) in sides.items():
        terms = evaluate(model, objective, x, y, config)
        means |= {f"{side}_{name}": float(values.mean()) for name, values in terms.items()}
    return means


@torch.no_grad()
def evaluate(model, objective, x: Tensor, y: Tensor, config: TrainConfig, batch_size: int = 200) -> dict[str, Tensor]:
    """The objective's terms for every image, each (len(x),), in evaluation mode, always with the same noise.

    Raises TypeError or ValueError for what is not images and their labels.
    """
    require_whole(batch_size=batch_size)
    require_images(x=x)
    require_labels(y=y)
    require_rows(len(x), y=y)
    model.eval()
    generator = make_generator(0, x.device)
    pairs = zip(x.split(batch_size), y.split(batch_size), strict=True)
    batches = [objective(model, *pair, config, generator) for pair in pairs]
    return {name: torch.cat([terms[name] for terms in batches]) for name in batches[0]}


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor | tuple[Tensor, ...]], x: Tensor, batch_size: int = 200):
    """`function` over x (n, ...) in batches, without gradients, joined: memory stays bounded.

    Returns what `function` does: one tensor, or a tuple of tensors, each of length n. Raises ValueError for n = 0.
    """
    require_whole(**{"len(x)": len(x), "batch_size": batch_size})
    outputs = [function(batch) for batch in x.split(batch_size)]
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
