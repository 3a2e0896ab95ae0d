"""Names of parameters that have changed: checkpoints and exported models with the old names can still be read."""

from __future__ import annotations

import re

_LAYER = r"^(encoders\.[^.]+\.layers\.\d+|fusion\.\d+)\."


def current_name(name: str) -> str:
    """The current name of a parameter that may have an old name. Other names stay unchanged.

    The layer that halves the tokens was named `distil`; now it is `downsample`.
    """
    return re.sub(_LAYER + r"distil\.", r"\1.downsample.", name)


def draw_name(name: str) -> str:
    """The name that keys a parameter's initial draws. It is the parameter's first name: a rename changes no weight."""
    return re.sub(_LAYER + r"downsample\.", r"\1.distil.", name)
