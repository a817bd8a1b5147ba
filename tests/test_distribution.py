"""What people install: the source distribution holds the whole project, and a wheel runs outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("api", "bench", "cli", "client", "common", "ops", "protos", "server", "tasks")


def tracked_files() -> set[str]:
    """Every file that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def build(kind: str, names: set[str], folder: Path) -> Path:
    """Build an sdist or a wheel from a copy of the named files: setuptools writes beside the sources."""
    copy = folder / "copy"
    for name in names:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    program = f"import setuptools.build_meta as backend, sys; print(backend.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("fednc-*.*")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the tree."""
    names = {name for name in tracked_files() if name.partition("/")[0] in {*FOLDERS, "LICENSE", "README.md"}}
    return build("wheel", {*names, "pyproject.toml"}, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel. It sees our dependencies, but not the editable install of fednc."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Folders named in a .pth file are searched, but their own .pth files, the editable install among them, are
    # not read.
    shared = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(shared))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return folder


def run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    """The output of the environment's Python, started outside the checkout."""
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(installed / "bin" / "python"), *arguments]
    done = subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_source_distribution_holds_every_file(tmp_path: Path) -> None:
    tracked = tracked_files()
    with tarfile.open(build("sdist", tracked, tmp_path)) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked - held <= {".gitignore"}
    for place in (
        "docs/deploy.md",
        "deploy/Dockerfile",
        "deploy/systemd/fednc-server.service",
        "examples/digits.toml",
    ):
        assert place in held


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    ours = {name for name in tracked_files() if name.partition("/")[0] in FOLDERS}
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {f"fednc/{name}".replace("fednc/api/", "fednc/") for name in ours} <= held
    assert {name.partition("/")[0] for name in held} == {"fednc", wheel.name.rpartition("-py3")[0] + ".dist-info"}


def test_an_installed_wheel_imports_nothing_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    program = """
import importlib, pkgutil, sys, fednc
for found in pkgutil.walk_packages(fednc.__path__, "fednc."):
    importlib.import_module(found.name)
print(*sorted(module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "fednc"), sep="\\n")
"""
    files = [Path(line) for line in run_installed(installed, tmp_path, "-c", program).splitlines()]
    assert len(files) > 150
    assert all(path.is_relative_to(installed) for path in files)


def test_an_installed_wheel_runs_the_demo(installed: Path, tmp_path: Path) -> None:
    (run_file,) = installed.glob("lib/python*/site-packages/fednc/bench/demo.toml")
    text = run_file.read_text()
    for line in ("total = 10", "min_clients = 4", "parts = 4"):  # as shipped, the demo takes a minute
        assert line in text
        text = text.replace(line, line.partition("=")[0] + "= 1")
    run_file.write_text(text)
    run_installed(installed, tmp_path, "-m", "fednc.cli.start", "demo")
    (folder,) = (tmp_path / "runs").iterdir()
    assert {"summary.json", "curves.png"} <= {path.name for path in folder.iterdir()}
