"""What is timed against what. Each function sets one side of a row up, in a process of its own.

It returns `unit`, one piece of work that is timed again and again, and `quality`, a number that speed must not cost.
Both sides of a row have the same data, and the same number of updates; but for the CNN the time to a given quality
counts. Both may use all cores, as each has the machine to itself. The peers are what is commonly written, with the
number of workers, of threads or of images at a time that a trial finds fastest. Both sides compute in float32, or both
multiply in bfloat16: `quality` shows what that costs. Our EM is in float64; the peer is timed in float32, too.
"""

import itertools
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import sklearn.mixture
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

import helpers as h
from latent_digits.mnist import read_mnist
from latent_digits.networks import VAE, Network
from study.settings import choose_dtype, path_of

Side = tuple[Callable[[], None], Callable[[], float]]


def dtype() -> str:
    """The format in which this process multiplies: as DTYPE says, else the fastest."""
    return choose_dtype(os.environ.get("DTYPE"), "cpu")


def build(factory: Callable[..., Network], *args, seed: int = 0, **options) -> Network:
    """The project's network, in that format."""
    return h.build(factory, *args, seed=seed, dtype=dtype(), **options)


def autocast() -> torch.autocast:
    """What a peer needs in order to multiply in bfloat16, if it is to."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype() == "bfloat16")


def mnist_root() -> Path:
    """The folder that load_data looks for MNIST in."""
    return path_of(MNIST_ROOT=os.environ.get("MNIST_ROOT") or "data")


def import_datasets():
    """torchvision.datasets, also where torchvision's compiled part does not fit this torch.

    The wheel on PyPI wants CUDA; beside a CPU-only torch its import stops at operators that no
    dataset uses. Declaring them, without an implementation, lets the rest load.
    """
    try:
        from torchvision import datasets
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import datasets

        datasets.declared_operators = library  # the declarations last as long as this object
    return datasets


def mnist_dataset(train: bool, *transforms):
    """MNIST as a torchvision dataset, each image made a tensor when it is asked for."""
    datasets = import_datasets()
    from torchvision.transforms import Compose, ToTensor

    return datasets.MNIST(mnist_root(), train=train, download=True, transform=Compose([ToTensor(), *transforms]))


def loader(dataset, batch_size: int, workers: int, shuffle: bool = True) -> torch.utils.data.DataLoader:
    """The usual loader; workers are kept from epoch to epoch."""
    options = {"num_workers": workers, "persistent_workers": True} if workers else {}
    if workers and sys.platform == "linux":  # as in a user's script; in a spawned process like ours it would be "spawn"
        options["multiprocessing_context"] = "fork"
    return torch.utils.data.DataLoader(dataset, batch_size, shuffle=shuffle, **options)


def fastest(options: Iterable, attempt: Callable) -> object:
    """The option with which attempt(option) takes the least time, of two tries each; a first one does not count."""

    def seconds(option) -> float:
        start = time.perf_counter()
        attempt(option)
        return time.perf_counter() - start

    attempt(next(iter(options)))
    return min(options, key=lambda option: min(seconds(option) for _ in range(2)))


def best_loader(dataset, batch_size: int, step: Callable[[Tensor, Tensor], None]) -> torch.utils.data.DataLoader:
    """A loader with the number of workers at which 100 training steps take the least time.

    The number of threads that goes best with it is set, too.
    """
    cores = torch.get_num_threads()
    loaders = {workers: loader(dataset, batch_size, workers) for workers in {0, 1, 2, cores}}

    def hundred_steps(option: tuple[int, int]) -> None:
        workers, threads = option
        torch.set_num_threads(threads)
        for batch in itertools.islice(loaders[workers], 100):
            step(*batch)

    options = list(itertools.product(loaders, {1, cores}))
    for option in options:
        hundred_steps(option)  # starts the workers
    workers, threads = fastest(options, hundred_steps)
    torch.set_num_threads(threads)
    return loaders[workers]


# --- a VAE's epoch: 20,000 images, 784-400-20 ---


def vae_epoch_ours() -> Side:
    """An epoch of the project's own training loop. Quality: validation elbo in nats, with cross entropy."""
    data = h.load_data("mnist")
    config = h.VAEConfig(
        batch_size=128, learning_rate=1e-3, one_cycle=False, weight_decay=0.0, likelihood="bernoulli", snapshots=()
    )
    model = build(h.mlp_vae, 20, hidden=(400,), seed=0)
    trainer = h.Trainer(model, h.vae_objective, data, config, h.make_generator(0))
    epochs = itertools.count(1)

    def elbo() -> float:
        return h.evaluate(model, h.vae_objective, data.test_x, data.test_y, config)["elbo"].mean().item()

    return lambda: trainer.run_epoch(next(epochs)), elbo


