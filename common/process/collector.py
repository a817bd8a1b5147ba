"""The garbage collector of a process that has loaded what it needs. Called where a server or a client begins."""

from __future__ import annotations

import gc


def spare_what_is_loaded() -> None:
    """It lives as long as the process, so no collection need walk over it any more.

    Of torch and flwr that is two hundred thousand objects, and a tenth of a second in which a server hears nobody.
    """
    gc.freeze()
