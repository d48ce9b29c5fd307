"""Number formats: that which matrices are multiplied in, and that of arrays."""

import contextlib
from collections.abc import Iterator

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


def to_numpy(values: object) -> object:
    """A tensor as an array of float64, also one with a gradient, or in bfloat16; others as is."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double().numpy()
    return values
