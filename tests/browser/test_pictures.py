"""From a template to a picture and back: what the mixer does to what is drawn."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from desk import MIXER, REPOSITORY, SOON, STEPS, Desk, changed, few_steps
from PIL import Image
from playwright.sync_api import expect

from sparse_core.analysis.labels import COLOURS, amounts
from sparse_core.files import load_dictionary, save_dictionary

ROBOT = REPOSITORY / "sparse_core" / "demo" / "dictionaries" / "robot.safetensors"
STRONGEST = "L15.o[14]"
SECOND = "L15.o[0]"
FEW_STEPS = """steps => {
    for (const node of app.graph.nodes) {
        const set = (name, value) => (node.widgets.find((widget) => widget.name === name).value = value);
        if (node.comfyClass === "KSampler") set("steps", steps);
        if (node.comfyClass === "EmptyLatentImage") set("batch_size", 1);
        if (node.comfyClass === "SparseAtoms_Gallery") {
            set("steps", 1);
            set("atoms", "top:1");
            set("pictures", 1);
        }
    }
}"""
ENOUGH_STEPS = 10
"""As many as labels were made with."""
UPPER_HALF = slice(44, 80), slice(0, 72)
"""Rows and columns of that part of a big creature on the left."""
DROP = """([name, data]) => {
    const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
    const dropped = new DataTransfer();
    dropped.items.add(new File([bytes], name, { type: "image/png" }));
    const canvas = document.getElementById("graph-canvas");
    const { right, bottom } = canvas.getBoundingClientRect();
    const place = { clientX: right - 300, clientY: bottom - 300, dataTransfer: dropped, bubbles: true, cancelable: true };
    for (const type of ["dragenter", "dragover", "drop"]) canvas.dispatchEvent(new DragEvent(type, place));
}"""

pytestmark = pytest.mark.timeout(900)


def from_templates(mixer: Desk, search: str) -> None:
    """Opens the one template for the demo model that a search finds among this pack's."""
    mixer.page.get_by_role("button", name="Templates").click()
    dialog = mixer.page.get_by_role("dialog")
    dialog.get_by_text("sparse-atoms", exact=True).click()
    dialog.get_by_placeholder("Search").fill(search)
    cards = dialog.locator("[data-testid^=template-workflow-]").filter(has_not_text="own checkpoint")
    expect(cards).to_have_count(1)
    cards.click()
    expect(dialog).to_have_count(0)
    mixer.look()
    mixer.filled()


def drawn(mixer: Desk) -> tuple[list[np.ndarray], list[bytes]]:
    """Runs; the saved pictures (height, width, 3) and their files."""
    entry = mixer.run()
    assert entry["status"]["status_str"] == "success", entry["status"]
    shown = [image for output in entry["outputs"].values() for image in output.get("images", ())]
    images = [image for image in shown if image["type"] == "output"]
    files = [mixer.page.request.get(f"http://{mixer.address}/view", params=image).body() for image in images]
    return [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int) for file in files], files


