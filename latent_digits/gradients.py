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
    """Raise ValueError for a function of z (n, d) through which no gradient flows to z.

    Whoever follows its gradient would follow that of the other terms alone, and never know.
    """
    for name, function in functions.items():
        with gradients():
            leaf = z.detach().clone().requires_grad_()
            total = function(leaf).sum()
            seen = total.requires_grad and torch.autograd.grad(total, leaf, allow_unused=True)[0]
        if not isinstance(seen, Tensor):
            raise ValueError(
                f"{name} must let gradients through to z, got one that does not: call it without "
                "detach, no_grad or in_batches"
            )
