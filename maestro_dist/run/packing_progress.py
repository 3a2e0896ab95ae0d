"""The progress of a packing: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from maestro_dist.data.pack_parts import PackProgress

_LOG = logging.getLogger(__name__)
_EVERY_S = 30.0
_BAR = "packing {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} parts{postfix}, {remaining} left"


@contextmanager
def shown_progress() -> Iterator[Callable[[PackProgress], None]]:
    """Context with a function that shows progress: parts, samples, shards, MB/s."""
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from tqdm import tqdm

    size = shutil.get_terminal_size()  # tqdm shows nothing where the terminal does not know its size
    with tqdm(bar_format=_BAR, file=sys.stderr, ncols=size.columns, nrows=size.lines) as bar:
        yield lambda progress: _show(bar, progress)


def _show(bar: Any, progress: PackProgress) -> None:
    bar.total = progress.all_parts or 1
    rate = progress.bytes / 1e6 / max(1e-3, bar.format_dict["elapsed"])
    text = f"{progress.samples:,} samples, {progress.shards:,} shards, {rate:.1f} MB/s"
    bar.set_postfix_str(text, refresh=False)
    bar.update(progress.parts - bar.n)


class _Lines:
    """Logs a line every 30 s."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def show(self, progress: PackProgress) -> None:
        now = time.monotonic()
        if now - self._last >= _EVERY_S:
            self._last = now
            _LOG.info(
                "packing: %d of %d parts, %s samples, %s shards, %.1f MB/s",
                progress.parts,
                progress.all_parts,
                f"{progress.samples:,}",
                f"{progress.shards:,}",
                progress.bytes / 1e6 / (now - self._start),
            )
