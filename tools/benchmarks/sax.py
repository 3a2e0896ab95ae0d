"""Symbols from raw windows: [4, 65536, 14], word 2, against loops over words."""

from __future__ import annotations

import torch

from benchmarks import published
from benchmarks.common import Options, Row, Setting, at_least, at_most
from benchmarks.timing import Case, compare
from maestro_dist.model import sax

_WORD, _ALPHABET = 2, 20
_REACH = 300.0
_PUBLISHED_RATE = 0.24e6
"""Values a second (steps x channels) of the published loop on another machine."""

_PART = 8192
"""Steps of one window for timing the loop over single words: the whole window would take half a minute a turn."""


def run(options: Options) -> list[Row]:
    """Ratio and values a second for each setting, and whether all symbols are the same."""
    return [row for setting in options.settings for row in _table(options, setting)]


def _table(options: Options, setting: Setting) -> list[Row]:
    rows, steps, variates = (2, 128, 3) if options.quick else (4, 65536, 14)
    x = torch.randn(rows, steps, variates, device=options.device)
    edges = sax.breakpoints(_ALPHABET).to(options.device)

    def ours() -> torch.Tensor:
        return sax.tokenise(x, _WORD, edges)

    part = x[:1, :_PART]
    cases = {
        "ours": Case(ours, repetitions=15),
        "published": Case(lambda: published.symbols_by_word(part, _WORD, _ALPHABET), repetitions=3),
        "loop in numpy": Case(lambda: published.symbols_by_word_numpy(part.cpu(), _WORD, _ALPHABET), repetitions=3),
        "all windows and channels at once": Case(lambda: published.symbols(x, _WORD, _ALPHABET), repetitions=3),
    }
    times, rates = compare(cases, setting, options.device, quick=options.quick)
    whole = torch.equal(ours().long(), published.symbols(x, _WORD, _ALPHABET))
    loops = (published.symbols_by_word, published.symbols_by_word_numpy)
    of_part = sax.tokenise(part, _WORD, edges).long().cpu()
    single = all(torch.equal(of_part, loop(part.cpu(), _WORD, _ALPHABET)) for loop in loops)
    name = f"sax/[{rows}, {steps}, {variates}], word {_WORD}, {setting.label}"
    sizes = {case: part.numel() if case in ("published", "loop in numpy") else x.numel() for case in cases}
    rate = {case: sizes[case] / taken.best(setting) for case, taken in times.items()}
    promised = options.promised(setting)
    table = [
        at_least(
            f"{name}/times faster than the published loop over words",
            rate["ours"] / rate["published"],
            "x",
            _REACH,
            promised=promised,
        ),
        *_fair(name, rate["published"], promised=promised),
        at_least(f"{name}/identical symbols (1: all)", float(whole and single), "", 1.0),
        Row(f"{name}/times faster than that loop in numpy", rate["ours"] / rate["loop in numpy"], "x"),
        Row(
            f"{name}/times faster than a loop over words of all windows and channels at once",
            rate["ours"] / rate["all windows and channels at once"],
            "x",
        ),
    ]
    for case, taken in times.items():
        table.append(Row(f"{name}/{case}", rate[case] / 1e6, "M values/s"))
        table += taken.rows(f"{name}/{case}", "ms", 1e3)
    return table + rates.rows(name)


def _fair(name: str, rate: float, *, promised: bool) -> list[Row]:
    off = 100 * abs(rate / _PUBLISHED_RATE - 1)
    return [at_most(f"{name}/published: off the reference by", off, "%", 25.0, promised=promised)]
