"""The Atom Mixer in the real front end."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from desk import MIXER, REPOSITORY, SOON, Desk, changed, few_steps
from playwright.sync_api import Locator, Route, TimeoutError, expect

from sparse_core.dictionary import SparseDictionary
from sparse_core.files import load_dictionary, save_dictionary

ROBOT = REPOSITORY / "sparse_core" / "demo" / "dictionaries" / "robot.safetensors"
HASH = load_dictionary(ROBOT).atoms_hash
STRONGEST = "L15.o[14]"
SECOND = "L15.o[12]"
OTHER_HASH = "0" * 16
REFUSED = {"status": 422, "json": {"error": "Half of the file is missing."}}
HOSTILE = '<img src=x onerror="window.hacked = 1; alert(1)">'

pytestmark = pytest.mark.timeout(900)


def lines(mixer: Desk) -> list[str]:
    return mixer.text.splitlines()


def open_with(mixer: Desk, workflow: dict[str, Any], mix: str = "", *, vue: bool = False) -> None:
    mixer.open(vue=vue)
    mixer.load(changed(workflow, MIXER, mix))
    mixer.filled()


def pick_by_picture(mixer: Desk) -> None:
    """Presses the Load node's button."""
    mixer.page.evaluate(
        "app.graph.nodes.find(node => node.comfyClass === 'SparseAtoms_Load').widgets.find(w => w.name === 'browse').callback()"
    )


def smaller(base: Path) -> SparseDictionary:
    """Another dictionary, kept as smaller.safetensors: half as many atoms as the robot has at every site."""
    robot = load_dictionary(ROBOT)
    made = replace(robot, sites={site: atoms[:8] for site, atoms in robot.sites.items()})
    save_dictionary(made, base / "models" / "sparse_dictionaries" / "smaller.safetensors")
    return made


def test_strips_write_lines_that_outlive_the_workflow_file(mixer: Desk, workflow: dict[str, Any], vue: bool) -> None:
    open_with(mixer, workflow, vue=vue)
    expect(mixer.panel.locator(".sa-said")).to_contain_text("1280 atoms")
    mixer.strip(STRONGEST).locator(".sa-slider").fill("0.5")
    mixer.strip(SECOND).locator(".sa-number").fill("-3")
    mixer.strip(SECOND).locator(".sa-number").press("Enter")
    mixer.strip(SECOND).locator(".sa-mute").check()
    mixer.strip(STRONGEST).locator(".sa-solo").check()
    mixer.panel.locator(".sa-density-slider").fill("25")
    expected = [
        f"# dictionary {HASH}",
        f"{STRONGEST} = 0.5",
        f"{SECOND} = -3",
        f"mute {SECOND}",
        f"solo {STRONGEST}",
        "solo top:25%",
    ]
    assert lines(mixer) == expected
    # The node sends what the panel wrote, and nothing of the panel.
    prompt = mixer.page.evaluate("async () => (await app.graphToPrompt()).output")
    (sent,) = (node["inputs"] for node in prompt.values() if node["class_type"] == MIXER)
    assert sent.keys() == {"dictionary", "mix"} and sent["mix"].splitlines() == expected

    saved = mixer.page.evaluate("app.graph.serialize()")
    mixer.page.evaluate("app.graph.clear()")
    mixer.load(saved)
    mixer.filled()
    assert lines(mixer) == expected
    expect(mixer.strip(STRONGEST).locator(".sa-number")).to_have_value("0.5")
    expect(mixer.strip(STRONGEST).locator(".sa-solo")).to_be_checked()
    expect(mixer.strip(SECOND).locator(".sa-number")).to_have_value("-3")
    expect(mixer.strip(SECOND).locator(".sa-mute")).to_be_checked()
    expect(mixer.panel.locator(".sa-density .sa-number")).to_have_value("25")


def test_undo_in_the_panel_is_not_undo_in_the_graph(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow)
    mixer.page.evaluate("window.before = app.graph.nodes.find(node => node.comfyClass === 'SparseAtoms_Mixer')")
    slider = mixer.strip(STRONGEST).locator(".sa-slider")
    slider.fill("0.5")
    mixer.strip(STRONGEST).locator(".sa-mute").check()
    mixer.strip(STRONGEST).locator(".sa-mute").press("Control+z")
    assert lines(mixer)[1:] == [f"{STRONGEST} = 0.5"]
    slider.press("Control+z")
    assert lines(mixer) == []
    slider.press("Control+y")
    mixer.panel.get_by_role("button", name="Redo").click()
    assert lines(mixer)[1:] == [f"{STRONGEST} = 0.5", f"mute {STRONGEST}"]
    mixer.panel.get_by_role("button", name="Undo").press("Control+z")
    mixer.page.wait_for_timeout(1000)
    # The graph's undo loads the whole workflow anew.
    assert mixer.page.evaluate("app.graph.nodes.includes(window.before)")
    slider.dblclick()
    assert lines(mixer)[1:] == []


