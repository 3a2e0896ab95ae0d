"""The mixture of experts, router included, forward and backward: d 64, top 1, against the masked loop.

All have experts d -> d -> d with GELU between and no biases. The published loop reads and writes an expert's rows by
mask; the same loop with `index_add_` is measured too.
"""

from __future__ import annotations

from benchmarks import published
from benchmarks.cases import SEED, layout_of, module_step, ratio, tokens
from benchmarks.common import Options, Row, Setting, at_least, size_name
from benchmarks.timing import Case, compare
from maestro_dist import rng
from maestro_dist.config.model import ModelConfig, MoeConfig
from maestro_dist.model.context import ExpertsFactory
from maestro_dist.model.moe import LocalExperts, MixtureOfExperts

_WIDTH = 64
_REACH = {4: 1.4, 64: 4.5, 256: 7.0}


def run(options: Options) -> list[Row]:
    """Ratios and absolute times for each number of experts on each setting."""
    length = 256 if options.quick else 16384
    return [
        row for setting in options.settings for experts in _REACH for row in _table(options, setting, length, experts)
    ]


def mixture(config: ModelConfig, factory: ExpertsFactory) -> MixtureOfExperts:
    """A mixture of experts for one modality, with initialized weights."""
    made = MixtureOfExperts(config, 1, factory)
    for path, module in made.named_modules():
        if hasattr(module, "fill"):
            module.fill(lambda name, path=path: rng.key(SEED, "init", f"{path}.{name}"))
    return made


def _table(options: Options, setting: Setting, length: int, experts: int) -> list[Row]:
    device = options.device
    config = ModelConfig(width=_WIDTH, moe=MoeConfig(experts=experts))
    ours = mixture(config, LocalExperts).to(device)
    slow, careful = (
        published.MaskedExperts(_WIDTH, _WIDTH, experts, config.moe.top_k, masked=masked).to(device)
        for masked in (True, False)
    )
    layout, x = layout_of(length, device), tokens(length, _WIDTH, device)
    cases = {
        "ours": Case(module_step(ours, lambda x: ours(x, layout)[0], x), repetitions=15),
        "published": Case(module_step(slow, slow, x), repetitions=9),
        "loop adding rows": Case(module_step(careful, careful, x), repetitions=9),
    }
    times, rates = compare(cases, setting, device, quick=options.quick)
    name = f"moe/{experts} experts, {size_name(length)} tokens, {setting.label}"
    rows = [
        at_least(
            f"{name}/times faster than published",
            ratio(times, setting, "published", "ours"),
            "x",
            _REACH[experts],
            promised=options.promised(setting),
        ),
        Row(f"{name}/times faster than a loop adding rows", ratio(times, setting, "loop adding rows", "ours"), "x"),
    ]
    for case, taken in times.items():
        rows += taken.rows(f"{name}/{case}", "ns per token", 1e9 / length)
    return rows + rates.rows(name)
