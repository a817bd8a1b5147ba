"""Fixtures of the tests of a client owner's policy. Other helpers are in `support.clients_with_policy`."""

from __future__ import annotations

from pathlib import Path

import pytest

from fednc.client.app import resident_run
from support.clients_with_policy import Site, open_but
from support.hostile.image_server import write_images


@pytest.fixture(autouse=True)
def _every_client_is_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_run, "_RESIDENTS", resident_run.Residents())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A machine with 50 images of two classes, whose policy allows everything."""
    made = Site(tmp_path / "site", open_but())
    write_images(made.images, (30, 20))
    return made
