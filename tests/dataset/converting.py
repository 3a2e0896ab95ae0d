"""Runs a converter with options as on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from maestro_dist.data.converters import CONVERTERS
from maestro_dist.data.converters.source import Conversion
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording


def conversion_of(name: str, source: Path, **options: Any) -> Conversion:
    parser = argparse.ArgumentParser()
    CONVERTERS[name].add_arguments(parser)
    arguments = parser.parse_args([f"--{key}={value}" for key, value in options.items() if key != "splits"])
    arguments.splits = options.get("splits")
    return CONVERTERS[name].from_arguments(source, arguments)


def recordings_of(name: str, source: Path, **options: Any) -> tuple[Conversion, dict[str, RawRecording], list[str]]:
    """The conversion, its recordings by key, and the warnings of the parts."""
    conversion, remarks = conversion_of(name, source, **options), Remarks()
    found = {recording.key: recording for recording in conversion.samples(remarks)}
    return conversion, found, remarks.lines()  # type: ignore[return-value]


def packed(name: str, source: Path, out: Path, *options: str) -> Manifest:
    """Pack with the tool, as a user does."""
    import pack_dataset

    assert pack_dataset.main([name, "--source", str(source), "--out", str(out), *options]) == 0
    return load_manifest(str(out))
