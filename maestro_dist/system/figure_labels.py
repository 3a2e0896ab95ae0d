"""Labels in figures: names of classes and sensors in any writing system, and the fonts that can draw them."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

FONT = "DejaVu Sans"
"""The font that comes with matplotlib."""
_MOST_LETTERS = 30
_MOST_TITLE = 80
_JOINERS = "\u200c\u200d"  # joiners: invisible, but they change the shape of letters in some scripts


class LabelFonts:
    """The fonts of this machine that draw the given texts, and the labels that they can draw."""

    def __init__(self, texts: Iterable[str]) -> None:
        wanted = frozenset("".join(one_line(text) for text in texts))
        self.families, self._missing = _families(wanted)

    def labels(self, names: Sequence[str], kind: str) -> list[str]:
        """The names as labels: on one line, short, all different.

        A name that no font of this machine can draw, or that is empty, becomes its kind and number ("class 3").
        """
        shown = [self._shown(name, f"{kind} {number}") for number, name in enumerate(names)]
        times = Counter(shown)
        return [f"{text} ({number})" if times[text] > 1 else text for number, text in enumerate(shown)]

    def title(self, text: str) -> str:
        """A title, without letters that no font has."""
        return shortened(one_line("".join(letter for letter in text if letter not in self._missing)), _MOST_TITLE)

    def _shown(self, name: str, otherwise: str) -> str:
        line = one_line(name)
        return shortened(line) if line and self._missing.isdisjoint(line) else otherwise


def one_line(text: str) -> str:
    """The text without line breaks, control characters and other invisible characters."""
    spaced = "".join(" " if letter.isspace() else letter for letter in text)
    return " ".join("".join(letter for letter in spaced if _has_shape(letter)).split())


def shortened(text: str, most: int = _MOST_LETTERS) -> str:
    """The text; if it is longer than `most`, its beginning and its end with an ellipsis between."""
    if len(text) <= most:
        return text
    end = most // 3
    return text[: most - end - 1] + "\u2026" + text[-end:]


def _has_shape(letter: str) -> bool:
    if letter in _JOINERS:
        return True
    return unicodedata.category(letter)[0] != "C" and not 0xFE00 <= ord(letter) <= 0xFE0F  # variation selectors


@lru_cache(maxsize=16)
def _families(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Font families that together draw these letters, and the letters that no font has."""
    from matplotlib.font_manager import fontManager

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it logs every font that it does not find
    families, missing = [FONT], _lacks(FONT, letters)
    names = sorted({entry.name for entry in fontManager.ttflist} - {FONT}) if missing else []
    lacks = {name: _lacks(name, missing) for name in names if not name.startswith("Last Resort")}  # it draws boxes
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

    available = set(letters)
    try:
        for weight in ("normal", "bold"):
            path = findfont(FontProperties(family=[family], weight=weight), fallback_to_default=False)  # type: ignore[arg-type]
            font = get_font(path)
            font.set_size(9.0, 100.0)  # fails for fonts that are made of images
            charmap = font.get_charmap()
            available &= {letter for letter in available if ord(letter) in charmap}
    except Exception:  # a damaged font is not used
        return letters
    return letters - available
