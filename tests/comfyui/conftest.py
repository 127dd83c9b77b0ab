"""A real ComfyUI for tests: a server of its own in a temporary folder, and its modules in this process.

The interpreter that runs pytest is taken to be the installation's own. ``COMFYUI_PATH`` says where it lies.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from client import Client

REPOSITORY = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()
START_SECONDS = 280
FOLDERS = ("models", "input", "output", "temp", "user", "custom_nodes")


def why_not() -> str | None:
    """Why these tests can't run here, in a sentence; None where they can."""
    if not (COMFYUI / "main.py").is_file():
        return f"There is no ComfyUI in {COMFYUI}; set COMFYUI_PATH."
    if missing := [name for name in ("aiohttp", "torchsde", "av") if importlib.util.find_spec(name) is None]:
        return f"{sys.executable} has no {', '.join(missing)}: run these tests with ComfyUI's own Python."
    return None


WHY_NOT = why_not()


class SkippedModule(pytest.Module):
    """A test file that is not imported."""

    def collect(self) -> list:
        """Says why instead."""
        pytest.skip(WHY_NOT, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Without ComfyUI the files can't even be imported."""
    return SkippedModule.from_parent(parent, path=module_path) if WHY_NOT else None


if not WHY_NOT:
    sys.path.insert(0, str(COMFYUI))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.model_management


@dataclass
class Server:
    """A running ComfyUI and where it keeps its files."""

    client: Client
    base: Path
    """Its base directory: models/, output/ and so on."""
    log: Path

    @property
    def dictionaries(self) -> Path:
        """Where trained and saved dictionaries go."""
        return self.base / "output" / "sparse_dictionaries"

    def place(self, name: str) -> Path:
        """Where a file ``name`` for Load Sparse Dictionary belongs."""
        folder = self.base / "models" / "sparse_dictionaries"
        folder.mkdir(exist_ok=True)
        return folder / name


def start_server(base: Path, *arguments: str, pack: Path = REPOSITORY) -> Iterator[Server]:
    """Runs a ComfyUI with nothing but this pack, until the iterator is closed."""
    from client import Client

    for name in FOLDERS:
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "sparse-atoms").symlink_to(pack, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "main.py", "--cpu", f"--port={port}", f"--base-directory={base}"]
    command += ["--database-url=sqlite:///:memory:", "--disable-api-nodes", *arguments]
    log = base / "server.log"
    with log.open("w") as sink:
        process = subprocess.Popen(command, cwd=COMFYUI, stdout=sink, stderr=subprocess.STDOUT)
    try:
        client = Client(f"127.0.0.1:{port}")
        deadline = time.monotonic() + START_SECONDS
        while not client.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"ComfyUI did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.3)
        yield Server(client, base, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests."""
    yield from start_server(tmp_path_factory.mktemp("comfyui") / "base")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test shows what the server said while it ran."""
    outcome = yield
    report = outcome.get_result()
    server = getattr(item, "funcargs", {}).get("server")
    if server is None:
        return
    if report.when == "setup":
        item.log_start = server.log.stat().st_size
    elif report.when == "call" and report.failed:
        said = server.log.read_bytes()[getattr(item, "log_start", 0) :].decode(errors="replace")
        report.sections.append(("ComfyUI's log", said[-6000:]))
