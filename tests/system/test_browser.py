"""The interactive parts, in a real browser: JupyterLab, all cells run, then a slider, a mouse, a menu."""

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import symtable
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import sync_playwright

from around import wait_until
from study.settings import PROJECT

TOKEN = "a-token-for-this-test"
MAP = """import sys

import numpy as np
import torch

sys.path.insert(0, "..")
import helpers as h

h.latent_map(np.arange(100.0).reshape(50, 2), torch.zeros(50, 1, 28, 28), np.arange(50) % 10, np.zeros(50))"""
# two and a half seconds for plotly, in place of the tenths that reading it takes on a machine with nothing else to do
READ_SLOWLY = """() => {
    const create = URL.createObjectURL;
    URL.createObjectURL = blob => {
        const end = Date.now() + (blob.size > 1e6 ? 2500 : 0);
        while (Date.now() < end);
        return create.call(URL, blob);
    };
}"""
# said of a widget that takes more than two seconds to read, which is shown all the same
TAKES_LONG = "[anywidget] Failed to initialize model."
LAB_SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # else cells out of sight are not in the page
    "apputils-extension/notification": '{"fetchNews": "false"}',
}


def find_chromium():
    """A Chromium of the system or of Playwright, or None."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        with sync_playwright() as playwright:
            found = playwright.chromium.executable_path
    return found if Path(found).exists() else None


@pytest.fixture(scope="module")
def browser():
    path = find_chromium()
    if path is None and os.environ.get("BROWSER_TEST") == "required":
        pytest.fail("BROWSER_TEST=required, but there is no Chromium: playwright install --with-deps chromium")
    if path is None:
        pytest.skip("no Chromium is installed: apt install chromium, or playwright install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def map_alone():
    """A notebook that only shows a map."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=[new_code_cell(MAP)], metadata={"kernelspec": kernel})


def names(source):
    """The names that a cell gives, those of which it changes a part, and those that it takes."""
    cell = symtable.symtable(source, "cell", "exec")
    given = {symbol.get_name() for symbol in cell.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    parts = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)]
    scopes, taken = [cell], set()
    for scope in scopes:
        scopes += scope.get_children()
        taken |= {s.get_name() for s in scope.get_symbols() if s.is_referenced() and (scope is cell or s.is_global())}
    return given, {ast.unparse(part.value) for part in parts}, taken


