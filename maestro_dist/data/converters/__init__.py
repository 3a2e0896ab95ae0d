"""Converters: from the files of a public data set to samples. One module for each data set."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from maestro_dist.data.converters.source import Conversion, Converter

__all__ = ["CONVERTERS", "Conversion", "Converter"]


def _load_converters() -> dict[str, Converter]:
    """The converters of all files in this folder, by name."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return {kind.name: kind() for kind in sorted(Converter.__subclasses__(), key=lambda kind: kind.name)}


CONVERTERS = _load_converters()
"""All converters, by name."""
