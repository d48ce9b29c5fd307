"""Images and labels: MNIST where it can be had, otherwise the scans that come with scikit-learn."""

import hashlib
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from latent_digits.checks import (
    require_between,
    require_floats,
    require_images,
    require_labels,
    require_rows,
    require_whole,
)
from latent_digits.random import make_generator

SOURCES = ("auto", "mnist", "digits")


@dataclass(frozen=True)
class Data:
    """Images and labels of one dataset.

    train_x (N, 1, 28, 28) and test_x (M, 1, 28, 28) are float32 in [0, 1]; train_y (N,) and
    test_y (M,) are int64 digits. The test images are the validation images of the notebooks.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    note: str = ""  # why this is not MNIST, where it is not

    def to(self, device: torch.device | str) -> "Data":
        """The same data on `device`."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def thinned(self, size: int) -> "Data":
        """`size` images of each side, or up to twice as many, evenly spaced; all of a side that has fewer."""
        return replace(self, **{k: thin(v, size) for k, v in vars(self).items() if isinstance(v, Tensor)})

    def require_sound(self) -> None:
        """Raise TypeError or ValueError where images or labels are not what they should be."""
        require_images(train_x=self.train_x, test_x=self.test_x)
        require_labels(train_y=self.train_y, test_y=self.test_y)
        require_rows(len(self.train_x), train_y=self.train_y)
        require_rows(len(self.test_x), test_y=self.test_y)

    def fingerprint(self) -> str:
        """Hash of all images and labels."""
        digest = hashlib.sha256()
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()


def thin(rows: Tensor, size: int) -> Tensor:
    """`size` of the rows, or up to twice as many, evenly spaced; all where there are fewer."""
    require_whole(size=size)
    return rows[:: max(1, len(rows) // size)]


def balanced_subset(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Indices (10 * per_class,) of exactly `per_class` images of each digit, in random order.

    Raises ValueError when a class has fewer.
    """
    require_labels(labels=labels)
    require_whole(per_class=per_class)
    available = int(torch.bincount(labels, minlength=10).min())
    if per_class > available:
        raise ValueError(f"per_class is {per_class}: choose 1 to {available}, all that the rarest digit has")
    chosen = []
    for digit in range(10):
        members = (labels == digit).nonzero().squeeze(1)  # (members of the class,)
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    indices = torch.cat(chosen)
    return indices[torch.randperm(len(indices), generator=generator)]


def read_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 scanned digits in MNIST's shape: two thirds to train on, one third to test on.

    Each 8x8 scan is enlarged to 20x20 and centred in 28x28, as MNIST's digits are. Training scans are
    repeated with small random affine moves up to 2,000 of each digit; no test scan is among them.
    """
    scans, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(scans).float().view(-1, 1, 8, 8) / 16  # (1797, 64) -> (1797, 1, 8, 8)
    images = F.pad(F.interpolate(small, size=20, mode="bicubic", align_corners=False), (4, 4, 4, 4)).clamp(0, 1)
    labels = torch.from_numpy(labels).long()
    train, test = train_test_split(torch.arange(len(labels)), test_size=1 / 3, stratify=labels, random_state=0)
    sources = []
    for digit in range(10):
        members = train[labels[train] == digit]
        sources.append(members.repeat(math.ceil(2000 / len(members)))[:2000])
    sources = torch.cat(sources)
    return random_affine(images[sources], make_generator(0)), labels[sources], images[test], labels[test]


def random_affine(x: Tensor, generator: torch.Generator, degrees=10.0, scale=0.1, shift=0.07) -> Tensor:
    """Rotate, scale and shift each image of x (batch, 1, h, w) by its own small random amount.

    degrees and scale (a fraction) are largest values; shift is the largest fraction of the image's side. Raises
    TypeError or ValueError for what is not images, and for values that are negative, or a scale or shift above 1.
    """
    require_floats("n 1 h w", finite=False, x=x)
    require_between(0, degrees=degrees)
    require_between(0, 1, scale=scale, shift=shift)

    def uniform(largest: float, *shape: int) -> Tensor:
        return largest * (2 * torch.rand(len(x), *shape, generator=generator, device=x.device) - 1)

    angle, zoom = uniform(math.radians(degrees)), 1 + uniform(scale)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    offset = 2 * uniform(shift, 2, 1)  # the sampling grid spans [-1, 1], hence 2
    theta = torch.cat([rotation * zoom.view(-1, 1, 1), offset], 2)  # (batch, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def one_per_class(labels: Tensor) -> Tensor:
    """Indices (10,) of the first image of each digit, 0 to 9. Raises ValueError when a digit is missing."""
    require_labels(labels=labels)
    missing = sorted(set(range(10)) - set(labels.tolist()))
    if missing:
        raise ValueError(f"labels has no image of {missing}: pass labels in which every digit occurs")
    return torch.stack([(labels == digit).nonzero()[0, 0] for digit in range(10)])
