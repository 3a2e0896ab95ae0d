"""Patterns of paths: `{subject}/{session}/acc.csv`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

_NUMBERED = re.compile(
    r"(?:s|p|u|sub|subj|subject|person|patient|participant|pt|user|id|proband|vp)?[-_ ]*0*(\d+)", re.IGNORECASE
)
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


def same_names(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Names of people that two files write in different ways, such as 01 and sub-1: name -> other.

    Only numbers, with or without a word for a person, and only where there is no doubt: a name that is among the
    others, or a number that two names have, is nobody else's.
    """
    shared = set(names) & set(others)
    own, theirs = (_by_number({*of} - shared) for of in (names, others))
    taken = _by_number(shared)
    return {
        one[0]: theirs[number][0]
        for number, one in own.items()
        if len(one) == 1 and len(theirs.get(number, ())) == 1 and number not in taken
    }


def _by_number(names: Collection[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        number = _NUMBERED.fullmatch(name)
        if number is not None:
            found.setdefault(number[1], []).append(name)
    return found
