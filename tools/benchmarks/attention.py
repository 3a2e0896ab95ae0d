"""The attention core, forward and backward, against the published formulation, the usual one and dense.

H 8, d_h 64, batch 1; ns per token and head.
"""

from __future__ import annotations

from benchmarks import conventional, published
from benchmarks.cases import (
    FACTOR,
    HEADS,
    bound_ns,
    core_inputs,
    gathered_bytes,
    opponent_is_fair,
    ours,
    ratio,
    trained,
)
from benchmarks.common import Options, Row, Setting, at_least, size_name
from benchmarks.published.attention import budget
from benchmarks.timing import Case, compare

_REACH = {16384: 6.0, 65536: 18.0}
_DENSE_REACH = 150.0


def run(options: Options) -> list[Row]:
    """Ratios, absolute times and the share of the FLOP bound for each length and setting."""
    lengths = {256: True, 512: False} if options.quick else {1024: True, 4096: False, 16384: True, 65536: False}
    return [
        row
        for setting in options.settings
        for length, dense in lengths.items()
        for row in _table(options, setting, length, dense)
    ]


def _table(options: Options, setting: Setting, length: int, dense: bool) -> list[Row]:
    inputs, gradient = core_inputs(length, options.device)
    count = budget(FACTOR, length)
    long = length > 16384
    cases = {
        "ours": Case(trained(ours, inputs, gradient)),
        "conventional": Case(
            trained(lambda q, k, v: conventional.sparse_attention(q, k, v, count, count), inputs, gradient)
        ),
        "published": Case(
            trained(lambda q, k, v: published.sparse_attention(q, k, v, count, count), inputs, gradient),
            repetitions=2 if long else 4,
        ),
    }
    if dense:
        slow = length > 4096 and options.device == "cpu"
        cases["dense"] = Case(
            trained(conventional.dense_attention, inputs, gradient),
            repetitions=1 if slow else 3,
            warm=not slow,
        )
    times, rates = compare(cases, setting, options.device, scratch=gathered_bytes(length, 1), quick=options.quick)

    name = f"attention/{size_name(length)} tokens, {setting.label}"
    promised = options.promised(setting)
    scale = 1e9 / (length * HEADS)
    against = f"{name}/times faster than"
    rows = [
        at_least(
            f"{against} published",
            ratio(times, setting, "published", "ours"),
            "x",
            _REACH.get(length, 1.0),
            promised=promised and length in _REACH,
        ),
        Row(f"{against} conventional", ratio(times, setting, "conventional", "ours"), "x"),
    ]
    if dense:
        rows.append(
            at_least(
                f"{against} dense",
                ratio(times, setting, "dense", "ours"),
                "x",
                _DENSE_REACH,
                promised=promised and length == 16384,
            )
        )
    ns = {case: taken.best(setting) * scale for case, taken in times.items()}
    rows.append(Row(f"{name}/share of the FLOP bound", 100 * bound_ns(length, rates) / ns["ours"], "%"))
    rows += opponent_is_fair(name, length, ns["published"], rates, setting, promised=promised)
    for case, taken in times.items():
        rows += taken.rows(f"{name}/{case}", "ns per token-head", scale)
    return rows + rates.rows(name)
