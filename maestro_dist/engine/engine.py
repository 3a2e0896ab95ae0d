"""The training engine for any number of ranks and any ZeRO stage: DeepSpeed, set up for exact results.

Every parameter gets the gradient of the *global-batch mean* of the per-sample losses, for any number of ranks and
micro-batches. Condition: on every rank, each forward calls every module once, in the same order, also with 0 rows.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maestro_dist.config.schema import Config
from maestro_dist.engine.gradient_order import GradientOrder
from maestro_dist.engine.settings import deepspeed_config
from maestro_dist.errors import ConfigError
from maestro_dist.parallel.group import destroy_process_group, init_process_group, new_groups_limited
from maestro_dist.parallel.load_deepspeed import load_deepspeed
from maestro_dist.parallel.mesh import Mesh

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from maestro_dist.types import Batch, Output

__all__ = ["Engine", "StepResult", "destroy_process_group", "init_process_group", "loss_scale"]


@dataclass(frozen=True)
class StepResult:
    """The outcome of an optimizer step; the same on every rank.

    applied  False if a gradient was NaN or infinite on some rank: weights and moments are unchanged on all ranks
    norm     global gradient norm before clipping; infinite if not applied
    """

    applied: bool
    norm: float


class Engine:
    """The model under DeepSpeed. The process group must exist (`init_process_group` creates one for a single process).

    `model` is moved to the device and, at ZeRO 3, sharded in place; its forward is `model(batch, step) -> Output`.
    `optimizer` is a torch optimizer over the parameters of `model`; DeepSpeed replaces them by its flat slices.
    Raises `ConfigError` if the device does not exist.

    Usage, on every rank:
    ```
    for batch in global_batch:                      # micro-batches; batch.last on the last one
        output = engine(batch, step)
        engine.backward(engine.scale_loss(task.loss(output, batch), batch), batch.last)
    result = engine.step(lr)
    ```
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, config: Config, mesh: Mesh) -> None:
        from torch.nn import functional

        settings = deepspeed_config(config)
        self.mesh = mesh
        self.device = _device(config.run.device)
        self.zero_stage: int = config.engine.zero_stage
        self.module = model
        if config.engine.precision == "bf16":
            _autocast_forward(model, self.device, cache=self.zero_stage < 3)
        deepspeed = load_deepspeed(config.run.device)
        in_order = self.zero_stage > 1 or config.engine.overlap_comm  # gradients are reduced as they become ready
        self._order = GradientOrder(model) if in_order and mesh.world > 1 else None
        self._linear = functional.linear
        try:
            with new_groups_limited(config.run.timeout_s):
                self.deepspeed, *_ = deepspeed.initialize(
                    model=model, optimizer=optimizer, config=settings, dist_init_required=False
                )
        except BaseException:
            functional.linear = self._linear
            raise

    def __call__(self, batch: Batch, step: int = 0) -> Output:
        """Forward. All ranks must call it equally often; at ZeRO 3 this includes evaluation.

        Floating-point outputs are float32 even under autocast, so losses and metrics are float32.
        """
        output = self.deepspeed(batch, step)
        return {name: _full_precision(tensor) for name, tensor in output.items()}  # type: ignore[return-value]

    def place(self, batch: Batch) -> Batch:
        """The batch on this rank's device. If the stream knows this device, the batch is in page-locked memory and
        its copy overlaps with computation."""
        return batch.to(self.device)

    def scale_loss(self, per_sample: Tensor, batch: Batch) -> Tensor:
        """Scalar loss. Its gradient, averaged over ranks and summed over micro-batches, is the global-mean gradient.

        `per_sample` is [B]. If B is 0 the result is 0, and it still depends on every parameter of the losses.
        """
        return per_sample.sum() * loss_scale(self.mesh, batch.global_samples)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Back-propagate a micro-batch; `last`: it is the last one before the optimizer step.

        Raises `RunError` if gradients become ready in a different order than on other ranks or in other steps.
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss)
        if self._order is not None:
            self._order.check(self.device, self.mesh.world)

    def step(self, lr: float, momentum: float | None = None) -> StepResult:
        """One optimizer step at this learning rate. All ranks skip it if any gradient is not finite.

        `momentum` replaces the momentum of SGD, or beta_1 of AdamW; None changes nothing.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif momentum is not None:
                group["momentum"] = momentum
        self.deepspeed.step()
        applied = bool(self.deepspeed.was_step_applied())
        norm = float(self.deepspeed.get_global_grad_norm()) if applied else math.inf
        return StepResult(applied=applied, norm=norm)

    def sum_over_ranks(self, counts: Tensor) -> Tensor:
        """Sum of a tensor over all ranks (all-reduce)."""
        import torch.distributed as dist

        total = counts.clone()
        if self.mesh.world > 1:
            dist.all_reduce(total)
        return total

    def train(self) -> None:
        """Training mode (dropout, curriculum)."""
        self.deepspeed.train()

    def eval(self) -> None:
        """Evaluation mode."""
        self.deepspeed.eval()

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers, so that this process can create another engine.

        ZeRO 3 replaces `torch.nn.functional.linear` and does not restore it. Without the restore here, later results
        of this process would be rounded differently than in a new process.
        """
        from torch.nn import functional

        if self._order is not None:
            self._order.close()
        self.deepspeed.destroy()
        functional.linear = self._linear


def loss_scale(mesh: Mesh, global_samples: int) -> float:
    """Weight of a sample's loss on one rank: the average over all ranks is then the mean over the global batch.

    All sequence ranks of a data rank compute the same losses, so each counts 1 / sequence.
    """
    return mesh.world / (mesh.sequence * global_samples)


def _device(name: str) -> torch.device:
    """The device of this process: the CPU, or the GPU with number LOCAL_RANK."""
    import torch

    if name == "cpu":
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not torch.cuda.is_available():
        raise ConfigError("run.device is cuda, but torch finds no CUDA device on this machine; use run.device=cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"run.device is cuda: this is local rank {local_rank}, but there are {torch.cuda.device_count()} GPUs; "
            "start fewer workers per node"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _autocast_forward(model: nn.Module, device: torch.device, *, cache: bool) -> None:
    """Run `model.forward` under bf16 autocast; parameters, gradients and their reduction stay fp32.

    The context is inside the module because DeepSpeed disables autocast that is entered outside of its engine. At
    ZeRO 3 casts of weights are not cached: the cache would keep a copy of all weights during the forward.
    """
    import torch

    context: Any = torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=cache)
    model.forward = context(model.forward)  # type: ignore[method-assign]


def _full_precision(tensor: Tensor) -> Tensor:
    import torch

    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