def test_the_front_ends_own_keys_work_in_the_panel_but_not_on_its_node(
    mixer: Desk, workflow: dict[str, Any], vue: bool
) -> None:
    open_with(mixer, workflow, vue=vue)
    mixer.page.mouse.click(*mixer.title())
    nodes, mode = "app.graph.nodes.length", "app.graph.nodes.find(node => node.comfyClass === 'SparseAtoms_Mixer').mode"
    before = mixer.page.evaluate(f"[{nodes}, {mode}, app.graph.groups.length]")
    slider = mixer.strip(STRONGEST).locator(".sa-slider")
    for key in ("Control+b", "Control+m", "Control+g", "Control+Shift+e"):
        slider.press(key)
    mixer.page.wait_for_timeout(500)
    assert mixer.page.evaluate(f"[{nodes}, {mode}, app.graph.groups.length]") == before
    slider.press("Control+,")
    settings = mixer.page.get_by_role("dialog")
    expect(settings).to_be_visible()
    mixer.page.keyboard.press("Escape")
    expect(settings).to_have_count(0)


def test_what_stands_in_the_panel_is_what_runs(mixer: Desk, workflow: dict[str, Any], vue: bool) -> None:
    open_with(mixer, workflow, vue=vue)
    sent: list[str] = []

    def keep(route: Route) -> None:
        prompt = route.request.post_data_json["prompt"]
        sent.extend(node["inputs"]["mix"] for node in prompt.values() if node["class_type"] == MIXER)
        route.fulfill(json={"prompt_id": "0", "number": 1, "node_errors": {}})

    mixer.page.route("**/api/prompt", keep)
    solo, number = mixer.strip(STRONGEST).locator(".sa-solo"), mixer.strip(SECOND).locator(".sa-number")
    solo.check()
    with mixer.page.expect_response("**/api/prompt"):
        solo.press("Control+Enter")
    expect(solo).to_be_checked()
    number.click()
    number.press("Control+a")
    number.press_sequentially("0.5")
    with mixer.page.expect_response("**/api/prompt"):
        number.press("Control+Enter")
    expect(number).to_have_value("0.5")
    assert [one.splitlines()[1:] for one in sent] == [[f"solo {STRONGEST}"], [f"{SECOND} = 0.5", f"solo {STRONGEST}"]]


def test_undo_takes_back_what_is_being_typed_before_anything_else(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow)
    mixer.strip(STRONGEST).locator(".sa-slider").fill("0.5")
    number = mixer.strip(SECOND).locator(".sa-number")
    number.click()
    number.press("Control+a")
    number.press_sequentially("3")
    number.press("Control+z")
    expect(number).to_have_value("1")
    mixer.page.keyboard.press("Tab")
    assert lines(mixer)[1:] == [f"{STRONGEST} = 0.5"]


def test_no_strip_moves_while_one_is_held(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow)
    sort = mixer.panel.get_by_role("button", name="Sort:")
    while sort.input_value() != "Sort: weight":
        sort.click()
    mixer.strip(STRONGEST).locator(".sa-slider").focus()
    for _ in range(3):
        mixer.page.keyboard.press("ArrowLeft")
    assert lines(mixer)[1:] == [f"{STRONGEST} = 0.85"]
    mixer.strip(STRONGEST).locator(".sa-number").fill("0.5")
    mixer.page.keyboard.press("Tab")
    mixer.page.keyboard.press("Space")
    assert lines(mixer)[1:] == [f"{STRONGEST} = 0.5", f"solo {STRONGEST}"]
    mixer.panel.get_by_label("Search atoms").focus()
    first = mixer.panel.locator(".sa-strip:not([hidden]) .sa-slider").first
    expect(first).to_have_attribute("aria-label", re.compile(re.escape(SECOND) + "$"))


def test_the_keyboard_reaches_everything(mixer: Desk, workflow: dict[str, Any], vue: bool) -> None:
    open_with(mixer, workflow, vue=vue)
    keyboard = mixer.page.keyboard
    nodes = mixer.page.evaluate("app.graph.nodes.length")
    mixer.panel.locator(".sa-search").first.focus()
    for _ in range(6):  # three ways to look at the list, the density and its number
        keyboard.press("Tab")
    keyboard.press("ArrowLeft")
    keyboard.press("ArrowLeft")
    keyboard.press("ArrowDown")
    keyboard.press("Tab")
    keyboard.press("Tab")
    keyboard.press("Space")
    keyboard.press("Tab")
    keyboard.press("Enter")
    assert lines(mixer)[1:] == [f"{STRONGEST} = 0.9", f"mute {SECOND}", f"solo {SECOND}"]
    keyboard.press("ArrowUp")
    for _ in range(3):
        keyboard.press("Shift+Tab")
    keyboard.press("Delete")
    assert lines(mixer)[1:] == [f"mute {SECOND}", f"solo {SECOND}"]
    for _ in range(30):
        keyboard.press("PageDown")
    focused = mixer.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused.startswith("Weight of L") and STRONGEST not in focused
    assert mixer.page.evaluate("app.graph.nodes.length") == nodes


