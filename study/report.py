"""What a notebook claims, and the results it leaves."""

import inspect
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from latent_digits.checks import require_between, require_choice, require_whole
from latent_digits.data import Data
from study.files import atomic_write, file_lock
from study.identity import is_ours
from study.settings import Settings


@dataclass
class Report:
    """Checks, results and figures of one notebook."""

    notebook: str
    settings: Settings
    data: Data
    checks: list[dict] = field(default_factory=list)
    results: list[dict] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self):
        scale = "QUICK smoke run: numbers mean nothing" if self.settings.quick else "full scale"
        print(
            f"{self.notebook} · {self.data.name}: {len(self.data.train_x):,} training, "
            f"{len(self.data.test_x):,} test images · seed {self.settings.seed} · "
            f"{self.settings.device}, "
            f"{self.settings.dtype} · {scale}"
        )
        if self.data.name != "mnist":
            note = (
                "**This run is on scikit-learn's digits.** The prose of this notebook speaks of "
                "MNIST; numbers, figures and checks are those of the digits."
            )
            display(Markdown(f"> {note}"))

    def check(self, claim: str, passed: bool, value: str = "", *, always: bool = False) -> None:
        """Print the claim with ✓ and its value; raise AssertionError when it is false.

        A QUICK run skips, visibly, what needs full training: all but what holds `always`. Raises
        TypeError for a `passed` that is no truth value: nan, say, would pass for true.
        """
        if str(getattr(passed, "dtype", type(passed).__name__)) not in ("bool", "torch.bool"):
            raise TypeError(f"passed must be True or False, got {passed!r}")
        skipped = self.settings.quick and not always
        detail = f"  ({value})" if value else ""
        if not skipped and not bool(passed):
            raise AssertionError(f"✗ {claim}{detail}")
        print(f"– skipped in a QUICK run: {claim}" if skipped else f"✓ {claim}{detail}")
        self.checks.append({"claim": claim, "value": value, "passed": None if skipped else True})

    def by_data(self, **values):
        """The value for the dataset at hand: by_data(mnist=0.993, digits=0.95).

        Raises ValueError where it is missing.
        """
        require_choice(values, **{"the dataset": self.data.name})
        return values[self.data.name]

    def result(self, name: str, value: float, unit: str = "", digits: int = 2) -> None:
        """Keep a headline number for the results table and results.json.

        Raises ValueError where it is not finite.
        """
        require_between(-math.inf, **{name: float(value)})
        require_whole(0, digits=digits)
        self.results.append(
            {"result": name, "value": round(float(value), digits), "unit": unit, "digits": digits}
        )

    def figure(self, figure: plt.Figure, name: str) -> None:
        """Keep `figure`, to be saved as <notebook number>_<name>.png; it is shown as usual.

        Raises ValueError for what is no name of a file.
        """
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"name must be letters, digits and underscores, got {name!r}")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        self.figures[f"{self.notebook[:2]}_{name}.png"] = buffer.getvalue()

    def finish(self) -> pd.DataFrame:
        """Write the figures and this notebook's part of results.json; return a table of results.

        Nothing is written before: a notebook that fails leaves the pictures and numbers of its last
        success.
        """
        output = self.settings.output
        for name, picture in self.figures.items():
            with file_lock(output / name, self.settings.cache):
                atomic_write(output / name, picture)
        settings = {name: getattr(self.settings, name) for name in ("seed", "quick", "dtype")}
        part = {"data": self.data.name, "results": self.results, "checks": self.checks} | settings
        path = output / "results.json"
        with file_lock(path, self.settings.cache):
            everything = json.loads(path.read_text()) if path.exists() else {}
            everything[self.notebook] = part
            text = json.dumps(everything, indent=1, ensure_ascii=False, sort_keys=True)
            atomic_write(path, text.encode() + b"\n")
        rows = {
            row["result"]: {"value": show_value(row), "unit": row["unit"]} for row in self.results
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("result")


def show_value(result: Mapping) -> str:
    """A result's value with the digits it was given, all of it where they are not known: −45.10."""
    form = f".{result['digits']}f" if "digits" in result else ".10g"
    return f"{result['value']:,{form}}".replace("-", "−")


def show_source(*functions: Callable) -> None:
    """Show the code of functions of ours, from their single definition.

    Raises ValueError for others.
    """
    for function in functions:
        if not is_ours(getattr(function, "__module__", None) or ""):
            name = getattr(function, "__name__", function)
            raise ValueError(f"functions must be of the course, got {name!r}")
    code = "\n\n".join(inspect.getsource(function) for function in functions).rstrip()
    # unlike HTML, shown as code by every viewer of notebooks
    display(Markdown(f"```python\n{code}\n```"))
