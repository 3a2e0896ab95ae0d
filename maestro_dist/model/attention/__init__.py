"""Attention: one file per variant (`dense`, `plain`, `rows`, `absorbed`), all listed in `registry`.

`layer` contains the module, which chooses a variant by its cost and passes the tokens to it. `variant` is the interface
of a variant, and `projections` contains the parameters. `selection` and `sampling` are steps that the sparse variants
share. `kernel` and `tiles` compute softmax attention of a few queries over many keys.
"""

from maestro_dist.model.attention.layer import Attention
from maestro_dist.model.attention.registry import VARIANTS, describe_attention, planned_variant
from maestro_dist.model.attention.variant import AttentionShape, AttentionVariant

__all__ = [
    "VARIANTS",
    "Attention",
    "AttentionShape",
    "AttentionVariant",
    "describe_attention",
    "planned_variant",
]