class PlainVAE(nn.Module):
    """784-400-20 and back, as a beginner's example has it."""

    def __init__(self):
        super().__init__()
        self.hidden, self.mu, self.logvar = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.back, self.out = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, 1, 28, 28) -> pixels in [0, 1] (batch, 784), mu and logvar (batch, 20)."""
        hidden = F.relu(self.hidden(x.view(-1, 784)))  # (batch, 1, 28, 28) -> (batch, 784)
        mu, logvar = self.mu(hidden), self.logvar(hidden)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        logits = self.out(F.relu(self.back(z))).float()  # as bfloat16 the pixels would be rounded to 0 and 1
        return torch.sigmoid(logits), mu, logvar


def plain_vae_loss(x_hat: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Cross entropy plus KL divergence, summed over the batch."""
    cross_entropy = F.binary_cross_entropy(x_hat, x.view(-1, 784), reduction="sum")
    return cross_entropy - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def plain_vae_step(model: PlainVAE, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    """One step of training."""
    optimizer.zero_grad()
    with autocast():
        x_hat, mu, logvar = model(x)
    plain_vae_loss(x_hat, x, mu, logvar).backward()
    optimizer.step()


def vae_epoch_peer() -> Side:
    """An epoch of the usual loop over a DataLoader with ToTensor, on the same images."""
    dataset = mnist_dataset(train=True)
    chosen = h.balanced_subset(dataset.targets, 2000, h.make_generator(0))
    torch.manual_seed(0)
    model, trial = PlainVAE(), PlainVAE()
    optimizer, trial_optimizer = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (model, trial))
    subset = torch.utils.data.Subset(dataset, chosen.tolist())
    batches = best_loader(subset, 128, lambda x, _: plain_vae_step(trial, trial_optimizer, x))

    def epoch() -> None:
        for x, _ in batches:
            plain_vae_step(model, optimizer, x)

    @torch.no_grad()
    def elbo() -> float:
        test = mnist_dataset(train=False)
        losses = 0.0
        for x, _ in loader(test, 200, 0, shuffle=False):
            with autocast():
                x_hat, mu, logvar = model(x)
            losses += plain_vae_loss(x_hat, x, mu, logvar).item()
        return -losses / len(test)

    return epoch, elbo


# --- a CNN from nothing to 99 % of the test images, on 60,000 ---


def reach(accuracies: Iterator[float], target: float = 0.99) -> float:
    """Take accuracies, one per epoch, until one reaches the target. Raises RuntimeError where none does."""
    for accuracy in accuracies:
        if accuracy >= target:
            return accuracy
    raise RuntimeError(f"the last test accuracy was {accuracy:.2%}: {target:.0%} was not reached")


def cnn_ours() -> Side:
    """Notebook 01's network. Quality: test accuracy in per cent when it stops, the lowest of the runs.

    Two epochs of one cycle are enough, which is known from trials on these test images.
    """
    data = h.Data("mnist", *read_mnist(mnist_root()))
    config = h.TrainConfig(epochs=2)
    seeds, reached = itertools.count(), []

    def train() -> None:
        seed = next(seeds)
        model = build(h.Classifier, seed=seed)
        trainer = h.Trainer(model, h.classification_objective, data, config, h.make_generator(seed))

        def accuracies() -> Iterator[float]:
            for epoch in range(1, config.epochs + 1):
                trainer.run_epoch(epoch)
                terms = h.evaluate(model, h.classification_objective, data.test_x, data.test_y, config)
                yield terms["accuracy"].mean().item()

        reached.append(reach(accuracies()))

    return train, lambda: 100 * min(reached)


class PlainCNN(nn.Module):
    """Two convolutions of 3 x 3, max-pooling, two linear layers, dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
            *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 28, 28) -> log-probabilities (batch, 10)."""
        return F.log_softmax(self.layers(x), dim=1)


