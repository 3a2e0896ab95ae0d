"""One attention layer with its projections, forward and backward: d 512, H 8, batch 1."""

from __future__ import annotations

from torch import Tensor

from benchmarks import conventional, published
from benchmarks.cases import FACTOR, HEADS, SEED, gathered_bytes, layout_of, module_step, ratio, tokens
from benchmarks.common import Options, Row, Setting, at_least, size_name
from benchmarks.timing import Case, compare
from maestro_dist import rng
from maestro_dist.config.model import ModelConfig
from maestro_dist.model.attention import Attention
from maestro_dist.model.budget import queries_from_budgets
from maestro_dist.model.context import OneProcess

_WIDTH = 512
_REACH = 3.0


def run(options: Options) -> list[Row]:
    """Ratios and absolute times on each setting."""
    length, width = (256, 32) if options.quick else (16384, _WIDTH)
    return [row for setting in options.settings for row in _table(options, setting, length, width)]


def _table(options: Options, setting: Setting, length: int, width: int) -> list[Row]:
    device = options.device
    config = ModelConfig(width=width, heads=HEADS, dropout=0.0, sample_factor=FACTOR)
    ours = Attention("layer", config, FACTOR, SEED, OneProcess()).to(device)
    ours.fill(lambda name: rng.key(SEED, "init", name))
    layout = layout_of(length, device)
    queries = queries_from_budgets(
        layout.observed.new_full((1,), FACTOR, dtype=ours.query_weight.dtype), layout.observed
    ).queries
    slow = published.SparseAttention(width, HEADS, FACTOR).to(device)
    usual = conventional.SparseAttention(width, HEADS, FACTOR).to(device)
    flat, batched = tokens(length, width, device), tokens(length, width, device)

    def batch(layer: published.SparseAttention | conventional.SparseAttention) -> Case:
        def call(x: Tensor) -> Tensor:
            out: Tensor = layer(x[None], FACTOR)[0]
            return out

        return Case(module_step(layer, call, batched))

    cases = {
        "ours": Case(module_step(ours, lambda x: ours(x, layout, queries, 0), flat)),
        "conventional": batch(usual),
        "published": batch(slow),
    }
    scratch = gathered_bytes(length, 1, width)
    times, rates = compare(cases, setting, device, scratch=scratch, quick=options.quick)
    name = f"layer/d {width}, {size_name(length)} tokens, {setting.label}"
    rows = [
        at_least(
            f"{name}/times faster than published",
            ratio(times, setting, "published", "ours"),
            "x",
            _REACH,
            promised=options.promised(setting),
        ),
        Row(f"{name}/times faster than conventional", ratio(times, setting, "conventional", "ours"), "x"),
    ]
    for case, taken in times.items():
        rows += taken.rows(f"{name}/{case}", "ns per token-head", 1e9 / (length * HEADS))
    return rows + rates.rows(name)
