"""The panels' pure functions, with their own tests in ``tests/web``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("node") is None, reason="There is no node; install Node.js 20 or newer.")
def test_the_panels_pure_functions() -> None:
    files = sorted(map(str, (ROOT / "tests" / "web").glob("*.test.mjs")))
    assert files
    ran = subprocess.run(["node", "--test", *files], capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stdout
