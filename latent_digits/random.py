"""Seeds and generators: whatever is drawn comes from one that is passed in."""

import contextlib
from collections.abc import Iterator
from numbers import Integral

import torch
from torch import Tensor

from latent_digits.checks import require_device, require_seed


def make_generator(seed: Integral, device: torch.device | str = "cpu") -> torch.Generator:
    """A seeded random generator on `device`. Raises ValueError for a seed that is not 0, 1, ..."""
    require_seed(seed)
    require_device(device=device)
    return torch.Generator(device).manual_seed(int(seed))


def normal_like(values: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws of N(0, 1) of the shape, type and place of `values`."""
    shape, device = values.shape, values.device
    return torch.randn(shape, generator=generator, device=device, dtype=values.dtype)


@contextlib.contextmanager
def seeded(seed: Integral) -> Iterator[None]:
    """Inside, the global generators start from `seed`; afterwards they are as before.

    For what takes no generator of its own: initial weights and dropout. Raises ValueError as
    `make_generator` does.
    """
    require_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(int(seed))
        yield
