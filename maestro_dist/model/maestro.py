"""MAESTRO: symbolic tokens, encoders with adaptive budgets, cross-modal sparse attention, experts, heads.

Letters, in all of `model/`: B samples, M modalities (sorted by name), R_j samples that have modality j, D_j variates,
T_j steps, W_j words, N tokens, d width, H heads, E experts, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.config.attention import selects_queries
from maestro_dist.config.model import ModelConfig
from maestro_dist.errors import ConfigError
from maestro_dist.model import budget, layout
from maestro_dist.model.budget import BudgetGate, Budgets
from maestro_dist.model.context import ExpertsFactory, OneProcess, SequenceContext
from maestro_dist.model.embedding import Embedding, Prepared, prepare_together, word_steps
from maestro_dist.model.encoder import Encoder, fusion_layer
from maestro_dist.model.extent import kept_words, observed_words
from maestro_dist.model.head import AttentionPool, DeepHead, ModalityHeads, pool
from maestro_dist.model.layers import ByModality, Key, Linear, checkpointed
from maestro_dist.model.layout import DepthPlan, EnteringTokens, ModalityTokens, TokenLayout
from maestro_dist.model.moe import LocalExperts, MixtureOfExperts
from maestro_dist.model.names import draw_name
from maestro_dist.model.over_time import PartMeans
from maestro_dist.model.time_code import TimeCode
from maestro_dist.types import Batch, HeadShape, Modality, Output


class ModalityEmbedding(nn.Module):
    """Adds the embedding of its modality, and the time again, to each token before the cross-modal layers."""

    def __init__(self, modalities: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(modalities, width))

    def fill(self, key: Key) -> None:
        """N(0, .1): small compared with the normalized tokens."""
        rng.fill_normal_(self.weight, 0.1, key("weight"))

    def forward(self, x: Tensor, layout: TokenLayout, time: list[Tensor]) -> Tensor:
        """Tokens x [N, d], time codes of each modality's columns [L_j, d] -> [N, d]."""
        sizes = [part.rows * part.length for part in layout.parts]
        pieces = [
            (tokens.view(part.rows, part.length, x.shape[1]) + (weight + codes)).flatten(0, 1)
            for tokens, part, weight, codes in zip(x.split(sizes), layout.parts, self.weight, time, strict=True)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class Encoded(NamedTuple):
    """Outputs of the layers for a micro-batch: flat tokens with their layouts, and values to monitor.

    encoded, joint  output [N, d] of the modalities' own layers, and its layout
    entering        input of the cross-modal layers: `encoded` with modality and time added
    fused, final    output [N', d] of the cross-modal layers, or their input if there are none, and its layout
    present         bool [B, M]: which modalities have an observed token
    monitored       budgets, queries and expert loads
    plan            masks and numbers of the tokens at all depths
    embedded        tokens [N_0, d] at depth 0, if the model keeps them
    """

    encoded: Tensor
    entering: Tensor
    joint: TokenLayout
    fused: Tensor
    final: TokenLayout
    present: Tensor
    monitored: Output
    plan: DepthPlan
    embedded: Tensor | None = None


class Trunk(nn.Module):
    """The model without its heads: the part that a classifier and a model in pre-training have in common.

    Each module is called exactly once in a forward, in a fixed order, also with no rows. Initial values are keyed by
    (seed, full parameter name), so they depend neither on the process nor on the order of calls.
    """

    unit: Tensor
    keeps_embedded = False

    def __init__(
        self,
        config: ModelConfig,
        modalities: Sequence[Modality],
        *,
        seed: int,
        sequence: SequenceContext | None = None,
        experts: ExpertsFactory | None = None,
    ) -> None:
        """For `modalities` in any order. A subclass adds its own modules and then calls `initialise`."""
        super().__init__()
        modalities = sorted(modalities, key=lambda modality: modality.name)
        sequence = OneProcess() if sequence is None else sequence
        _check(config, modalities)
        self.config, self.names, self.sequence = config, [modality.name for modality in modalities], sequence
        self.modalities = modalities
        self.words = [word_steps(config, name) for name in self.names]
        self.time = TimeCode(config.width, modalities, self.words)
        count, width = len(modalities), config.width

        self.embeddings = ByModality(
            {modality.name: Embedding(config, modality, self.time, sequence) for modality in modalities}
        )
        self.gate: BudgetGate | None = None
        factor = config.beta
        if config.budget != "fixed" and selects_queries(config) and config.encoder_layers:
            content = width if config.budget_inputs == "content" else 0
            reallocate = config.budget == "reallocate"
            self.gate = BudgetGate(count, content, reallocate=reallocate, beta=config.beta)
            factor = config.beta * count if reallocate else config.beta
        self.encoders = ByModality(
            {name: Encoder(f"encoders.{name}", config, factor, seed, sequence) for name in self.names}
        )
        self.modality_embedding = ModalityEmbedding(count, width)
        self.fusion = nn.ModuleList(
            fusion_layer(f"fusion.{depth}", config, count, experts or LocalExperts, seed, sequence)
            for depth in range(config.fusion_layers)
        )
        self.register_buffer("unit", torch.ones(()), persistent=False)  # has the model's float type

    def initialise(self, seed: int) -> None:
        """Set all parameters from (seed, full parameter name)."""
        for path, module in self.named_modules():
            fill = getattr(module, "fill", None)
            if fill is not None:
                fill(lambda name, path=path: rng.key(seed, "init", draw_name(f"{path}.{name}")))

    def encode(self, batch: Batch, step: int) -> Encoded:
        """One micro-batch through all layers. `step` (0-based optimizer step) keys the draws of training."""
        rows = [batch.rows[name] for name in self.names]
        host_rows = batch.host_rows(self.names)
        tokens, plan = self._embed(batch, rows)
        present = plan.observed[:, :, 0] > 0
        depth = self.config.encoder_layers
        budgets = self._budgets(tokens, plan, rows, batch.sample, present)
        embedded = torch.cat(tokens) if self.keeps_embedded else None

        for j, name in enumerate(self.names):
            layouts = [layout.modality_layout(plan, j, level, rows[j], batch.sample) for level in range(depth + 1)]
            queries = budgets.queries[:, j].index_select(0, rows[j])
            tokens[j] = self.encoders[name](tokens[j], layouts, queries, step)

        joint = layout.cross_modal_layout(plan, depth, rows, batch.sample, host_rows)
        encoded = torch.cat(tokens)
        x = entering = self.modality_embedding(encoded, joint, self._times(joint))
        loads, final = [], joint
        for level, layer in enumerate(self.fusion, start=depth):
            entered, final = final, layout.cross_modal_layout(plan, level + 1, rows, batch.sample, host_rows)
            share = self.unit.new_full(entered.observed.shape, self.config.fusion_beta)
            queries = budget.queries_from_budgets(share, entered.observed).queries
            x, load = layer(x, entered, final, queries, step)
            loads.append(load)

        monitored = Output(observed=present)
        if depth and selects_queries(self.config):
            monitored["budgets"] = budgets.share[:, :, -1].detach()
            monitored["queries"] = budgets.queries[:, :, -1].detach()
        if self.config.moe.experts and loads:
            load = torch.stack(loads)  # int32 [layers, B, M, E]
            monitored["expert_load"], monitored["expert_load_by_sample"] = load.sum(1), load.sum(2, dtype=torch.int32)
        return Encoded(encoded, entering, joint, x, final, present, monitored, plan, embedded)

    def update_balance(self, load: Tensor) -> None:
        """Adjust the experts' selection biases after a step (`moe.balance: bias`).

        load [layers, M, E]: tokens sent to each expert, summed over the ranks and micro-batches of the step.
        """
        for layer, layer_load in zip(self.fusion, load, strict=True):
            if isinstance(layer.feed, MixtureOfExperts):
                layer.feed.update_balance(layer_load.sum(0))

    def _embed(self, batch: Batch, rows: list[Tensor]) -> tuple[list[Tensor], DepthPlan]:
        """Flat tokens of each modality at depth 0, and the masks and counts of all depths."""
        tokens, parts, words, summaries = [], [], [], []
        lead = int(self.config.summary != "none")
        kept = self._kept_words(batch)
        recompute = self.config.activation_checkpointing == "layers"
        prepared: dict[str, Prepared] = {}
        # With checkpoints the recordings are long, so that one call for each modality costs little in comparison.
        if not recompute and self.sequence.size == 1:
            embeddings = cast(dict[str, Embedding], dict(self.embeddings.items()))
            raw = {name: values for name, values in batch.values.items() if name not in batch.symbols}
            prepared = prepare_together(embeddings, raw, batch.recording, self.unit.dtype, kept)
        for name, word in zip(self.names, self.words, strict=True):
            values, symbols = batch.values.get(name), batch.symbols.get(name)
            inputs = values, batch.recording.get(name), self.unit.dtype, symbols, prepared.get(name), kept[name]
            embedded, summary, observed = checkpointed(recompute, self.embeddings[name], *inputs)
            start, steps = self.sequence.slice(name, _steps(batch, name, word))
            count, total = observed.shape[1], -(-steps // word)
            bounds = () if self.sequence.head_exchange is None else self.sequence.head_exchange.word_bounds(name, word)
            cut = total - count if self.sequence.size == 1 else 0
            tokens_of = len(observed), summary.shape[1], count, start // word, lead, total, bounds, cut
            parts.append(ModalityTokens(*tokens_of))
            tokens.append(embedded.flatten(0, 1))
            words.append(observed)
            summaries.append(summary)
        halves = [self.config.downsample] * (self.config.encoder_layers + self.config.fusion_layers)
        entering = EnteringTokens(parts, words, summaries, rows, len(batch))
        return tokens, layout.plan_depths(entering, halves, self.sequence)

    def _kept_words(self, batch: Batch) -> dict[str, int]:
        """How many words of each modality are computed. Ranks that share the time axis compute all of their slices."""
        totals = [-(-_steps(batch, name, word) // word) for name, word in zip(self.names, self.words, strict=True)]
        ends = batch.host_ends(self.names) if self.sequence.size == 1 else None
        if ends is None:
            return dict(zip(self.names, totals, strict=True))
        needed = []
        for name, end, word, total in zip(self.names, ends, self.words, totals, strict=True):
            needed.append(observed_words(end, word if name in batch.values else 1, total))
        rows = [len(batch.rows[name]) for name in self.names]
        return dict(zip(self.names, kept_words(needed, totals, rows), strict=True))

    def _budgets(
        self, tokens: list[Tensor], plan: DepthPlan, rows: list[Tensor], sample: Tensor, present: Tensor
    ) -> Budgets:
        counts = plan.observed[:, :, : self.config.encoder_layers]
        if self.gate is None:
            return budget.fixed_budgets(self.config.beta, present, counts, self.unit.dtype)
        content = None
        if self.config.budget_inputs == "content":
            joint = layout.cross_modal_layout(plan, 0, rows, sample)
            pooled = pool(torch.cat(tokens), joint.flat_mask, joint.cell(), present.numel(), self.sequence)
            content = pooled.view(*present.shape, pooled.shape[1])
        gated: Budgets = self.gate(present, content, counts)
        return gated

    def _times(self, joint: TokenLayout) -> list[Tensor]:
        """Time codes [L_j, d] of the columns that enter the cross-modal layers; zeros for summary tokens."""
        stride = 2**self.config.encoder_layers if self.config.downsample else 1
        codes = []
        for part, word, modality in zip(joint.parts, self.words, self.modalities, strict=True):
            index = (part.words, part.first_word, stride)
            code = self.time.of_words(index, word, modality.rate_hz, self.unit.dtype, self.unit.device)
            codes.append(torch.cat((code.new_zeros(part.summary, code.shape[1]), code)) if part.summary else code)
        return codes


class Maestro(Trunk):
    """The complete model."""

    def __init__(
        self,
        config: ModelConfig,
        modalities: Sequence[Modality],
        outputs: int | HeadShape,
        *,
        seed: int,
        sequence: SequenceContext | None = None,
        experts: ExpertsFactory | None = None,
    ) -> None:
        """A model for `modalities` (in any order) with `outputs` logits, or so many for each part of a window.

        `sequence` and `experts` are given if tokens or experts are spread over ranks. Raises `ConfigError` if values of
        the configuration do not fit each other.
        """
        super().__init__(config, modalities, seed=seed, sequence=sequence, experts=experts)
        shape = HeadShape(outputs) if isinstance(outputs, int) else outputs
        self.part_means: PartMeans | None = None
        width = own_width = config.width
        if shape.steps > 1:
            self.part_means = PartMeans(shape, self.modalities, self.words, self.sequence)
            # The head sees the mean of the sample, and of the part's tokens before and after the layers, which have
            # fewer and fewer tokens; that of a modality sees the modality's mean, and that of the part.
            self.keeps_embedded, width, own_width = True, 3 * config.width, 2 * config.width
        attends = config.pooling == "attention"
        self.pool = AttentionPool(config.width, config.heads, self.sequence) if attends else None
        self._outputs = shape.steps * shape.numbers
        hidden, count = round(config.head_hidden * config.width), shape.numbers
        self.head = DeepHead(width, hidden, count, config.dropout, seed) if hidden else Linear(width, count)
        additive = config.head == "additive"
        self.modality_heads = ModalityHeads(len(modalities), own_width, count) if additive else None
        self.initialise(seed)

    def forward(self, batch: Batch, step: int = 0) -> Output:
        """Logits and values to monitor. `step` (0-based optimizer step) keys the draws of training."""
        found = self.encode(batch, step)
        final, samples = found.final, len(found.present)
        groups = final.flat_mask, final.row(), samples
        pooled = self.pool(found.fused, *groups) if self.pool is not None else pool(found.fused, *groups, self.sequence)
        own = None
        if self.modality_heads is not None:
            cells = found.joint.flat_mask, found.joint.cell(), found.present.numel()
            own = pool(found.encoded, *cells, self.sequence).view(*found.present.shape, found.encoded.shape[1])
        numbers = batch.sample
        if self.part_means is not None:
            pooled, own, numbers = self._of_parts(self.part_means, batch, found, pooled, own)
        inputs = (pooled, numbers, step) if isinstance(self.head, DeepHead) else (pooled,)
        output = Output(logits=self.head(*inputs).view(samples, self._outputs))
        if self.modality_heads is not None:
            output["modality_logits"], summed = self.modality_heads(own, found.present)
            output["logits"] = output["logits"] + summed
        output.update(found.monitored)
        return output

    def _of_parts(
        self, means: PartMeans, batch: Batch, found: Encoded, pooled: Tensor, own: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """What the heads see of each part of a window: [B S, 3 d], [B, M, S, 2 d] for the heads of modalities, and
        numbers int64 [B S] that key the draws of dropout."""
        rows, samples = [batch.rows[name] for name in self.names], len(pooled)
        steps, halves = means.shape.steps, int(self.config.downsample)
        depth = halves * self.config.encoder_layers
        first = torch.cat([levels[0].flatten() for levels in found.plan.masks])
        begin, end = [chain[0] for chain in found.plan.parts], found.final.parts
        assert found.embedded is not None
        local = [
            means(found.embedded, first, begin, 1, rows, samples),
            means(found.fused, found.final.flat_mask, end, 2 ** (depth + halves * len(self.fusion)), rows, samples),
        ]
        seen = torch.cat((pooled[:, None].expand(-1, steps, -1), *local), 2).flatten(0, 1)
        if own is not None:
            count = len(self.names)
            cells = [row * count + j for j, row in enumerate(rows)]
            joint = found.joint
            parts = means(found.encoded, joint.flat_mask, joint.parts, 2**depth, cells, samples * count)
            own = torch.cat(
                (own[:, :, None].expand(-1, -1, steps, -1), parts.view(*own.shape[:2], *parts.shape[1:])), 3
            )
        places = torch.arange(steps, device=batch.sample.device)
        return seen, own, layout.pack_numbers(batch.sample[:, None], places).flatten()


def _steps(batch: Batch, name: str, word: int) -> int:
    """Steps of the windows of a modality on this rank."""
    values = batch.values.get(name)
    return batch.symbols[name].shape[1] * word if values is None else values.shape[1]


def _check(config: ModelConfig, modalities: Sequence[Modality]) -> None:
    if not modalities:
        raise ConfigError("the model needs at least one modality; data.modalities is empty")
    if config.width % config.heads:
        raise ConfigError(f"model.heads {config.heads} does not divide model.width {config.width}")
    if config.moe.experts and config.moe.top_k > config.moe.experts:
        raise ConfigError(f"model.moe.top_k {config.moe.top_k} is more than model.moe.experts {config.moe.experts}")
