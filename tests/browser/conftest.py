"""The front end for tests, where there are ComfyUI, Chromium and playwright."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import desk
import pytest

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


@pytest.fixture
def mixer(address: str) -> Iterator[desk.Desk]:
    """A browser at the server. What goes wrong in the page fails the test."""
    with desk.browser_page() as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        yield desk.Desk(page, address)
        assert errors == []


@pytest.fixture(scope="session")
def workflow() -> dict[str, Any]:
    """The shipped workflow."""
    return json.loads(WORKFLOW.read_text())
