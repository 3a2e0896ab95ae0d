"""HTML from texts that nobody has checked: names of classes, people and samples, licences, messages."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence

from maestro_dist.system.figure_labels import one_line, shortened

_MANY = {"person": "people", "class": "classes", "modality": "modalities"}
_LONG = 2000  # letters of a licence or a citation that are shown


def text(given: str, most: int = 80) -> str:
    """A text on one line, at most `most` letters, that is text and nothing else; a dash if it is empty.

    Its direction of writing does not reach what surrounds it. Invisible characters are left out.
    """
    line = shortened(one_line(given), most)
    return f"<bdi>{html.escape(line)}</bdi>" if line else "&ndash;"


def attribute(given: str, most: int = 300) -> str:
    """A text as the value of an attribute in double quotes."""
    return html.escape(shortened(one_line(given), most), quote=True)


def duration(seconds: float) -> str:
    """Seconds; of long ones also hours or days."""
    unit, size = ("days", 86400) if seconds > 3 * 86400 else ("h", 3600)
    return f"{seconds:,.6g} s" + (f" ({seconds / size:.3g} {unit})" if seconds >= 7200 else "")


def rate(hertz: float) -> str:
    """Steps of a second; where they are rarer, the seconds of a step."""
    shown = f"{hertz:.6g} Hz" if hertz >= 0.1 else f"1 in {1 / hertz:,.6g} s"
    return shown.replace(" ", "&nbsp;")


def paragraph(given: str) -> str:
    """A long text."""
    return text(given, _LONG)


def number(value: float) -> str:
    """A number with four digits; a dash if there is none."""
    return f"{value:.4g}" if math.isfinite(value) else "&ndash;"


def share(value: float) -> str:
    """A share as a percentage that is 0 or 100 only if the share is."""
    percent = 100 * value
    if 0 < percent < 0.1:
        return "&lt;0.1&nbsp;%"
    if 99.9 < percent < 100:
        return "&gt;99.9&nbsp;%"
    return f"{percent:.1f}&nbsp;%" if percent % 1 else f"{percent:.0f}&nbsp;%"


def counted(count: int, word: str) -> str:
    """1 person, 1,200 windows."""
    many = _MANY.get(word, f"{word}s")
    return f"{count:,} {word if count == 1 else many}"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls by itself where it is too wide. All cells are HTML; the first of a row names it."""
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f'<tr><th scope="row">{first}</th>{"".join(map(_cell, others))}</tr>\n' for first, *others in rows)
    return (
        f'<p class="note">{caption}</p>\n<div class="wide" tabindex="0"><table class="{kind}">\n'
        f"<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _cell(cell: str) -> str:
    return cell if cell.startswith("<td") else f"<td>{cell}</td>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Colours and what they mean; the names are HTML."""
    items = "".join(
        f'<li><span class="swatch" style="background:{colour}"></span>{name}</li>' for colour, name in entries
    )
    return f'<ul class="legend">{items}</ul>\n'


def picture(png: bytes, alt: str, width: int) -> str:
    """An image that is part of the page. `alt` is plain text."""
    data = base64.b64encode(png).decode("ascii")
    kind = "wide-picture" if width > 400 else ""
    image = f'<img class="{kind}" src="data:image/png;base64,{data}" width="{width}" alt="{attribute(alt)}">'
    return f'<div class="wide" tabindex="0">{image}</div>' if kind else image
