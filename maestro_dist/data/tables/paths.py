"""Patterns of paths: `{subject}/{session}/acc.csv`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

_PART = re.compile(r"\{([a-z][a-z0-9_]*)\}|\*")


@dataclass(frozen=True)
class PathPattern:
    """A pattern: `names` are those in braces, in their order."""

    text: str
    names: tuple[str, ...]
    expression: re.Pattern[str]

    @staticmethod
    @lru_cache(maxsize=256)
    def of(text: str) -> PathPattern:
        """Raises `ValueError` for a pattern that cannot be read."""
        names: list[str] = []
        pieces, end = [], 0
        for part in _PART.finditer(text):
            pieces.append(re.escape(text[end : part.start()]))
            end, name = part.end(), part[1]
            if name is None:
                pieces.append("[^/]*")
            elif name in names:
                pieces.append(f"(?P={name})")
            else:
                names.append(name)
                pieces.append(f"(?P<{name}>[^/]+?)")
        rest = "".join(_PART.split(text)[::2])
        if "{" in rest or "}" in rest:
            raise ValueError(f"{text}: names in braces have small letters, digits and _")
        if text.startswith("/") or ".." in PurePosixPath(text).parts:
            raise ValueError(f"{text}: a path below the source, such as {{recording}}/acc.csv")
        pieces.append(re.escape(text[end:]))
        return PathPattern(text, tuple(names), re.compile("".join(pieces)))

    def match(self, path: PurePosixPath) -> dict[str, str] | None:
        """What the names stand for in a path, or None."""
        found = self.expression.fullmatch(str(path))
        return found.groupdict() if found else None
