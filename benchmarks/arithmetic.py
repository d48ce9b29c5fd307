"""Where the arithmetic of `make run` goes: operations of each notebook, by part.

A copy of each notebook is executed in a kernel of its own, in the order of `make run` and from a cache that is empty
at first. Before its first cell `start` lets a meter attribute all that happens to the part that is at work; after the
last `finish` writes the account down. Operations are those of products and convolutions as torch's FlopCounterMode
finds them, forwards and backwards, a multiplication and an addition counting as two; they do not depend on the
machine. Only the first epoch of a training is done, and the others are taken to cost the same. So networks are hardly
trained, which changes nothing but the iterations of EM. What else takes time, such as a Cholesky factor or what
runs outside torch, is not counted.
"""

import asyncio
import contextlib
import functools
import json
import math
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helpers as h
from study import identity
from study.settings import PROJECT

ORDER = ("02", "03", "01", "06", "05", "04")  # as in the Makefile
INFERENCE, REST = "inference on images", "rest"
PARTS = {  # the functions and methods in which each is at work
    "training": "Trainer.run_epoch Trainer.training_step LatentTrainer.run_epoch LatentTrainer.training_step",
    "curves": "Trainer.measure LatentTrainer.measure",
    "sampling": "importance_log_prob annealed_log_prob draw_log_weights anneal hamiltonian_move",
    INFERENCE: "infer_latents in_batches evaluate latent_elbo features_and_probabilities VAE.encode "
    "VAE.decode_logits Classifier.features Classifier.forward",
    "mixture": "GaussianMixture.fit GaussianMixture.score_samples GaussianMixture.predict GaussianMixture.sample "
    "GaussianMixture.predict_proba expectation_step maximization_step quadratic_features",
}
EVERY_EPOCH = "Trainer.run_epoch Trainer.measure LatentTrainer.measure"  # the same operations at each call


class Meter:
    """Attributes the operations that `read` counts to the innermost part that is at work.

    Inference is within much else, and is counted as such only where nothing else is at work.
    """

    def __init__(self, read: Callable[[], float]):
        self.read, self.part, self.last = read, REST, read()
        self.spent = defaultdict(float)

    def settle(self) -> None:
        """What was spent since the last time goes to the part at work."""
        now = self.read()
        self.spent[self.part] += now - self.last
        self.last = now

    @contextlib.contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """Inside, `part` is at work."""
        if part == self.part or (part == INFERENCE and self.part != REST):
            yield
            return
        self.settle()
        outer, self.part = self.part, part
        try:
            yield
        finally:
            self.settle()
            self.part = outer

    def watch(self, *modules) -> None:
        """From here on the functions of `modules` that PARTS names tell when they are at work.

        They keep their names; `start` then takes them for what was imported.
        """
        wrappers = [(EVERY_EPOCH, self.done_once)]
        wrappers += [(names, functools.partial(self.watched, part)) for part, names in PARTS.items()]
        for names, wrap in wrappers:
            for name in names.split():
                owner, _, attribute = name.rpartition(".")
                holders = [vars(module).get(owner) for module in modules] if owner else modules
                using = {id(holder): holder for holder in holders if hasattr(holder, attribute)}
                wrapped = {}
                for holder in using.values():  # one definition, under its name in each module that uses it
                    function = getattr(holder, attribute)
                    setattr(holder, attribute, wrapped.setdefault(function, wrap(function)))

    def watched(self, part: str, function: Callable) -> Callable:
        """The function, with `part` at work while it runs."""

        @functools.wraps(function)
        def inside(*args, **kwargs):
            with self.inside(part):
                return function(*args, **kwargs)

        return inside

    def done_once(self, method: Callable) -> Callable:
        """A trainer's method, done and counted at its first call, and later taken to cost and find the same."""

        @functools.wraps(method)
        def once(trainer, *args):
            known, name = vars(trainer).setdefault("operations", {}), method.__qualname__
            if name in known:
                self.spent[self.part] += known[name][0]
            else:
                before, result = self.read(), method(trainer, *args)
                known[name] = self.read() - before, result
            return known[name][1]

        return once


