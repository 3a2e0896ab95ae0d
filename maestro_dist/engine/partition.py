"""The parameter slices that a rank owns under ZeRO: read them, write them back.

Every rank owns one contiguous range of each *flattened* parameter in fp32, and the optimizer's state for this range.
Only this module uses private names of DeepSpeed. DeepSpeed 0.19 is pinned; a test per ZeRO stage fails
if these names change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maestro_dist.engine.engine import Engine
from maestro_dist.optim import AVERAGE

if TYPE_CHECKING:
    from torch import Tensor

MASTER = "master"


@dataclass(frozen=True)
class OwnedSlice:
    """Elements `start ... start + count - 1` of the flattened parameter `name`, which includes all experts of a layer.

    `tensors` are 1-D *views* [count] into DeepSpeed's memory: "master" (the fp32 weights) and the optimizer's moments.
    With `optim.ema`, the average of the weights is one more state tensor, treated like the moments.
    """

    name: str
    start: int
    count: int
    tensors: dict[str, Tensor]


def parameter_shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Full shape of every parameter by name, at any ZeRO stage; experts of all ranks together."""
    shapes = {}
    for name, parameter in engine.module.named_parameters():
        first, *rest = getattr(parameter, "ds_shape", parameter.shape)
        shapes[name] = (first * getattr(parameter, "expert_ranks", 1), *rest)
    return shapes


def _first(parameter: Any) -> int:
    """Offset of this rank's experts in the flattened parameter of all experts; 0 if experts are not distributed."""
    elements: int = getattr(parameter, "ds_numel", parameter.numel())
    return getattr(parameter, "expert_rank", 0) * elements


def buffers(engine: Engine) -> dict[str, Tensor]:
    """The module's persistent buffers, by name; the same on all ranks."""
    parameters = {name for name, _ in engine.module.named_parameters(remove_duplicate=False)}
    return {name: tensor for name, tensor in engine.module.state_dict().items() if name not in parameters}


def owned_slices(engine: Engine) -> Iterator[OwnedSlice]:
    """The slices that this rank owns, in the order of the model's parameters. No collectives."""
    optimizer = engine.deepspeed.optimizer
    locate = _locate_sharded if engine.zero_stage == 3 else _locate_flat
    for name, parameter in engine.module.named_parameters():
        flat, start, count, offset = locate(optimizer, parameter)
        if count == 0:
            continue
        state = optimizer.optimizer.state.get(flat, {})
        tensors = {MASTER: flat.detach()} | {key: state[key] for key in _moments(state)}
        start += _first(parameter)
        yield OwnedSlice(name, start, count, {key: tensor.narrow(0, offset, count) for key, tensor in tensors.items()})


def _locate_flat(optimizer: Any, parameter: Any) -> tuple[Any, int, int, int]:
    """(flat tensor, start in the parameter, elements, offset in the flat tensor) at ZeRO 1 and 2."""
    mapping = parameter._hp_mapping
    if mapping is None:  # this rank owns no element of it
        return None, 0, 0, 0
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    here = mapping.lp_fragment_address
    return flat, here.start, here.numel, mapping.hp_fragment_address.start


def _locate_sharded(optimizer: Any, parameter: Any) -> tuple[Any, int, int, int]:
    """As `_locate_flat`, at ZeRO 3: equal parts; the last parts may be shorter or empty."""
    import torch.distributed as dist

    group, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank(getattr(parameter, "ds_process_group", optimizer.dp_process_group)) * part
    count = max(0, min(part, parameter.ds_numel - start))
    return optimizer.fp32_partitioned_groups_flat[group], start, count, offset


def _flats(engine: Engine) -> list[Any]:
    optimizer = engine.deepspeed.optimizer
    return (
        optimizer.fp32_partitioned_groups_flat if engine.zero_stage == 3 else optimizer.single_partition_of_fp32_groups
    )


def _moments(state: dict[str, Any]) -> list[str]:
    """Names of the state tensors with one value per element (not the step count)."""
    return [key for key, value in state.items() if key != "step" and value is not None]


def optimizer_name(engine: Engine) -> str:
    """Class name of the torch optimizer under DeepSpeed."""
    return type(engine.deepspeed.optimizer.optimizer).__name__


def optimizer_state(engine: Engine) -> tuple[list[str], int]:
    """(names of the moments, the optimizer's own step count; 0 if it has none)."""
    state = engine.deepspeed.optimizer.optimizer.state.get(_flats(engine)[0], {})
    return _moments(state), int(state.get("step", 0))


def create_moments(engine: Engine, names: list[str], steps: int) -> None:
    """Create zero moments and the step count for all slices of this rank, as the optimizer itself would."""
    import torch

    optimizer = engine.deepspeed.optimizer
    for flat in _flats(engine):
        state: dict[str, Tensor] = {name: torch.zeros_like(flat) for name in names}
        if names and (optimizer_name(engine) == "AdamW" or AVERAGE in names):
            state["step"] = torch.tensor(float(steps), dtype=torch.float32)
        optimizer.optimizer.state[flat] = state
    if engine.zero_stage < 3:
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def publish_master(engine: Engine) -> None:
    """Copy the fp32 master slices into the model on all ranks. A collective."""
    optimizer = engine.deepspeed.optimizer
    if engine.zero_stage < 3:
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


@contextmanager
def averaged(engine: Engine) -> Iterator[None]:
    """Context in which the model has the averaged weights (`optim.ema`). Afterwards it has its own weights again.

    A collective if there is an average; without one (also before the first step) nothing happens. Weights and averages
    are swapped, which needs memory for the largest slice only. Do not train or save inside. After an error they stay
    swapped: the other ranks would not take part in swapping back.
    """
    if AVERAGE not in optimizer_state(engine)[0]:
        yield
        return
    _exchange(engine)
    yield
    _exchange(engine)


def _exchange(engine: Engine) -> None:
    """Swap master weights and averages, then copy the new master weights into the model. A collective."""
    import torch

    with torch.no_grad():
        for flat in _flats(engine):
            average = engine.deepspeed.optimizer.optimizer.state[flat][AVERAGE]
            weights = flat.detach().clone()
            flat.detach().copy_(average)
            average.copy_(weights)
        publish_master(engine)
