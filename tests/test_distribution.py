"""A source distribution is all of the project: what it lacks, nobody who installs from it can read or deploy."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_it_holds_every_file_of_a_checkout(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    copy = tmp_path / "copy"
    for name in tracked:  # built in a copy: setuptools writes beside the sources
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    program = "import setuptools.build_meta as backend, sys; print(backend.build_sdist(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("fednc-*.tar.gz")
    with tarfile.open(made) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked - held <= {".gitignore"}
    for place in (
        "docs/deploy.md",
        "deploy/Dockerfile",
        "deploy/systemd/fednc-server.service",
        "examples/digits.toml",
    ):
        assert place in held