def test_lines_are_copied_and_pasted(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow, f"{STRONGEST} = 0.5\ntop:8 *= 2\n")
    expect(mixer.panel.locator(".sa-banner")).to_contain_text("top:8 *= 2")
    mixer.panel.get_by_role("button", name="Copy").click()
    expect(mixer.panel.locator(".sa-status")).to_have_text("2 lines copied.")
    mixer.panel.get_by_role("button", name="Reset").click()
    assert lines(mixer) == []
    nodes = mixer.page.evaluate("app.graph.nodes.length")
    mixer.strip(SECOND).locator(".sa-solo").press("Control+v")
    expect(mixer.panel.locator(".sa-status")).to_have_text("2 lines pasted.")
    assert lines(mixer)[-2:] == [f"{STRONGEST} = 0.5", "top:8 *= 2"]
    mixer.page.evaluate(f"navigator.clipboard.writeText('# dictionary {'0' * 16}\\nL0.q[0] = 2')")
    mixer.panel.get_by_role("button", name="Paste").click()
    expect(mixer.panel.locator(".sa-status")).to_contain_text("another dictionary")
    assert mixer.page.evaluate("app.graph.nodes.length") == nodes
    assert "L0.q[0]" not in mixer.text


def test_a_panel_without_atoms_takes_the_dictionary_of_pasted_lines(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow)
    mixer.page.evaluate("app.graph.nodes.find(node => node.comfyClass === 'SparseAtoms_Mixer').disconnectInput(0)")
    expect(mixer.panel.locator(".sa-banner")).to_contain_text("Run once")
    mixer.page.evaluate(f"navigator.clipboard.writeText('# dictionary {HASH}\\nL0.q[0] = 2')")
    mixer.panel.get_by_role("button", name="Paste").click()
    expect(mixer.panel.locator(".sa-status")).to_have_text("1 line pasted.")
    assert lines(mixer) == [f"# dictionary {HASH}", "L0.q[0] = 2"]
    mixer.page.evaluate(f"navigator.clipboard.writeText('# dictionary {OTHER_HASH}\\nL0.q[1] = 2')")
    mixer.panel.get_by_role("button", name="Paste").click()
    expect(mixer.panel.locator(".sa-status")).to_contain_text("another dictionary")
    assert lines(mixer) == [f"# dictionary {HASH}", "L0.q[0] = 2"]


def test_presets_are_kept_in_the_workflow(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow, "solo top:25%\n")
    mixer.panel.get_by_label("Name of a preset").fill('so"ft')
    mixer.panel.get_by_role("button", name="Keep").click()
    mixer.panel.get_by_role("button", name="Reset").click()
    saved = mixer.page.evaluate("app.graph.serialize()")
    mixer.load(saved)
    mixer.filled()
    mixer.panel.get_by_label("Name of a preset").fill('so"ft')
    mixer.panel.get_by_role("button", name="Use").click()
    assert lines(mixer) == ['# preset "so\\"ft" ["solo top:25%"]', "solo top:25%"]


def test_a_preset_of_another_dictionary_is_not_used_and_leaves_edits_alone(
    mixer: Desk, workflow: dict[str, Any], base: Path
) -> None:
    found = smaller(base).atoms_hash
    open_with(mixer, workflow, f"# dictionary {HASH}\n{STRONGEST} = 0.5\nL15.o[2] = 0.25\n")
    name = mixer.panel.get_by_label("Name of a preset")
    name.fill("robot's")
    mixer.panel.get_by_role("button", name="Keep").click()
    mixer.panel.get_by_role("button", name="Reset").click()
    mixer.set("SparseAtoms_Load", "name", "smaller.safetensors")
    expect(mixer.panel.locator(".sa-said")).to_contain_text("640 atoms")
    mixer.strip("L15.o[2]").locator(".sa-slider").fill("0.5")
    preset = f'# preset "robot\'s" ["{STRONGEST} = 0.5","L15.o[2] = 0.25"] {HASH}'
    edited = [f"# dictionary {found}", preset, "L15.o[2] = 0.5"]
    assert lines(mixer) == edited
    expect(mixer.panel.locator(".sa-banner")).to_be_hidden()
    expect(mixer.strip("L15.o[2]").locator(".sa-slider")).to_be_enabled()
    mixer.panel.get_by_role("button", name="Use").click()
    expect(mixer.panel.locator(".sa-status")).to_contain_text("was kept on another dictionary")
    assert lines(mixer) == edited
    mixer.set("SparseAtoms_Load", "name", "robot.safetensors")
    expect(mixer.panel.locator(".sa-said")).to_contain_text("1280 atoms")
    mixer.panel.get_by_role("button", name="Use").click()
    assert lines(mixer) == [f"# dictionary {HASH}", preset, f"{STRONGEST} = 0.5", "L15.o[2] = 0.25"]


def test_strips_without_an_atom_fold_and_are_taken_away(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow, f"{STRONGEST} = 0.5\nL15.o[99] = 2\n")
    expect(mixer.panel.locator(".sa-banner")).to_contain_text("No atom in this dictionary for 1 strip.")
    gone = mixer.panel.locator(".sa-is-gone:not([hidden])")
    expect(gone).to_have_count(1)
    mixer.panel.get_by_role("button", name="▾ Not in this dictionary (1)").click()
    expect(gone).to_have_count(0)
    mixer.panel.get_by_role("button", name="▸ Not in this dictionary (1)").click()
    expect(gone).to_have_count(1)
    mixer.panel.get_by_role("button", name="Adopt").click()
    assert lines(mixer) == [f"# dictionary {HASH}", f"{STRONGEST} = 0.5"]
    expect(mixer.panel.locator(".sa-banner")).to_be_hidden()


