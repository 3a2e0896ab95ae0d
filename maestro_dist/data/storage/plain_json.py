"""JSON of files that others may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is not JSON, or nested too deeply to be read."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
