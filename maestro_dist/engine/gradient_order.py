"""Checks that gradients become ready in the same order on all ranks and in all steps.

DeepSpeed puts gradients into buckets in the order in which backward pass finishes them, and reduces bucket by bucket
(at ZeRO 2 and 3, and at ZeRO 1 with overlapping communication). If this order differed between ranks, gradients of
different parameters would be added without any error. The order of operations in the model does not depend on a rank's
samples; this check verifies it on every rank in every step.
"""

from __future__ import annotations

import zlib
from array import array
from functools import partial
from typing import TYPE_CHECKING, Any

from maestro_dist.errors import RunError

if TYPE_CHECKING:
    from torch import nn


class GradientOrder:
    """The order in which the gradients of a model's parameters become ready.

    Each rank compares every micro-batch with its first one. The first ones of all ranks are compared once. All ranks
    call `check` after each backward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = [name for name, _ in model.named_parameters()]
        self._ready = array("l")
        self._first: array[int] | None = None
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._note, number))
            for number, (_, parameter) in enumerate(model.named_parameters())
            if parameter.requires_grad
        ]

    def check(self, device: Any, ranks: int) -> None:
        """Check the backward pass that has just ended.

        Raises:
            RunError: the order differs from the first pass, or from another rank.
        """
        ready, self._ready = self._ready, array("l")
        if self._first is None:
            self._first = ready
            if ranks > 1:
                self._compare_ranks(device)
        elif ready != self._first:
            raise RunError(_message(f"than in the first step ({self._difference(ready)})"))

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _note(self, number: int, _: Any) -> None:
        self._ready.append(number)

    def _compare_ranks(self, device: Any) -> None:
        import torch
        import torch.distributed as dist

        assert self._first is not None
        digest = zlib.crc32(self._first.tobytes())
        extremes = torch.tensor([digest, -digest], device=device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        largest, smallest = extremes.tolist()
        if largest != -smallest:
            raise RunError(_message("on some ranks than on others"))

    def _difference(self, ready: array[int]) -> str:
        assert self._first is not None
        for now, then in zip(ready, self._first, strict=False):
            if now != then:
                return f"{self._names[now]} instead of {self._names[then]}"
        return f"{len(ready)} gradients instead of {len(self._first)}"


def _message(where: str) -> str:
    return (
        f"gradients became ready in another order {where}: DeepSpeed would add gradients of different parameters. "
        "This is a bug in this program or in this release of torch: please report it, and use "
        "engine.zero_stage=1 engine.overlap_comm=false until it is fixed"
    )