def test_lines_from_a_link_are_said_to_be_so(mixer: Desk, workflow: dict[str, Any], vue: bool) -> None:
    open_with(mixer, workflow, f"{STRONGEST} = 0.5\n", vue=vue)
    mixer.page.evaluate(
        """() => {
            const mixer = app.graph.nodes.find(node => node.comfyClass === "SparseAtoms_Mixer");
            const text = LiteGraph.createNode("PrimitiveStringMultiline");
            app.graph.add(text);
            text.connect(0, mixer, mixer.inputs.findIndex(input => input.name === "mix"));
        }"""
    )
    expect(mixer.panel.locator(".sa-banner")).to_contain_text("The lines come from a link")
    knobs = mixer.panel.locator(
        ".sa-strip:not([hidden]) :is(.sa-slider, .sa-number, .sa-toggle), .sa-density input, "
        "input:is([value=Undo], [value=Redo], [value=Paste], [value=Reset], [value=Use], [value=Keep], [value=Forget])"
    )
    assert knobs.evaluate_all("knobs => knobs.length > 20 && knobs.every(knob => knob.disabled)")
    before = mixer.text
    mixer.panel.get_by_role("button", name="Copy").click()
    expect(mixer.panel.locator(".sa-status")).to_have_text("1 line copied.")  # the browser's clipboard takes its time
    mixer.panel.get_by_role("button", name="Copy").press("Control+v")
    expect(mixer.panel.locator(".sa-status")).to_contain_text("come from a link")
    assert mixer.text == before
    mixer.page.evaluate(
        """() => {
            const mixer = app.graph.nodes.find(node => node.comfyClass === "SparseAtoms_Mixer");
            mixer.disconnectInput(mixer.inputs.findIndex(input => input.name === "mix"));
        }"""
    )
    expect(mixer.panel.locator(".sa-banner")).to_be_hidden()
    assert knobs.evaluate_all("knobs => knobs.every(knob => !knob.disabled)")


def test_scrolled_away_from_a_strip_the_list_keeps_the_focus(mixer: Desk, workflow: dict[str, Any], vue: bool) -> None:
    open_with(mixer, workflow, vue=vue)
    mixer.page.evaluate("window.before = app.graph.nodes.find(node => node.comfyClass === 'SparseAtoms_Mixer')")
    scale = mixer.page.evaluate("app.canvas.ds.scale")
    slider = mixer.strip(STRONGEST).locator(".sa-slider")
    slider.click(position={"x": 2, "y": 8})
    number = mixer.strip(STRONGEST).locator(".sa-number")
    number.fill("0.5")  # not yet entered
    mixer.strip(SECOND).locator(".sa-name").hover()
    sight = mixer.panel.locator(".sa-list")
    mixer.page.mouse.wheel(0, 90)
    expect(sight).not_to_have_js_property("scrollTop", 0)
    expect(number).to_have_value("0.5")
    while sight.evaluate("list => list.scrollTop") < 1000:
        mixer.page.mouse.wheel(0, 300)
        mixer.page.wait_for_timeout(100)
    assert lines(mixer)[1:] == [f"{STRONGEST} = 0.5"]
    assert mixer.page.evaluate("app.canvas.ds.scale") == scale
    assert (
        mixer.page.evaluate("document.activeElement.closest('.sa-list') && document.activeElement.tagName") == "INPUT"
    )
    mixer.page.keyboard.press("Control+z")
    mixer.page.wait_for_timeout(500)
    assert mixer.page.evaluate("app.graph.nodes.includes(window.before)")  # only the panel's undo
    mixer.page.keyboard.press("ArrowDown")
    focused = mixer.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused.endswith(SECOND)
    mixer.panel.locator(".sa-strip:not([hidden]) .sa-name").first.click()
    assert mixer.page.evaluate("document.activeElement.className") == "sa-parked"


def test_a_knob_that_is_taken_away_leaves_the_focus_in_the_list(
    mixer: Desk, workflow: dict[str, Any], base: Path
) -> None:
    smaller(base)
    open_with(mixer, workflow, f"# dictionary {HASH}\nL15.o[2] = 0.25\n")
    mixer.strip(STRONGEST).locator(".sa-slider").focus()
    mixer.set("SparseAtoms_Load", "name", "smaller.safetensors")
    expect(mixer.panel.locator(".sa-banner")).to_contain_text("another dictionary")
    assert mixer.page.evaluate("document.activeElement.className") == "sa-parked"


