"""Gradients, whatever mode of torch the caller is in."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Inside, torch records what a gradient needs, also under no_grad and inference_mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
