"""What a notebook claims, and the results it leaves.

A cell may run twice: the later check, result or figure of a name takes the place of the earlier.
"""

import base64
import io
import json
import math
import operator
import re
import sys
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import PIL.Image
from IPython import get_ipython
from IPython.display import Image, Markdown, display
from torch import Tensor

from latent_digits.checks import require_between, require_choice, require_unit, require_whole
from latent_digits.data import Data
from latent_digits.figures import tile
from study.files import atomic_write, file_lock
from study.settings import Settings

STYLE = Path(__file__).with_name("latent_digits.mplstyle")  # of all figures
# what the report's first page lets a reader try without a kernel
EXPLORERS = ("latents", "walk", "map", "components")


@dataclass
class Report:
    """Checks, results and figures of one notebook."""

    notebook: str | Path
    settings: Settings
    data: Data
    checks: list[dict] = field(default_factory=list)
    results: list[dict] = field(default_factory=list)
    figures: dict[str, "Picture"] = field(default_factory=dict)
    explorers: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        self.notebook = Path(self.notebook).name.removesuffix(".ipynb")
        if self.settings.part:  # whoever runs a copy of a notebook calls it by the copy's name
            self.notebook = self.settings.part.stem
        scale = "QUICK smoke run: numbers mean nothing" if self.settings.quick else "full scale"
        say(
            f"{self.notebook} · {self.data.name}: {len(self.data.train_x):,} training, "
            f"{len(self.data.test_x):,} test images · seed {self.settings.seed} · "
            f"{self.settings.device}, "
            f"{self.settings.dtype} · {scale}"
        )
        if self.data.name != "mnist":
            which = (
                "scikit-learn's digits"
                if self.data.name == "digits"
                else f"a dataset of one's own, {self.data.name}"
            )
            note = (
                f"**This run is on {which}.** The prose of this notebook speaks of "
                "MNIST; numbers, figures and checks are those of this dataset."
            )
            display(Markdown(f"> {note}"))

    def check(self, claim: str, passed: bool, value: object = "", *, always: bool = False) -> None:
        """Print the claim with ✓ and its value; raise AssertionError when it is false.

        A QUICK run skips, visibly, what needs full training: all but what holds `always`. Raises
        TypeError for a `passed` that is no truth value: nan, say, would pass for true.
        """
        if str(getattr(passed, "dtype", type(passed).__name__)) not in ("bool", "torch.bool") or (
            math.prod(getattr(passed, "shape", ())) != 1
        ):
            raise TypeError(f"passed must be True or False, got {passed!r}")
        claim, value = f"{claim}", "" if value is None else f"{value}"
        skipped = self.settings.quick and not always
        detail = f"  ({value})" if value else ""
        if not skipped and not bool(passed):
            self.checks[:] = [check for check in self.checks if check["claim"] != claim]
            raise AssertionError(f"✗ {claim}{detail}")
        say(f"– skipped in a QUICK run: {claim}" if skipped else f"✓ {claim}{detail}")
        row = {"claim": claim, "value": value, "passed": None if skipped else True}
        keep_row(self.checks, "claim", row)

    def by_data(self, **values):
        """The value for the dataset at hand: by_data(mnist=0.993, digits=0.95).

        Raises ValueError where it is missing.
        """
        require_choice(values, **{"the dataset": self.data.name})
        return values[self.data.name]

    def result(self, name: str, value: float, unit: str = "", digits: int = 2) -> None:
        """Keep a headline number for the results table and results.json.

        value: a number, of NumPy or torch, too. Raises ValueError where it is none, or not finite.
        """
        name, number = f"{name}", as_number(**{f"{name}": value})
        require_between(-math.inf, **{name: number})
        try:
            digits = operator.index(digits)
        except TypeError as error:
            raise ValueError(f"digits must be a whole number, got {digits!r}") from error
        require_whole(0, digits=digits)
        row = {
            "result": name,
            "value": round(number, digits),
            "unit": f"{unit}",
            "digits": digits,
        }
        keep_row(self.results, "result", row)

    def figure(
        self, figure: plt.Figure, name: str, alt: str = "", *, headline: bool = False
    ) -> None:
        """Show `figure`, and keep it, to be saved as <notebook number>_<name>.png.

        alt: what it shows, with its numbers, for whoever cannot see it; without it, the name.
        headline: it stands for the notebook on the report's first page. Raises ValueError for
        what is no name of a file, and for what is no figure.
        """
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise ValueError(f"name must be letters, digits and underscores, got {name!r}")
        if not hasattr(figure, "savefig"):
            raise ValueError(f"figure must be a figure of matplotlib, got {figure!r}")
        alt = " ".join(f"{alt}".split()) or name.replace("_", " ")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)  # else the kernel shows it a second time, without its words
        display(Image(buffer.getvalue(), alt=alt))
        shell = get_ipython()
        # the count of this cell, which is the last in the history (execution_count may be ahead)
        cell = len(shell.user_ns["In"]) - 1 if shell else None
        self.figures[str(name)] = Picture(buffer.getvalue(), cell, alt, bool(headline))

    def explorer(self, kind: str, images: Tensor, **facts) -> None:
        """Keep images (n, 1, h, w) that the report's first page shows without a kernel.

        kind: of study/explorers.js, which also says what `facts` it needs. Saved as
        explore_<kind>.json. Raises ValueError for an unknown kind, for pixels beyond [0, 1], and
        for facts that are no numbers, words, or lists or arrays of them.
        """
        require_choice(EXPLORERS, kind=kind)
        for name, fact in facts.items():
            require_json(**{name: fact})
        require_unit(images=images)
        columns = min(len(images), 64)
        height, width = images.shape[-2:]
        sheet = tile(images, columns, gap=0)
        buffer = io.BytesIO()
        PIL.Image.fromarray((255 * sheet).round().astype("uint8")).save(
            buffer, "PNG", optimize=True
        )
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        sprites = {"columns": columns, "width": width, "height": height, "source": source}
        self.explorers[kind] = {"sprites": sprites, **facts}

    def finish(self) -> pd.DataFrame:
        """Write the figures and this notebook's part of results.json; return a table of results.

        Nothing is written before: a notebook that fails leaves the pictures and numbers of its last
        success.
        """
        output, locks = self.settings.output, self.settings.cache or self.settings.output
        part = {"data": self.data.name, "results": self.results, "checks": self.checks}
        part |= {name: getattr(self.settings, name) for name in ("seed", "quick", "dtype")}
        path = output / "results.json"
        with file_lock(path, locks):
            everything = read_results(path)
            others = [entry for name, entry in everything.items() if name != self.notebook]
            taken = {figure["file"] for entry in others for figure in entry.get("figures", ())}
            part["figures"] = self.write_figures(taken)
            for kind, content in self.explorers.items():
                atomic_write(output / f"explore_{kind}.json", to_json(content))
            everything[self.notebook] = part
            atomic_write(path, to_json(everything, indent=1, sort_keys=True) + b"\n")
        if self.settings.part:
            atomic_write(self.settings.part, to_json(part))
        rows = {
            row["result"]: {"value": show_value(row), "unit": row["unit"]} for row in self.results
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("result")

    def write_figures(self, taken: Collection[str]) -> list[dict]:
        """Write the figures; return the name of each, its file, and the number of its cell.

        One that cannot be written is left out, with a warning. taken: files of other notebooks.
        """
        written, output = [], self.settings.output
        # a copy of a notebook does not begin as the notebook does
        number = self.notebook[:2] if re.fullmatch(r"\d\d_[a-z0-9_]+", self.notebook) else ""
        for name, picture in self.figures.items():
            file = f"{number}_{name}.png"
            if not number or file in taken:
                file = f"{self.notebook}_{name}.png"
            try:
                with file_lock(output / file, self.settings.cache or output):
                    atomic_write(output / file, picture.png)
            except OSError as error:
                warnings.warn(f"the figure {name} could not be written: {error}", stacklevel=3)
            else:
                facts = {name: getattr(picture, name) for name in ("cell", "alt", "headline")}
                written.append({"name": name, "file": file} | facts)
        return written


@dataclass(frozen=True)
class Picture:
    """A figure as it is saved, the execution count of its cell, and its words."""

    png: bytes
    cell: int | None
    alt: str
    headline: bool = False


def say(text: str) -> None:
    """Print, with a question mark for a letter that the output has not."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def keep_row(rows: list[dict], key: str, row: dict) -> None:
    """Put a row at the end, or in the place of an earlier one of that name."""
    places = [place for place, earlier in enumerate(rows) if earlier[key] == row[key]]
    rows[slice(places[0], places[0] + 1) if places else slice(len(rows), None)] = [row]


def to_json(value: object, **form) -> bytes:
    """As JSON in UTF-8: numbers and arrays of numpy and torch are lists of Python's own numbers.

    A letter that UTF-8 has not, such as half of a pair, becomes a question mark.
    """
    text = json.dumps(value, ensure_ascii=False, default=lambda other: other.tolist(), **form)
    return text.encode("utf-8", "replace")


def require_json(**facts: object) -> None:
    """Raise ValueError for what a file of JSON cannot hold."""
    for name, fact in facts.items():
        try:
            to_json(fact)
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            rule = "numbers, words, or lists or arrays of them"
            raise ValueError(f"{name} must be {rule}, got a {type(fact).__name__}") from error


def as_number(**given: object) -> float:
    """A number as Python's own. Raises ValueError for what is none."""
    ((name, value),) = given.items()
    try:
        if isinstance(value, str | bytes):
            raise TypeError("it is text")
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be a number, got {value!r}") from error


def read_results(path: Path) -> dict[str, dict]:
    """What results.json has, by notebook; nothing where it is damaged, of which a copy is kept."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    try:
        found = json.loads(content.decode("utf-8"))
        if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
            raise ValueError("it has no notebooks")
        return found
    except ValueError as error:  # of json, and of an encoding
        aside = path.with_name(f"{path.name}.damaged")
        atomic_write(aside, content)
        warnings.warn(f"{path} is begun anew ({error}); the old one: {aside}", stacklevel=3)
        return {}


def forget(notebook: str, settings: Settings) -> None:
    """Take from results.json what an earlier run of a notebook has left."""
    path = settings.output / "results.json"
    with file_lock(path, settings.cache or settings.output):
        everything = read_results(path)
        if everything.pop(notebook, None):
            atomic_write(path, to_json(everything, indent=1, sort_keys=True) + b"\n")


def show_value(result: Mapping) -> str:
    """A result's value with the digits it was given, all of it where they are not known: −45.10."""
    form = f".{result['digits']}f" if "digits" in result else ".10g"
    return f"{result['value']:,{form}}".replace("-", "−")
