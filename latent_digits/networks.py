"""The networks: a classifier, and VAEs (Kingma and Welling 2014), convolutional and not."""

import itertools
from collections.abc import Callable
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from latent_digits.checks import (
    require_between,
    require_choice,
    require_device,
    require_finite,
    require_whole,
)
from latent_digits.densities import Posterior
from latent_digits.gradients import gradients
from latent_digits.precision import DTYPES, default_dtype
from latent_digits.random import seeded


class Network(nn.Module):
    """A network that multiplies matrices in the format `dtype`, and returns that of its weights.

    They are float32, unless it was changed by `double()`; input of another precision is brought to
    theirs.
    """

    dtype = "float32"  # or "bfloat16"; `build` sets it

    def compute(self, part: nn.Module, x: Tensor) -> Tensor:
        """part(x), in mixed precision where the format is not that of the weights, float32."""
        dtype, weights = getattr(torch, self.dtype), next(self.parameters()).dtype
        mixed = dtype != torch.float32 == weights
        with torch.autocast(x.device.type, dtype, enabled=mixed):
            return part(x.to(weights)).to(weights)


class Classifier(Network):
    """A small convolutional digit classifier: images to logits."""

    def __init__(self, width: Integral = 16, feature_size: Integral = 128, dropout: Real = 0.3):
        super().__init__()
        require_whole(width=width, feature_size=feature_size)
        require_between(0, 1, dropout=dropout)
        width, feature_size = int(width), int(feature_size)  # those of numpy are none of torch's

        def block(inputs: Integral, outputs: Integral) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(
            *block(1, width),  # one layer at 28 x 28, where each costs most
            nn.MaxPool2d(2),  # 28 -> 14
            *block(width, 2 * width),
            *block(2 * width, 2 * width),
            nn.MaxPool2d(2),  # 14 -> 7
            *block(2 * width, 4 * width),
            *block(4 * width, 4 * width),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4 * width * 7 * 7, feature_size),
            nn.ReLU(),
        )
        self.head = nn.Linear(feature_size, 10)

    def features(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch features"]:
        """The penultimate features."""
        require_finite(x=x)
        return self.compute(self.body, x)

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 10"]:
        """Logits of the digits."""
        return self.compute(self.head, self.features(x))


class VAE(Network):
    """An encoder to (mu, logvar) and a decoder to pixel logits, with d latents between them.

    encoder: (batch, 1, 28, 28) -> (batch, 2 d), or None where each image has a q(z|x) of its own;
    decoder: (batch, d) -> (batch, 1, 28, 28).
    """

    def __init__(self, encoder: nn.Module | None, decoder: nn.Module, latent_size: Integral):
        super().__init__()
        self.encoder, self.decoder, self.latent_size = encoder, decoder, latent_size

    def encode(self, x: Float[Tensor, "batch 1 28 28"]) -> Posterior:
        """q(z|x). Raises TypeError without an encoder, ValueError for an x that is not finite."""
        if self.encoder is None:
            raise TypeError(
                "this model has no encoder: find q(z|x) with infer_latents(model.decode, x, ...)"
            )
        require_finite(x=x)
        # (batch, 2 d) -> 2 x (batch, d)
        return Posterior(*self.compute(self.encoder, x).chunk(2, dim=1))

    def decode_logits(
        self, z: Float[Tensor, "batch {self.latent_size}"]
    ) -> Float[Tensor, "batch 1 28 28"]:
        """Logits of the pixels' means."""
        return self.compute(self.decoder, z)

    def decode(
        self, z: Float[Tensor, "batch {self.latent_size}"]
    ) -> Float[Tensor, "batch 1 28 28"]:
        """The mean of p(x|z), in [0, 1]."""
        return torch.sigmoid(self.decode_logits(z))

    def reconstruct(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 1 28 28"]:
        """x_hat, decoded from the mean of q(z|x)."""
        return self.decode(self.encode(x).mu)


class PixelUpscale(nn.ConvTranspose2d):
    """A transposed convolution to one channel: a product with the kernels, summed where they meet.

    (batch, c, h, w) -> (batch, 1, 2 h, 2 w), with kernels of 4 x 4 at a stride of 2. On a CPU
    torch's own is slow where there is one channel to draw: with this one the decoder as a whole
    takes three quarters of the time.
    """

    def __init__(self, inputs: Integral):
        super().__init__(inputs, 1, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x drawn at twice the size."""
        drawn = x.flatten(2).mT @ self.weight.flatten(1)  # (batch, c, h, w) -> (batch, h w, 4 * 4)
        size = (2 * x.shape[2], 2 * x.shape[3])
        where = {"padding": self.padding, "stride": self.stride}
        return F.fold(drawn.mT, size, self.kernel_size, **where) + self.bias


def conv_vae(
    latent_size: Integral = 200, width: Integral = 16, hidden: Integral = 256, dropout: Real = 0.1
) -> VAE:
    """The convolutional VAE: two strided convolutions and one more, mirrored in the decoder."""
    require_whole(latent_size=latent_size, width=width, hidden=hidden)
    require_between(0, 1, dropout=dropout)
    latent_size, width, hidden = int(latent_size), int(width), int(hidden)
    encoder = nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),  # 28 -> 14
        nn.GELU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),  # 14 -> 7
        nn.GELU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Dropout(dropout),  # in the encoder alone: it overfits sooner than the decoder
        nn.Linear(2 * width * 7 * 7, hidden),
        nn.GELU(),
        nn.Linear(hidden, 2 * latent_size),
    )
    decoder = nn.Sequential(
        nn.Linear(latent_size, hidden),
        nn.GELU(),
        nn.Linear(hidden, 2 * width * 7 * 7),
        nn.GELU(),
        nn.Unflatten(1, (2 * width, 7, 7)),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.GELU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),  # 7 -> 14
        nn.GELU(),
        PixelUpscale(width),  # 14 -> 28
    )
    return VAE(encoder, decoder, latent_size)


def mlp_vae(latent_size: Integral = 8, hidden: tuple[Integral, ...] = (392, 196, 98)) -> VAE:
    """The fully connected VAE: 784-392-196-98 with ReLU to (mu, logvar), and back."""
    sizes = {f"hidden[{i}]": size for i, size in enumerate(hidden)}
    require_whole(**{"latent_size": latent_size, "len(hidden)": len(hidden)} | sizes)
    latent_size, hidden = int(latent_size), tuple(map(int, hidden))
    encoder: list[nn.Module] = [nn.Flatten()]  # (batch, 1, 28, 28) -> (batch, 784)
    for inputs, outputs in itertools.pairwise((784, *hidden)):
        encoder += [nn.Linear(inputs, outputs), nn.ReLU()]
    encoder += [nn.Linear(hidden[-1], 2 * latent_size)]
    decoder: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((latent_size, *reversed(hidden))):
        decoder += [nn.Linear(inputs, outputs), nn.ReLU()]
    decoder += [nn.Linear(hidden[0], 784), nn.Unflatten(1, (1, 28, 28))]
    return VAE(nn.Sequential(*encoder), nn.Sequential(*decoder), latent_size)


def without_encoder(model: VAE) -> VAE:
    """The same decoder, for latents that are found by optimization."""
    bare = VAE(None, model.decoder, model.latent_size)
    bare.dtype = model.dtype
    return bare


def build(
    factory: Callable[..., nn.Module],
    *args,
    seed: Integral,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    **kwargs,
) -> nn.Module:
    """`factory(*args, **kwargs)` on `device`, with float32 weights drawn from `seed`.

    dtype: the format that it multiplies matrices in, "float32" or "bfloat16". Raises ValueError for
    a factory that makes no network, and for a device that is not there.
    """
    require_choice(DTYPES, dtype=dtype)
    require_device(device=device)
    if isinstance(factory, nn.Module):
        raise ValueError(
            f"factory must make a network, as Classifier does, got a {type(factory).__name__} that "
            "is made: leave out the brackets behind its name"
        )
    # gradients: else what is built under inference_mode could not be trained
    with seeded(seed), gradients(), torch.device("cpu"), default_dtype(torch.float32):
        network = factory(*args, **kwargs)
    if not isinstance(network, nn.Module):
        raise ValueError(f"factory must make a network, got a {type(network).__name__}")
    network.dtype = dtype
    # a third faster in convolutions than the default layout
    return network.to(device, torch.float32, memory_format=torch.channels_last)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are. Raises ValueError where it has none."""
    for weights in network.parameters():
        return weights.device
    raise ValueError(f"the network must have weights, got a {type(network).__name__} without")


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """A network's weights and buffers, copied to the CPU."""
    state = network.state_dict()
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
