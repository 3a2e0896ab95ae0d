"""Expert parallelism: tokens travel to their experts and back, or the experts' weights travel to the tokens.

Letters: N ranks of an expert group, E experts of a layer (E / N on each rank), n rows, d and h widths.

DeepSpeed must know which parameters differ between ranks: it reduces and shards them over the ranks with the same
experts. It finds them by attributes of the parameters, and looks for them if a module has a certain class (0.19). Both
names are private to DeepSpeed, so its version is pinned.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.errors import MeshError
from maestro_dist.model.context import ExpertsFactory
from maestro_dist.model.grouped import grouped_network
from maestro_dist.model.layers import Key
from maestro_dist.model.moe import Dispatch, sort_by_expert
from maestro_dist.parallel.collectives import Group
from maestro_dist.parallel.group import backend, neighbours, new_groups_limited
from maestro_dist.parallel.load_deepspeed import load_deepspeed
from maestro_dist.parallel.mesh import Mesh

MOVEMENTS = ("tokens", "weights")


def spread_experts(mesh: Mesh, device: str, timeout_s: int, movement: str = "tokens") -> tuple[ExpertsFactory, Group]:
    """A factory for the experts of a layer on the ranks of `mesh`, and the group in which they communicate.

    `movement`: what travels between the ranks, "tokens" or "weights"; the result is the same. All ranks of the world
    must call it together, after a process group exists. The factory raises `MeshError` if the ranks do not divide the
    experts of a layer.
    """
    if movement not in MOVEMENTS:
        raise MeshError(f"mesh.expert_movement: {movement!r}; use one of {', '.join(MOVEMENTS)}")
    load_deepspeed(device).init_distributed(dist_backend=backend(device), dist_init_required=False, verbose=False)
    _deepspeed_groups(mesh.expert, timeout_s)
    group = Group(neighbours(mesh, mesh.expert, timeout_s))
    return partial(_layer(), group=group, movement=movement), group


def _deepspeed_groups(ranks: int, timeout_s: int) -> None:
    """DeepSpeed's groups, over which it reduces the experts' gradients; one set for each process and size."""
    from deepspeed.utils import groups

    if f"ep_size_{ranks}" not in groups._get_expert_data_parallel_group_dict():
        with new_groups_limited(timeout_s):
            groups._create_expert_and_data_parallel(ranks)


@cache
def _layer() -> Any:
    """The class of the experts of a layer. It is defined here because DeepSpeed is slow to import."""
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

    class ExpertRanks(AutoEPMoELayer):  # type: ignore[misc]
        """This rank's share of a layer's experts, with the results of `moe.LocalExperts`.

        Parameters have the names of `LocalExperts`, with E / N experts: rank r has the experts from r E / N on.
        """

        def __init__(self, experts: int, width: int, hidden: int, *, group: Group, movement: str) -> None:
            nn.Module.__init__(self)  # the constructor of DeepSpeed's class would convert a layer of a model
            if experts % group.size:
                raise MeshError(
                    f"mesh.expert: {group.size} ranks do not divide the {experts} experts of model.moe.experts"
                )
            local_experts = experts // group.size
            self.num_experts, self.group, self.movement = experts, group, movement
            self.expand = nn.Parameter(torch.empty(local_experts, width, hidden))
            self.contract = nn.Parameter(torch.empty(local_experts, hidden, width))
            for parameter in self.parameters():
                marked: Any = parameter
                marked.allreduce = False
                marked.group_name = marked.ds_zero_partition_group_name = f"ep_size_{group.size}"
                marked.ds_zero_placement_family = "autoep_expert"
                marked.expert_rank, marked.expert_ranks = group.rank, group.size

        def set_deepspeed_parallelism(self, *_: Any, **__: Any) -> None:
            """Nothing to do: the groups exist already."""

        def fill(self, key: Key) -> None:
            """Like `LocalExperts`: a draw is keyed by its position in the complete [E, ...] tensor."""
            for name, parameter in self.named_parameters():
                rng.fill_linear_(parameter, parameter.shape[1], key(name), self.group.rank * parameter.numel())

        def forward(self, tokens: Tensor, counts: Tensor) -> Tensor:
            """Tokens [n, d], sorted by expert, counts int64 [E] -> [n, d]; rows of no expert give 0."""
            if self.movement == "weights":
                # as one tensor: with few tokens the number of collectives decides the time
                both = torch.cat((self.expand.flatten(1), self.contract.flatten(1)), 1)
                expand, contract = self.group.differentiable_all_gather(both).flatten(0, 1).chunk(2, 1)
                shapes = self.expand.shape[1:], self.contract.shape[1:]
                expand, contract = expand.unflatten(1, shapes[0]), contract.unflatten(1, shapes[1])
                return grouped_network(tokens, expand.contiguous(), contract.contiguous(), counts)
            return through_experts(tokens, counts, self.expand, self.contract, self.group)

    return ExpertRanks


def through_experts(tokens: Tensor, counts: Tensor, expand: Tensor, contract: Tensor, group: Group) -> Tensor:
    """Send rows to the ranks of their experts, compute the experts, and send the results back.

    tokens [n, d] sorted by expert, counts int64 [E]; expand [E / N, d, h] and contract [E / N, h, d] of this rank's
    experts -> [n, d]; rows after the first `counts.sum()` give 0. The host waits for the device once, for the number of
    rows to receive.
    """
    with torch.no_grad():
        to_send = counts.view(group.size, -1)
        to_compute = group.all_to_all(to_send)  # [N, E / N]: rows that each rank sends to each expert here
        sent, received = torch.stack((to_send.sum(1), to_compute.sum(1))).tolist()
    rows = group.differentiable_all_to_all(tokens[: sum(sent)], sent, received)
    if to_compute.shape[1] > 1:  # rows arrive sorted by rank, then by expert
        with torch.no_grad():
            number = torch.arange(to_compute.shape[1], device=tokens.device).expand_as(to_compute).flatten()
            expert = number.repeat_interleave(to_compute.flatten(), output_size=sum(received))
            order, place = sort_by_expert(expert, to_compute.shape[1])
        out = grouped_network(Dispatch.apply(rows, order, place, 1), expand, contract, to_compute.sum(0))
        out = Dispatch.apply(out, place, order, 1)
    else:
        out = grouped_network(rows, expand, contract, to_compute.sum(0))
    back = group.differentiable_all_to_all(out, received, sent)
    return F.pad(back, (0, 0, 0, len(tokens) - len(back)))
