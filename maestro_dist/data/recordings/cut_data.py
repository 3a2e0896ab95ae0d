"""The manifest of a run: of packed windows as stored or divided anew, of recordings with the windows of the run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig, WindowConfig
from maestro_dist.data.description import is_static, window_steps, without_time
from maestro_dist.data.divided_windows import check_given, divided_windows
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.manifest_made import Cut, Divided
from maestro_dist.data.recordings.counting import counted
from maestro_dist.data.recordings.table import RecordingTable
from maestro_dist.data.recordings.windowing import Windowing, load_table
from maestro_dist.data.user_folders import user_folder
from maestro_dist.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)
RUN_FOLDER = "data"
"""Where a run keeps a copy of its manifest."""

_FORMAT = 3
"""Of a kept manifest. A change of what is counted needs another number."""


def load_set(config: DataConfig, *, expected: bool = False, run_url: str = "") -> Manifest:
    """The manifest of the samples of `data.url` that a run reads.

    Of recordings, `data.window` and `data.split` make the windows; packed windows are divided anew by `data.split`.
    Their statistics are counted once for a data set, windows and splits, and then kept on this machine. `run_url`: the
    run has a copy, too, if it has begun.

    Raises:
        ConfigError: `data.window` or `data.split` do not fit the data.
        DataError: the data is missing or damaged.
        StorageError: it cannot be read at present.
    """
    stored = load_manifest(config.url, expected=expected)
    if stored.recordings is not None:
        table = load_table(config.url, stored, config.cache)
        cut = Cut(window=config.window or stored.recordings.window, split=config.split or _usual_split(table))
        return _known_or_counted(config, stored, cut, run_url, lambda: _provisional(stored, cut, table))
    if config.window is not None:
        raise ConfigError("data.window: the data set holds windows, not recordings; pack it as recordings")
    if config.split is None:
        return stored
    if config.split.by == "given":
        check_given(stored, config.split)
        return stored
    divided = Divided(split=config.split, packed=stored.fingerprint())
    return _known_or_counted(config, stored, divided, run_url, lambda: divided_windows(config, stored, divided))


def _known_or_counted(
    config: DataConfig, stored: Manifest, how: Cut | Divided, run_url: str, provisional: Callable[[], Manifest]
) -> Manifest:
    """The manifest of windows and splits that are made as `how` says; counted if no one has done that before."""
    kept = _kept_path(config, stored, how)
    found = _load(kept)
    if found is None and run_url:
        with suppress(DataError):
            copy = load_manifest(f"{run_url}/{RUN_FOLDER}")
            found = copy if made_of(copy, stored) and how in (copy.cut, copy.divided) else None
    if found is None:
        found = counted(config, provisional())
        _keep(kept, found)
    return found


def made_of(manifest: Manifest, stored: Manifest) -> bool:
    """Whether a manifest was made from the data set with manifest `stored`: by cutting its recordings, or by dividing
    its windows."""
    if manifest.divided is not None:
        return manifest.divided.packed == stored.fingerprint()
    return manifest.cut is not None and manifest.recordings == stored.recordings


def usual_windows(
    url: str, stored: Manifest, window: WindowConfig | None = None, split: SplitConfig | None = None
) -> Manifest:
    """The manifest of the windows that a run cuts, with the statistics of the recordings. None: as by default.

    Raises what `load_set` raises.
    """
    table = load_table(url, stored)
    assert stored.recordings is not None
    cut = Cut(window=window or stored.recordings.window, split=split or _usual_split(table))
    return _provisional(stored, cut, table)


def windows_of_model(stored: Manifest, steps: int, every_s: float) -> WindowConfig | None:
    """The windows of recordings for a model outside of its run that predicts `steps` labels of each, every `every_s`
    seconds; otherwise as by default. None: they are as by default."""
    if stored.recordings is None:
        return None
    usual = stored.recordings.window
    if steps == usual.label_steps and (steps == 1 or every_s == usual.label_every_s):
        return None
    changes: dict[str, object] = {"label_every_s": None}
    if steps > 1:
        changes = {"label_every_s": every_s, "length_s": float(f"{steps * every_s:.12g}")}
        changes["label"] = None if usual.label == "inside" else usual.label
    return WindowConfig.model_validate({**usual.model_dump(), **changes})


def _usual_split(table: RecordingTable) -> SplitConfig:
    """The splits of the publishers if there are some; else by person if they are known."""
    if any(table.texts["split"]):
        return SplitConfig(by="given")
    return SplitConfig(by="subject" if all(table.texts["subject"]) else "recording")


def _provisional(stored: Manifest, cut: Cut, table: RecordingTable) -> Manifest:
    """The manifest of the windows, with the means and deviations of the recordings."""
    if cut.window.label == "mean" and stored.classes:
        raise ConfigError(
            f"data.window.label: mean is for numbers, but the labels of '{stored.name}' are classes, which have no "
            "mean; use majority, last, center, any or inside"
        )
    for modality in stored.select(None):
        cut_modality = replace(modality, steps=window_steps(modality, cut.window))
        if is_static(cut_modality) and not is_static(modality):
            raise ConfigError(f"data.window.length_s: {without_time(modality, cut.window)}")
    modalities = [
        entry.model_copy(update={"steps": window_steps(modality, cut.window)})
        for entry, modality in zip(sorted(stored.modalities, key=lambda m: m.name), stored.select(None), strict=True)
    ]
    changes = {"cut": cut, "window_s": cut.window.length_s, "modalities": modalities}
    manifest = stored.model_copy(update=changes)
    splits = Windowing(manifest, table).splits(stored.split("recordings"), stored.counter)
    if not any(split.samples for split in splits.values()):
        raise ConfigError(
            f"data.window: no window of {cut.window.length_s:g} s of '{stored.name}' has data and a label; a shorter "
            "length_s, or a smaller min_observed or min_labelled, leaves more"
        )
    return manifest.model_copy(update={"splits": splits})


def _kept_path(config: DataConfig, stored: Manifest, how: Cut | Divided) -> Path | None:
    """Where the manifest of these windows is kept; None: nowhere."""
    more = ["labelled"] if isinstance(how, Cut) and how.window.label_steps > 1 else []  # what older ones do not say
    identity = json.dumps([_FORMAT, *more, stored.fingerprint(), how.model_dump(mode="json")], sort_keys=True)
    try:
        folder = Path(config.cache).expanduser() if config.cache else user_folder("shards")
    except (OSError, RuntimeError):
        return None
    return folder / "windows" / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"


def _load(path: Path | None) -> Manifest | None:
    if path is not None:
        with suppress(OSError, ValueError, RecursionError):
            return Manifest.model_validate_json(path.read_bytes())
    return None


def _keep(path: Path | None, manifest: Manifest) -> None:
    """Keep the manifest, if that is possible: it is only a help."""
    if path is None:
        return
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(manifest.to_json()))
        os.replace(part, path)
    with suppress(OSError):
        part.unlink(missing_ok=True)
