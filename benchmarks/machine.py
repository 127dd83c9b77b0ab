"""Where a benchmark runs, and what a piece of work costs there."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Cost(NamedTuple):
    """What one run of a piece of work took."""

    seconds: float
    peak: int | None
    """Bytes at the highest point: allocated on the GPU, resident on the CPU; None where the system can't tell."""


def best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The hardware in its maker's words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def now(device: torch.device) -> float:
    """The clock, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Meter:
    """A stopwatch that also sees the highest use of memory since it was started."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Sets clock and peak back."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _reset_peak()
        self.began = now(self.device)

    def stop(self, seconds: float | None = None) -> Cost:
        """The cost since the start; ``seconds`` where only a part of it is to be timed."""
        elapsed = now(self.device) - self.began
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _read_peak()
        return Cost(elapsed if seconds is None else seconds, peak)


def measured(work: Callable[[], float], device: torch.device) -> Cost:
    """The cost of work that times itself."""
    meter = Meter(device)
    return meter.stop(work())


def describe(device: torch.device) -> dict[str, Any]:
    """What a reader has to know to compare figures."""
    return {
        "device": device_name(device),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }


def _reset_peak() -> None:
    """Hands free memory back to the system and forgets the highest resident size (Linux only)."""
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _read_peak() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
