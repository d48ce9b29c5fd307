"""Results that are kept with all that decides them: `recall`.

A result is kept only if all that decides it is identified, which identity.py does; else it is
computed each time, with a warning that says why.
"""

import dataclasses
import functools
import inspect
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from latent_digits.networks import copy_weights
from study.files import cached
from study.identity import (
    Unidentified,
    arithmetic,
    digest,
    identify,
    identify_code,
    is_ours,
    is_plain,
)


def pack(value: object, touched: list) -> object:
    """A result as plain data, with a network as its place in `touched`.

    Raises Unidentified for what is neither.
    """
    inside = functools.partial(pack, touched=touched)
    if isinstance(value, nn.Module) and value in touched:
        return {"network": touched.index(value)}
    if isinstance(value, pd.DataFrame) and value.index.name:
        return {"table": value.reset_index().to_dict("list"), "index": value.index.name}
    if isinstance(value, tuple):
        kind = identify_code(type(value))[:2] if hasattr(value, "_fields") else None
        return {"tuple": [inside(part) for part in value], "type": kind}
    if type(value) is dict:
        return {"dict": {key: inside(part) for key, part in value.items()}}
    if is_plain(value) or type(value) is Tensor:
        return value
    raise Unidentified(f"its result has a {type(value).__name__}")


def unpack(value: object, touched: list) -> object:
    """What was packed."""
    match value:
        case {"network": place}:
            return touched[place]
        case {"table": columns, "index": name}:
            return pd.DataFrame(columns).set_index(name)
        case {"tuple": parts, "type": kind}:
            parts = tuple(unpack(part, touched) for part in parts)
            return named_tuple(*kind)(*parts) if kind else parts
        case {"dict": parts}:
            return {key: unpack(part, touched) for key, part in parts.items()}
    return value


def named_tuple(module: str, name: str) -> type:
    """One of our named tuples, of those that are imported. Raises Unidentified for all else."""
    kind = getattr(sys.modules.get(module), name, None)
    if is_ours(module) and isinstance(kind, type) and hasattr(kind, "_fields"):
        return kind
    raise Unidentified(f"what was kept has a {module}.{name}")


def state_of(part: nn.Module | torch.Generator) -> object:
    """What a call may change of a network or a generator."""
    if isinstance(part, torch.Generator):
        return part.get_state()
    modes = [module.training for module in part.modules()]
    return {"weights": copy_weights(part), "training": modes}


def restore(part: nn.Module | torch.Generator, state: object) -> None:
    """Leave a network or a generator as `state_of` found it."""
    if isinstance(part, torch.Generator):
        part.set_state(state)
    else:
        part.load_state_dict(state["weights"])
        for module, mode in zip(part.modules(), state["training"], strict=True):
            module.training = mode


def within(value: object) -> Iterator[nn.Module | torch.Generator]:
    """The networks and generators that a value is or has."""
    if isinstance(value, nn.Module | torch.Generator):
        yield value
    elif isinstance(value, types.MethodType):
        yield from within(value.__self__)
    elif isinstance(value, dict) or dataclasses.is_dataclass(value):
        yield from within(list((value if isinstance(value, dict) else vars(value)).values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from within(part)


def timed(function: Callable, *args, **kwargs) -> tuple[object, float]:
    """function(*args, **kwargs), and the seconds it took."""
    start = time.perf_counter()
    return function(*args, **kwargs), time.perf_counter() - start


def recall(function: Callable, *args, cache: Path | None, **kwargs) -> tuple[object, float]:
    """function(*args, **kwargs) and the seconds it took; from the folder `cache`, where known.

    What the call does to networks and generators among the arguments is kept with the result. Where
    something cannot be identified, it is computed each time, with a warning that says why.
    """
    if cache is None:
        return timed(function, *args, **kwargs)
    given = inspect.signature(function).bind(*args, **kwargs)
    given.apply_defaults()
    touched, found = [part for value in given.arguments.values() for part in within(value)], []

    def compute() -> dict:
        result, seconds = found[:] = timed(function, *args, **kwargs)
        states = [state_of(part) for part in touched]
        return {"result": pack(result, touched), "seconds": seconds, "states": states}

    def read(record: dict) -> tuple[object, float, list]:
        return unpack(record["result"], touched), record["seconds"], record["states"]

    try:
        if given.arguments.get("generator", 0) is None:
            raise Unidentified("generator is None")
        values = {name: identify(value, name) for name, value in given.arguments.items()}
        key = digest([identify_code(function), values, arithmetic()])
        path = Path(cache).expanduser() / f"{function.__name__.replace('_', '-')}-{key[:24]}.pt"
        result, seconds, states = cached(path, compute, read)
    except Unidentified as reason:
        message = f"{function.__name__} is computed each time, and not kept, as {reason}"
        warnings.warn(message, stacklevel=2)
        return tuple(found) or timed(function, *args, **kwargs)
    for part, state in zip(touched, states, strict=True):
        restore(part, state)
    return result, seconds
