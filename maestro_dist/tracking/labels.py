"""Names in pictures: whatever people call their classes and sensors, and the fonts that have the letters."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

FONT = "DejaVu Sans"
"""Comes with matplotlib."""
_MOST_LETTERS = 30
_MOST_TITLE = 80
_TELL_APART = "\u200c\u200d"  # joiners: invisible, but letters of some scripts look different without


class LabelFonts:
    """The fonts of this machine that are needed for some texts, and what can be drawn with them."""

    def __init__(self, texts: Iterable[str]) -> None:
        wanted = frozenset("".join(one_line(text) for text in texts))
        self.families, self._missing = _families(wanted)

    def labels(self, names: Sequence[str], kind: str) -> list[str]:
        """The names as pictures show them: on one line, not too long, no two alike.

        One that no font of this machine can write, or that has no letters, becomes its kind and number ("class 3").
        """
        shown = [self._shown(name, f"{kind} {number}") for number, name in enumerate(names)]
        times = Counter(shown)
        return [f"{text} ({number})" if times[text] > 1 else text for number, text in enumerate(shown)]

    def title(self, text: str) -> str:
        """A title, without the letters that no font has."""
        return shortened(one_line("".join(letter for letter in text if letter not in self._missing)), _MOST_TITLE)

    def _shown(self, name: str, otherwise: str) -> str:
        line = one_line(name)
        return shortened(line) if line and self._missing.isdisjoint(line) else otherwise


def one_line(text: str) -> str:
    """The text without line breaks, control characters and what else has no shape."""
    spaced = "".join(" " if letter.isspace() else letter for letter in text)
    return " ".join("".join(letter for letter in spaced if _has_shape(letter)).split())


def shortened(text: str, most: int = _MOST_LETTERS) -> str:
    """The text; where it is longer than a label may be, its beginning and its end."""
    if len(text) <= most:
        return text
    end = most // 3
    return text[: most - end - 1] + "\u2026" + text[-end:]


def _has_shape(letter: str) -> bool:
    if letter in _TELL_APART:
        return True
    return unicodedata.category(letter)[0] != "C" and not 0xFE00 <= ord(letter) <= 0xFE0F  # variation selectors


@lru_cache(maxsize=16)
def _families(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Font families that together have these letters, and the letters that no font has."""
    from matplotlib.font_manager import fontManager

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of each font that it looks for in vain
    families, missing = [FONT], _lacks(FONT, letters)
    names = sorted({entry.name for entry in fontManager.ttflist} - {FONT}) if missing else []
    lacks = {name: _lacks(name, missing) for name in names if not name.startswith("Last Resort")}  # it has boxes
    while missing:
        name = min(lacks, key=lambda name: len(lacks[name] & missing), default=FONT)
        left = lacks.get(name, missing) & missing
        if left == missing:
            break
        families.append(name)
        missing = left
    return families, missing


def _lacks(family: str, letters: frozenset[str]) -> frozenset[str]:
    """Letters that a family does not have, in its normal or its bold weight (titles are bold)."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    found = set(letters)
    try:
        for weight in ("normal", "bold"):
            path = findfont(FontProperties(family=[family], weight=weight), fallback_to_default=False)  # type: ignore[arg-type]
            font = get_font(path)
            font.set_size(9.0, 100.0)  # fails for fonts that are made of images
            there = font.get_charmap()
            found &= {letter for letter in found if ord(letter) in there}
    except Exception:  # a damaged font is none
        return letters
    return letters - found