class Untracked(contextlib.nullcontext):
    """In place of what tells the counter which module is at work: its hooks break gradients of inputs."""

    parents = ("Global",)


def make_counter() -> FlopCounterMode:
    """torch's counter, which knows convolutions and products of matrices, taught those with vectors and distances."""
    aten = torch.ops.aten
    operations = {  # of shapes
        aten.mv: lambda a, b, **_: 2 * math.prod(a),
        aten.addmv: lambda c, a, b, **_: 2 * math.prod(a),
        aten.dot: lambda a, b, **_: 2 * math.prod(a),
        aten._euclidean_dist: lambda a, b, out_shape, **_: 2 * math.prod(out_shape) * a[-1],
    }
    counter = FlopCounterMode(display=False, custom_mapping=operations)
    counter.mod_tracker = Untracked()
    return counter


def start() -> Meter:
    """In a notebook's kernel, before its first cell.

    The checks are off: some are of speed, and `make run` makes them.
    """
    counter = make_counter()
    counter.__enter__()  # until the kernel ends
    meter = Meter(counter.get_total_flops)
    ours = ("helpers", "latent_digits", "study")
    meter.watch(*(module for name, module in list(sys.modules.items()) if name.partition(".")[0] in ours))
    identity.IMPORTED.update(identity.as_imported())  # results of what is watched are kept as they would be without
    h.Report.check = lambda *_, **__: None
    return meter


def finish(meter: Meter, path: str) -> None:
    """In the kernel, after the last cell: write {part: operations}."""
    meter.settle()
    Path(path).write_text(json.dumps(meter.spent), encoding="utf-8")


def execute(path: Path, folder: Path) -> dict[str, float]:
    """What the notebook at `path` spends, {part: operations}: a copy of it, executed in `folder`."""
    import nbformat

    from study.execute import execute  # not at the top: a kernel that imports this file is not to wait for it

    notebook, found, here = nbformat.read(path, as_version=4), folder / "found.json", str(Path(__file__).parent)
    before = f"import sys\nsys.path.insert(0, {here!r})\nimport arithmetic\nits_meter = arithmetic.start()"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(before))
    notebook.cells.append(nbformat.v4.new_code_cell(f"arithmetic.finish(its_meter, {str(found)!r})"))
    copy = folder / "notebooks" / path.name
    copy.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, copy)
    asyncio.run(execute(copy))
    return json.loads(found.read_text(encoding="utf-8"))


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, and for processes that start inside, the environment is `values`; afterwards it is as before."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(values)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def in_format(environ: Mapping[str, str], dtype: str) -> dict[str, str]:
    """The environment in which all is computed in float32 if that is `dtype`, else in the fastest there is."""
    others = {name: value for name, value in environ.items() if name != "DTYPE"}
    return others | ({"DTYPE": dtype} if dtype == "float32" else {})


def notebooks() -> list[Path]:
    """All notebooks, in the order in which `make run` begins them."""
    return [path for number in ORDER for path in (PROJECT / "notebooks").glob(f"{number}_*.ipynb")]


def measure(environ: Mapping[str, str], paths: Iterable[Path]) -> dict[str, dict[str, float]]:
    """Notebooks, one after the other: {notebook: {part: operations}}. environ: settings such as DATA."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"CACHE": f"{folder}/cache", "OUTPUT": f"{folder}/figures", "OMP_NUM_THREADS": "1"}
        with environment({**environ, **places}):
            return {path.stem: execute(path, Path(folder)) for path in paths}


def markdown(found: dict[str, dict[str, float]]) -> str:
    """A row for each notebook and one for all, a column for each part and one for all, in TFLOP."""

    def line(name: str, among: list[dict]) -> list[str]:
        columns = [[parts[part] for parts in among if part in parts] for part in [*PARTS, REST]]
        columns.append([value for column in columns for value in column])
        return [name, *(f"{sum(values) / 1e12:,.2f}" if values else "" for values in columns)]

    head = ["TFLOP", *PARTS, REST, "all"]
    rows = [line(name, [found[name]]) for name in sorted(found)] + [line("all", list(found.values()))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
