"""Results that are kept with all that decides them.

A result is kept only if all that decides it is identified: code of ours by the syntax trees of the
modules it stands in and of those they import, torch's classes by its version, settings, numbers and
tensors by value, and the state of the machine's arithmetic. What cannot be identified, such as a
function of a notebook, is computed each time.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import pkgutil
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import latent_digits
from latent_digits.networks import copy_weights
from study.files import cached

# --- code ---

OURS = ("latent_digits", "study")
# what refuses, finds and keeps decides no result
DECIDES_NOTHING = ("latent_digits.checks", "study.cache", "study.files")


class Unidentified(Exception):
    """Something decides a result, and cannot be told from another like it."""


def decides_nothing(statement: ast.stmt) -> bool:
    """Whether results are the same without it: words, a `raise`, a call of a check."""
    if not isinstance(statement, ast.Expr):
        return isinstance(statement, ast.Raise)
    value = statement.value
    called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
    is_check = called.rpartition(".")[2].startswith(("require_", "validate"))
    return isinstance(value, ast.Constant) or is_check or called in ("warnings.warn", "print")


@functools.cache
def decisive(source: str) -> str:
    """Python source without what decides no result: comments, words, checks."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for part in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, part, None), list):
                kept = [one for one in statements if not decides_nothing(one)]
                setattr(node, part, kept or [ast.Pass()] * (part == "body"))
        if isinstance(node, ast.Call):
            node.keywords = [one for one in node.keywords if one.arg not in ("desc", "unit")]
            if getattr(node.func, "id", "") == "located":
                node.args, node.keywords = [], []
    return ast.unparse(tree)


def is_ours(module: str) -> bool:
    """Whether a module is one of our packages' own."""
    return module.partition(".")[0] in OURS


def source_of(module: str) -> str:
    """The text of a module as it is now."""
    return Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")


def imports(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) for each `from module import name` of a source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def source_hash(*modules: str, read: Callable[[str], str] | None = None) -> str:
    """Hash of what decides results in these modules of ours, and in those that they import."""
    found, waiting = {}, list(modules)
    while waiting:
        module = waiting.pop()
        if is_ours(module) and module not in (*DECIDES_NOTHING, *found):
            found[module] = decisive(text := (read or source_of)(module))
            waiting += [name for name, _ in imports(text)]
    return digest(found)


def digest(value: object) -> str:
    """Hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def held(module: types.ModuleType) -> dict[str, object]:
    """What a module and its classes hold, by name."""
    found = {name: value for name, value in vars(module).items() if not name.startswith("__")}
    for name, value in list(found.items()):
        if getattr(value, "__module__", "") == module.__name__ and isinstance(value, type):
            found |= {f"{name}.{key}": part for key, part in vars(value).items()}
            found.pop(f"{name}.__slotnames__", None)  # which copying leaves there
    return found


def as_imported() -> dict[str, tuple[str, dict[str, object]]]:
    """The texts of the course's modules, and what they hold."""
    names = [f"latent_digits.{part.name}" for part in pkgutil.iter_modules(latent_digits.__path__)]
    return {name: (source_of(name), held(importlib.import_module(name))) for name in names}


IMPORTED = as_imported()  # what trains a network is the code as it was then


def unpatched_source(module: str) -> str:
    """The text that a module was imported from. Raises Unidentified where it was changed since."""
    if module not in IMPORTED:
        raise Unidentified(f"{module} is code of no course")
    text, before = IMPORTED[module]
    now = held(sys.modules[module])
    changed = [name for name in {**before, **now} if before.get(name) is not now.get(name)]
    if changed:
        raise Unidentified(f"{module}.{changed[0]} is not as it was imported")
    return text


# --- what decides a result ---


def is_plain(value: object) -> bool:
    """Whether a value is a number, a string, None, or a tuple of such."""
    if type(value) is tuple:
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def identify(value: object, name: str = "it") -> object:
    """What tells `value` from any other that leads to another result. Raises Unidentified."""
    inside = functools.partial(identify, name=name)
    if isinstance(value, np.generic):
        value = value.item()
    if is_plain(value) or isinstance(value, torch.device | torch.dtype):
        return repr(value)
    if type(value) in (list, tuple):
        return [type(value).__name__, *map(inside, value)]
    if type(value) is dict:
        return {repr(key): inside(part) for key, part in value.items()}
    if type(value) in (Tensor, np.ndarray):
        return identify_array(value)
    if type(value) is torch.Generator:
        return [str(value.device), identify_array(value.get_state())]
    if isinstance(value, types.MethodType):
        return [inside(value.__self__), value.__func__.__qualname__]
    if isinstance(value, nn.Module):
        return identify_network(value)
    if isinstance(value, type | types.FunctionType):
        return identify_code(value)
    if dataclasses.is_dataclass(value) and set(vars(value)) == {
        part.name for part in dataclasses.fields(value)
    }:
        return [identify_code(type(value)), inside(vars(value))]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [identify_code(type(value)), *map(inside, value)]
    raise Unidentified(f"{name} is a {type(value).__name__}")


