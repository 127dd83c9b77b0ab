"""The front end for tests, where there are ComfyUI, Chromium and playwright."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import desk
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WHY_NOT = desk.why_not()
WORKFLOW = desk.REPOSITORY / "workflows" / "30 Atom mixer.json"


class SkippedModule(pytest.Module):
    """A test file that is not imported."""

    def collect(self) -> list:
        """Says why instead."""
        pytest.skip(WHY_NOT, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Without a browser the files can't even be imported."""
    return SkippedModule.from_parent(parent, path=module_path) if WHY_NOT else None


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its files."""
    return tmp_path_factory.mktemp("browser") / "base"


@pytest.fixture(scope="session")
def address(base: Path) -> Iterator[str]:
    """One server for all tests."""
    with desk.server(base) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    with desk.browser() as browser:
        yield browser


@pytest.fixture(scope="session", params=[False, True], ids=["canvas", "vue"])
def vue(request: pytest.FixtureRequest) -> bool:
    """Which of the front end's renderers draws the nodes. For the session, so that one follows the other: to change it takes
    a new start of the front end."""
    return request.param


@pytest.fixture(scope="session")
def _front_end(address: str, browser: Browser) -> tuple[desk.Desk, list[str]]:
    page = desk.new_page(browser)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
    return desk.Desk(page, address), errors


@pytest.fixture
def mixer(_front_end: tuple[desk.Desk, list[str]]) -> Iterator[desk.Desk]:
    """The front end in a page that all tests share. What goes wrong in it fails the test."""
    mixer, errors = _front_end
    errors.clear()
    yield mixer
    mixer.page.unroute_all()
    assert errors == []


@pytest.fixture(scope="session")
def workflow() -> dict[str, Any]:
    """The shipped workflow."""
    return json.loads(WORKFLOW.read_text())
