"""The page of ``sparse-atoms report`` in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import desk
import pytest
from playwright.sync_api import Browser, Page, expect

from sparse_core.cli import main
from sparse_core.files import load_dictionary, save_dictionary

ROBOT = desk.REPOSITORY / "sparse_core" / "demo" / "dictionaries" / "robot.safetensors"
HOSTILE = '<img src="http://127.0.0.1:9/x" onerror="window.hacked = 1"><script>window.hacked = 1</script>'
STRONGEST = "L15.o[14]"
WEAK = "L0.k[11]"
"""An atom without a picture."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a dictionary whose texts try to do harm."""
    folder = tmp_path_factory.mktemp("report")
    metadata = {
        "labels": {STRONGEST: HOSTILE},
        "notes": {STRONGEST: f"darkens the door {HOSTILE}"},
        "modelspec.title": HOSTILE,
        "modelspec.description": HOSTILE,
        "modelspec.author": HOSTILE,
        "training": {"note": HOSTILE},
    }
    save_dictionary(replace(load_dictionary(ROBOT), metadata=metadata), folder / "hostile.safetensors")
    out = folder / "hostile.html"
    command = ["report", str(folder / "hostile.safetensors"), "--prompt", "a big robot", "--top", "4", "--steps", "3"]
    assert main([*command, "--out", str(out)]) == 0
    return out


@pytest.fixture
def report(page_file: Path, browser: Browser) -> Iterator[Page]:
    """The page, open. What it asks the network for, and what goes wrong in it, fails the test."""
    page = desk.new_page(browser)
    trouble: list[str] = []
    page.on("request", lambda request: trouble.append(request.url) if request.url.startswith("http") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
    page.goto(page_file.as_uri())
    yield page
    page.context.close()
    assert trouble == []


def test_a_report_loads_nothing_and_shows_hostile_texts_as_text(report: Page) -> None:
    expect(report.locator("h1")).to_have_text(HOSTILE)
    expect(report.locator(".card h3").first).to_contain_text(HOSTILE)
    expect(report.get_by_text("darkens the door")).to_contain_text(HOSTILE)
    assert report.evaluate("window.hacked") is None
    assert report.locator("img[src^='http']").count() == 0
    assert report.evaluate("[...document.images].every(image => image.src.startsWith('data:'))")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_fits_a_phone_and_a_desk_in_light_and_dark(report: Page, width: int, scheme: str) -> None:
    report.set_viewport_size({"width": width, "height": 900})
    report.emulate_media(color_scheme=scheme)
    assert report.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert report.locator(".card img").first.bounding_box()["width"] >= 100
    paper, ink = report.evaluate(
        """() => ["backgroundColor", "color"].map(name =>
            getComputedStyle(document.body)[name].match(/[0-9]+/g).slice(0, 3).reduce((sum, v) => sum + Number(v) / 3, 0))"""
    )
    assert (paper > ink + 120) if scheme == "light" else (ink > paper + 120)


def test_search_and_sorting_find_an_atom(report: Page) -> None:
    addresses = report.locator(".card:not([hidden]) h3 code")
    expect(addresses).to_have_count(4)
    assert addresses.first.inner_text() == STRONGEST
    report.get_by_label("Search").fill(STRONGEST.lower())
    expect(addresses).to_have_count(1)
    report.get_by_label("Search").fill("the door")
    expect(addresses).to_have_count(1)
    report.get_by_label("Search").fill("picture")  # is said of every atom, and is no atom's
    expect(report.locator("#none")).to_be_visible()
    report.get_by_label("Search").fill(WEAK)
    expect(report.locator("tr:not([hidden]) code")).to_have_text([WEAK])
    expect(report.locator("tr:not([hidden]) code")).to_be_visible()
    expect(report.locator("#none")).to_be_hidden()
    report.get_by_label("Search").fill("")
    report.get_by_label("Sort by").select_option("size")
    sizes = report.evaluate("[...document.querySelectorAll('.card')].map(card => Number(card.dataset.size))")
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
