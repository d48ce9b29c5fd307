"""Gradients, whatever mode of torch the caller is in."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Inside, torch records what a gradient needs, also under no_grad and inference_mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def require_gradient(z: Tensor, **functions: Callable[[Tensor], Tensor]) -> None:
    """Raise ValueError for a function of z (1, d) through which no gradient flows to z.

    Whoever follows its gradient would follow that of the other terms alone, and never know. It may
    be zero at one point, not at three.
    """
    points = z, torch.full_like(z, 0.3), torch.full_like(z, -0.7)
    for name, function in functions.items():
        if not any(has_gradient(function, point, name) for point in points):
            raise ValueError(
                f"{name} must let gradients through to z, got one that does not: call it without "
                "detach, no_grad, in_batches or rounding"
            )


def has_gradient(function: Callable[[Tensor], Tensor], z: Tensor, name: str) -> bool:
    """Whether the gradient of what `function` returns is there, and not zero."""
    with gradients():
        leaf = z.detach().clone().requires_grad_()
        result = function(leaf)
        if not isinstance(result, Tensor):
            raise ValueError(f"{name} must return a tensor, got a {type(result).__name__}")
        if not result.requires_grad:
            return False
        # different weights, as the sum of what is normalised has no gradient
        weights = torch.linspace(0, 1, result.numel() + 1, device=z.device)[1:]
        total = (result.flatten() * weights).sum()
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    return gradient is not None and bool(gradient.any())
