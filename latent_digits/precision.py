"""Number formats: that which matrices are multiplied in, and float64, which arrays come in."""

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

DTYPES = ("float32", "bfloat16")


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, this is the type of new tensors that name none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def to_float64(values: Tensor | np.ndarray | Iterable) -> np.ndarray:
    """An array of float64, also of a tensor with a gradient, on a GPU, or in bfloat16."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values if hasattr(values, "__array__") else list(values), dtype=np.float64)
