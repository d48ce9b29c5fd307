"""Seeds and generators."""

import contextlib

import torch

from latent_digits.checks import require_whole


def make_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A seeded random generator on `device`. Raises ValueError for a seed that is not 0, 1, 2, ..."""
    require_whole(0, seed=seed)
    return torch.Generator(device).manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int):
    """Inside, the global generators start from `seed`; afterwards they are as before.

    For what takes no generator of its own: initial weights and dropout.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
