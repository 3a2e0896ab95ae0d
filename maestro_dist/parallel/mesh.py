"""The grid of ranks: world = data x sequence, sequence ranks are neighbours, expert groups divide the world."""

from __future__ import annotations

from dataclasses import dataclass

from maestro_dist.config.schema import MeshConfig
from maestro_dist.errors import MeshError


@dataclass(frozen=True)
class Mesh:
    """One rank's place in the grid. Plain integers: no process group, no torch.

    Ranks `d * sequence ... d * sequence + sequence - 1` process the same samples, each its own slice of time.
    """

    rank: int
    world: int
    data: int
    sequence: int = 1
    expert: int = 1

    @property
    def data_rank(self) -> int:
        """Which part of the global batch this rank processes."""
        return self.rank // self.sequence

    @property
    def sequence_rank(self) -> int:
        """Which time slice of its samples this rank processes."""
        return self.rank % self.sequence

    @property
    def expert_rank(self) -> int:
        """Which part of a layer's experts this rank has; expert groups are consecutive ranks."""
        return self.rank % self.expert

    @property
    def sequence_group(self) -> range:
        """The ranks that process the same samples as this rank."""
        return range(self.rank - self.sequence_rank, self.rank - self.sequence_rank + self.sequence)

    @property
    def expert_group(self) -> range:
        """The ranks that together have all experts of a layer, this rank included."""
        return range(self.rank - self.expert_rank, self.rank - self.expert_rank + self.expert)

    @property
    def expert_replicas(self) -> range:
        """The ranks with the same experts as this rank. Gradients of experts are averaged over them."""
        return range(self.expert_rank, self.world, self.expert)

    def table(self, *, mark: bool = True) -> str:
        """The grid as text: one line for each data rank (at most 16); `mark` shows this rank."""
        head = f"{self.world} ranks = {self.data} data x {self.sequence} sequence; experts over {self.expert}"
        shown = min(self.data, 16)
        lines = [
            f"  data {row:>4}: ranks "
            + " ".join(str(row * self.sequence + column) for column in range(self.sequence))
            + (f"   <- this is rank {self.rank}" if mark and row == self.data_rank else "")
            for row in range(shown)
        ]
        if shown < self.data:
            lines.append(f"  ... and {self.data - shown} more")
        return "\n".join([head, *lines])


def build_mesh(config: MeshConfig, *, world: int, rank: int = 0) -> Mesh:
    """The mesh of `world` ranks as seen by `rank`.

    Raises `MeshError` if the grid does not fill the world exactly; the message lists sizes that would fit.
    """
    if not 0 <= rank < world:
        raise MeshError(f"rank {rank} is outside a world of {world} ranks")
    if world % config.sequence:
        raise MeshError(
            f"mesh.sequence = {config.sequence} does not divide the world of {world} ranks; "
            f"use one of {_numbers(_divisors(world))}, or a multiple of {config.sequence} workers"
        )
    data = world // config.sequence
    if config.data is not None and config.data != data:
        raise MeshError(
            f"mesh.data x mesh.sequence = {config.data} x {config.sequence} = {config.data * config.sequence}, "
            f"but there are {world} workers; use mesh.data = {data} (or leave it out), "
            f"or run.workers = {config.data * config.sequence}"
        )
    if world % config.expert:
        raise MeshError(
            f"mesh.expert = {config.expert} does not divide the world of {world} ranks; "
            f"use one of {_numbers(_divisors(world))}"
        )
    return Mesh(rank=rank, world=world, data=data, sequence=config.sequence, expert=config.expert)


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _numbers(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)
