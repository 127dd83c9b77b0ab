"""The pack as it is installed: from an archive, by git or by pip, into a ComfyUI whose packages stay as they are."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from conftest import COMFYUI, REPOSITORY, Server, start_server
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
WAYS = ("archive", "git", "pip")


def done(*command: str | Path, cwd: Path | None = None) -> bytes:
    """What a command says; the test fails with what it complains of."""
    ran = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")
    return ran.stdout


def requirements(file: Path) -> list[Requirement]:
    """The lines of a requirements file."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def reached(wanted: Iterable[Requirement]) -> set[str]:
    """Names of everything that this interpreter has for some requirements, theirs included."""
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        try:
            waiting += map(Requirement, importlib.metadata.requires(name) or ())
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
    return found


class Host:
    """An environment that pip takes for that of a ComfyUI with nothing but its own requirements. It holds what packages say
    of themselves, in the versions that run these tests, and not the packages: pip reads no more."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        self.packages = Path(self._ask("import sysconfig; print(sysconfig.get_path('purelib'))"))
        # Beside the environment's own folder: what pip wants to replace it leaves there, and a newer one shadows it.
        theirs = folder / "theirs"
        (self.packages / "theirs.pth").write_text(f"{theirs}\n", encoding="utf-8")
        for name in reached(requirements(COMFYUI / "requirements.txt")):
            package = importlib.metadata.distribution(name)
            info = theirs / f"{name.replace('-', '_')}-{package.version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(package.read_text("METADATA"), encoding="utf-8")

    def _ask(self, code: str) -> str:
        return done(self.python, "-c", code).decode().strip()

    def install(self, *what: str | Path) -> None:
        """By pip."""
        done(*PIP, "--python", self.python, "install", "--quiet", *what)

    def frozen(self) -> dict[str, str]:
        """Packages by name, as `pip freeze` lists them."""
        lines = done(*PIP, "--python", self.python, "freeze", "--all").decode().splitlines()
        found = [Requirement(line) for line in lines]
        return {canonicalize_name(one.name): str(one.specifier or one.url) for one in found}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `git archive` gives, unpacked."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("This is no git checkout, so there is nothing to make an archive of.")
    folder = tmp_path_factory.mktemp("archive") / "sparse-atoms"
    with zipfile.ZipFile(BytesIO(done("git", "archive", "--format=zip", "HEAD", cwd=REPOSITORY))) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def installed(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from start_server(tmp_path_factory.mktemp("installed") / "base", pack=unpacked)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package index that pip reaches."""
    folder = tmp_path_factory.mktemp("index")
    pip = [*PIP, "download", "--quiet", "--no-deps", "--retries=1", f"--dest={folder}", "lark"]
    asked = subprocess.run(pip, capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip(f"pip reaches no package index, so nothing can be installed: {asked.stderr.strip()[-300:]}")


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
    dry = ("install", "--dry-run", "--no-index", "--quiet", f"--report={report}")
    done(*PIP, *dry, "-r", unpacked / "requirements.txt")
    assert json.loads(report.read_text())["install"] == []


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("way", WAYS)
def test_an_installation_adds_what_the_pack_needs_and_changes_nothing(way: str, unpacked: Path, tmp_path: Path) -> None:
    host = Host(tmp_path)
    before = host.frozen()
    assert "torch" in before and not {"lark", "matplotlib"} & before.keys()
    pack = tmp_path / "sparse-atoms"
    if way == "git":
        done("git", "clone", "--quiet", REPOSITORY, pack)
    else:
        pack.symlink_to(unpacked, target_is_directory=True)
    host.install(*([pack] if way == "pip" else ["-r", pack / "requirements.txt"]))
    after = host.frozen()
    assert {name: after.get(name) for name in before} == before
    added = after.keys() - before.keys()
    assert {"lark", "matplotlib"} <= added <= reached(requirements(unpacked / "requirements.txt")) | {"sparse-atoms"}
    assert ("sparse-atoms" in added) == (way == "pip")


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("index")
def test_pip_brings_every_file_of_the_core(unpacked: Path, tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.install("--no-deps", unpacked)
    files = {path.relative_to(unpacked) for path in (unpacked / "sparse_core").rglob("*") if path.is_file()}
    assert [path for path in sorted(files) if not (host.packages / path).is_file()] == []
