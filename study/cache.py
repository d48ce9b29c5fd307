"""Files that are written whole, and results that are kept with all that decides them."""

import ast
import contextlib
import functools
import glob
import hashlib
import inspect
import io
import json
import os
import pickle
import re
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm import tqdm

from latent_digits.checks import require_choice, require_whole
from latent_digits.networks import VAE
from latent_digits.precision import DTYPES
from latent_digits.random import make_generator, seeded


def write_whole(path: Path, payload: bytes) -> None:
    """Write `payload` to `path` whole or not at all: a temporary file beside it, synced, then renamed.

    Raises OSError (disk full, no permission); the old file, if any, is then still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's own 0600 would shut out other readers
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def one_at_a_time(path: Path):
    """Inside, no other process is inside for the same `path`; another's end is waited for, and it is said.

    What a killed process left half written is removed. Where the folder cannot be written nothing is locked: what
    cannot be kept there is not shared either.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            with tqdm(total=1, desc=f"another process makes {path.name}: waiting", leave=False):
                lock.acquire()
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            leftover.unlink(missing_ok=True)
    except OSError:
        pass
    try:
        yield
    finally:
        lock.release()


def write_in_turn(path: Path, payload: bytes) -> None:
    """write_whole, one process at a time. Raises OSError."""
    with one_at_a_time(path):
        write_whole(path, payload)


def decides_nothing(statement: ast.stmt) -> bool:
    """Whether results are the same without it: a docstring, a `raise`, a call of a check, a warning or a print."""
    if not isinstance(statement, ast.Expr):
        return isinstance(statement, ast.Raise)
    value = statement.value
    called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
    is_check = called.rpartition(".")[2].startswith("require_")
    return isinstance(value, ast.Constant) or is_check or called in ("warnings.warn", "print")


