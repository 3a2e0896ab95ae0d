"""DeepSpeed: how it is imported quietly, and our configuration in its words."""

from __future__ import annotations

from typing import Any

from maestro_dist.config.schema import Config

BUCKET = 1 << 25
"""Elements of a gradient bucket: 128 MiB in fp32. DeepSpeed's default of 5e8 would take 2 GB at once."""


def deepspeed_config(config: Config) -> dict[str, Any]:
    """Our configuration in DeepSpeed's words. Nothing of it is left to DeepSpeed's defaults that matters to the result.

    DeepSpeed is told nothing of sequence ranks and of accumulation: its group is the whole world, `Engine.scale_loss`
    makes the average over it the gradient of the global-batch mean, and the engine marks the accumulation boundary.
    bf16 is autocast over an fp32 engine (see `Engine`): DeepSpeed's own bf16 would also accumulate and communicate in
    bf16. Experts that are spread over ranks carry their own marks (`expert.spread_experts`).
    """
    return {
        "train_micro_batch_size_per_gpu": 1,  # only the ratio of these two is used, and it is 1
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": config.engine.zero_stage,
            "overlap_comm": config.engine.overlap_comm,
            "reduce_bucket_size": BUCKET,
            "round_robin_gradients": False,  # true would break the map from names to slices that checkpoints rest on
            **_offload(config),
        },
    }


def _offload(config: Config) -> dict[str, Any]:
    """What lies in the host's memory: pinned on a GPU, so that copies overlap with what runs there."""
    wanted, place = config.engine.offload, {"device": "cpu", "pin_memory": config.run.device == "cuda"}
    optimizer = {"offload_optimizer": place} if wanted != "none" else {}
    return optimizer | ({"offload_param": place} if wanted == "parameters" else {})