def test_the_density_says_what_its_atoms_hold(mixer: Desk, workflow: dict[str, Any]) -> None:
    importance = sorted(value for atoms in load_dictionary(ROBOT).sites.values() for value in atoms.importance.tolist())
    open_with(mixer, workflow)
    for percent in (1, 5, 50):
        count = math.ceil(len(importance) * percent / 100)
        held = round(100 * sum(importance[-count:]) / sum(importance))
        mixer.panel.locator(".sa-density-slider").fill(str(percent))
        expect(mixer.panel.locator(".sa-said")).to_have_text(f"{count} atoms, {held} %")
        said = f"{percent} per cent, {count} atoms, {held} % of the importance"
        expect(mixer.panel.locator(".sa-density-slider")).to_have_attribute("aria-valuetext", said)


def test_the_keyboard_reaches_the_card_and_no_card_leaves_the_screen(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow)
    card = mixer.page.locator(".sa-tip")
    mixer.panel.locator(".sa-density .sa-number").focus()
    mixer.page.keyboard.press("Tab")
    expect(card).to_contain_text(f"{STRONGEST}: layer 15, output")
    description = mixer.strip(STRONGEST).locator(".sa-slider").get_attribute("aria-description")
    assert f"{STRONGEST}: layer 15, output; " in description and "number 1 of 1280" in description
    mixer.page.keyboard.press("ArrowLeft")
    expect(card).to_be_visible()
    mixer.page.keyboard.press("PageDown")
    expect(card).to_be_visible()
    expect(card).not_to_contain_text(f"{STRONGEST}:")
    mixer.panel.get_by_label("Search atoms").focus()
    expect(card).to_have_count(0)
    mixer.look(2.6)
    mixer.panel.locator(".sa-strip:not([hidden]) .sa-name").first.hover()
    box = card.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= mixer.page.viewport_size["width"]


def test_the_banner_is_copied_and_not_read_out_at_every_knob(mixer: Desk, workflow: dict[str, Any], vue: bool) -> None:
    open_with(mixer, workflow, f"# dictionary {OTHER_HASH}\n{STRONGEST} = 0.5\n", vue=vue)
    banner = mixer.panel.locator(".sa-banner")
    expect(banner).to_have_attribute("role", "alert")
    open_with(mixer, workflow, f"{STRONGEST} = 0.5\ntop:8 *= 2\n", vue=vue)
    expect(banner).to_have_attribute("role", "status")
    mixer.page.evaluate("window.before = document.querySelector('.sa-banner span').firstChild")
    mixer.strip(SECOND).locator(".sa-mute").check()
    assert mixer.page.evaluate("document.querySelector('.sa-banner span').firstChild === window.before")
    box = banner.locator("span").bounding_box()
    mixer.page.mouse.move(box["x"] + 1, box["y"] + box["height"] / 2)
    mixer.page.mouse.down()
    mixer.page.mouse.move(box["x"] + box["width"] + 20, box["y"] + box["height"] / 2, steps=5)
    mixer.page.mouse.up()
    nodes = mixer.page.evaluate("app.graph.nodes.length")
    mixer.page.keyboard.press("Control+c")
    copied = mixer.page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("1 line of your own") and "dictionary" not in copied
    assert mixer.page.evaluate("app.graph.nodes.length") == nodes


def test_panels_of_nodes_that_are_gone_do_nothing(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow)
    # From here on, how many looks at the workflow are under way, beside that of the panel that is there.
    mixer.page.evaluate(
        """() => {
            const [set, clear, looks] = [window.setInterval, window.clearInterval, new Set()];
            window.looks = looks;
            window.setInterval = (call, ms, ...given) => {
                const timer = set(call, ms, ...given);
                if (ms === 700) looks.add(timer);
                return timer;
            };
            window.clearInterval = (timer) => { looks.delete(timer); clear(timer); };
        }"""
    )
    mixer.page.mouse.click(*mixer.title())
    for _ in range(3):
        mixer.page.keyboard.press("Control+c")
    mixer.page.wait_for_timeout(300)
    assert mixer.page.evaluate("window.looks.size") == 0
    mixer.page.keyboard.press("Control+Shift+e")
    mixer.page.wait_for_function("app.graph.nodes.some(node => node.subgraph)")
    for _ in range(3):
        mixer.page.evaluate("app.loadGraphData(app.rootGraph.serialize())")
    mixer.page.wait_for_function("window.looks.size === 1", timeout=SOON)
    mixer.page.evaluate("app.graph.clear()")
    mixer.page.wait_for_function("window.looks.size === 0", timeout=SOON)


def test_search_sort_group_and_text(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow, "mute L0.q[3]\n")
    mixer.panel.locator(".sa-search").first.fill("l3.v[7")
    expect(mixer.panel.locator(".sa-strip:not([hidden])")).to_have_count(1)
    mixer.panel.locator(".sa-search").first.fill("")
    mixer.panel.get_by_role("button", name="Show: all").click()
    expect(mixer.panel.locator(".sa-strip:not([hidden])")).to_have_count(1)
    mixer.panel.get_by_role("button", name="Group: none").click()
    expect(mixer.panel.get_by_role("button", name="▾ Layer L0 (1)")).to_be_visible()
    expect(mixer.panel.locator(".sa-is-head:not([hidden]) .sa-toggle").filter(visible=True)).to_have_count(0)
    mixer.panel.get_by_role("button", name="▾ Layer L0 (1)").click()
    expect(mixer.panel.locator(".sa-strip:not([hidden])")).to_have_count(1)
    mixer.panel.get_by_role("button", name="Text").click()
    mixer.page.get_by_role("textbox", name="mix").fill("mute L0.q[4]\n")
    mixer.panel.get_by_role("button", name="▸ Layer L0 (1)").click()
    expect(mixer.strip("L0.q[4]").locator(".sa-mute")).to_be_checked()


