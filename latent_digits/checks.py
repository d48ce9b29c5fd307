"""What a user can get wrong with a value: refused in words that name the argument, its value and the remedy."""

import math
from collections.abc import Iterable
from numbers import Integral, Real

import torch
from torch import Tensor


def require_whole(least: int = 1, **numbers: int) -> None:
    """Raise ValueError for an argument that is no whole number of at least `least`."""
    for name, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
            raise ValueError(f"{name} is {number!r}: give a whole number of at least {least}")


def require_positive(**numbers: float) -> None:
    """Raise ValueError for an argument that is no positive, finite number."""
    for name, number in numbers.items():
        if not isinstance(number, Real) or not 0 < number < math.inf:
            raise ValueError(f"{name} is {number!r}: give a positive, finite number")


def require_between(low: float, high: float = math.inf, **numbers: float) -> None:
    """Raise ValueError for an argument that is no finite number from `low` to `high`."""
    for name, number in numbers.items():
        if not isinstance(number, Real) or not low <= number <= high or math.isinf(number):
            span = "" if low == -math.inf else f" of at least {low}" if high == math.inf else f" from {low} to {high}"
            raise ValueError(f"{name} is {number!r}: give a finite number{span}")


def require_choice(known: Iterable[str], **names: str) -> None:
    """Raise ValueError for an argument that is none of the words in `known`."""
    for name, word in names.items():
        if word not in known:
            raise ValueError(f"{name} is {word!r}: choose one of {', '.join(map(repr, known))}")


def require_floats(shape: str, finite: bool = True, **tensors: Tensor) -> None:
    """Raise TypeError or ValueError for an argument that is no tensor of floating-point numbers of this `shape`.

    shape: as in "n 1 28 28", where a letter is any size of at least 1; "n ..." has further dimensions. finite: whether
    nan and infinities are refused, too.
    """
    *fixed, last = shape.split()
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} is {kind}: give a tensor of floating-point numbers, as torch.rand makes")
        sizes = fixed + ([last] if last != "..." else ["any"] * max(1, value.ndim - len(fixed)))
        same = len(sizes) == value.ndim and all(
            str(found) == size or not size.isdigit() for size, found in zip(sizes, value.shape, strict=True)
        )
        if not same or value.numel() == 0:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}: give it ({', '.join([*fixed, last])}), and none of them 0"
            )
        if finite and not value.isfinite().all():
            raise ValueError(not_finite(name, value))


def not_finite(name: str, value: Tensor) -> str:
    """What is wrong with the argument called `name`."""
    if value.ndim == 0:
        return f"{name} is {value}: see where it comes from"
    count = int((~value.isfinite()).sum())
    return f"{name} has {count:,} entries that are not finite (nan or infinite): see where they come from"


def require_finite(result: Tensor, **arguments: Tensor) -> None:
    """Raise FloatingPointError where `result` is not finite, with the argument that is to blame.

    Cheaper than to look at every argument before: of many pixels one number is left.
    """
    if not result.isfinite().all():
        for name, value in arguments.items():
            if not value.isfinite().all():
                raise FloatingPointError(not_finite(name, value))
        reach = " and ".join(f"{name} reaches {value.abs().max():.3g}" for name, value in arguments.items())
        raise FloatingPointError(f"{reach}: what follows from it overflows; scale it down, or use float64")


def require_images(**tensors: Tensor) -> None:
    """Raise TypeError or ValueError for an argument that is not images (n, 1, 28, 28), float, in [0, 1]."""
    require_floats("n 1 28 28", **tensors)
    for name, x in tensors.items():
        low, high = x.aminmax()
        if low < -1e-6 or high > 1 + 1e-6:  # what interpolation leaves of rounding is let pass
            raise ValueError(f"{name} spans [{low:.3g}, {high:.3g}]: scale it into [0, 1]")


def require_labels(**tensors: Tensor) -> None:
    """Raise TypeError or ValueError for an argument that is not labels (n,): int64 digits 0 to 9, at least one."""
    for name, labels in tensors.items():
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"{name} is {kind}: give a tensor of int64, as torch.tensor([3, 7]) is")
        if labels.ndim != 1 or len(labels) == 0:
            raise ValueError(f"{name} has shape {tuple(labels.shape)}: give it (n,), n at least 1")
        if labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"{name} spans {labels.min()} to {labels.max()}: give digits from 0 to 9")


def require_same_shape(first: Tensor, second: Tensor, name: str) -> None:
    """Raise ValueError when `second`, the argument called `name`, has another shape than `first`."""
    if first.shape != second.shape:
        raise ValueError(
            f"{name} has shape {tuple(second.shape)}: give it {tuple(first.shape)}, as its counterpart has"
        )


def require_rows(count: int, **tensors: Tensor) -> None:
    """Raise ValueError for an argument that has not one row for each of `count` images."""
    for name, value in tensors.items():
        if len(value) != count:
            raise ValueError(f"{name} has {len(value)} rows: give {count}, one for each image")


def require_posterior(x: Tensor, mu: Tensor, logvar: Tensor, sigma: float) -> None:
    """Raise TypeError or ValueError when x (n, *event) and q(z|x), each (n, d), do not fit or are not finite."""
    require_positive(sigma=sigma)
    require_floats("n ...", x=x)
    require_floats("n d", mu=mu, logvar=logvar)
    require_same_shape(mu, logvar, "logvar")
    require_rows(len(x), mu=mu)
