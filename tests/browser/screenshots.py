"""The documents' pictures of panels and pages: ``make screenshots`` writes them into ``docs/``.

With ``--both FOLDER`` light and dark screenshots go there instead, to be looked at.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import tempfile
from pathlib import Path

import desk
from PIL import Image

from sparse_core.analysis.labels import with_looks
from sparse_core.dictionary_report import look, write_dictionary_report
from sparse_core.files import load_dictionary, save_dictionary
from sparse_core.generate import Sampling
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.pictures import read_folder
from sparse_core.pipelines import load_pipeline, native_side

ROBOT = desk.REPOSITORY / "sparse_core" / "demo" / "dictionaries" / "robot.safetensors"
LESSON = desk.REPOSITORY / "sparse_core" / "demo" / "lessons" / "robot"
WORKFLOW = desk.REPOSITORY / "workflows" / "30 Atom mixer.json"
DOCS = desk.REPOSITORY / "docs"
NAME = "robot with pictures.safetensors"
PROMPT = "a big robot on the left in the snow"
MIX = "L15.o[14] = 0.4\nL15.o[0] = 1.6\nmute L15.o[2]\nsolo top:50%\n"


def mixer(page_desk: desk.Desk, light: bool) -> bytes:
    """The mixer with a few strips moved, as a PNG."""
    workflow = copy.deepcopy(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    values = {"SparseAtoms_Load": NAME, desk.MIXER: MIX}
    for node in workflow["nodes"]:
        if node["type"] in values:
            node["widgets_values"][0] = values[node["type"]]
    page_desk.open(light=light)
    page_desk.load(workflow)
    page_desk.filled()
    page_desk.page.wait_for_function("document.querySelector('.sa-mixer img')?.naturalWidth > 0")
    page_desk.page.wait_for_timeout(1000)  # the strips' other pictures
    box = page_desk.panel.bounding_box()
    around = {"x": box["x"] - 30, "y": box["y"] - 70, "width": box["width"] + 60, "height": box["height"] + 100}
    return page_desk.page.screenshot(clip=around)


def save(png: bytes, path: Path) -> None:
    """As a JPEG, which is a fifth of the size."""
    Image.open(io.BytesIO(png)).convert("RGB").save(path, quality=88, optimize=True)
    print(path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--both", type=Path, metavar="FOLDER", help="light and dark, into this folder")
    options = parser.parse_args()
    if why := desk.why_not():
        raise SystemExit(f"No pictures were made. {why}")
    out = options.both or DOCS
    out.mkdir(parents=True, exist_ok=True)
    robot = load_dictionary(ROBOT)
    pipeline = load_pipeline()
    taught = read_folder(LESSON, None, native_side(pipeline))
    seen = look(DiffusersHost(pipeline), robot, PROMPT, 1, Sampling(10, 3.0), 24, 16, 4, taught)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "robot.html")
        write_dictionary_report(robot, seen, ROBOT, report)
        base = Path(folder, "base")
        with desk.server(base) as address, desk.browser_page() as page:
            labelled = with_looks(robot, seen.gallery.ablations, seen.clear_words)
            save_dictionary(labelled, base / "models" / "sparse_dictionaries" / NAME)
            for scheme in ("light", "dark") if options.both else ("light",):
                mark = f"-{scheme}" if options.both else ""
                save(mixer(desk.Desk(page, address), scheme == "light"), out / f"mixer{mark}.jpg")
                page.emulate_media(color_scheme=scheme)
                page.goto(report.as_uri())
                page.locator(".card").nth(5).scroll_into_view_if_needed()
                page.locator(".tools").evaluate("bar => scrollTo(0, bar.parentElement.offsetTop)")
                save(page.screenshot(), out / f"report{mark}.jpg")


if __name__ == "__main__":
    main()
