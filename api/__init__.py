"""What `import fednc` gives. This folder is the package `fednc` itself; the other floors are its subpackages.

pyproject.toml maps it (`"fednc" = "api"`), so that no folder of the checkout is called `fednc`: one would hide the
installed package from whoever starts Python in the checkout.
"""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("fednc")
