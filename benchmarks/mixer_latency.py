"""How long the Atom Mixer takes from an input to what is painted, with 2,000 atoms: ``make bench-mixer``.

In a real Chromium and ComfyUI's own front end. Every strip has a line of its own in the mix: the most there can be to
write. The clock starts at the event and stops after the frame that follows it is painted.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparse_core.dictionary import SparseDictionary
from sparse_core.files import load_dictionary, save_dictionary

from .machine import device_name

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

import desk  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

RESULT = Path(__file__).parent / "results" / "mixer.json"
ATOMS_OF_A_SITE = 25
"""On the 80 sites of the demo model: 2,000."""
TURNS = 40

MEASURE = """async ({ turns }) => {
    const painted = () => new Promise((done) => requestAnimationFrame(() => {
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => done();
        port2.postMessage(0);
    }));
    const strips = () => [...document.querySelectorAll(".sa-strip:not([hidden])")];
    const slider = (i) => strips()[3 + i % 5].querySelector(".sa-slider");
    const list = document.querySelector(".sa-list");
    const search = document.querySelector(".sa-search");
    const actions = {
        "slider moves": (i) => { const one = slider(i); one.value = (i % 40) / 20; one.dispatchEvent(new Event("input")); },
        "slider is let go": (i) => { const one = slider(i); one.value = (i % 40) / 20; one.dispatchEvent(new Event("change")); },
        "mute": (i) => strips()[3 + i % 5].querySelector(".sa-mute").click(),
        "scroll": (i) => { list.scrollTop = (i * 1777) % 70000; },
        "search": (i) => { search.value = ["L1", "v[7", "", "L15.o"][i % 4]; search.dispatchEvent(new Event("input")); },
    };
    const times = {};
    for (const [name, act] of Object.entries(actions)) {
        times[name] = [];
        for (let i = 0; i < turns; i++) {
            await painted();
            const start = performance.now();
            act(i);
            await painted();
            times[name].push(performance.now() - start);
        }
    }
    return times;
}"""


def many_atoms(dictionary: SparseDictionary) -> SparseDictionary:
    """The dictionary with its atoms repeated."""
    return dictionary.map(lambda atoms: atoms[torch.arange(ATOMS_OF_A_SITE) % len(atoms)])


def measure(page: Page, address: str, dictionary: SparseDictionary) -> dict[str, dict[str, float]]:
    """Milliseconds by what is done."""
    workflow = json.loads((ROOT / "workflows" / "30 Atom mixer.json").read_text(encoding="utf-8"))
    mix = "".join(f"{site}[{j}] = 0.9\n" for site, atoms in dictionary.sites.items() for j in range(len(atoms)))
    for node in workflow["nodes"]:
        if node["type"] == "SparseAtoms_Load":
            node["widgets_values"] = ["many.safetensors"]
        elif node["type"] == desk.MIXER:
            node["widgets_values"] = [mix]
    mixer = desk.Desk(page, address)
    mixer.open()
    mixer.load(workflow)
    mixer.filled()
    times = page.evaluate(MEASURE, {"turns": TURNS})
    return {name: _summary(found) for name, found in times.items()}


def main() -> None:
    """The command line."""
    if why := desk.why_not():
        raise SystemExit(f"The mixer was not measured. {why}")
    robot = load_dictionary(ROOT / "sparse_core" / "demo" / "dictionaries" / "robot.safetensors")
    dictionary = replace(many_atoms(robot), metadata={})
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        with desk.server(base) as address, desk.browser_page() as page:
            save_dictionary(dictionary, base / "models" / "sparse_dictionaries" / "many.safetensors")
            found = measure(page, address, dictionary)
            browser = page.context.browser.version
    result: dict[str, Any] = {
        "mixer_ms_2000": max(one["median"] for one in found.values()),
        "atoms": len(dictionary),
        "turns": TURNS,
        "milliseconds": found,
        "machine": device_name(torch.device("cpu")),
        "versions": {"chromium": browser},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "median": round(statistics.median(ordered), 1),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 1),
        "worst": round(ordered[-1], 1),
    }


if __name__ == "__main__":
    main()
