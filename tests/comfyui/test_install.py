"""The pack as it is installed: from an archive, into a ComfyUI whose packages stay as they are."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from conftest import REPOSITORY, Server, start_server


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `git archive` gives, unpacked."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("This is no git checkout, so there is nothing to make an archive of.")
    folder = tmp_path_factory.mktemp("archive") / "sparse-atoms"
    made = subprocess.run(["git", "archive", "--format=tar", "HEAD"], cwd=REPOSITORY, capture_output=True, check=True)
    with tarfile.open(fileobj=BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def installed(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from start_server(tmp_path_factory.mktemp("installed") / "base", pack=unpacked)


def test_an_archive_registers_every_node_and_every_workflow(installed: Server, server: Server) -> None:
    def ours(where: Server) -> set[str]:
        return {kind for kind in where.client.object_info() if kind.startswith("SparseAtoms_")}

    assert ours(installed) == ours(server) != set()
    templates = json.loads(installed.client.get("/workflow_templates"))
    assert set(templates["sparse-atoms"]) == {path.stem for path in (REPOSITORY / "workflows").glob("*.json")}
    assert "Traceback" not in installed.log.read_text()


def test_installing_its_requirements_changes_no_package(unpacked: Path, tmp_path: Path) -> None:
    """Without an index, pip could only succeed with what is there already; the report says that it would do nothing."""
    report = tmp_path / "report.json"
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--quiet", f"--report={report}"]
    done = subprocess.run([*pip, "-r", str(unpacked / "requirements.txt")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(report.read_text())["install"] == []
