"""Training: one loop for every model; an objective says what is minimised."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from latent_digits.batches import in_batches
from latent_digits.checks import (
    located,
    own_numbers,
    require_between,
    require_choice,
    require_digits,
    require_finite_result,
    require_positive,
    require_unit,
    require_whole,
    unchecked,
)
from latent_digits.data import Data, random_affine
from latent_digits.densities import (
    bernoulli_log_mass,
    elbo_terms,
    gaussian_log_density,
    kl_per_dimension,
    sample_posterior,
)
from latent_digits.gradients import gradients
from latent_digits.networks import copy_weights, device_of
from latent_digits.random import make_generator, seeded

CURVE_SIZE = 2_000  # images behind each point of a training curve


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run with AdamW."""

    epochs: Integral = 10
    batch_size: Integral = 128
    learning_rate: Real = 6e-3  # the peak, under a one-cycle schedule
    one_cycle: bool = True
    warm_up: Real = 0.3  # the share of the one-cycle schedule in which the rate rises
    weight_decay: Real = 0.01
    snapshots: tuple[Integral, ...] = ()  # epochs after which a copy of the weights is kept

    def __post_init__(self):
        require_whole(epochs=self.epochs, batch_size=self.batch_size)
        require_whole(**{f"snapshots[{i}]": epoch for i, epoch in enumerate(self.snapshots)})
        require_positive(learning_rate=self.learning_rate)
        require_between(0, 1, warm_up=self.warm_up)
        require_between(0, weight_decay=self.weight_decay)
        own_numbers(self)

    def smoke(self) -> "TrainConfig":
        """The same in two epochs."""
        return replace(self, epochs=2, snapshots=(1, 2) if self.snapshots else ())


@dataclass(frozen=True)
class VAEConfig(TrainConfig):
    """Settings of a VAE's training run. The defaults are those of the assignment."""

    epochs: Integral = 30
    batch_size: Integral = 48
    learning_rate: Real = 2.4e-3
    warm_up: Real = 0.1
    weight_decay: Real = 0.2
    snapshots: tuple[Integral, ...] = (1, 5, 10, 20, 30)
    likelihood: str = "gaussian"  # or "bernoulli"
    sigma: Real = 0.4  # of the Gaussian likelihood
    beta: Real = 1.0  # weight of the KL divergence in the loss (Higgins et al. 2017)

    def __post_init__(self):
        super().__post_init__()
        require_choice(("gaussian", "bernoulli"), likelihood=self.likelihood)
        require_positive(sigma=self.sigma)
        require_between(0, beta=self.beta)


class Run(NamedTuple):
    """A finished training run."""

    model: nn.Module  # in evaluation mode
    history: pd.DataFrame  # one row per epoch: train_<term> and validation_<term>, of a subsample
    snapshots: dict[int, dict[str, Tensor]]  # epoch -> weights, for load_state_dict
    seconds: float  # that the training took when it was run


# maps (model, x, y, config, generator) to terms of shape (batch,), of which "loss" is minimised
Objective = Callable[[nn.Module, Tensor, Tensor, TrainConfig, torch.Generator], dict[str, Tensor]]


def classification_objective(
    model: nn.Module,
    x: Float[Tensor, "batch 1 28 28"],
    y: Int64[Tensor, " batch"],
    config: TrainConfig | None,
    generator: torch.Generator | None,
) -> dict[str, Float[Tensor, " batch"]]:
    """Cross entropy in nats, and whether the most probable digit is right (0 or 1).

    Moves training images a little. Raises ValueError for labels that are no digits.
    """
    require_digits(y=y)
    logits = model(random_affine(x, generator) if model.training else x)
    correct = (logits.argmax(1) == y).float()
    return {"loss": F.cross_entropy(logits, y, reduction="none"), "accuracy": correct}


def vae_objective(
    model: nn.Module,
    x: Float[Tensor, "batch 1 28 28"],
    y: Int64[Tensor, " batch"] | None,
    config: VAEConfig,
    generator: torch.Generator | None,
) -> dict[str, Float[Tensor, " batch"]]:
    """-(log_likelihood - beta * kl_divergence), with one sample of q(z|x) for each image.

    Kingma and Welling 2014, equation 10. The elbo is reported with beta = 1, whatever beta trains
    with.
    """
    mu, logvar = model.encode(x)
    z = sample_posterior(mu, logvar, generator)
    if config.likelihood == "gaussian":
        log_likelihood = gaussian_log_density(x, model.decode(z), config.sigma)
    else:
        log_likelihood = bernoulli_log_mass(x, model.decode_logits(z))
    return elbo_terms(log_likelihood, kl_per_dimension(mu, logvar).sum(1), config.beta)


def fit(
    model: nn.Module, objective: Objective, data: Data, config: TrainConfig, *, seed: Integral = 0
) -> Run:
    """Train `model`, in place and where it is, on `data`.

    Raises ValueError for data that are not images in [0, 1] and digits and for a loss without a
    gradient, and FloatingPointError, with epoch and step, when a loss stops being finite.
    """
    data.validate()
    device = device_of(model)
    with seeded(seed), gradients():
        generator = make_generator(seed, device)
        return Trainer(model, objective, data.to(device), config, generator).run()


