"""Pictures of the console by a Chromium without a window, where one is installed. For demos, documents and tests.

Knows addresses only: whoever starts the console passes its address and key.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")
_SETTLED_MS = 5000  # of the page's own time, before it is drawn
_WAIT_S = 100


def chromium() -> str:
    """The program; empty if none is installed."""
    return next((found for name in _NAMES if (found := shutil.which(name))), "")


def login_link(address: str, key: str, path: str = "/") -> str:
    """A link that logs in with the key of a console and leads to one of its pages."""
    return f"{address}/login?next={quote(path, safe='')}#key={key}"


def draw(link: str, target: Path, *, width: int = 1440, height: int = 1200, dark: bool = False) -> bool:
    """Draw a page as PNG. False if there is no Chromium.

    Raises:
        subprocess.SubprocessError: it failed, or took too long.
    """
    if not chromium():
        return False
    ask(link, [f"--screenshot={target}", f"--window-size={width},{height}"], dark=dark)
    return True


def ask(link: str, options: Sequence[str], *, dark: bool = False) -> subprocess.CompletedProcess[str]:
    """Open a page, wait until its scripts have settled, and do what the options say. See `draw` for errors."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            chromium(),
            *_QUIET,
            f"--user-data-dir={profile}",
            f"--virtual-time-budget={_SETTLED_MS}",
            *options,
        ]
        command += ["--blink-settings=preferredColorScheme=0"] if dark else []
        return subprocess.run([*command, link], capture_output=True, text=True, timeout=_WAIT_S, check=True)
