"""The style of all pictures: colours, sizes, and settings that keep names as plain text.

The colours of Okabe and Ito can be distinguished by people with colour blindness.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BROWN = COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#8C564B",
)
INK, FAINT = "#333333", "#9A9A9A"

STYLE: dict[str, Any] = {
    "font.size": 10,
    "text.parse_math": False,  # a name with a dollar sign is plain text
    "text.usetex": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

_DRAWING = threading.Lock()
"""matplotlib's settings are global to the process, so only one thread draws at a time."""


@contextmanager
def figure_style(families: Sequence[str], **changes: Any) -> Iterator[None]:
    """The style with these font families, for one thread at a time. `changes`: other values of settings."""
    import matplotlib

    style: Any = {**STYLE, "font.family": list(families), **changes}
    with _DRAWING, matplotlib.rc_context(style):
        yield
