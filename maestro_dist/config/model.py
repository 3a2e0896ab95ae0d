"""The model's sections, and what their options were measured to be worth.

`A +.003, -.001` in a docstring is what a change gained or lost on test people of `uci_hapt` (accuracy), all there and
with 40 % of the modalities missing; B is `stress_predict`, C `physionet2012` (AUROC). One seed, changed from the data
set's recipe (on A half as long; budgets and dense attention with words of 4 steps). `RESULTS.md` has the intervals:
where one holds 0, there is no difference to speak of.
Recipes were chosen on validation data, not by these numbers.

Defaults are what paid on all three sets, `summary: statistics` above all, and the method's plain form where they
disagree or no difference was seen. They ask for nothing that only some data have, as `normalize: recording` does, which
pays where people differ. For data of your own start from the nearest recipe.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from maestro_dist.config.metadata import DefinesWeights, Execution
from maestro_dist.config.sections import Count, NotNegative, Positive, PositiveFloat, Section


class StemConfig(Section):
    """A small convolutional stem inside each modality, before the words."""

    channels: Positive = 32
    """Channels of the stem's convolutions."""
    kernel: Positive = 5
    """Kernel length, in steps (odd)."""
    layers: Positive = 2
    """Convolutions, each followed by GELU. Two without pooling, in place of four with 2: A -.003, -.001."""
    pool: Positive = 1
    """Neighbouring steps that are averaged between two convolutions, as long as what is left of a word can be cut so:
    with 2, a convolution sees twice as far as the one before, at half the cost."""


class MoeConfig(Section):
    """The sparse mixture of experts in the cross-modal layers (the paper: k = 1, E = 4, no balancing loss)."""

    experts: Count = 4
    """Experts E of a layer; 0 puts a plain feed-forward there: A +.000, +.001; C -.005, -.005. Eight in place of four:
    A -.001, +.000; C -.002, -.001."""
    top_k: Positive = 1
    """Experts k that a token is sent to. One in place of two: A -.001, +.000; C -.001, -.001."""
    shared: Count = 0
    """Experts that every token is sent to besides. None in place of one: A -.001, +.001; C +.000, -.001."""
    hidden: PositiveFloat = 1.0
    """Hidden width of an expert, as a multiple of the model width."""
    balance: Literal["none", "bias"] = "none"
    """bias: a per-expert bias, for selection only, nudged by the observed load after each step: A +.000, +.001; C
    +.000, -.001."""
    balance_rate: PositiveFloat = 0.001
    """Size of that nudge."""