def plain_cnn_step(model: PlainCNN, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One step of training."""
    optimizer.zero_grad()
    with autocast():
        loss = F.nll_loss(model(x), y)
    loss.backward()
    optimizer.step()


def cnn_peer() -> Side:
    """The usual network and loop: Adadelta, batches of 64, a rate that falls by 0.7 per epoch, a test after each."""
    import_datasets()  # or torchvision may not load
    from torchvision.transforms import Normalize

    train_set, test_set = (mnist_dataset(train, Normalize((0.1307,), (0.3081,))) for train in (True, False))
    trial = PlainCNN()
    trial_optimizer = torch.optim.Adadelta(trial.parameters())
    batches = best_loader(train_set, 64, lambda x, y: plain_cnn_step(trial, trial_optimizer, x, y))
    test_batches = loader(test_set, 1000, 0, shuffle=False)
    seeds, reached = itertools.count(), []

    def train() -> None:
        torch.manual_seed(next(seeds))
        model = PlainCNN()
        optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)

        def accuracies() -> Iterator[float]:
            for _ in range(14):
                model.train()
                for x, y in batches:
                    plain_cnn_step(model, optimizer, x, y)
                schedule.step()
                model.eval()
                with torch.no_grad(), autocast():
                    correct = sum((model(x).argmax(1) == y).sum().item() for x, y in test_batches)
                yield correct / len(test_set)

        reached.append(reach(accuracies()))

    return train, lambda: 100 * min(reached)


# --- log p(x) of 200 test images from 1,000 samples each ---

SIGMA = 0.4


def fitted_vae() -> tuple[VAE, Tensor]:
    """Notebook 02's VAE after two epochs, and 200 test images."""
    data = h.load_data("mnist")
    return h.fit_conv_vae(data, h.Settings(quick=True, dtype=dtype())).model, data.test_x[:200]


def log_prob_ours() -> Side:
    """Quality: mean log p(x) in nats, of the last run."""
    model, x = fitted_vae()
    generator, values = h.make_generator(0), []

    def estimate() -> None:
        q, decode = h.in_batches(model.encode, x), model.decode
        values.append(h.importance_log_prob(x, *q, decode, SIGMA, 1000, generator).log_prob.mean().item())

    return estimate, lambda: values[-1]


def log_prob_peer() -> Side:
    """pythae's `get_nll` on the same networks.

    Its likelihood has a standard deviation of 1, so it is given x / sigma, whose density is sigma^784 times that of x.
    Despite its name it returns log p(x). It does not switch gradients off: its user must.
    """
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    ours, x = fitted_vae()

    class Encoder(BaseEncoder):
        def forward(self, scaled: Tensor) -> ModelOutput:
            mu, logvar = ours.encode(scaled * SIGMA)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=ours.decode(z) / SIGMA)

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=ours.latent_size, reconstruction_loss="mse")
    model, values = VAE(config, encoder=Encoder(), decoder=Decoder()).eval(), []

    @torch.no_grad()
    def estimate(images: Tensor = x, batch_size: int = 100) -> float:
        with autocast():
            found = model.get_nll(images / SIGMA, n_samples=1000, batch_size=batch_size)
        return found - 784 * math.log(SIGMA)

    best = fastest((50, 100, 200, 500, 1000), lambda batch_size: estimate(x[:5], batch_size))
    return lambda: values.append(estimate(batch_size=best)), lambda: values[-1]


# --- latent optimization of 60,000 images, 200 latents: 100 of an epoch's 1,250 steps ---

STEPS, VISITED = 100, 48


def latents_of_all() -> tuple[h.Data, VAE, tuple[Tensor, Tensor], Iterator[Tensor]]:
    """All images, a decoder, the start of their codes, and batches of rows."""
    data = h.Data("mnist", *read_mnist(mnist_root()))
    start = h.pca_posterior(data.train_x[:5_000], 200, SIGMA)(data.train_x)
    order = torch.randperm(len(data.train_x), generator=h.make_generator(0))
    model = h.without_encoder(build(h.conv_vae, seed=0))
    return data, model, start, itertools.cycle(order.split(VISITED))


def elbo_of_first(model: VAE, data: h.Data, mu: Tensor, logvar: Tensor) -> float:
    """Mean elbo in nats of the images that were visited first."""
    order = torch.randperm(len(data.train_x), generator=h.make_generator(0))[:2_000]
    model.eval()
    return h.latent_elbo(model.decode, data.train_x[order], mu[order], logvar[order], SIGMA)["elbo"].mean().item()


