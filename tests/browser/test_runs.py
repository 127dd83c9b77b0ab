"""What a run tells the Atom Mixer, and what becomes of it when the front end makes the node anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from desk import MIXER, REPOSITORY, Desk, changed, few_steps
from playwright.sync_api import expect

from sparse_core.files import load_dictionary, save_dictionary

ROBOT = REPOSITORY / "sparse_core" / "demo" / "dictionaries" / "robot.safetensors"
HASH = load_dictionary(ROBOT).atoms_hash
STRONGEST = "L15.o[14]"
WEAKEST = "L0.k[11]"
OTHER_HASH = "0" * 16
UNDO = "app.extensionManager.workflow.activeWorkflow.changeTracker.undo()"
FAIL = """async ([path, message]) => {
    const { api } = await import("/scripts/api.js");
    const detail = { prompt_id: "1", node_id: path, node_type: "SparseAtoms_Mixer", executed: [], traceback: [],
        exception_type: "AddressError", exception_message: message, current_inputs: {}, current_outputs: [] };
    api.dispatchEvent(new CustomEvent("execution_error", { detail }));
}"""

pytestmark = pytest.mark.timeout(900)


def opened(mixer: Desk, workflow: dict[str, Any], *between: str, mix: str = "") -> None:
    mixer.open()
    mixer.load(changed(workflow, MIXER, mix))
    mixer.filled()
    mixer.chain(*between)


def succeeds(mixer: Desk) -> bool:
    return mixer.run()["status"]["status_str"] == "success"


def test_what_a_run_told_outlives_undo_and_another_tab(mixer: Desk, workflow: dict[str, Any]) -> None:
    opened(mixer, workflow, "SparseAtoms_Extract")
    banner = mixer.panel.locator(".sa-banner")
    # Not those of the file, which are other atoms under the same numbers.
    expect(banner).to_contain_text("Run once")
    assert succeeds(mixer)
    mixer.filled()
    said = mixer.panel.locator(".sa-said").inner_text()
    mixer.page.evaluate("window.before = app.graph.nodes.find(node => node.comfyClass === 'SparseAtoms_Mixer')")
    mixer.set("SparseAtoms_Info", "top", 7)
    mixer.page.evaluate(UNDO)
    assert not mixer.page.evaluate("app.graph.nodes.includes(window.before)")
    mixer.filled()
    expect(mixer.panel.locator(".sa-said")).to_have_text(said)

    for command in ("Comfy.NewBlankWorkflow", "Workspace.PreviousOpenedWorkflow"):
        mixer.page.evaluate("command => app.extensionManager.command.execute(command)", command)
    mixer.look()
    mixer.filled()
    expect(mixer.panel.locator(".sa-said")).to_have_text(said)

    # As after the page is loaded anew: the server finds the node in its cache, and says again what it said.
    mixer.load(mixer.page.evaluate("app.rootGraph.serialize()"))
    expect(banner).to_contain_text("Run once")
    assert succeeds(mixer)
    mixer.filled()
    expect(mixer.panel.locator(".sa-said")).to_have_text(said)


def test_what_nodes_in_between_add_to_a_file_outlives_undo(mixer: Desk, workflow: dict[str, Any]) -> None:
    opened(mixer, workflow, "SparseAtoms_Label")
    name = mixer.strip(STRONGEST).locator(".sa-name")
    expect(name).not_to_have_text("the strongest")
    assert succeeds(mixer)
    expect(name).to_have_text("the strongest")
    mixer.set("SparseAtoms_Info", "top", 7)
    mixer.page.evaluate(UNDO)
    expect(name).to_have_text("the strongest")
    # Of another dictionary the run said nothing.
    mixer.set("SparseAtoms_Load", "name", "owl.safetensors")
    mixer.set("SparseAtoms_Info", "top", 7)
    mixer.page.evaluate(UNDO)
    expect(mixer.panel.locator(".sa-said")).to_contain_text("atoms")
    mixer.page.wait_for_timeout(1000)
    expect(mixer.panel.get_by_text("the strongest")).to_have_count(0)
    mixer.set("SparseAtoms_Load", "name", "robot.safetensors")
    expect(name).to_have_text("the strongest")


def test_a_run_that_refuses_the_strips_offers_to_adopt_those_that_have_an_atom(
    mixer: Desk, workflow: dict[str, Any]
) -> None:
    opened(mixer, workflow, "SparseAtoms_Extract")
    assert succeeds(mixer)
    mixer.filled()
    for address in ("L15.o[0]", "L15.o[3]"):
        mixer.panel.get_by_label("Search atoms").fill(address)
        mixer.strip(address).locator(".sa-slider").fill("0.5")
    mixer.panel.get_by_label("Search atoms").fill("")
    made_on, *strips = lines = mixer.text.splitlines()
    assert HASH not in made_on and strips == ["L15.o[0] = 0.5", "L15.o[3] = 0.5"]
    mixer.set("SparseAtoms_Extract", "atoms", "L15.o[0-1]")
    assert not succeeds(mixer)
    expect(mixer.panel.locator(".sa-banner")).to_contain_text("another dictionary")
    expect(mixer.panel.locator(".sa-is-gone:not([hidden])")).to_have_count(1)
    mixer.panel.get_by_role("button", name="Adopt").click()
    expect(mixer.panel.locator(".sa-status")).to_contain_text("1 strip had no atom here")
    assert mixer.text.splitlines()[1:] == strips[:1]
    assert succeeds(mixer)
    mixer.strip("L15.o[0]").locator(".sa-mute").check()
    adopted, *rest = mixer.text.splitlines()
    assert adopted != lines[0] and rest == [strips[0], "mute L15.o[0]"]


def test_a_dropped_atom_says_so_whatever_its_weight(mixer: Desk, workflow: dict[str, Any]) -> None:
    opened(mixer, workflow, "SparseAtoms_Keep")
    mixer.set("SparseAtoms_Keep", "density", 0.1)
    assert succeeds(mixer)
    mixer.panel.get_by_label("Search atoms").fill(WEAKEST)
    dropped = mixer.strip(WEAKEST)
    expect(dropped.locator(".sa-number")).to_have_value("0")
    dropped.locator(".sa-slider").fill("1")
    expect(mixer.panel.locator(".sa-strip.sa-is-silent:not([hidden])")).to_have_count(1)
    dropped.locator(".sa-name").hover()
    expect(mixer.page.locator(".sa-tip")).to_contain_text("dropped by a node before this one")


def test_what_runs_in_another_workflow_leaves_the_panel_alone(mixer: Desk, workflow: dict[str, Any]) -> None:
    opened(mixer, workflow, mix=f"# dictionary {HASH}\n{STRONGEST} = 0.5\n")
    path = mixer.page.evaluate("String(app.graph.nodes.find(node => node.comfyClass === 'SparseAtoms_Mixer').id)")
    refusal = (
        f"These lines were set on another dictionary ({{}}) than the one that comes in ({OTHER_HASH}); Press Adopt"
    )
    banner = mixer.panel.locator(".sa-banner")
    mixer.page.evaluate(FAIL, [path, refusal.format("f" * 16)])
    mixer.page.evaluate(FAIL, [f"99:{path}", refusal.format(HASH)])
    # Of two tabs from one template the nodes have the same names: the file tells whose atoms they are.
    mixer.page.evaluate(
        """hash => app.graph.nodes.find(node => node.comfyClass === "SparseAtoms_Mixer")
            .onExecuted({ sparse_atoms: [{ hash, atoms: [] }] })""",
        OTHER_HASH,
    )
    mixer.page.wait_for_timeout(1000)
    expect(banner).to_be_hidden()
    expect(mixer.strip(STRONGEST).locator(".sa-slider")).to_be_enabled()
    mixer.page.evaluate(FAIL, [path, refusal.format(HASH)])
    expect(banner).to_contain_text("Press Adopt")
    expect(mixer.strip(STRONGEST)).to_be_visible()
    mixer.page.evaluate(FAIL, [path, "L0.q[1] picks no atom"])
    expect(banner).to_contain_text("picks no atom")


def test_what_apply_says_of_a_taught_word_stands_on_its_node(mixer: Desk, workflow: dict[str, Any], base: Path) -> None:
    taught = replace(load_dictionary(ROBOT), words={"robot": {128: torch.full((1, 128), 0.01)}})
    save_dictionary(taught, base / "models" / "sparse_dictionaries" / "taught.safetensors")
    mixer.open()
    mixer.load(changed(few_steps(workflow), "SparseAtoms_Load", "taught.safetensors"))
    mixer.filled()
    assert succeeds(mixer)
    mixer.look_at("SparseAtoms_Apply", 0.8)
    expect(mixer.page.get_by_text("It was taught the word 'robot': connect a CLIP").first).to_be_visible()
