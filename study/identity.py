"""What decides a result, identified: code, values, and the state of the machine's arithmetic.

Code of ours is told by the syntax trees of the modules it stands in and of those they import,
torch's classes by its version, settings, numbers and tensors by value. What cannot be identified,
such as a function of a notebook, raises Unidentified.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import json
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import latent_digits

# --- code ---

OURS = ("latent_digits", "study")
# what refuses, finds and keeps decides no result
DECIDES_NOTHING = ("latent_digits.checks", "study.cache", "study.files", "study.identity")


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
    """Python source without what decides no result: comments, words, checks, names of bars."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for part in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, part, None), list):
                kept = [one for one in statements if not decides_nothing(one)]
                setattr(node, part, kept or [ast.Pass()] * (part == "body"))
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", "")
            if called in ("tqdm", "in_batches"):
                node.keywords = [one for one in node.keywords if one.arg not in ("desc", "unit")]
            elif called == "located":
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
    """Type, shape, layout, place and a hash of the numbers."""
    kind, place = [str(values.dtype), list(values.shape)], []
    if isinstance(values, Tensor):
        place = [str(values.device), values.stride()]
        numbers = values.detach().cpu().flatten().contiguous().view(torch.uint8).numpy()
    else:
        numbers = np.ascontiguousarray(values)
    return [*kind, *place, hashlib.sha256(numbers).hexdigest()]


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
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    switches = [cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, mkldnn.enabled]
    machine = [torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]
    return [*machine, *defaults, *precision, *casts, *switches]