def test_an_atom_is_found_by_its_label_and_told_by_its_card(mixer: Desk, workflow: dict[str, Any], base: Path) -> None:
    from PIL import Image

    from sparse_core.training.metadata import data_uri

    metadata = {
        "labels": {SECOND: "red, upper left"},
        "notes": {SECOND: "also darkens the door"},
        "thumbnails": {SECOND: data_uri(Image.new("RGB", (64, 64), "red"))},
    }
    folder = base / "models" / "sparse_dictionaries"
    save_dictionary(replace(load_dictionary(ROBOT), metadata=metadata), folder / "labelled.safetensors")
    mixer.open()
    mixer.load(changed(changed(workflow, "SparseAtoms_Load", "labelled.safetensors"), MIXER, "mute L0.q[3]\n"))
    mixer.filled()
    search = mixer.panel.get_by_label("Search atoms")
    for wanted in ("door", "RED"):
        search.fill(wanted)
        expect(mixer.panel.locator(".sa-strip:not([hidden])")).to_have_count(1)
    expect(mixer.strip(SECOND).get_by_role("img", name="also darkens the door")).to_be_visible()
    mixer.panel.locator(".sa-strip:not([hidden]) .sa-thumbnail").hover()
    card = mixer.page.locator(".sa-tip")
    expect(card).to_contain_text("red, upper left")
    expect(card).to_contain_text("also darkens the door")
    expect(card).to_contain_text(f"{SECOND}: layer 15, output")
    expect(card).to_contain_text("number 2 of 1280")
    assert card.locator("img").bounding_box()["width"] >= 128
    mixer.strip(SECOND).locator(".sa-mute").check()
    expect(card).to_have_count(0)
    mixer.panel.locator(".sa-strip:not([hidden]) .sa-name").hover()
    expect(card).to_contain_text("Muted.")
    search.hover()
    expect(card).to_have_count(0)
    search.fill("blue")
    expect(mixer.panel.locator(".sa-none")).to_contain_text("No label, note or address has “blue”")


def test_a_mix_of_another_dictionary_waits_for_adoption(mixer: Desk, workflow: dict[str, Any], base: Path) -> None:
    found = smaller(base).atoms_hash
    mixer.open()
    text = f"# dictionary {HASH}\n{STRONGEST} = 0.5\nL15.o[2] = 0.25\n"
    mixer.load(changed(changed(workflow, "SparseAtoms_Load", "smaller.safetensors"), MIXER, text))
    mixer.filled()
    expect(mixer.panel.locator(".sa-banner")).to_contain_text("another dictionary")
    expect(mixer.panel.locator(".sa-is-gone:not([hidden])")).to_have_count(1)
    expect(mixer.strip("L15.o[2]").locator(".sa-slider")).to_be_disabled()
    mixer.panel.get_by_role("button", name="Adopt").click()
    assert lines(mixer) == [f"# dictionary {found}", "L15.o[2] = 0.25"]
    expect(mixer.strip("L15.o[2]").locator(".sa-slider")).to_be_enabled()
    mixer.panel.get_by_role("button", name="Undo").click()
    assert mixer.text == text


def test_without_strips_a_mix_belongs_to_the_dictionary_that_is_there(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow, f"# dictionary {OTHER_HASH}\nsolo top:25%\n")
    mixer.strip(STRONGEST).locator(".sa-mute").check()
    assert lines(mixer) == [f"# dictionary {HASH}", f"mute {STRONGEST}", "solo top:25%"]
    expect(mixer.strip(STRONGEST).locator(".sa-slider")).to_be_enabled()


def test_a_file_that_can_not_be_read_is_asked_for_again(mixer: Desk, workflow: dict[str, Any]) -> None:
    mixer.open()
    mixer.page.route("**/sparse_atoms/atoms?*", lambda route: route.fulfill(**REFUSED), times=1)
    mixer.load(changed(workflow, MIXER, ""))
    expect(mixer.panel.locator(".sa-banner")).to_contain_text("Half of the file is missing.")
    mixer.filled()
    expect(mixer.panel.locator(".sa-banner")).to_be_hidden()


def test_what_is_said_too_late_of_another_file_is_not_shown(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow)
    late = "**/sparse_atoms/atoms?name=late.safetensors"
    held = []
    mixer.page.route(late, lambda route: held.append(route))
    with mixer.page.expect_request(late):
        mixer.set("SparseAtoms_Load", "name", "late.safetensors")
    with mixer.page.expect_response("**/sparse_atoms/atoms?name=robot.safetensors"):
        mixer.set("SparseAtoms_Load", "name", "robot.safetensors")
    with mixer.page.expect_response(late):
        held[0].fulfill(**REFUSED)
    mixer.page.wait_for_timeout(500)
    expect(mixer.panel.locator(".sa-banner")).to_be_hidden()
    mixer.page.unroute(late)


