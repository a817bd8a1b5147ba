"""Names of models, aliases and versions as people write them: `digits`, `digits@champion`, `digits/3`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fednc.common.errors import ConfigError

CHAMPION, CHALLENGER = "champion", "challenger"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Reference:
    """What a user asked for: one version of a model, by number or by alias.

    Attributes:
        version: 0: the alias says which.
    """

    name: str
    alias: str = ""
    version: int = 0

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}" if self.alias else f"{self.name}/{self.version}"


def parse_reference(text: str) -> Reference:
    """Parse `NAME@ALIAS` or `NAME/VERSION`; `NAME` alone is `NAME@champion`. Raises ConfigError."""
    name, at, alias = text.partition("@")
    name, slash, version = name.partition("/")
    check_name(name)
    if at and slash:
        raise ConfigError(f"{text!r:.80}: give NAME@ALIAS or NAME/VERSION, not both")
    if at:
        return Reference(name, alias=check_alias(alias))
    return Reference(name, version=check_version(version)) if slash else Reference(name, alias=CHAMPION)


def check_name(name: str) -> str:
    """`name`, if it can name a model. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r:.80} cannot name a model: use 1 to 64 letters, digits, '.', '_' and '-', the first one a "
            "letter or digit"
        )
    return name


def check_alias(alias: str) -> str:
    """`alias`, if it can be one. Raises ConfigError."""
    if not _ALIAS.fullmatch(alias) or alias == "latest" or re.fullmatch(r"v\d+", alias):
        raise ConfigError(
            f"{alias!r:.80} cannot be an alias: use small letters, digits, '_' and '-', for example {CHAMPION}; "
            "`latest` and `v1` are not allowed"
        )
    return alias


def check_version(text: str) -> int:
    """The number in `text`. Raises ConfigError."""
    if not _VERSION.fullmatch(text):
        raise ConfigError(f"{text!r:.80} is not the number of a version: versions are counted 1, 2, 3, ...")
    return int(text)
