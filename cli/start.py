"""The start of the console script: handles signals before anything is loaded, then runs the command.

Separate from `main.py`, because that file's imports take a noticeable part of a second.
"""

from __future__ import annotations

from fednc.common.process.interrupt import end_at_once_while_loading


def run() -> None:
    """The console script."""
    end_at_once_while_loading()
    from fednc.cli.main import run as run_command

    run_command()


if __name__ == "__main__":
    run()
