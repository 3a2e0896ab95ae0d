"""Symbols from raw windows: [4, 65536, 14], word 2, against the loop over words."""

from __future__ import annotations

import torch

from benchmarks import published
from benchmarks.cases import ratio
from benchmarks.common import Options, Row, Setting, at_least, at_most
from benchmarks.timing import Case, compare
from maestro_dist.model import sax

_WORD, _ALPHABET = 2, 20
_REACH = 300.0
_PUBLISHED_RATE = 0.24e6
"""Steps a second of the published loop as measured elsewhere."""


def run(options: Options) -> list[Row]:
    """Ratio and samples a second on each setting, and whether all symbols are the same."""
    return [row for setting in options.settings for row in _table(options, setting)]


def _table(options: Options, setting: Setting) -> list[Row]:
    rows, steps, variates = (2, 128, 3) if options.quick else (4, 65536, 14)
    x = torch.randn(rows, steps, variates, device=options.device)
    edges = sax.cuts(_ALPHABET).to(options.device)

    def ours() -> torch.Tensor:
        return sax.tokenise(x, _WORD, edges)

    cases = {
        "ours": Case(ours, repetitions=15),
        "published": Case(lambda: published.symbols(x, _WORD, _ALPHABET), repetitions=3),
    }
    times, rates = compare(cases, setting, options.device, quick=options.quick)
    same = float(torch.equal(ours().long(), published.symbols(x, _WORD, _ALPHABET)))
    name = f"sax/[{rows}, {steps}, {variates}], word {_WORD}, {setting.label}"
    table = [
        at_least(
            f"{name}/times faster than published",
            ratio(times, setting, "published", "ours"),
            "x",
            _REACH,
            promised=options.promised(setting),
        ),
        *_fair(name, rows * steps / times["published"].best(setting), promised=options.promised(setting)),
        at_least(f"{name}/identical symbols (1: all)", same, "", 1.0),
    ]
    for case, taken in times.items():
        table.append(Row(f"{name}/{case}, steps", rows * steps / taken.best(setting) / 1e6, "M/s"))
        table += taken.rows(f"{name}/{case}", "ms", 1e3)
    return table + rates.rows(name)


def _fair(name: str, rate: float, *, promised: bool) -> list[Row]:
    cost = _PUBLISHED_RATE / rate
    return [at_most(f"{name}/published: its time against the reference's", cost, "x", 1.25, promised=promised)]
