"""Images and labels: a dataset, the scans that come with scikit-learn, balanced subsets."""

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from latent_digits.checks import require_between, require_digits, require_unit, require_whole
from latent_digits.random import make_generator


@dataclass(frozen=True)
class Data:
    """Images in [0, 1] and their digits. Test images are the notebooks' validation images."""

    name: str
    train_x: Float[Tensor, "train 1 28 28"]
    train_y: Int64[Tensor, " train"]
    test_x: Float[Tensor, "test 1 28 28"]
    test_y: Int64[Tensor, " test"]

    def to(self, device: torch.device | str) -> "Data":
        """The same data on `device`."""
        return self.map(lambda values: values.to(device))

    def subsample(self, size: Integral) -> "Data":
        """At least `size` images of each split, evenly spaced; all of a split that has fewer."""
        return self.map(lambda values: subsample(values, size))

    def map(self, function) -> "Data":
        """The same with all images and labels changed by `function`."""
        tensors = {key: function(value) for key, value in vars(self).items() if key != "name"}
        return replace(self, **tensors)

    def validate(self) -> None:
        """Raise ValueError where images or labels have values that they cannot have."""
        require_unit(train_x=self.train_x, test_x=self.test_x)
        require_digits(train_y=self.train_y, test_y=self.test_y)


def subsample(values: Tensor, size: Integral) -> Tensor:
    """At least `size` of the rows, and fewer than twice as many, evenly spaced; all of fewer."""
    require_whole(size=size)
    return values[:: max(1, len(values) // size)]


def balanced_subset(
    labels: Int64[Tensor, " n"], per_class: Integral, generator: torch.Generator
) -> Int64[Tensor, " chosen"]:
    """Indices (10 * per_class,) of exactly `per_class` images of each digit, in random order.

    Raises ValueError when a class has fewer.
    """
    require_digits(labels=labels)
    require_whole(per_class=per_class)
    available = int(torch.bincount(labels, minlength=10).min())
    if per_class > available:
        raise ValueError(
            f"per_class must be at most {available}, as the rarest digit has, got {per_class}"
        )
    chosen = []
    for digit in range(10):
        members = (labels == digit).nonzero().squeeze(1)  # (members of the class,)
        chosen.append(members[permutation(len(members), generator)[:per_class]])
    indices = torch.cat(chosen)
    return indices[permutation(len(indices), generator)]


def permutation(n: int, generator: torch.Generator) -> Int64[Tensor, " n"]:
    """0 to n - 1 in random order, where the generator is."""
    return torch.randperm(n, generator=generator, device=generator.device)


def one_per_class(labels: Int64[Tensor, " n"]) -> Int64[Tensor, "10"]:
    """Indices of the first image of each digit. Raises ValueError when a digit is missing."""
    require_digits(labels=labels)
    missing = sorted(set(range(10)) - set(labels.tolist()))
    if missing:
        raise ValueError(f"labels must have every digit, got none of {missing}")
    return torch.stack([(labels == digit).nonzero()[0, 0] for digit in range(10)])


def read_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 scanned digits in MNIST's shape, two thirds of them to train on.

    Each 8x8 scan is enlarged to 20x20 and centred in 28x28, as MNIST's digits are. Training scans
    are repeated with small random affine moves up to 2,000 of each digit; no test scan is among
    them. Returned as `read_mnist` does.
    """
    scans, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(scans).float().view(-1, 1, 8, 8) / 16  # (1797, 64) -> (1797, 1, 8, 8)
    large = F.interpolate(small, size=20, mode="bicubic", align_corners=False)
    images = F.pad(large, (4, 4, 4, 4)).clamp(0, 1)  # (1797, 1, 28, 28)
    labels = torch.from_numpy(labels).long()
    everything = torch.arange(len(labels), device="cpu")
    train, test = train_test_split(everything, test_size=1 / 3, stratify=labels, random_state=0)
    sources = []
    for digit in range(10):
        members = train[labels[train] == digit]
        sources.append(members.repeat(math.ceil(2000 / len(members)))[:2000])
    sources = torch.cat(sources)
    moved = random_affine(images[sources], make_generator(0))
    return moved, labels[sources], images[test], labels[test]


def random_affine(
    x: Float[Tensor, "batch 1 h w"],
    generator: torch.Generator | None,
    degrees: Real = 10.0,
    scale: Real = 0.1,
    shift: Real = 0.07,
) -> Float[Tensor, "batch 1 h w"]:
    """Rotate, scale and shift each image by its own small random amount.

    degrees and scale (a fraction) are largest values; shift is the largest fraction of the image's
    side. Angles are those between pixels, in images that are not square, too. Raises ValueError for
    no image, for values that are negative, and for a scale or shift above 1.
    """
    require_whole(**{"len(x)": len(x)})
    require_between(0, degrees=degrees)
    require_between(0, 1, scale=scale, shift=shift)

    def uniform(largest: Real, *shape: Integral) -> Tensor:
        drawn = torch.rand(len(x), *shape, generator=generator, device=x.device, dtype=x.dtype)
        return largest * (2 * drawn - 1)

    angle, zoom = uniform(math.radians(degrees)), 1 + uniform(scale)
    # the sampling grid spans [-1, 1] along each side, hence the 2 and the ratio of the sides
    ratio = x.shape[2] / x.shape[3]
    rotation = [angle.cos(), -angle.sin() * ratio, angle.sin() / ratio, angle.cos()]
    rotation = torch.stack(rotation, 1).view(-1, 2, 2)  # (batch, 4) -> (batch, 2, 2)
    offset = 2 * uniform(shift, 2, 1)
    theta = torch.cat([rotation * zoom.view(-1, 1, 1), offset], 2)  # (batch, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)
