"""A ComfyUI with its real front end in a real browser, for tests and measurements of the panels."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

REPOSITORY = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()
FOLDERS = ("models/sparse_dictionaries", "input", "output", "temp", "user", "custom_nodes")
START_SECONDS = 280
WAIT = 240_000
"""Milliseconds for what the browser waits for; a busy machine is slow."""
SOON = 30_000
"""Milliseconds for what follows at once, on a busy machine."""
FLAGS = ("--no-sandbox", "--disable-background-networking")
MIXER = "SparseAtoms_Mixer"
CHAIN = """between => {
    const found = (kind) => app.graph.nodes.find(node => node.comfyClass === kind);
    const [load, mixer] = [found("SparseAtoms_Load"), found("SparseAtoms_Mixer")];
    for (const node of [...app.graph.nodes]) if (node !== load && node !== mixer) app.graph.remove(node);
    const added = (kind) => { app.graph.add(LiteGraph.createNode(kind)); return found(kind); };
    const row = [load, ...between.map(added), mixer, added("SparseAtoms_Info")];
    row.slice(1).forEach((node, i) => row[i].connect(0, node, 0));
}"""
STEPS = 4
"""Of a sampling whose picture tells enough."""


def python() -> Path | None:
    """The ComfyUI's own interpreter."""
    return next((path for name in ("venv", ".venv") if (path := COMFYUI / name / "bin" / "python").is_file()), None)