def identify_array(values: Tensor | np.ndarray) -> list:
    """Type, shape, place and a hash of the numbers."""
    device = str(getattr(values, "device", ""))
    if isinstance(values, Tensor):
        numbers = values.detach().cpu().flatten().contiguous().view(torch.uint8).numpy()
    else:
        numbers = np.ascontiguousarray(values)
    digest = hashlib.sha256(numbers).hexdigest()
    return [str(values.dtype), list(values.shape), device, digest]


def identify_code(item: type | Callable) -> list:
    """Where a function or class is, and the code behind it. Raises Unidentified if not ours."""
    module, name = item.__module__ or "", item.__qualname__
    if not (is_ours(module) or module.partition(".")[0] == "torch"):
        raise Unidentified(f"{name} is code of {module}")
    found = functools.reduce(
        lambda holder, part: getattr(holder, part, None), name.split("."), sys.modules[module]
    )
    if found is not item:
        raise Unidentified(f"{module}.{name} is another than this one")
    # torch's own are told by its version
    return [module, name, source_hash(module, read=unpatched_source)]


def identify_network(network: nn.Module) -> list:
    """Classes, settings, weights and modes of a network and of all that it is made of."""
    usual, found = vars(nn.Module()), []
    for name, part in network.named_modules():
        settings = {key: value for key, value in vars(part).items() if key not in usual}
        hooks = [key for key, value in vars(part).items() if key.endswith("hooks") and value]
        lists = type(part).__module__.startswith("torch.")  # which keeps paddings as such
        unknown = [
            k
            for k, v in settings.items()
            if not is_plain(tuple(v) if lists and type(v) is list else v)
        ]
        if hooks or unknown:
            raise Unidentified(f"{type(part).__name__} has {', '.join(hooks + unknown)}")
        found.append([name, identify_code(type(part)), repr(settings), part.training])
    seen = {}
    for name, tensor in [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(),
    ]:
        same = seen.setdefault(id(tensor), len(seen))  # tied weights are not equal weights
        found.append([name, same, tensor.requires_grad, identify_array(tensor)])
    return found


def arithmetic() -> list:
    """What of this machine's arithmetic decides numbers."""
    defaults = str(torch.get_default_dtype()), str(torch.get_default_device())
    precision = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    casts = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    return [torch.__version__, torch.get_num_threads(), *defaults, *precision, *casts]


# --- results ---


def pack(value: object, touched: list) -> object:
    """A result as plain data, with a network as its place in `touched`.

    Raises Unidentified for what is neither.
    """
    inside = functools.partial(pack, touched=touched)
    if isinstance(value, nn.Module) and value in touched:
        return {"network": touched.index(value)}
    if isinstance(value, pd.DataFrame):
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
    return {"weights": copy_weights(part), "training": part.training}


def restore(part: nn.Module | torch.Generator, state: object) -> None:
    """Leave a network or a generator as `state_of` found it."""
    if isinstance(part, torch.Generator):
        part.set_state(state)
    else:
        part.load_state_dict(state["weights"])
        part.train(state["training"])


def within(value: object) -> Iterator[nn.Module | torch.Generator]:
    """The networks and generators that a value is or has, as a tuple or a method."""
    if isinstance(value, nn.Module | torch.Generator):
        yield value
    elif isinstance(value, tuple | types.MethodType):
        for part in value if isinstance(value, tuple) else [value.__self__]:
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

    try:
        if given.arguments.get("generator", 0) is None:
            raise Unidentified("generator is None")
        values = {name: identify(value, name) for name, value in given.arguments.items()}
        key = digest([identify_code(function), values, arithmetic()])
        path = Path(cache) / f"{function.__name__.replace('_', '-')}-{key[:24]}.pt"
        record = cached(path, compute)
        result = unpack(record["result"], touched)
    except Unidentified as reason:
        message = f"{function.__name__} is computed each time, and not kept, as {reason}"
        warnings.warn(message, stacklevel=2)
        return tuple(found) or timed(function, *args, **kwargs)
    for part, state in zip(touched, record["states"], strict=True):
        restore(part, state)
    return result, record["seconds"]