def decisive(source: str) -> str:
    """Python source without what decides no result: comments, words, checks, and what progress bars are told."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for part in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, part, None), list):
                kept = [statement for statement in statements if not decides_nothing(statement)]
                setattr(node, part, kept or [ast.Pass()] * (part == "body"))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tqdm":
            node.keywords = []
    return ast.unparse(tree)


@functools.cache
def definitions(source: str) -> dict[str, str]:
    """The text of every function, class and constant at the top level of `source`, by name."""
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        for target in node.targets if isinstance(node, ast.Assign) else [node]:
            name = getattr(target, "name", getattr(target, "id", None))
            found[name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


# as imported: an edit while a notebook runs is not what trained its models
SOURCE = "\n".join(
    path.read_text()
    for folder in ("latent_digits", "study")
    for path in sorted((Path(__file__).parents[1] / folder).glob("*.py"))
    if path.stem not in ("run", "publish", "__main__")
)

# what finds, fetches and keeps files decides no number
KEEPING = (
    *("write_whole", "write_in_turn", "one_at_a_time", "cached", "recall", "run_or_recall", "run_key", "key_of"),
    *("code_behind", "source_of", "source_hash", "references", "definitions", "decisive", "decisive_definitions"),
    *(
        "PROJECT",
        "SOURCE",
        "KEEPING",
        "fetch_mnist",
        "download",
        "answer_of",
        "md5_of",
        "DamagedFile",
        "import_datasets",
    ),
)


@functools.cache
def decisive_definitions(source: str) -> dict[str, str]:
    """`definitions`, of which only what decides results is left."""
    return {name: decisive(text) for name, text in definitions(source).items()}


@functools.cache
def references(source: str) -> set[str]:
    """The names that code refers to; words in strings and attributes of other things are none."""
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def source_hash(*names: str) -> str:
    """Hash of the definitions in this file that `names` reach, directly or through one another.

    A change to any of them changes the hash; a comment, a docstring, a message, or a definition that is never
    reached does not. Names not defined here are ignored.
    """
    texts, reached, queue = decisive_definitions(SOURCE), set(), list(names)
    while queue:
        name = queue.pop()
        if name in texts and name not in reached and name not in KEEPING:
            reached.add(name)
            queue += references(texts[name])
    return hashlib.sha256("\n".join(texts[name] for name in sorted(reached)).encode()).hexdigest()


def code_behind(*objects: Callable) -> str:
    """Hash of functions and classes, and of all they reach in this file, wherever they are defined.

    torch's own are left out: its version stands for them.
    """
    names, outside = [], []
    for item in objects:
        if item.__module__.partition(".")[0] in ("latent_digits", "study"):
            names.append(item.__name__)
        elif not item.__module__.startswith("torch."):
            outside.append(decisive(textwrap.dedent(source_of(item))))
    for text in outside:  # a notebook's code says h.fit
        names += re.findall(r"\w+", text)
    return hashlib.sha256("\n".join([*sorted(outside), source_hash(*names)]).encode()).hexdigest()


def source_of(item: Callable) -> str:
    """The text of a function or class; of a class in a notebook the whole cell, through one of its methods.

    A kernel finds the functions that its cells define, but before Python 3.13 not the classes.
    """
    try:
        return inspect.getsource(item)
    except (OSError, TypeError):
        lines, _ = inspect.findsource(next(filter(inspect.isfunction, vars(item).values())))
        return "".join(lines)


def cached(path: Path, compute: Callable[[], dict]) -> dict:
    """`compute()`, or its result as an earlier call left it at `path`.

    The result is a dict of tensors, numbers, strings, lists and dicts, and is read back without
    running any code from the file. Its checksum goes with it: a damaged file is computed anew.
    Where two processes want the same, one computes it, and the other waits.
    """
    with one_at_a_time(path):
        try:
            checksum, _, payload = path.read_bytes().partition(b"\n")
            if hashlib.sha256(payload).hexdigest().encode() == checksum:
                return torch.load(io.BytesIO(payload), weights_only=True)
            warnings.warn(f"{path} is damaged and is computed again", stacklevel=2)
        except FileNotFoundError:
            pass
        except pickle.UnpicklingError:
            warnings.warn(f"{path} holds more than plain data, is not loaded, and is computed again", stacklevel=2)
        except OSError as error:
            warnings.warn(f"{path} cannot be read ({error}): it is computed again", stacklevel=2)
        result = compute()
        buffer = io.BytesIO()
        torch.save(result, buffer)
        payload = buffer.getvalue()
        try:
            write_whole(path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        except OSError as error:
            warnings.warn(f"{path} could not be written ({error}): the result is used, but not kept", stacklevel=2)
    return result


def run_or_recall(loop: Callable[..., dict], model, method, data, config, *start, seed, device, dtype, cache) -> dict:
    """The record that `loop` (`train` or `train_latents`) leaves, or left in `cache`; `model` has its weights then."""
    require_whole(0, seed=seed)
    require_choice(DTYPES, dtype=dtype)
    data.require_sound()
    device, model.dtype = torch.device(device), dtype
    model.to(device, memory_format=torch.channels_last)  # a third faster in convolutions than the default

    def compute() -> dict:
        with seeded(seed):
            return loop(model, method, data, config, *start, seed=seed, device=device)

    if cache is None:
        record = compute()
    else:
        key = run_key(loop, model, method, data, config, *start, seed=seed, device=device)
        record = cached(Path(cache) / f"{type(model).__name__.lower()}-{key[:24]}.pt", compute)
    model.load_state_dict(record["state"])
    return record


def run_key(loop, model, method, data, config, *start, seed, device) -> str:
    """Hash of all that a training run depends on."""
    parts = {
        "code": code_behind(loop, method, *{type(module) for module in model.modules()}),
        "data": data.fingerprint(),
        "config": [type(config).__name__, asdict(config)],
        "seed": seed,
    }
    return key_of(model, *start, device=device, **parts)


def key_of(model: nn.Module, *tensors: Tensor, device: torch.device, **parts) -> str:
    """Hash of a model, of tensors, of the machine's arithmetic, and of plain values."""
    weights = hashlib.sha256()
    for tensor in [*model.state_dict().values(), *tensors]:
        weights.update(tensor.cpu().contiguous().numpy())
    plain = (bool, int, float, str)
    parts |= {
        "model": repr(model),
        "attributes": [
            {k: v for k, v in vars(module).items() if isinstance(v, plain) and k != "training"}
            for module in model.modules()
        ],
        "weights": weights.hexdigest(),
        "torch": [torch.__version__, str(device), torch.get_num_threads()],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def recall(
    function: Callable, model: VAE, *, seed: int = 0, cache: Path | None = None, **arguments
) -> tuple[list, float]:
    """function(decode=model.decode, generator=..., **arguments), or the same from `cache`; and the seconds it took.

    function: importance_log_prob, annealed_log_prob or infer_latents; what it returns comes as a list. arguments:
    tensors, tuples of them, and plain values. Leaves the model in evaluation mode.
    """
    model.eval()
    device = next(model.parameters()).device
    generator = make_generator(seed, device)

    def compute() -> dict:
        start = time.perf_counter()
        result = as_lists(function(decode=model.decode, generator=generator, **arguments))
        return {"result": result, "seconds": time.perf_counter() - start}

    if cache is None:
        record = compute()
    else:
        code = code_behind(function, *{type(module) for module in model.modules()})
        tensors, plain = [], {"seed": seed}
        for name, value in sorted(arguments.items()):
            several = (value,) if isinstance(value, Tensor) else value
            if isinstance(several, tuple):
                tensors += several
                plain[name] = [[list(tensor.shape), str(tensor.dtype)] for tensor in several]
            else:
                plain[name] = value
        key = key_of(model, *tensors, device=device, code=code, arguments=plain)
        record = cached(Path(cache) / f"{function.__name__.replace('_', '-')}-{key[:24]}.pt", compute)
    return record["result"], record["seconds"]


def as_lists(result):
    """Nested tuples as nested lists, which a file can keep without naming a class."""
    return [as_lists(part) for part in result] if isinstance(result, tuple) else result