def interactive_part(path):
    """The notebook without the cells that none of its interactive ones needs."""
    notebook, cells, wanted = nbformat.read(path, as_version=4), [], set()
    for cell in reversed([cell for cell in notebook.cells if cell.cell_type == "code"]):
        given, changed, taken = names(cell.source)
        if wanted & (given | changed) or re.search(r"h\.(explore|latent_map|DrawingPad)\(", cell.source):
            cells.insert(0, cell)
            wanted = wanted - given | taken
    return new_notebook(cells=cells, metadata=notebook.metadata)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab over the interactive parts of the notebooks, with QUICK settings."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for path in (PROJECT / "notebooks").glob("*.ipynb"):
        nbformat.write(interactive_part(path), folder / "notebooks" / path.name)
    for name in ("helpers.py", "latent_digits", "study"):
        (folder / name).symlink_to(PROJECT / name)
    nbformat.write(map_alone(), folder / "notebooks" / "map.ipynb")
    for name, text in LAB_SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    folders = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTER_RUNTIME_DIR": "runtime", "OUTPUT": "figures"}
    folders |= {"JUPYTERLAB_WORKSPACES_DIR": "workspaces", "JUPYTER_CONFIG_DIR": "config"}
    environment = {**os.environ, "QUICK": "1"} | {name: str(folder / place) for name, place in folders.items()}
    options = [
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        "--ServerApp.port=0",
        f"--IdentityProvider.token={TOKEN}",
    ]
    with (folder / "lab.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder / 'notebooks'}"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
    try:
        yield address_of(server, folder)
    finally:
        server.terminate()
        server.wait(30)


def address_of(server, folder):
    """http://127.0.0.1:port of the server, once it answers."""

    def address():
        assert server.poll() is None, (folder / "lab.log").read_text(encoding="utf-8")
        for path in (folder / "runtime").glob("jpserver-*.json"):
            with contextlib.suppress(urllib.error.URLError, json.JSONDecodeError):  # not yet up, or not yet written
                found = json.loads(path.read_text(encoding="utf-8"))["url"].rstrip("/")
                urllib.request.urlopen(f"{found}/api", timeout=5).close()
                return found
        return None

    return wait_until(address, said=(folder / "lab.log").read_bytes)


class Notebook:
    """A notebook open in the browser, with what its console has complained about."""

    def __init__(self, browser, address, name):
        self.page = browser.new_page(viewport={"width": 1500, "height": 1200})
        self.complaints = []
        self.page.on("console", self.listen)
        self.page.on("pageerror", lambda error: self.complain(str(error)))
        # a workspace of its own, or JupyterLab would open what was open before as well
        self.page.goto(f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}")
        self.wait_until_idle()

    def listen(self, message):
        if message.type == "error":
            self.complain(f"{message.text} {message.location}")

    def complain(self, complaint):
        if TAKES_LONG not in complaint:
            self.complaints.append(complaint)

    def wait_until_idle(self):
        status = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
        self.page.wait_for_function(f"{status} == 'idle'", timeout=120_000)

    def cells(self):
        """The code cells as they are now."""
        model = self.page.evaluate("window.jupyterapp.shell.currentWidget.content.model.toJSON()")
        return [cell for cell in model["cells"] if cell["cell_type"] == "code"]

    def run_all(self):
        """Run every cell until all are done, or one fails."""
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        self.page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")

        def waiting():
            return [cell["source"] for cell in self.cells() if not cell["execution_count"]]

        wait_until(lambda: not waiting() or self.failures(), 600, waiting, lambda: self.page.wait_for_timeout(500))
        self.wait_until_idle()

    def failures(self):
        """The tracebacks in the outputs."""
        outputs = [output for cell in self.cells() for output in cell["outputs"]]
        return [output["traceback"] for output in outputs if output["output_type"] == "error"]

    def picture(self, panel=-1):
        """The picture of a widget, as it is on the screen."""
        return self.page.locator(".widget-image").nth(panel).screenshot()

    def caption(self):
        """The text beside the last picture, which must have room and not be cut off."""
        text = self.page.locator(".widget-html").last
        assert text.evaluate("e => e.clientWidth > 100 && e.scrollWidth <= e.clientWidth + 1")
        picture = self.page.locator(".widget-image").last
        assert picture.evaluate("e => e.naturalWidth == e.clientWidth && e.naturalHeight == e.clientHeight")
        return text.inner_text()

    def follows(self, panel, act):
        """Whether the picture changes within five seconds after `act`."""
        before = self.picture(panel)
        act()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if self.picture(panel) != before:
                return True
            time.sleep(0.05)
        return False


@pytest.fixture
def notebook(request, browser, lab):
    opened = Notebook(browser, lab, request.param)
    opened.run_all()
    assert opened.failures() == []
    yield opened
    assert opened.complaints == []
    opened.page.close()


@pytest.mark.parametrize("notebook", ["02_amortized_vae", "04_sampling"], indirect=True)
def test_a_picture_follows_a_slider(notebook):
    handle = notebook.page.locator(".widget-slider .noUi-handle").last
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag():
        notebook.page.mouse.move(x, y)
        notebook.page.mouse.down()
        notebook.page.mouse.move(x + 40, y, steps=10)
        notebook.page.mouse.up()

    assert notebook.follows(-1, drag)
    assert "sure" in notebook.caption()


@pytest.mark.parametrize("notebook", ["06_gaussian_mixture"], indirect=True)
def test_a_picture_follows_a_menu(notebook):
    menu = notebook.page.locator(".widget-dropdown select").last
    assert notebook.follows(-1, lambda: menu.select_option(index=3))
    assert "of these draws" in notebook.caption()


def test_the_map_is_whole_in_a_slow_browser(browser, lab):
    opened = Notebook(browser, lab, "map")
    opened.page.evaluate(READ_SLOWLY)
    opened.run_all()
    assert opened.failures() == []
    points = opened.page.locator(".js-plotly-plot .scatterlayer .point")
    points.last.wait_for(state="attached", timeout=30_000)
    assert points.count() == 50
    for point, digit in ((points.first, 0), (points.last, 9)):
        caption = opened.page.locator(".widget-html").filter(has_text=f"digit {digit}")

        def hover(point=point):
            opened.page.mouse.move(1, 1)
            point.hover(force=True)
            opened.page.wait_for_timeout(200)

        wait_until(caption.count, 10, pause=hover)
    assert opened.complaints == []
    opened.page.close()


@pytest.mark.parametrize("notebook", ["05_log_probability"], indirect=True)
def test_the_mouse_reads_the_map_and_draws(notebook):
    captions = notebook.page.locator(".widget-html")
    points = notebook.page.locator(".js-plotly-plot .scatterlayer .point")
    points.first.scroll_into_view_if_needed()

    def hover():
        box = points.nth(points.count() // 2).bounding_box()
        notebook.page.mouse.move(box["x"] - 20, box["y"] - 20)
        notebook.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)

    assert notebook.follows(0, hover)
    captions.first.filter(has_text="log p(x) =").wait_for(timeout=5_000)
    canvas = notebook.page.locator("canvas").last
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()

    def draw_a_seven():
        notebook.page.mouse.move(box["x"] + 80, box["y"] + 60)
        notebook.page.mouse.down()
        notebook.page.mouse.move(box["x"] + 190, box["y"] + 60, steps=10)
        notebook.page.mouse.move(box["x"] + 120, box["y"] + 220, steps=10)
        notebook.page.mouse.up()

    assert notebook.follows(-1, draw_a_seven)
    captions.last.filter(has_text="log p(x) =").wait_for(timeout=5_000)
    assert notebook.caption().count("%") == 10
