"""Run the notebooks, some at a time.

`run` executes copies into report/, `refresh` in place, with stamps. `report` makes report/ of the
stored notebooks, executing nothing. A stamp says what a stored notebook was executed from; `stale`
tells whether it still fits.
"""

import asyncio
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from study import publish
from study.files import atomic_write
from study.identity import imports, source_hash, source_of
from study.report import forget, read_results, say
from study.settings import PROJECT, Settings

WIDGET = "application/vnd.jupyter.widget-view+json"
VERSIONED = ("torch", "numpy", "scikit-learn", "matplotlib", "pandas")
# what a stored notebook was executed with
STORED = {"data": "mnist", "seed": 0, "quick": False, "dtype": "float32"}

# what all 64-bit processors of the last ten years have, for torch and for oneDNN
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
OLD_INSTRUCTIONS = AVX2 if platform.machine() in ("x86_64", "AMD64") else {}
# whatever the shell has: figures are shown in the notebook, and text is UTF-8
KERNEL = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONUTF8": "1"}


class Client(NotebookClient):
    """Executes a notebook; its progress bars go to one bar in the terminal instead of into it."""

    def __init__(self, notebook: NotebookNode, bar: tqdm, **options):
        super().__init__(notebook, **options)
        self.bar = bar

    def output(self, outs, msg, display_id, cell_index):
        """Take the bars out of stderr; everything else, warnings too, is stored as usual."""
        content = msg["content"]
        to_stderr = msg["msg_type"] == "stream" and content["name"] == "stderr"
        # a bar within another sends the line between them, and the way back up, by themselves
        if to_stderr and (re.search(r"\r|\x1b\[A", content["text"]) or not content["text"].strip()):
            if shown := re.findall(r"[^\r\n]*\d%", content["text"]):
                self.bar.set_postfix_str(shown[-1].strip())
            residue = r"[^\r\n]*\d%\|[^\]\r\n]*\]|\r *|\x1b\[A"
            content["text"] = re.sub(residue, "", content["text"])
            if not content["text"].strip():
                return None
        return super().output(outs, msg, display_id, cell_index)

    async def async_execute_cell(self, cell, cell_index, **options):
        """Of a kernel that has died say where, and why as far as that can be told."""
        try:
            return await super().async_execute_cell(cell, cell_index, **options)
        except DeadKernelError as error:
            status = await self.km.provisioner.poll()
            if status is None:  # it lives: it is we who are to end, and no kernel has a word in it
                self.shutdown_kernel = "immediate"
                raise asyncio.CancelledError from error
            first = next(iter(cell.source.strip().splitlines()), "")
            place = f"cell {cell_index + 1} of {len(self.nb.cells)}, which begins {first!r}"
            raise DeadKernelError(f"the kernel {cause_of_death(status)}, in {place}") from error


def cause_of_death(status: int) -> str:
    """What the exit status of a kernel says, and what may be done."""
    if status >= 0:
        return f"ended by itself, with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    if name == "SIGKILL":
        return (
            "was killed (SIGKILL), most likely by the system for lack of memory: close other "
            "programs, or execute one notebook at a time (JOBS=1 make run)"
        )
    return f"was ended by {name}"


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose signals a notebook's client cannot take for itself alone."""

    def add_signal_handler(self, *_):
        """Refuse: a signal ends all notebooks, see `ending_at_signals`."""
        raise RuntimeError("signals are asyncio.Runner's")


@contextlib.contextmanager
def ending_at_signals() -> Iterator[None]:
    """Inside, what asks a program to end does what Ctrl-C does: KeyboardInterrupt, and cleaning up.

    (asyncio.Runner turns that into the end of all tasks, each of which ends its kernel.)
    """
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in names):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.SIG_DFL
                signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def execute(path: Path) -> NotebookNode:
    """The notebook at `path`, executed in a fresh kernel. A failing cell raises.

    What its Report has left stands in the metadata, as "part".
    """
    notebook = nbformat.read(path, as_version=4)
    cells = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    bar = tqdm(total=len(cells), desc=path.stem, unit="cell")
    client = Client(
        notebook,
        bar,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        # or each kernel remarks on its unencrypted loopback socket
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda **_: (bar.set_postfix_str(""), bar.update()),
    )
    with bar, tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / f"{path.stem}.json"
        try:
            await client.async_execute(env=os.environ | KERNEL | {"REPORT_PART": str(part)})
        except Exception as error:
            error.add_note(f"(in {path})")
            raise
        found = json.loads(part.read_text(encoding="utf-8")) if part.exists() else None
    # a widget lives as long as its kernel: stored, it would be an error message
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if WIDGET not in output.get("data", {})
            ]
    notebook.metadata["part"] = found
    return notebook


