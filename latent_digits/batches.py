"""Functions of many images, a batch at a time: memory stays bounded."""

from collections.abc import Callable, Iterable
from numbers import Integral

import torch
from torch import Tensor
from tqdm import tqdm

from latent_digits.checks import require_whole

Parts = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@torch.no_grad()
def in_batches(
    function: Callable[..., Parts],
    *tensors: Tensor,
    batch_size: Integral = 200,
    desc: str | None = None,
) -> Parts:
    """function(*tensors), of n rows each, in batches, without gradients, joined.

    Returns what `function` does: one tensor, a tuple of tensors or a dict of them, each of n rows.
    desc: a name for the progress bar, which is not shown without one. Raises ValueError for n = 0,
    for tensors that differ in n, and for a function that returns something else.
    """
    require_whole(**{"number of rows": len(tensors[0]), "batch_size": batch_size})
    if len(lengths := {len(tensor) for tensor in tensors}) > 1:
        raise ValueError(f"tensors must have the same number of rows, got {sorted(lengths)}")
    batches = list(zip(*(tensor.split(int(batch_size)) for tensor in tensors), strict=True))
    hidden = desc is None or len(batches) == 1
    bar = tqdm(batches, desc=desc, leave=False, unit="batch", disable=hidden)
    outputs = [rows_of(function, batch) for batch in bar]
    kind = type(outputs[0])
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    if kind is dict:
        return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
    joined = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    return kind(*joined) if hasattr(kind, "_fields") else tuple(joined)


def rows_of(function: Callable[..., Parts], batch: tuple[Tensor, ...]) -> Parts:
    """function(*batch), which must be of as many rows."""
    output, count = function(*batch), len(batch[0])
    parts = [output] if isinstance(output, Tensor) else output
    parts = parts.values() if isinstance(parts, dict) else parts
    for part in parts if isinstance(parts, Iterable) else [parts]:
        if not isinstance(part, Tensor) or part.shape[:1] != (count,):
            found = getattr(part, "shape", type(part).__name__)
            raise ValueError(f"function must return tensors of {count} rows, got {found}")
    return output
