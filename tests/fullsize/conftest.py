"""Full-size models: gigabytes and minutes, so these tests run only where their folder is named (``make test-fullsize``)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

HERE = Path(__file__).resolve().parent
BESIDE = HERE.parent / "comfyui"

REPORT: list[tuple[str, str, float, float]] = []
"""What was run: model, what was done, seconds, peak gigabytes of the process that did it."""


def asked_for(config: pytest.Config) -> bool:
    """Whether this folder is named on the command line."""
    return any(HERE.name in argument for argument in config.args)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Stays out of ``make test``."""
    return None if asked_for(config) else True


def server_module() -> ModuleType:
    """The set-up of the other tests with a real ComfyUI: it starts servers and finds ComfyUI's modules."""
    name = "comfyui_conftest"
    if name not in sys.modules:
        sys.path.insert(0, str(BESIDE))
        spec = spec_from_file_location(name, BESIDE / "conftest.py")
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def pytest_configure(config: pytest.Config) -> None:
    """ComfyUI's modules have to be found before the tests are imported."""
    if asked_for(config):
        torch.set_num_threads(os.cpu_count())
        if why_not := server_module().WHY_NOT:
            pytest.exit(why_not, 1)


@contextmanager
def recorded(model: str, what: str, process: int | str = "self") -> Iterator[None]:
    """Puts time and peak memory of a process into the report."""
    began = time.perf_counter()
    yield
    REPORT.append((model, what, time.perf_counter() - began, peak_gigabytes(process)))


def peak_gigabytes(process: int | str) -> float:
    """The highest resident size of a process so far; NaN where the system can't tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("VmHWM")), float("nan"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What it took."""
    if REPORT:
        terminalreporter.section("time and peak memory")
        for model, what, seconds, peak in REPORT:
            terminalreporter.write_line(f"{model:12} {what:44} {seconds:7.1f} s {peak:6.1f} GB")