def execute_all(paths: list[Path], jobs: int, then: Callable[[Path, NotebookNode], None]) -> None:
    """Execute notebooks in this order, `jobs` at a time, and hand each to `then` when it is done.

    What two of them need, one trains, and the other waits for it. After an error no other is
    started; those that run are finished, and then it is raised. Ctrl-C or SIGTERM ends all.
    """

    async def everything() -> None:
        slots, waiting = asyncio.Semaphore(jobs), list(paths)

        async def one() -> None:
            async with slots:
                if not waiting:
                    return
                path = waiting.pop(0)
                try:
                    then(path, await execute(path))
                except BaseException:
                    waiting.clear()
                    raise

        results = await asyncio.gather(*(one() for _ in paths), return_exceptions=True)
        for error in filter(None, results):
            raise error

    with ending_at_signals(), asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(everything())


def code_hash(notebook: NotebookNode) -> str:
    """Hash of the notebook's code cells and of the code of ours behind what they use."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
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


def show_results(name: str, entry: dict | None) -> None:
    """Print one notebook's part of results.json as aligned text."""
    if entry is None:
        tqdm.write(f"\n{name}: executed; it leaves no results, as no Report is finished in it\n")
        return
    rows = [(row["result"], publish.show_number(row)) for row in entry["results"]]
    width = max((len(result) for result, _ in rows), default=0)
    passed = sum(check["passed"] is True for check in entry["checks"])
    skipped = len(entry["checks"]) - passed
    lines = [f"\n{name} ({entry['data']})"]
    lines += [f"  {result:<{width}}  {value}" for result, value in rows]
    lines += [f"  {passed} checks passed" + (f", {skipped} skipped" if skipped else "") + "\n"]
    tqdm.write("\n".join(lines))


def attempt(what: str, work: Callable[[], object]) -> bool:
    """Do what comes after hours: where it fails, that is said, and the rest goes on."""
    try:
        work()
    except Exception as error:  # whatever a student's cell leads to
        tqdm.write(f"{what} could not be written: {error!r}")
        return False
    return True


def run(paths: list[Path], jobs: int = 1) -> bool:
    """Execute copies of the notebooks and write report/. No committed file changes.

    Whether all of it could be written.
    """
    folder, settings, done = PROJECT / "report", Settings.from_environment(), []

    def keep(path: Path, notebook: NotebookNode) -> None:
        name, entry = path.stem, notebook.metadata.pop("part", None)
        if entry is None:
            done.append(attempt("results.json", lambda: forget(name, settings)))
        write = partial(publish.write_page, folder, name, notebook)
        done.append(attempt(f"the page of {name}", write))
        show_results(name, entry)

    try:
        execute_all(paths, jobs, keep)
    except Exception:
        attempt("the first page", partial(finish_report, settings.output))
        raise
    done.append(attempt("the first page", partial(finish_report, settings.output)))
    return all(done)


def report(paths: list[Path]) -> bool:
    """Write report/ from the stored notebooks and figures/: nothing is executed.

    Whether all of it could be written.
    """
    folder, done = PROJECT / "report", []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        write = partial(publish.write_page, folder, path.stem, notebook)
        done.append(attempt(f"the page of {path.stem}", write))
    done.append(attempt("the first page", partial(finish_report, PROJECT / "figures")))
    return all(done)


def finish_report(output: Path) -> None:
    """Write the index, over all pages that are there. output: of figures and results.json."""
    folder = PROJECT / "report"
    index = publish.write_index(
        folder, read_results(output / "results.json"), output, publish.read_pages(folder)
    )
    say(f"Read the executed notebooks: {index}")


def refresh(paths: list[Path], jobs: int = 1) -> None:
    """Execute the notebooks in place: outputs, stamp, figures/ and its results.json.

    No model is taken that was trained before, unless CACHE names a folder. A notebook that fails is
    left as it was, and so are its figures. One without a Report gets no stamp.
    """
    with tempfile.TemporaryDirectory() as cold:
        os.environ.setdefault("OUTPUT", "figures")
        os.environ.setdefault("CACHE", cold)
        # stored numbers are not to depend on the formats and instructions that a machine has
        os.environ |= {"DTYPE": STORED["dtype"]} | OLD_INSTRUCTIONS
        Settings.from_environment()

        def keep(path: Path, notebook: NotebookNode) -> None:
            entry = notebook.metadata.pop("part", None)
            if entry:
                stamp(notebook, entry)
            atomic_write(path, nbformat.writes(notebook).encode() + b"\n")
            show_results(path.stem, entry)

        execute_all(paths, jobs, keep)


def main(command: str, paths: list[Path], jobs: int) -> None:
    """Run a command; what ends it is said in a few lines."""
    try:
        Settings.from_environment()
    except (ValueError, OSError) as error:
        sys.exit(f"{command}: {error}")
    call = partial(report, paths)
    if command != "report":
        call = partial({"run": run, "refresh": refresh}[command], paths, jobs)
    try:
        if call() is False:
            sys.exit(f"{command}: see above what could not be written")
    except KeyboardInterrupt:
        say("\nEnded, kernels too. The same command goes on from what is there.")
        sys.exit(130)
    except (CellExecutionError, DeadKernelError) as error:
        sys.exit("\n".join([f"\n{command}: {error}", *getattr(error, "__notes__", ())]))
