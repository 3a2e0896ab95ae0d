"""The layers: attention, residual and norm, downsampling, feed-forward or experts, residual and norm."""

from __future__ import annotations

from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.config.model import ModelConfig
from maestro_dist.model.attention import Attention
from maestro_dist.model.context import ExpertsFactory, SequenceContext
from maestro_dist.model.downsample import Downsample
from maestro_dist.model.layers import FeedForward, LayerScale, ResidualNorm, checkpointed
from maestro_dist.model.layout import TokenLayout
from maestro_dist.model.moe import MixtureOfExperts
from maestro_dist.model.tokenwise import HashedDropout


class Layer(nn.Module):
    """One layer, of a modality or cross-modal. The two kinds differ in the module after the attention.

    `feed` is a feed-forward or a mixture of experts. Dropout is applied to its output.
    """

    def __init__(
        self, name: str, config: ModelConfig, factor: float, feed: nn.Module, seed: int, sequence: SequenceContext
    ) -> None:
        super().__init__()
        self.name, self.seed, self.dropout, self.checkpoint = (
            name,
            seed,
            config.dropout,
            config.activation_checkpointing,
        )
        self.attention = Attention(f"{name}.attention", config, factor, seed, sequence)
        self.attention_norm = ResidualNorm(config.width)
        self.downsample = Downsample(config.width, sequence) if config.downsample else None
        self.feed = feed
        self.feed_norm = ResidualNorm(config.width)
        start = config.layer_scale
        self.attention_scale = LayerScale(config.width, start) if start is not None else None
        self.feed_scale = LayerScale(config.width, start) if start is not None else None

    def forward(
        self, x: Tensor, layout: TokenLayout, after: TokenLayout, queries: Tensor, step: int
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens x [N, d] in `layout` -> (tokens in `after`, load of the experts int32 [S, M, E] if there are any)."""
        recompute = self.checkpoint == "layers"
        x = checkpointed(recompute, self._attend, x, layout, queries, step)
        return checkpointed(recompute, self._feed, x, after, step)

    def _attend(self, x: Tensor, layout: TokenLayout, queries: Tensor, step: int) -> Tensor:
        branch = self.attention(x, layout, queries, step)
        dropped = self._dropout(self.attention.name, layout, step)
        x = self.attention_norm(x, branch, _factor(self.attention_scale), dropped)
        return x if self.downsample is None else self.downsample(x, layout)

    def _feed(self, x: Tensor, after: TokenLayout, step: int) -> tuple[Tensor, Tensor | None]:
        load = None
        if isinstance(self.feed, MixtureOfExperts):
            branch, load = self.feed(x, after)
        else:
            branch = self.feed(x)
        dropped = self._dropout(self.name, after, step)
        return self.feed_norm(x, branch, _factor(self.feed_scale), dropped), load

    def _dropout(self, name: str, layout: TokenLayout, step: int) -> HashedDropout | None:
        """The dropout draws of each token; None if nothing is dropped."""
        if not self.training or self.dropout == 0:
            return None
        return HashedDropout(self.dropout, layout.draw_keys(rng.key(self.seed, "dropout", name, step)))


class Encoder(nn.Module):
    """The layers of one modality. It is called once in each forward, also with no rows."""

    def __init__(self, name: str, config: ModelConfig, factor: float, seed: int, sequence: SequenceContext) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(f"{name}.{depth}", config, factor, _feed_forward(config), seed, sequence)
            for depth in range(config.encoder_layers)
        )

    def forward(self, x: Tensor, layouts: list[TokenLayout], queries: Tensor, step: int) -> Tensor:
        """Tokens [N, d] at depth 0 -> tokens at the encoder's last depth. queries [R, layers]; layouts: layers + 1."""
        for depth, layer in enumerate(self.layers):
            x, _ = layer(x, layouts[depth], layouts[depth + 1], queries[:, depth], step)
        return x


def fusion_layer(
    name: str, config: ModelConfig, modalities: int, factory: ExpertsFactory, seed: int, sequence: SequenceContext
) -> Layer:
    """A cross-modal layer: with experts, or with a feed-forward if `moe.experts` is 0."""
    feed = MixtureOfExperts(config, modalities, factory) if config.moe.experts else _feed_forward(config)
    return Layer(name, config, config.fusion_beta, feed, seed, sequence)


def _feed_forward(config: ModelConfig) -> FeedForward:
    return FeedForward(config.width, max(1, round(config.feedforward * config.width)), config.tile)


def _factor(scale: LayerScale | None) -> Tensor | None:
    return None if scale is None else scale.scale