def moved(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """How far two pictures differ in their left and in their right half, in grey levels."""
    difference = np.abs(one - other).mean(axis=-1)  # (height, width)
    half = difference.shape[1] // 2
    return float(difference[:, :half].mean()), float(difference[:, half:].mean())


def more_on_the_left(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures differ visibly, and on the left twice as far as on the right."""
    left, right = moved(one, other)
    return left > 1 and left > 2 * right


@pytest.fixture
def quick(workflow: dict[str, Any]) -> dict[str, Any]:
    """The shipped workflow with few steps, one picture of each, and a mix that changes nothing."""
    return few_steps(changed(workflow, MIXER, ""))


def test_a_template_opens_and_its_picture_arrives(mixer: Desk) -> None:
    mixer.open()
    from_templates(mixer, "mixer")
    mixer.page.evaluate(FEW_STEPS, STEPS)
    (whole, mixed), _ = drawn(mixer)
    assert sum(moved(whole, mixed)) > 1, "the shipped mix changed nothing"
    mixer.look_at("SaveImage")
    mixer.page.wait_for_function(
        "app.graph.nodes.find(node => node.comfyClass === 'SaveImage').imgs?.[0]?.naturalWidth === 128", timeout=SOON
    )


def test_strips_change_the_picture_where_their_atoms_draw(mixer: Desk, quick: dict[str, Any]) -> None:
    mixer.open()
    mixer.load(quick)
    mixer.filled()
    mixer.strip(STRONGEST).locator(".sa-mute").check()
    (whole, muted), _ = drawn(mixer)
    # The prompt has the robot on the left.
    assert more_on_the_left(whole, muted)
    mixer.strip(STRONGEST).locator(".sa-mute").uncheck()
    mixer.strip(STRONGEST).locator(".sa-slider").fill("0.5")
    (_, halved), _ = drawn(mixer)
    assert more_on_the_left(whole, halved)
    assert sum(moved(whole, halved)) < sum(moved(whole, muted))
    mixer.strip(STRONGEST).locator(".sa-slider").dblclick()
    mixer.strip(STRONGEST).locator(".sa-solo").check()
    (_, alone), _ = drawn(mixer)
    mixer.panel.locator(".sa-density-slider").fill("0")
    (_, none), _ = drawn(mixer)
    assert more_on_the_left(none, alone)
    assert sum(moved(none, alone)) < sum(moved(none, whole))


def test_undone_strips_draw_the_same_picture_to_the_bit(mixer: Desk, quick: dict[str, Any]) -> None:
    mixer.open()
    mixer.load(quick)
    mixer.filled()
    mixer.strip(STRONGEST).locator(".sa-mute").check()
    mixer.strip(SECOND).locator(".sa-slider").fill("-1")
    text = mixer.text
    (whole, mixed), _ = drawn(mixer)
    assert sum(moved(whole, mixed)) > 1
    for _ in range(2):
        mixer.panel.get_by_role("button", name="Undo").click()
    expect(mixer.strip(STRONGEST).locator(".sa-mute")).not_to_be_checked()
    assert mixer.text == ""
    (_, undone), _ = drawn(mixer)
    assert np.array_equal(undone, whole)
    for _ in range(2):
        mixer.panel.get_by_role("button", name="Redo").click()
    assert mixer.text == text


def test_a_picture_dropped_on_the_canvas_brings_its_strips_back(mixer: Desk, quick: dict[str, Any]) -> None:
    mixer.open()
    mixer.load(quick)
    mixer.filled()
    mixer.strip(STRONGEST).locator(".sa-solo").check()
    mixer.strip(SECOND).locator(".sa-number").fill("1.5")
    mixer.strip(SECOND).locator(".sa-number").press("Enter")
    mixer.panel.get_by_label("Name of a preset").fill("soft")
    mixer.panel.get_by_role("button", name="Keep").click()
    text = mixer.text
    _, files = drawn(mixer)
    mixer.panel.get_by_role("button", name="Reset").click()
    assert mixer.text != text

    mixer.page.evaluate(DROP, ["mixed.png", base64.b64encode(files[1]).decode()])
    mixer.page.wait_for_function("text => app.graph.nodes.some(n => n.widgets?.some(w => w.value === text))", arg=text)
    mixer.look()
    mixer.filled()
    assert mixer.text == text
    expect(mixer.strip(STRONGEST).locator(".sa-solo")).to_be_checked()
    expect(mixer.strip(SECOND).locator(".sa-number")).to_have_value("1.5")
    mixer.panel.get_by_label("Name of a preset").fill("soft")
    mixer.panel.get_by_role("button", name="Use").click()
    assert mixer.text == text


def test_an_artist_searches_for_a_colour_and_turns_it_down_where_its_label_says(mixer: Desk) -> None:
    mixer.open()
    from_templates(mixer, "find an")
    mixer.page.evaluate(FEW_STEPS, ENOUGH_STEPS)
    mixer.panel.get_by_role("button", name="Reset").click()
    mixer.panel.get_by_label("Search atoms").fill("orange")
    strips = mixer.panel.locator(".sa-strip:not([hidden])")
    names = strips.locator(".sa-name").all_inner_texts()
    assert names == ["orange, upper half"]
    strips.first.locator(".sa-name").hover()
    expect(mixer.page.locator(".sa-tip")).to_contain_text("without it a picture moves by")
    strips.first.locator(".sa-slider").fill("-1")
    (whole, turned_down), _ = drawn(mixer)
    before, after = (amounts(torch.from_numpy(picture) / 255)[UPPER_HALF] for picture in (whole, turned_down))
    orange = list(COLOURS).index("orange")
    assert before[..., orange].mean() > 0.01
    assert after[..., orange].mean() < 0.6 * before[..., orange].mean()


def test_strips_are_sorted_by_what_they_show(mixer: Desk, quick: dict[str, Any]) -> None:
    mixer.open()
    mixer.load(quick)
    mixer.filled()
    sort = mixer.panel.get_by_role("button", name="Sort:")
    sort.click()
    expect(sort).to_have_value("Sort: effect")
    effects = load_dictionary(ROBOT).metadata["effects"]
    strongest = sorted(effects, key=lambda address: -effects[address])[:3]
    knobs = mixer.panel.locator(".sa-strip:not([hidden]) .sa-slider")
    for number, address in enumerate(strongest):
        expect(knobs.nth(number)).to_have_attribute("aria-label", re.compile(re.escape(address) + "$"))


def test_a_gallery_gives_the_strips_their_pictures(mixer: Desk, base: Path) -> None:
    other = json.loads((REPOSITORY / "workflows" / "31 Find an atom.json").read_text(encoding="utf-8"))
    bare = replace(load_dictionary(ROBOT), metadata={})
    save_dictionary(bare, base / "models" / "sparse_dictionaries" / "bare.safetensors")
    other = changed(few_steps(other), "SparseAtoms_Gallery", 1, STEPS, 3.0, "euler", "simple", "top:1", 2, 1)
    mixer.open()
    mixer.load(changed(other, "SparseAtoms_Load", "bare.safetensors"))
    mixer.filled()
    thumbnail = mixer.strip(STRONGEST).locator(".sa-thumbnail")
    expect(thumbnail).to_be_hidden()  # the file has none
    drawn(mixer)
    expect(thumbnail).to_be_visible()
    assert thumbnail.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 32
    expect(mixer.strip(SECOND).locator(".sa-thumbnail")).to_be_hidden()
    assert mixer.text == f"{STRONGEST} = -1\n"