class Trainer:
    """Training at work: a model, its optimizer, and the data and objective that it follows."""

    def __init__(self, model, objective, data, config, generator):
        self.model, self.objective, self.data = model, objective, data
        self.config, self.generator = config, generator
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        steps = math.ceil(len(data.train_x) / config.batch_size)
        self.schedule = make_schedule(self.optimizer, config, steps * self.learning_epochs)

    @property
    def learning_epochs(self) -> int:
        """Epochs in which the weights change."""
        return self.config.epochs

    def run_epoch(self, epoch: Integral) -> None:
        """Train on every training image once, in random order."""
        self.model.train()
        count, device = len(self.data.train_x), self.data.train_x.device
        order = torch.randperm(count, generator=self.generator, device=device)
        with unchecked(epoch > 1):
            for step, batch in enumerate(order.split(int(self.config.batch_size)), 1):
                self.training_step(batch, epoch, step)
                self.schedule.step()

    def training_step(self, batch: Tensor, epoch: Integral = 1, step: Integral = 1) -> None:
        """One step of the weights on the images of a batch, given by their indices."""
        x, y = self.data.train_x[batch], self.data.train_y[batch]
        with located(f"training stopped at epoch {epoch}, step {step}", **self.rates):
            terms = terms_of(self.objective, self.model, x, y, self.config, self.generator)
            loss = terms["loss"].mean()
            require_finite_result(loss, loss=loss)
        if not loss.requires_grad:
            raise ValueError("objective must return a loss with a gradient, got one without")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @property
    def rates(self) -> dict[str, Real]:
        """What to lower where numbers overflow."""
        settings = vars(self.config).items()
        return {name: value for name, value in settings if name.endswith("rate")}

    def measure(self) -> dict[str, float]:
        """This epoch's row of the history."""
        some = self.data.subsample(CURVE_SIZE)
        return evaluate_splits(self.model, self.objective, some, self.config)

    def snapshot(self) -> dict:
        """What is kept of an epoch in config.snapshots."""
        return copy_weights(self.model)

    def run(self) -> Run:
        """Train for all epochs."""
        start, history, snapshots = time.perf_counter(), [], {}
        epochs = range(1, self.config.epochs + 1)
        name = type(self.model).__name__
        for epoch in tqdm(epochs, desc=f"training {name}", leave=False, unit="epoch"):
            self.run_epoch(epoch)
            with located(f"training stopped at the end of epoch {epoch}", **self.rates):
                row = self.measure()
                values = {name: torch.tensor(value, device="cpu") for name, value in row.items()}
                require_finite_result(sum(values.values()), **values)
            history.append({"epoch": epoch} | row)
            if epoch in self.config.snapshots:
                snapshots[epoch] = self.snapshot()
        seconds = time.perf_counter() - start
        table = pd.DataFrame(history).set_index("epoch")
        return Run(self.model.eval(), table, snapshots, seconds)


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, total: Integral
) -> torch.optim.lr_scheduler.LRScheduler:
    """One cycle (Smith and Topin 2018) of straight lines over `total` steps, or a constant rate."""
    if not config.one_cycle or total < 4:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    # with a single rising step the scheduler would divide by zero
    rising = max(config.warm_up, 2 / total)
    shape = {"total_steps": total, "pct_start": rising, "anneal_strategy": "linear"}
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, **shape)


def terms_of(objective: Objective, model, x, y, config, generator) -> dict[str, Tensor]:
    """What an objective returns. Raises ValueError for what is no dict of terms with a "loss"."""
    terms, shape = objective(model, x, y, config, generator), (len(x),)
    if not isinstance(terms, dict) or "loss" not in terms:
        found = sorted(terms) if isinstance(terms, dict) else f"a {type(terms).__name__}"
        raise ValueError(f"objective must return a dict of terms with a 'loss', got {found}")
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.shape != shape:
            found = getattr(term, "shape", type(term).__name__)
            raise ValueError(
                f"objective must return one number for each image, {shape}, got {name}: {found}"
            )
    return terms


def evaluate_splits(
    model: nn.Module, objective: Objective, data: Data, config: TrainConfig
) -> dict[str, float]:
    """All terms in evaluation mode, averaged over the training and over the validation images."""
    splits = {"train": (data.train_x, data.train_y), "validation": (data.test_x, data.test_y)}
    means = {}
    for split, (x, y) in splits.items():
        terms = evaluate(model, objective, x, y, config)
        means |= {f"{split}_{name}": float(values.mean()) for name, values in terms.items()}
    return means


def evaluate(
    model: nn.Module,
    objective: Objective,
    x: Float[Tensor, "n 1 28 28"],
    y: Int64[Tensor, " n"],
    config: TrainConfig,
    batch_size: Integral = 200,
) -> dict[str, Float[Tensor, " n"]]:
    """The objective's terms for every image, in evaluation mode, always with the same noise.

    Raises ValueError for what is not images in [0, 1] and their digits.
    """
    require_unit(x=x)
    require_digits(y=y)
    model.eval()
    generator = make_generator(0, x.device)
    return in_batches(
        lambda *batch: terms_of(objective, model, *batch, config, generator),
        *(x, y),
        batch_size=batch_size,
    )
