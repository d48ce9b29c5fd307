"""What a user can get wrong with a value: refused with its name, what it must be, and what it is.

Shapes and types stand in signatures, which `helpers` has checked.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral, Real

import jaxtyping
import numpy as np
import torch
from torch import Tensor

from latent_digits.gradients import gradients

NO_GRADIENT = (
    "{} must let gradients through to z, got one that does not: call it without detach, no_grad, "
    "in_batches or rounding"
)
REAL = (int, float, np.integer, np.floating)  # a Fraction is real, too, and no tensor takes it


@contextlib.contextmanager
def unchecked(really: bool = True) -> Iterator[None]:
    """Inside, shapes and types are not checked: in a loop whose first round has passed."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", before or really)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@contextlib.contextmanager
def located(where: str, **rates: Real) -> Iterator[None]:
    """A FloatingPointError from inside tells where it was, and which rates might be lowered."""
    try:
        yield
    except FloatingPointError as error:
        remedy = " or ".join(f"{name} (now {rate:g})" for name, rate in rates.items())
        remedy = f"; or lower {remedy}" if rates else ""
        raise FloatingPointError(f"{where}: {error}{remedy}") from error


def own_numbers(settings: object) -> None:
    """Make the numbers of a frozen data class Python's own: those of numpy may overflow."""
    for name, value in vars(settings).items():
        values = value if isinstance(value, tuple) else (value,)
        own = tuple(getattr(number, "item", lambda number=number: number)() for number in values)
        object.__setattr__(settings, name, own if isinstance(value, tuple) else own[0])


def require_whole(least: int = 1, **numbers: object) -> None:
    """Raise ValueError for an argument that is no whole number of at least `least`."""
    for name, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}")


def require_seed(seed: object) -> None:
    """Raise ValueError for what torch's generators do not take as a seed."""
    require_whole(0, seed=seed)
    if seed >= 2**64:
        raise ValueError(f"seed must be a whole number below 2**64, got {seed}")


def require_positive(**numbers: object) -> None:
    """Raise ValueError for an argument that is no positive, finite number."""
    for name, number in numbers.items():
        if not isinstance(number, REAL) or not 0 < number < math.inf:
            raise ValueError(f"{name} must be a positive, finite number, got {number!r}")


def require_between(low: Real, high: Real = math.inf, **numbers: object) -> None:
    """Raise ValueError for an argument that is no finite number from `low` to `high`."""
    for name, number in numbers.items():
        if not isinstance(number, REAL) or not low <= number <= high or math.isinf(number):
            span = f" from {low} to {high}" if high < math.inf else f" of at least {low}"
            span = "" if low == -math.inf else span
            raise ValueError(f"{name} must be a finite number{span}, got {number!r}")


def require_choice(known: Iterable[str], **names: object) -> None:
    """Raise ValueError for an argument that is none of the words in `known`."""
    for name, word in names.items():
        if word not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {word!r}")


def require_device(**names: object) -> None:
    """Raise ValueError for a device that is not there."""
    for name, device in names.items():
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{name} must be one that is there, as cpu is, got {device!r} ({reason})"
            ) from error


def require_finite(**tensors: Tensor) -> None:
    """Raise ValueError for an argument with entries that are nan or infinite, or with none."""
    for name, value in tensors.items():
        if value.numel() == 0:
            raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name} must be finite, got {not_finite(value)}")


def not_finite(value: Tensor) -> str:
    """What is wrong with a tensor that is not finite."""
    if value.ndim == 0:
        return str(value.item())
    return f"{int((~value.isfinite()).sum()):,} entries that are nan or infinite"


def require_finite_result(result: Tensor, **arguments: Tensor) -> None:
    """Raise FloatingPointError where `result` is not finite, with the argument that is to blame.

    Cheaper than to look at every argument before: of many pixels one number is left.
    """
    if not result.isfinite().all():
        for name, value in arguments.items():
            if not value.isfinite().all():
                raise FloatingPointError(f"{name} must be finite, got {not_finite(value)}")
        reach = " and ".join(
            f"{name} up to {value.abs().max():.3g}" for name, value in arguments.items()
        )
        raise FloatingPointError(
            f"the result must be finite, got an overflow from {reach}: scale it, or use float64"
        )


def require_unit(**tensors: Tensor) -> None:
    """Raise ValueError for an argument with pixels that are not in [0, 1], or with none."""
    require_finite(**tensors)
    for name, x in tensors.items():
        low, high = x.aminmax()
        if low < -1e-6 or high > 1 + 1e-6:  # what interpolation leaves of rounding is let pass
            raise ValueError(
                f"{name} must be in [0, 1], got values from {low:.3g} to {high:.3g}: scale it"
            )


def require_digits(**tensors: Tensor) -> None:
    """Raise ValueError for an argument with labels that are no digits, or with none."""
    for name, labels in tensors.items():
        if len(labels) == 0:
            raise ValueError(f"{name} must not be empty, got shape {tuple(labels.shape)}")
        if labels.min() < 0 or labels.max() > 9:
            raise ValueError(
                f"{name} must be digits from 0 to 9, got {labels.min()} to {labels.max()}"
            )


def require_gradient(z: Tensor, **functions: Callable[[Tensor], Tensor]) -> None:
    """Raise ValueError for a function of z (1, d) through which no gradient flows to z.

    Whoever follows its gradient would follow that of the other terms alone, and never know. It may
    be zero of a function that does not change with z.
    """
    points = (
        z,
        torch.full_like(z, 1.5),
        torch.linspace(-1, 2, z.numel(), device=z.device).to(z).view_as(z),
    )
    for name, function in functions.items():
        values = []
        for point in points:
            value, gradient = probe(function, point, name)
            if gradient.any():
                break
            values.append(value)
        else:
            if any(value.ne(values[0]).any() for value in values):
                raise ValueError(NO_GRADIENT.format(name))


def probe(function: Callable[[Tensor], Tensor], z: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """function(z), and the gradient of a weighted sum of it. Raises ValueError without one."""
    with gradients():
        leaf = z.detach().clone().requires_grad_()
        value = function(leaf)
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must return a tensor, got a {type(value).__name__}")
        if not value.requires_grad:
            raise ValueError(NO_GRADIENT.format(name))
        # different weights, as the sum of what is normalised does not change
        weights = torch.linspace(1, 2, value.numel(), device=value.device)
        total = (value.flatten() * weights).sum()
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    if gradient is None:
        raise ValueError(NO_GRADIENT.format(name))
    return value.detach(), gradient