class ModelConfig(Section):
    """MAESTRO: symbolic tokens, sparse attention with adaptive budgets, cross-modal sparse attention and experts."""

    width: Positive = 64
    """Model width d."""
    heads: Annotated[Positive, DefinesWeights()] = 8
    """Attention heads H; H divides d."""
    encoder_layers: Count = 1
    """Layers inside each modality. None in place of one: A -.003, +.002."""
    fusion_layers: Count = 1
    """Cross-modal layers. None in place of one: A -.004, +.004; C -.006, -.006."""
    feedforward: PositiveFloat = 4.0
    """Hidden width of a feed-forward, as a multiple of d."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout after the output projection, on the attention of the selected queries and in the feed-forward. .1 in
    place of .2: A -.005, -.004. .3 in place of .1: C +.001, -.001."""
    attention_dropout: Annotated[float | None, Field(ge=0.0, lt=1.0)] = None
    """Dropout on the attention of the selected queries, where it should differ from `dropout`."""
    alphabet: Annotated[int, Field(ge=2, le=255), DefinesWeights()] = 20
    """Number of SAX symbols alpha; symbol 0 means missing."""
    word: Positive | dict[str, Positive] = 8
    """Steps a word; one number, or one a modality. 8 or 32 in place of 16 (.16 s, .64 s, .32 s): A -.001, +.005; A
    +.003, +.007. 12 in place of 48 hours: C -.011, -.010."""
    normalize: Annotated[Literal["window", "recording", "dataset"], DefinesWeights()] = "dataset"
    """Whose mean and deviation make z-scores: the window's, the recording's so far, or the training split's. window in
    place of recording: A -.018, -.012, of dataset: C +.000, +.000; dataset in place of recording: A -.046, -.057;
    B -.069, -.056."""
    embedding: Annotated[Literal["ordinal", "table", "patch"], DefinesWeights()] = "patch"
    """ordinal: the symbol as a number; table: a learned row a symbol; patch: table plus the word's own samples. In
    place of patch with a stem: ordinal A +.002, +.008, table A +.003, -.001; without a stem patch A -.004, -.010,
    ordinal A -.004, -.014, table A -.008, -.011. In place of ordinal: table C -.002, -.003, patch C -.003, -.006;
    with a stem C -.003, -.005 and C -.006, -.007. On five folds of C's training people, three seeds: ordinal AUROC
    .851 and .826, patch .850 and .822."""
    stem: Annotated[StemConfig | None, DefinesWeights()] = None
    """Convolutional stem inside each modality; none by default. None in place of one: A -.004, -.010; one of 16
    channels: C +.001, -.001."""
    summary: Annotated[Literal["none", "level", "statistics"], DefinesWeights()] = "statistics"
    """One more token a present modality: window level, or window statistics; none, as published. In place of
    statistics: level A +.000, +.005; C -.034, -.030; none A -.008, -.017; B -.062, -.049; C -.127, -.139."""
    summary_bands: Annotated[Count, DefinesWeights()] = 0
    """Bands of the spectrum of a modality's words, of equal width in octaves, whose powers are statistics too; 0: none.
    What rhythm a signal has, pulse and breath among them, shows in words that last some of its periods. None in place
    of 8: A -.008, -.004, of 24: B -.023, -.022. 8, of hourly means: C -.005, -.003."""
    summary_bins: Count = 0
    """Pieces of a piecewise-linear encoding of each of these statistics, beside its value; 0: its value alone. 16: A
    +.005, +.008. None in place of 8: C -.006, -.008; 16: C -.003, -.003."""
    attention: Literal["sparse", "dense"] = "sparse"
    """sparse: full attention for the best queries only; dense: for all: A +.003, +.001; C +.001, -.001."""
    attention_algorithm: Literal["auto", "plain", "rows", "absorbed"] = "auto"
    """How sparse attention is computed, all equal: auto takes the cheapest by a cost model (see `model/cost.py`)."""
    attention_kernel: Literal["auto", "tiles", "fused"] = "auto"
    """Attention of the selected queries: own tiles, or torch's fused kernel (auto: where it can, on a GPU)."""
    keep_attention_weights: bool | None = None
    """Keep the selected queries' probabilities for the backward, or compute them again (less memory, more time); by
    default they are kept where they take no more room than two rows of the model's width a token."""
    sample_factor: PositiveFloat = 5.0
    """c in U = ceil(c ln L), the number of sampled keys. 5, as published, in place of 3: A -.002, -.001."""
    budget: Literal["gate", "reallocate", "fixed"] = "gate"
    """gate: learned per modality; reallocate: a constant total shared among the present: A +.003, +.005; fixed: beta
    for all: A +.003, +.005."""
    budget_inputs: Literal["presence", "content"] = "presence"
    """What the budget gate sees: which modalities are present, or their mean token embedding too: A -.002, -.005."""
    budget_band: NotNegative = 0.0
    """Selected queries over which the budget's gradient is spread; 0: the boundary query alone."""
    beta: PositiveFloat = 5.0
    """Largest budget u of a modality: up to beta ln L queries."""
    fusion_beta: PositiveFloat = 5.0
    """Fixed budget of the cross-modal layers."""
    downsample: Annotated[bool, DefinesWeights()] = True
    """Halve the tokens after each attention (inside each modality's segment). Not halved: A -.002, +.002."""
    layer_scale: PositiveFloat | None = None
    """Start value of LayerScale on the residual branches; none by default. .1: A -.001, +.006; C -.003, -.004."""
    activation_checkpointing: Annotated[Literal["none", "layers"], Execution()] = "none"
    """layers: keep only what enters the layers, and compute the rest again in the backward: for long recordings."""
    tile: Annotated[Positive | None, Execution()] = None
    """Tokens at a time in feed-forwards, whose hidden values are then not kept; by default they are. Not in experts."""
    head: Literal["pooled", "additive"] = "additive"
    """pooled: one head on the pooled tokens: A -.007, -.012; C -.010, -.011. additive: plus one small head a modality.
    """
    pooling: Literal["mean", "attention"] = "mean"
    """How the last tokens become one for that head: their mean, or a mean weighted by learned scores, in each of the H
    slices of the channels by itself: A +.003, +.003; C -.009, -.011."""
    head_hidden: NotNegative = 0.0
    """Hidden width of the head on the pooled tokens, as a multiple of d; 0: none, it is linear. Linear in place of 2: A
    +.003, +.004, of 4: B -.004, -.003. 4: C -.005, -.006."""
    moe: MoeConfig = MoeConfig()
    """Experts of the cross-modal layers."""

    @property
    def needs_statistics(self) -> bool:
        """Whether the training split's mean and deviation of a variate are needed, to normalise or for a summary."""
        return self.normalize == "dataset" or (self.summary != "none" and self.normalize == "window")
