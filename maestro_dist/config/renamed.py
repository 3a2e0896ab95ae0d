"""Keys of the configuration that were renamed, and how files with the old names are read."""

from __future__ import annotations

from typing import Any

RENAMED = {
    "missing.full": "missing.ramp_end",
    "missing.p_max": "missing.max_rate",
    "missing.start": "missing.ramp_start",
    "model.attention_form": "model.attention_algorithm",
    "model.checkpoint": "model.activation_checkpointing",
    "model.distil": "model.downsample",
    "model.keep_scores": "model.keep_attention_weights",
    "model.summary_pieces": "model.summary_bins",
    "run.keep_memory": "run.allocator_cache",
    "run.start": "run.init_from",
}
"""Old key -> new key, in the same section. A person who uses an old key gets an error that names the new one."""

OLD_NAMES = {new: old for old, new in RENAMED.items()}
"""New key -> old key."""


def current(values: Any, section: str = "") -> Any:
    """A copy of saved configuration values, with the current names of their keys.

    For files that this package wrote itself, maybe before a key was renamed. `values` is a tree of sections or a flat
    dict of `section.key`. `section` is the section of the tree (`model` for the `model` part of
    `model.json`). Anything that is not a dict is returned unchanged.
    """
    if not isinstance(values, dict):
        return values
    prefix = f"{section}." if section else ""
    renamed: dict[Any, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        renamed[RENAMED.get(key, key).removeprefix(prefix) if isinstance(name, str) else name] = current(value, key)
    return renamed
