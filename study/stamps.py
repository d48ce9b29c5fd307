"""What a stored notebook was executed from: its stamp, and whether that still fits."""

import hashlib
import importlib.metadata
import platform
import re

from nbformat import NotebookNode

from study.identity import imports, source_hash, source_of

VERSIONED = ("torch", "numpy", "scikit-learn", "matplotlib", "pandas")
# what a stored notebook was executed with
STORED = {"data": "mnist", "seed": 0, "quick": False, "dtype": "float32"}
# what all 64-bit processors of the last ten years have, for torch and for oneDNN
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
OLD_INSTRUCTIONS = AVX2 if platform.machine() in ("x86_64", "AMD64") else {}
SEEDS = "seeds"  # the tag of cells that show what many seeds say


def code_hash(notebook: NotebookNode) -> str:
    """Hash of the notebook's code cells and of the code of ours behind what they use.

    Cells that show what many seeds say are left out: that comes from executed notebooks.
    """
    cells = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and SEEDS not in cell.metadata.get("tags", ())
    ]
    names = set(re.findall(r"\bh\.(\w+)", "\n".join(cells)))
    modules = {module for module, name in imports(source_of("helpers")) if name in names}
    return hashlib.sha256("\n".join([*cells, source_hash(*sorted(modules))]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, without local tags such as +cpu."""
    found = {name: importlib.metadata.version(name).split("+")[0] for name in VERSIONED}
    return {"python": platform.python_version()} | found


def stamp(notebook: NotebookNode, entry: dict) -> None:
    """Write into the notebook what it was executed from; `entry`: its part of results.json."""
    notebook.metadata["latent_digits"] = {
        **{name: entry[name] for name in STORED},
        "versions": versions(),
        "code": code_hash(notebook),
    }


def stale(notebook: NotebookNode) -> list[str]:
    """What no longer fits between a stored notebook and its stamp; empty when all does."""
    stamped = notebook.metadata.get("latent_digits")
    if stamped is None:
        return ["it has never been executed by `make refresh`"]
    reasons = []
    if stamped["code"] != code_hash(notebook):
        reasons.append("its code, or code of ours behind it, has changed")
    if {name: stamped.get(name) for name in STORED} != STORED:
        reasons.append("it was not executed at full scale on MNIST with seed 0 in float32")
    current = versions()
    for name in VERSIONED:
        if stamped["versions"].get(name) != current[name]:
            reasons.append(
                f"it was executed with {name} {stamped['versions'].get(name)}, not {current[name]}"
            )
    return reasons