def chromium() -> str | None:
    """The browser."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def why_not() -> str | None:
    """Why nothing can be tested here, in a sentence; None where it can."""
    if not (COMFYUI / "main.py").is_file() or not python():
        return f"There is no ComfyUI with an environment of its own in {COMFYUI}; set COMFYUI_PATH."
    if not chromium():
        return "There is no Chromium on the path; install the package chromium."
    if importlib.util.find_spec("playwright") is None:
        return "There is no playwright in this Python; install it with: pip install playwright."
    return None


@contextmanager
def server(base: Path) -> Iterator[str]:
    """The address of a ComfyUI with nothing but this pack, for as long as it is needed."""
    for name in FOLDERS:
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "sparse-atoms").symlink_to(REPOSITORY, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python()), "main.py", "--cpu", f"--port={port}", f"--base-directory={base}", "--disable-api-nodes"]
    log = base / "server.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [*command, "--database-url=sqlite:///:memory:"], cwd=COMFYUI, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}", process, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/system_stats", timeout=10).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    raise RuntimeError(f"ComfyUI did not start:\n{log.read_text()[-4000:]}")


class Desk:
    """One page of the front end with a mixer in it."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.shown: dict[str, Any] = {}
        """The settings that the front end was opened with."""
        page.set_default_timeout(WAIT)

    def open(self, *, vue: bool = False, light: bool = False) -> None:
        """Opens the front end with the renderer and the theme; where it is open so already, it stays: that takes seconds."""
        settings = {
            "Comfy.VueNodes.Enabled": vue,
            "Comfy.ColorPalette": "light" if light else "dark",
            "Comfy.TutorialCompleted": True,
            "Comfy.Window.UnloadConfirmation": False,
        }
        if settings == self.shown and not self.page.locator("dialog[open], [role=dialog]").count():
            return
        for setting, value in settings.items():
            self._keep(setting, value)
        self.page.goto(f"http://{self.address}/", wait_until="commit")
        self.page.wait_for_function("window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow")
        self.shown = settings

    def load(self, workflow: dict[str, Any]) -> None:
        """Loads a workflow and brings its mixer into sight."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.look()

    def look(self, scale: float = 1.0) -> None:
        """Brings the mixer into sight."""
        self.look_at(MIXER, scale)
        self.panel.wait_for()

    def look_at(self, kind: str, scale: float = 1.0) -> None:
        """Brings a node into sight, at the left."""
        self.page.wait_for_function("kind => app.canvas.graph.nodes.some(node => node.comfyClass === kind)", arg=kind)
        self.page.evaluate(
            """([kind, scale]) => {
                const node = app.canvas.graph.nodes.find(node => node.comfyClass === kind);
                app.canvas.ds.scale = scale;
                app.canvas.ds.offset = [140 / scale - node.pos[0], 140 / scale - node.pos[1]];
                app.canvas.setDirty(true, true);
            }""",
            [kind, scale],
        )

    def title(self, kind: str = MIXER) -> tuple[float, float]:
        """A place on the title of a node, in pixels of the page."""
        return self._place(kind, "[node.pos[0] + 100, node.pos[1] - 15]")

    def corner(self, kind: str = MIXER) -> tuple[float, float]:
        """The lower right corner of a node, by which it is resized, in pixels of the page."""
        return self._place(kind, "[node.pos[0] + node.size[0] - 3, node.pos[1] + node.size[1] - 3]")

    def _place(self, kind: str, of_node: str) -> tuple[float, float]:
        """:param of_node: a place in the graph, in JavaScript."""
        return tuple(
            self.page.evaluate(
                f"""kind => {{
                    const node = app.canvas.graph.nodes.find(node => node.comfyClass === kind);
                    const {{ left, top }} = app.canvas.canvas.getBoundingClientRect();
                    const {{ scale, offset }} = app.canvas.ds;
                    const [x, y] = {of_node};
                    return [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale];
                }}""",
                kind,
            )
        )

    def chain(self, *between: str) -> None:
        """Leaves the Load node, nodes of these kinds, the mixer and Atom Info, in a row: it runs in no time."""
        self.page.evaluate(CHAIN, list(between))

    def set(self, kind: str, name: str, value: Any) -> None:
        """Gives a widget of a node a value, as a hand does."""
        self.page.evaluate(
            """([kind, name, value]) => {
                const node = app.graph.nodes.find(node => node.comfyClass === kind);
                node.widgets.find(widget => widget.name === name).value = value;
                app.extensionManager.workflow.activeWorkflow.changeTracker.checkState();
            }""",
            [kind, name, value],
        )

    @property
    def panel(self) -> Locator:
        """The mixing desk."""
        return self.page.locator(".sa-mixer")

    @property
    def text(self) -> str:
        """What the node stores."""
        return self.page.evaluate(
            """kind => {
                const nodes = [app.rootGraph ?? app.graph].flatMap(function all(graph) {
                    return [...graph.nodes, ...graph.nodes.flatMap(node => node.subgraph ? all(node.subgraph) : [])];
                });
                const mixer = nodes.find(node => node.comfyClass === kind);
                return mixer.widgets.find(widget => widget.name === "mix").value;
            }""",
            MIXER,
        )

    def strip(self, address: str) -> Locator:
        """The strip of an atom that is in sight."""
        return self.panel.locator(f'.sa-strip:not([hidden]):has(.sa-slider[aria-label$="{address}"])')

    def filled(self) -> None:
        """Waits until the atoms are there."""
        self.panel.locator(".sa-slider").filter(visible=True).first.wait_for()

    def run(self, seconds: float = 200) -> dict[str, Any]:
        """Presses Run and waits for the prompt's end; gives its entry in the history."""
        known = set(self.history())
        self.page.get_by_test_id("queue-button").click()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            new = [entry for name, entry in self.history().items() if name not in known]
            if new:
                return new[0]
            self.page.wait_for_timeout(500)
        raise TimeoutError(f"The prompt did not end within {seconds} seconds.")

    def history(self) -> dict[str, Any]:
        """What the server remembers."""
        with urllib.request.urlopen(f"http://{self.address}/history") as answer:
            return json.loads(answer.read())

    def _keep(self, setting: str, value: Any) -> None:
        request = urllib.request.Request(
            f"http://{self.address}/settings/{setting}", json.dumps(value).encode(), method="POST"
        )
        urllib.request.urlopen(request).close()


def changed(workflow: dict[str, Any], kind: str, *values: Any) -> dict[str, Any]:
    """The workflow with other values in the widgets of one kind of node."""
    other = copy.deepcopy(workflow)
    for node in other["nodes"]:
        if node["type"] == kind:
            node["widgets_values"][: len(values)] = values
    return other


def few_steps(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with one small picture of everything, quickly drawn."""
    return changed(changed(workflow, "KSampler", 1, "fixed", STEPS), "EmptyLatentImage", 128, 128, 1)


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=SOON)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield browser
        browser.close()


def new_page(browser: Browser) -> Page:
    """An empty page, wide enough for the front end, that shares nothing with others."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    return context.new_page()


@contextmanager
def browser_page() -> Iterator[Page]:
    """A page in a browser of its own."""
    with browser() as one:
        yield new_page(one)