def test_hostile_metadata_does_nothing(mixer: Desk, workflow: dict[str, Any], base: Path) -> None:
    folder = base / "models" / "sparse_dictionaries"
    metadata = {
        "labels": {STRONGEST: HOSTILE, SECOND: "</option><script>window.hacked = 1</script>"},
        "notes": {STRONGEST: HOSTILE},
        "thumbnails": {STRONGEST: 'x" onerror="window.hacked = 1', SECOND: "data:image/svg+xml;base64,PHN2Zz4="},
        "modelspec.title": HOSTILE,
        "modelspec.description": HOSTILE,
    }
    save_dictionary(replace(load_dictionary(ROBOT), metadata=metadata), folder / "hostile.safetensors")
    mixer.open()
    mixer.load(changed(workflow, "SparseAtoms_Load", "hostile.safetensors"))
    mixer.filled()
    mixer.panel.locator(".sa-name").filter(has_text=HOSTILE).hover()
    expect(mixer.page.locator(".sa-tip strong")).to_have_text(HOSTILE)
    expect(mixer.page.locator(".sa-tip small").filter(has_text=HOSTILE)).to_be_visible()
    assert mixer.page.locator(".sa-tip img[src], .sa-tip script").count() == 0
    mixer.panel.get_by_role("button", name="Group: none").click()
    mixer.panel.get_by_role("button", name="Group: layer").click()
    pick_by_picture(mixer)
    expect(mixer.page.locator(".sa-card strong").filter(has_text=HOSTILE)).to_be_visible()
    assert mixer.page.evaluate("window.hacked") is None
    assert mixer.page.locator("img[src='x'], .sa-mixer script, .sa-browse script").count() == 0
    mixer.page.locator(".sa-browse").get_by_role("button", name="Close").click()


def test_a_dictionary_is_picked_by_its_picture(mixer: Desk, workflow: dict[str, Any], base: Path) -> None:
    from PIL import Image

    from sparse_core.training.metadata import data_uri

    metadata = {"modelspec.title": "Red one", "modelspec.thumbnail": data_uri(Image.new("RGB", (64, 64), "red"))}
    folder = base / "models" / "sparse_dictionaries" / "friends & more"
    folder.mkdir(exist_ok=True)
    save_dictionary(replace(load_dictionary(ROBOT), metadata=metadata), folder / "red.safetensors")
    open_with(mixer, workflow)
    pick_by_picture(mixer)
    mixer.page.get_by_label("Search dictionaries").fill("RED one")
    card = mixer.page.locator(".sa-card")
    expect(card).to_have_count(1)
    mixer.page.wait_for_function("document.querySelector('.sa-card img')?.naturalWidth === 64")
    card.click()
    picked = mixer.page.evaluate(
        "app.graph.nodes.find(node => node.comfyClass === 'SparseAtoms_Load').widgets.find(w => w.name === 'name').value"
    )
    assert Path(picked) == Path("friends & more/red.safetensors")
    undo = mixer.page.evaluate(
        """async () => {
            const { changeTracker, isModified } = app.extensionManager.workflow.activeWorkflow;
            await changeTracker.undo();
            const load = app.graph.nodes.find(node => node.comfyClass === "SparseAtoms_Load");
            return [isModified, load.widgets.find(widget => widget.name === "name").value];
        }"""
    )
    assert undo == [True, "robot.safetensors"]
    expect(mixer.page.locator(".sa-browse")).to_have_count(0)


def test_picking_says_what_to_do_where_the_server_says_nothing(mixer: Desk, workflow: dict[str, Any]) -> None:
    open_with(mixer, workflow)
    dialog = mixer.page.locator(".sa-browse")
    for answer, advice in (
        (lambda route: route.abort(), "See that ComfyUI runs"),
        (lambda route: route.fulfill(status=500), "Restart ComfyUI"),
    ):
        mixer.page.route("**/sparse_atoms/dictionaries", answer, times=1)
        pick_by_picture(mixer)
        expect(dialog).to_contain_text(advice)
        dialog.get_by_label("Search dictionaries").fill("robot")
        expect(dialog).to_contain_text(advice)
        dialog.get_by_role("button", name="Close").click()