def latents_ours() -> Side:
    """Row by row. Quality: training elbo in nats of images that were visited."""
    data, model, start, batches = latents_of_all()
    codes = torch.cat(start, 1)
    config = h.LatentConfig()
    # one sample of q a step, as the peer takes, in place of two: half the rate, as the gradient is noisier
    simple = {"antithetic": False, "code_learning_rate": config.code_learning_rate / 2}
    config = replace(config, **simple, one_cycle=False, refining_steps=0, learning_rate=1e-3)
    trainer = h.LatentTrainer(model, codes, h.NaturalGradient(codes), data, config, h.make_generator(0))

    def steps() -> None:
        model.train()
        for batch in itertools.islice(batches, STEPS):
            trainer.training_step(batch)

    return steps, lambda: elbo_of_first(model, data, *codes.chunk(2, dim=1))


def latents_peer() -> Side:
    """Codes as parameters, under one Adam with the decoder's weights; fused, or it would be slower still."""
    data, model, start, batches = latents_of_all()
    mu, logvar = (nn.Parameter(table) for table in start)
    optimizer = torch.optim.Adam(
        [{"params": model.parameters()}, {"params": [mu, logvar], "lr": 0.03}], lr=1e-3, fused=True
    )

    def steps() -> None:
        model.train()
        for batch in itertools.islice(batches, STEPS):
            x, mean, log_variance = data.train_x[batch], mu[batch], logvar[batch]
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
            with autocast():
                x_hat = model.decode(z)
            squared_error = (x - x_hat).pow(2).sum()
            kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
            optimizer.zero_grad()
            ((0.5 * squared_error / SIGMA**2 + kl) / len(batch)).backward()
            optimizer.step()

    return steps, lambda: elbo_of_first(model, data, mu.detach(), logvar.detach())


# --- EM at 20,000 x 15, and at 1,000 samples of many columns ---


def samples(columns: str) -> np.ndarray:
    """20,000 samples of 15 columns that depend on each other, or 1,000 of others."""
    generator = h.make_generator(0)
    if columns == "784 pixels":
        return read_mnist(mnist_root())[0][:1000].flatten(1).double().numpy() * 255
    if columns == "15 columns":
        mixing = torch.randn(15, 15, generator=generator, dtype=torch.float64)
        return (torch.randn(20_000, 15, generator=generator, dtype=torch.float64) @ mixing).numpy()
    size = int(columns.split()[0])
    centres = 2 * torch.randn(10, size, generator=generator, dtype=torch.float64)
    x = torch.randn(1000, size, generator=generator, dtype=torch.float64) + centres.repeat(100, 1)
    if columns.endswith("constant"):
        x[:, -1] = 1.0
    return x.numpy()


def em(
    kind: type,
    components: int,
    iterations: int,
    convert: Callable,
    columns="15 columns",
    covariance_type="full",
) -> tuple[object, np.ndarray]:
    """A mixture with a start of its own, and the numbers to fit it to; each array as `convert` makes it."""
    x = samples(columns)
    if columns == "15 columns":
        precision = torch.linalg.inv(torch.cov(torch.from_numpy(x).T)).numpy()
        precision = (precision + precision.T) / 2
    else:
        precision = np.eye(x.shape[1]) / x.var(0).mean()
    precision = {"full": precision, "diag": precision.diagonal(), "spherical": precision[0, 0]}[covariance_type]
    start = {
        "weights_init": np.full(components, 1 / components),
        "means_init": x[:components],
        "precisions_init": np.stack([precision] * components),
    }
    warnings.simplefilter("ignore", ConvergenceWarning)  # of the fits that are stopped on purpose
    start = {name: convert(values) for name, values in start.items()}
    # random_from_data is not used, but the default would be refused with tensors
    options = {"tol": 0, "max_iter": iterations, "init_params": "random_from_data", "covariance_type": covariance_type}
    # enough for the peer in float32, to which a narrow component among many would be singular
    return kind(components, reg_covar=1e-3, **options, **start), convert(x)


def em_side(kind: type, components: int, iterations: int, convert: Callable, **data: str) -> Side:
    """A fit of `kind`. Quality: mean log-likelihood in nats. On small matrices one thread may be faster than all."""
    mixture, x = em(kind, components, iterations, convert, **data)
    trial, _ = em(kind, components, 2, convert, **data)

    def fit(mixture, threads: int) -> None:
        with threadpool_limits(threads):
            mixture.fit(x)

    best = fastest((1, torch.get_num_threads()), lambda threads: fit(trial, threads))
    return lambda: fit(mixture, best), lambda: float(mixture.lower_bound_)


def em_ours(components: int, iterations: int = 10, **data: str) -> Side:
    """Ours."""
    return em_side(h.GaussianMixture, components, iterations, np.asarray, **data)


