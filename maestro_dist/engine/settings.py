"""The DeepSpeed configuration."""

from __future__ import annotations

from typing import Any

from maestro_dist.config.schema import Config

BUCKET = 1 << 25
"""Elements of a gradient bucket: 128 MiB in fp32. DeepSpeed's default of 5e8 would take 2 GB."""


def deepspeed_config(config: Config) -> dict[str, Any]:
    """The configuration as DeepSpeed's settings. Every setting that can change results is set here.

    DeepSpeed does not know about sequence ranks and gradient accumulation. Its group contains all ranks,
    `Engine.scale_loss` makes the average over them the gradient of the global-batch mean, and the engine marks the
    accumulation boundary. bf16 is autocast over an fp32 engine (see `Engine`): DeepSpeed's own bf16 would also
    accumulate and communicate in bf16. Experts that are distributed over ranks are marked by `expert.spread_experts`.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,  # only the ratio of these two is used; it is 1
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": config.engine.zero_stage,
            "overlap_comm": config.engine.overlap_comm,
            "reduce_bucket_size": BUCKET,
            "round_robin_gradients": False,  # true would break the map from names to slices, which checkpoints need
            **_offload(config),
        },
    }


def _offload(config: Config) -> dict[str, Any]:
    """Tensors that are kept in host memory: pinned if the device is a GPU, so that copies overlap with computation."""
    wanted, place = config.engine.offload, {"device": "cpu", "pin_memory": config.run.device == "cuda"}
    optimizer = {"offload_optimizer": place} if wanted != "none" else {}
    return optimizer | ({"offload_param": place} if wanted == "parameters" else {})
