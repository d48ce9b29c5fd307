"""Notebooks, executed in kernels of their own, some at a time; what ends us ends them."""

import asyncio
import atexit
import contextlib
import json
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

WIDGET = "application/vnd.jupyter.widget-view+json"
# whatever the shell has: figures are shown in the notebook, and text is UTF-8
KERNEL = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONUTF8": "1"}


class Kernel(AsyncKernelManager):
    """A kernel that is reached by files of a folder, where that can be: a port may be taken.

    (Ports are chosen before the kernel opens them. Of many kernels that start at once, two may have
    one, and each then reads the other's messages.)
    """

    def __init__(self, folder: str):
        short = len(os.fsencode(folder)) < 80  # the path of a socket has 104 bytes at most
        super().__init__(
            kernel_name="python3",
            connection_file=str(Path(folder) / "kernel.json"),
            transport="ipc" if os.name == "posix" and short else "tcp",
        )

    def client(self, **options):
        """A client without a heartbeat: a thread to wait for, and nobody asks for it."""
        client = super().client(**options)
        client.start_channels = partial(client.start_channels, hb=False)
        return client


class Client(NotebookClient):
    """Executes a notebook; its progress bars go to one bar in the terminal instead of into it."""

    def __init__(self, notebook: NotebookNode, kernel: Kernel, bar: tqdm, **options):
        super().__init__(notebook, kernel, **options)
        self.bar, self.place = bar, "before its first cell"

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
        """As in nbclient; where it is, is kept."""
        first = next(iter(cell.source.strip().splitlines()), "")
        self.place = f"in cell {cell_index + 1} of {len(self.nb.cells)}, which begins {first!r}"
        return await super().async_execute_cell(cell, cell_index, **options)

    async def async_execute(self, **options):
        """Of a kernel that has died say where, and why as far as that can be told."""
        kernel = self.km
        try:
            return await super().async_execute(**options)
        except RuntimeError as error:  # DeadKernelError is one
            status = await kernel.provisioner.poll() if kernel.has_kernel else None
            if status is None and isinstance(error, DeadKernelError):
                # it lives: nbclient says so of what is cancelled
                raise asyncio.CancelledError from error
            why = str(error) if status is None else f"the kernel {cause_of_death(status)}"
            raise DeadKernelError(f"{why}, {self.place}") from error

    async def _async_check_alive(self):
        """As in nbclient, until the end: what watches a kernel goes on for a second."""
        if self.kc:
            await super()._async_check_alive()

    async def end(self, how: str) -> None:
        """End the kernel, if that has not been done: "graceful" or "immediate"."""
        self.shutdown_kernel = how
        if self.km:
            await self._async_cleanup_kernel()
        # left there where a kernel has died while it began, it ends in a traceback
        atexit.unregister(self._cleanup_kernel)


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

    def end(number, frame) -> None:
        handler = signal.getsignal(signal.SIGINT)
        # Ctrl-C is ignored in the background of a script, and SIGTERM is not
        (handler if callable(handler) else signal.default_int_handler)(number, frame)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in names):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.SIG_DFL
                signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def execute(
    path: Path,
    environment: Mapping[str, str] | None = None,
    *,
    without: str = "",
    quiet: bool = False,
) -> NotebookNode:
    """The notebook at `path`, executed in a fresh kernel. A failing cell raises.

    What its Report has left stands in the metadata, as "part". environment: what the kernel has
    beside our own. without: a tag whose cells are left out. quiet: without a progress bar.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [c for c in notebook.cells if without not in c.metadata.get("tags", ())]
    cells = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    bar = tqdm(total=len(cells), desc=path.stem, unit="cell", disable=quiet)
    with bar, tempfile.TemporaryDirectory() as folder:
        client = Client(
            notebook,
            Kernel(folder),
            bar,
            timeout=None,
            startup_timeout=300,  # of a machine with more to do
            record_timing=False,
            store_widget_state=False,
            # or each kernel remarks on its unencrypted socket
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_executed=lambda **_: (bar.set_postfix_str(""), bar.update()),
        )
        part = Path(folder) / f"{path.stem}.json"
        own = {"REPORT_PART": str(part)} | dict(environment or {})
        try:
            await client.async_execute(env=os.environ | KERNEL | own)
            await client.end("graceful")
        except Exception as error:
            error.add_note(f"(in {path}{failed_cell(notebook)})")
            raise
        finally:
            await client.end("immediate")
        found = json.loads(part.read_text(encoding="utf-8")) if part.exists() else None
    remove_widgets(notebook)
    notebook.metadata["part"] = found
    return notebook


def remove_widgets(notebook: NotebookNode) -> None:
    """A widget lives as long as its kernel: stored, it would be an error message."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if WIDGET not in output.get("data", {})
            ]


def failed_cell(notebook: NotebookNode) -> str:
    """Which cell has an error in its output: ", cell 7 of 20"."""
    for number, cell in enumerate(notebook.cells, 1):
        if any(output.output_type == "error" for output in cell.get("outputs", ())):
            return f", cell {number} of {len(notebook.cells)}"
    return ""


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