def em_peer(components: int, iterations: int = 10, convert: Callable = np.asarray, **data: str) -> Side:
    """scikit-learn's, which ends with one more E step."""
    return em_side(sklearn.mixture.GaussianMixture, components, iterations, convert, **data)


def em_float32(components: int, iterations: int = 10) -> Side:
    """scikit-learn's on numbers in float32, in which it then computes."""
    return em_peer(components, iterations, np.float32)


def em_torch(components: int, iterations: int = 10) -> Side:
    """The same on torch's tensors, with torch's functions: needs SCIPY_ARRAY_API=1 from the start."""
    sklearn.set_config(array_api_dispatch=True)
    return em_peer(components, iterations, lambda values: torch.from_numpy(np.float32(values)))


# --- the conv VAE's training step, against this machine's matrix product in the same number format ---


def step_ours(batch_size: int = 48, latent_size: int = 200) -> Side:
    """Twenty steps. Quality: billion floating-point operations of matrix products and convolutions in them."""
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.rand(batch_size, 1, 28, 28, generator=h.make_generator(0))
    data = h.Data("mnist", x, torch.zeros(batch_size, dtype=torch.long), x, torch.zeros(batch_size, dtype=torch.long))
    model = build(h.conv_vae, latent_size, seed=0).train()
    trainer = h.Trainer(model, h.vae_objective, data, h.VAEConfig(batch_size=batch_size), h.make_generator(0))
    batch = torch.arange(batch_size)
    with FlopCounterMode(display=False) as counter:
        trainer.training_step(batch)
    return lambda: [trainer.training_step(batch) for _ in range(20)], lambda: 20 * counter.get_total_flops() / 1e9


def step_peer() -> Side:
    """Products of square matrices, in the number format that training uses, of the size at which the rate is highest.

    Quality: billion operations in them.
    """
    kind = torch.bfloat16 if dtype() == "bfloat16" else torch.float32
    largest = 4096
    a, b = (torch.randn(largest, largest, generator=h.make_generator(seed)).to(kind) for seed in (0, 1))

    def multiply(size: int) -> None:  # as many operations whatever the size
        left, right = a[:size, :size].contiguous(), b[:size, :size].contiguous()
        for _ in range((largest // size) ** 3):
            left @ right

    best = fastest((512, 1024, 2048, 4096), multiply)
    return lambda: multiply(best), lambda: 2 * largest**3 / 1e9


# --- how cost grows, beyond the sides above ---


def made_up(images: int) -> h.Data:
    """Images of noise: how they look changes no cost."""
    x = torch.rand(images, 1, 28, 28, generator=h.make_generator(0))
    return h.Data("mnist", x, torch.zeros(images, dtype=torch.long), x[:1], torch.zeros(1, dtype=torch.long))


def grow_images(images: int) -> Side:
    """An epoch of the fully connected VAE on `images` images."""
    config = h.VAEConfig(batch_size=128, one_cycle=False, likelihood="bernoulli", snapshots=())
    model = build(h.mlp_vae, 20, seed=0)
    trainer = h.Trainer(model, h.vae_objective, made_up(images), config, h.make_generator(0))
    return lambda: trainer.run_epoch(1), lambda: math.nan


def grow_codes(images: int) -> Side:
    """A hundred steps of latent optimization, of 48 images and their codes each, with a small decoder."""
    model, codes = h.without_encoder(build(h.mlp_vae, 200, hidden=(400,), seed=0)), torch.zeros(images, 400)
    config, generator = h.LatentConfig(one_cycle=False, snapshots=()), h.make_generator(0)
    trainer = h.LatentTrainer(model, codes, h.NaturalGradient(codes), made_up(images), config, generator)
    batches = itertools.cycle(torch.randperm(images, generator=generator).split(VISITED)[:-1])
    return lambda: [trainer.training_step(next(batches)) for _ in range(STEPS)], lambda: math.nan


def grow_samples(samples: int) -> Side:
    """log p(x) of 20 images from `samples` samples each, with an untrained decoder."""
    model = build(h.conv_vae, seed=0).eval()
    x, decode = torch.rand(20, 1, 28, 28, generator=h.make_generator(0)), model.decode
    q, generator = (torch.zeros(20, 200), torch.zeros(20, 200)), h.make_generator(0)
    return lambda: h.importance_log_prob(x, *q, decode, SIGMA, samples, generator), lambda: math.nan