def test_the_panel_grows_and_shrinks_with_its_node(mixer: Desk, workflow: dict[str, Any], vue: bool) -> None:
    open_with(mixer, workflow, vue=vue)
    in_sight = mixer.panel.locator(".sa-strip:not([hidden])")
    before, strips = mixer.panel.bounding_box(), in_sight.count()

    def drag(x: int, y: int) -> None:
        mixer.page.mouse.move(*(corner := mixer.corner()))
        mixer.page.mouse.down()
        mixer.page.mouse.move(corner[0] + x, corner[1] + y, steps=8)
        mixer.page.mouse.up()

    drag(200, 80)
    mixer.page.wait_for_function(f"document.querySelector('.sa-mixer').clientWidth > {before['width'] + 150}")
    after = mixer.panel.bounding_box()
    assert after["width"] == pytest.approx(before["width"] + 200, abs=2)
    assert after["height"] == pytest.approx(before["height"] + 80, abs=2)
    expect(in_sight).not_to_have_count(strips)
    assert in_sight.count() > strips

    drag(-500, -500)
    mixer.page.wait_for_function(f"document.querySelector('.sa-mixer').clientWidth < {before['width'] - 50}")
    panel, last = (mixer.panel.bounding_box(), mixer.strip(STRONGEST).locator(".sa-mute").bounding_box())
    assert last["x"] + last["width"] <= panel["x"] + panel["width"]
    mixer.strip(STRONGEST).locator(".sa-mute").check()
    below = mixer.panel.get_by_role("button", name="Forget").bounding_box()
    assert below["y"] + below["height"] <= mixer.corner()[1]


def test_a_copied_node_keeps_its_strips_apart(mixer: Desk, workflow: dict[str, Any], vue: bool) -> None:
    open_with(mixer, workflow, f"{STRONGEST} = 0.5\n", vue=vue)
    mixer.look(0.5)
    mixer.page.mouse.click(*mixer.title())
    mixer.page.keyboard.press("Control+c")
    mixer.page.mouse.move(500, 480)  # between the nodes: what is pasted comes to lie at the pointer
    mixer.page.keyboard.press("Control+Shift+v")  # with what comes in
    original, copied = mixer.panel.nth(0), mixer.panel.nth(1)
    copied.locator(".sa-slider").filter(visible=True).first.wait_for()

    def knob(panel: Locator, address: str, kind: str) -> Locator:
        return panel.locator(f'.sa-strip:not([hidden]) .sa-{kind}[aria-label$="{address}"]')

    expect(knob(copied, STRONGEST, "number")).to_have_value("0.5")
    knob(copied, SECOND, "mute").check()
    knob(original, SECOND, "solo").check()
    expect(knob(copied, SECOND, "solo")).not_to_be_checked()
    expect(knob(original, SECOND, "mute")).not_to_be_checked()
    copied.get_by_role("button", name="Undo").click()
    expect(knob(copied, SECOND, "mute")).not_to_be_checked()
    expect(knob(original, SECOND, "solo")).to_be_checked()
    copied.get_by_role("button", name="Redo").click()
    copied.get_by_label("Name of a preset").fill("mine")
    copied.get_by_role("button", name="Keep").click()

    def mixes() -> list[list[str]]:
        found = mixer.page.evaluate(
            """kind => app.graph.nodes.filter(node => node.comfyClass === kind)
                .map(node => node.widgets.find(widget => widget.name === "mix").value)""",
            MIXER,
        )
        return sorted(text.splitlines()[1:] for text in found)

    expected = sorted(
        [
            [f"{STRONGEST} = 0.5", f"solo {SECOND}"],
            [f'# preset "mine" ["{STRONGEST} = 0.5","mute {SECOND}"] {HASH}', f"{STRONGEST} = 0.5", f"mute {SECOND}"],
        ]
    )
    assert mixes() == expected
    mixer.page.evaluate("app.loadGraphData(app.graph.serialize())")
    expect(mixer.panel).to_have_count(2)
    assert mixes() == expected


def test_a_mixer_in_a_subgraph_keeps_its_atoms_and_lines(mixer: Desk, workflow: dict[str, Any], vue: bool) -> None:
    open_with(mixer, few_steps(workflow), f"{STRONGEST} = 0.5\n", vue=vue)
    mixer.page.mouse.click(*mixer.title())
    mixer.page.keyboard.press("Control+Shift+e")
    mixer.page.wait_for_function("app.graph.nodes.some(node => node.subgraph)")
    expect(mixer.panel.filter(visible=True)).to_have_count(0)
    enter(mixer, vue)
    mixer.look()
    mixer.filled()
    mixer.strip(SECOND).locator(".sa-mute").check()
    assert lines(mixer)[-2:] == [f"{STRONGEST} = 0.5", f"mute {SECOND}"]
    entry = mixer.run()
    assert entry["status"]["status_str"] == "success"
    _, _, prompt, *_ = entry["prompt"]
    (sent,) = (node["inputs"]["mix"] for node in prompt.values() if node["class_type"] == MIXER)
    assert sent == mixer.text


def enter(mixer: Desk, vue: bool) -> None:
    """Opens the only subgraph, as a click does. On the canvas, which may not have drawn it yet, it is tried until it takes."""
    inside = "app.canvas.graph !== app.rootGraph"
    for _ in range(10):
        if vue:
            mixer.page.get_by_text("Enter Subgraph").click()
        else:
            kind = mixer.page.evaluate("app.graph.nodes.find(node => node.subgraph).comfyClass")
            x, y = mixer.title(kind)
            mixer.page.mouse.dblclick(x - 60, y + 25)
        try:
            mixer.page.wait_for_function(inside, timeout=5000)
        except TimeoutError:
            continue
        return
    raise AssertionError("The subgraph does not open.")
