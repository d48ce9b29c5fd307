"""How a notebook is run: all of it comes from the environment."""

import contextlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from latent_digits.checks import require_choice, require_device
from latent_digits.precision import DTYPES, fast_bfloat16
from latent_digits.training import TrainConfig
from study.arguments import PROJECT

SOURCES = ("auto", "mnist", "digits")
YES, NO = ("1", "yes", "true", "on"), ("0", "no", "false", "off")
LONGEST_NAME = 255  # of a file or folder
LARGEST_SEED = 2**32 - 1  # what NumPy and scikit-learn take; torch takes more


@dataclass(frozen=True)
class Settings:
    """How to run. Everything here comes from the environment, so that no notebook needs an edit."""

    seed: int = 0  # SEED=n
    quick: bool = False  # QUICK=1: a smoke run, minutes become seconds
    source: str = "auto"  # DATA=mnist | digits | auto
    output: Path = PROJECT / "report" / "figures"  # OUTPUT=folder for figures and results.json
    cache: Path = PROJECT / ".cache"  # CACHE=folder for what was trained or found
    device: str = "cpu"  # DEVICE=cpu | cuda | mps
    dtype: str = "float32"  # DTYPE=float32 | bfloat16: the format that matrices are multiplied in
    # REPORT_PART=file.json, which `study run` sets: what the notebook of that name leaves for it
    part: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read SEED, QUICK, DATA, OUTPUT, CACHE, DEVICE, DTYPE.

        Raises ValueError for a word that is none of theirs, and for a folder that cannot be one.
        """
        source = environ.get("DATA") or "auto"
        require_choice(SOURCES, DATA=source)
        device = choose_device(environ.get("DEVICE"))
        settings = cls(
            seed=read_seed(environ.get("SEED") or "0"),
            quick=read_switch(QUICK=environ.get("QUICK") or "0"),
            source=source,
            output=path_of(OUTPUT=environ.get("OUTPUT") or cls.output),
            cache=path_of(CACHE=environ.get("CACHE") or cls.cache),
            device=device,
            dtype=choose_dtype(environ.get("DTYPE"), device),
            part=Path(environ["REPORT_PART"]) if environ.get("REPORT_PART") else None,
        )
        require_folder(OUTPUT=settings.output)
        with contextlib.suppress(PermissionError):
            require_folder(CACHE=settings.cache)
            return settings
        message = f"CACHE={settings.cache} may not be written: what is trained is not kept"
        warnings.warn(message, stacklevel=2)
        return settings

    def __post_init__(self):
        for name in ("output", "cache"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, path_of(**{name: value}))

    @property
    def per_class(self) -> int:
        """Training images of each digit."""
        return 100 if self.quick else 2000

    @property
    def test_size(self) -> int | None:
        """Test images kept; None keeps all."""
        return 500 if self.quick else None

    @property
    def built(self) -> dict:
        """What `build` takes from the settings."""
        return {"seed": self.seed, "device": self.device, "dtype": self.dtype}

    def scaled(self, config: "TrainConfig") -> "TrainConfig":
        """The config itself, or its smoke variant in a QUICK run."""
        return config.smoke() if self.quick else config


def read_seed(word: str) -> int:
    """A seed that every generator takes. Raises ValueError for another."""
    if not word.isdecimal() or len(word) > 20 or int(word) > LARGEST_SEED:
        rule = f"a whole number, from 0 to {LARGEST_SEED}, as in SEED=1"
        raise ValueError(f"SEED must be {rule}, got {word[:40]!r}")
    return int(word)


def read_switch(**setting: str) -> bool:
    """Whether a setting says yes. Raises ValueError where it says neither yes nor no."""
    ((name, word),) = setting.items()
    if word.strip().lower() not in (*YES, *NO):
        raise ValueError(f"{name} must be one of {', '.join((*YES, *NO))}, got {word!r}")
    return word.strip().lower() in YES


def require_folder(**setting: Path) -> None:
    """Raise ValueError for a path that cannot be a folder, PermissionError for one of others."""
    ((name, path),) = setting.items()
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise ValueError(f"{name} must be a folder, got a name of more than {LONGEST_NAME} bytes")
    # a link that leads nowhere is there, too
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not there.is_dir():
        raise ValueError(f"{name} must be a folder, got {path}: {there} is no folder")
    effective = os.access in os.supports_effective_ids
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=effective):
        raise PermissionError(f"{name} must be a folder that may be written, got {path}")


def path_of(**setting: str | Path) -> Path:
    """The path that a setting names, from the project's folder; ~ and $HOME are the user's own.

    Raises ValueError for a user that is not known.
    """
    ((name, value),) = setting.items()
    try:
        return PROJECT / Path(os.path.expandvars(value)).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} must be a path, got {str(value)!r} ({error})") from error


def choose_device(name: str | None = None) -> str:
    """The device asked for, else "cuda" where it is there, else "cpu". Apple's "mps" must be asked
    for.

    Raises ValueError for a device that is not there.
    """
    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    require_device(DEVICE=name)
    return name


def choose_dtype(name: str | None, device: str) -> str:
    """The number format asked for, else "bfloat16" where `device` multiplies it natively, else
    "float32".

    Raises ValueError for another word.
    """
    if not name:
        return "bfloat16" if fast_bfloat16(torch.device(device)) else "float32"
    require_choice(DTYPES, DTYPE=name)
    return name
