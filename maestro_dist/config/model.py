"""The `model` section of the configuration.

The defaults work with every data set. For your own data, start from the recipe in `configs/` that is
most similar to it. Symbols (d, H, k, E, alpha, beta, c, L) are as in the paper (https://arxiv.org/abs/2509.25278).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from maestro_dist.config.metadata import DefinesWeights, Execution
from maestro_dist.config.sections import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class StemConfig(Section):
    """A small convolutional network for each modality. It runs on the time steps, before they are cut into words."""

    channels: PositiveInt = 32
    """Channels of each convolution. More channels cost more time and memory."""
    kernel: PositiveInt = 5
    """Length of each convolution, in time steps. It must be odd."""
    layers: PositiveInt = 2
    """Number of convolutions. Each is followed by GELU. More layers see a longer piece of the signal."""
    pool: PositiveInt = 1
    """Number of neighbouring steps that are averaged between two convolutions; 1 averages none. With 2, the next
    convolution sees twice as far at half the cost. It is skipped once the steps of a word cannot be divided by it."""


class MoeConfig(Section):
    """The sparse mixture of experts in the cross-modal layers. The paper uses 4 experts, 1 per token."""

    experts: NonNegativeInt = 4
    """Number of experts E in each cross-modal layer. 0 uses one plain feed-forward network instead."""
    top_k: PositiveInt = 1
    """Number of experts k that each token is sent to. More experts per token cost more time."""
    shared: NonNegativeInt = 0
    """Number of further experts that process every token."""
    hidden: PositiveFloat = 1.0
    """Hidden width of an expert, as a multiple of `model.width`."""
    balance: Literal["none", "bias"] = "none"
    """How the load of the experts is balanced. bias: each expert has a bias that is added to its score when experts are
    selected, and that moves a little against its load after each step. Use it where some experts get no tokens."""
    balance_rate: PositiveFloat = 0.001
    """How far the bias moves in one step (only with `balance: bias`)."""


class ModelConfig(Section):
    """MAESTRO: symbolic tokens, sparse attention with adaptive budgets, cross-modal attention and experts."""

    width: PositiveInt = 64
    """Width d of the tokens. It must be a multiple of `model.heads`."""
    heads: Annotated[PositiveInt, DefinesWeights()] = 8
    """Number of attention heads H. It must divide `model.width`."""
    encoder_layers: NonNegativeInt = 1
    """Number of layers for each modality, before the modalities meet."""
    fusion_layers: NonNegativeInt = 1
    """Number of cross-modal layers. They contain the experts."""
    feedforward: PositiveFloat = 4.0
    """Hidden width of the feed-forward networks, as a multiple of `model.width`."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout probability in attention (after the output projection, and on the attention weights) and in the
    feed-forward networks. Use more for small data sets."""
    attention_dropout: Annotated[float | None, Field(ge=0.0, lt=1.0)] = None
    """Dropout probability on the attention weights; by default `model.dropout`. The fused kernel needs 0."""
    alphabet: Annotated[int, Field(ge=2, le=255), DefinesWeights()] = 20
    """Number of SAX symbols alpha. Symbol 0 is reserved for missing values."""
    word: PositiveInt | dict[str, PositiveInt] = 8
    """Number of time steps in a word; each word becomes one token. Give one number, or one for each modality: {acc: 8,
    temp: 1}. Longer words make shorter sequences."""
    normalize: Annotated[Literal["window", "recording", "dataset"], DefinesWeights()] = "dataset"
    """Mean and standard deviation that normalize the values: of the window, of the recording up to the window's end, or
    of the training split (dataset). Use recording if people or devices differ from each other."""
    embedding: Annotated[Literal["ordinal", "table", "patch"], DefinesWeights()] = "patch"
    """How a word becomes a token. ordinal: from its symbol as a number; table: a learned vector for each symbol; patch:
    this vector plus a projection of the word's values. The paper uses ordinal."""
    stem: Annotated[StemConfig | None, DefinesWeights()] = None
    """Convolutional stem for each modality; none by default. Use it for waveforms whose shape matters."""
    summary: Annotated[Literal["none", "level", "statistics"], DefinesWeights()] = "statistics"
    """One further token for each modality that is present. level: mean and spread of the window; statistics: 18
    features of the window; none: no such token, as in the paper."""
    summary_bands: Annotated[NonNegativeInt, DefinesWeights()] = 0
    """Largest number of frequency bands, of equal width in octaves, whose power, summed over the words, is added to the
    statistics; 0 adds none. Use it where rhythm matters (pulse, breath, gait) and words last several periods of it."""
    summary_bins: NonNegativeInt = 0
    """Number of bins of a piecewise-linear encoding of each statistic, in addition to its value; 0: only the value. Use
    it where single statistics matter and thresholds are likely, as in clinical data."""
    attention: Literal["sparse", "dense"] = "sparse"
    """sparse: full attention for the selected queries only, as in the paper; dense: for all queries. Dense attention
    takes time that grows with the square of the sequence length."""
    attention_algorithm: Literal["auto", "plain", "rows", "absorbed"] = "auto"
    """How sparse attention is computed; all have the same result up to rounding. auto chooses the cheapest by a cost
    model (`model/attention/registry.py`). Set it to compare speeds only."""
    attention_kernel: Literal["auto", "tiles", "fused"] = "auto"
    """Kernel for the selected queries: tiles of this package, or torch's fused kernel. auto uses the fused kernel on a
    GPU if it supports the settings."""
    keep_attention_weights: bool | None = None
    """Whether the attention weights of the selected queries are stored for the backward pass. false computes them
    again: less memory, more time. By default they are stored if they are no larger than two token vectors per
    token."""
    sample_factor: PositiveFloat = 5.0
    """Sampling factor c: queries are selected by their scores on ceil(c ln L) sampled keys. Less is faster and selects
    less exactly."""
    budget: Literal["gate", "reallocate", "fixed"] = "gate"
    """How many queries each modality may select. gate: a learned share of `model.beta`; reallocate: a constant total,
    shared among the modalities that are present; fixed: `model.beta` for each of them."""
    budget_inputs: Literal["presence", "content"] = "presence"
    """What the budget gate sees. presence: which modalities are present; content: their mean token embeddings too."""
    budget_band: NonNegativeFloat = 0.0
    """Number of selected queries over which the gradient of the budget is spread. 0: the last selected query alone gets
    it."""
    beta: PositiveFloat = 5.0
    """Largest budget of a modality: its layers select up to beta ln L of L queries."""
    fusion_beta: PositiveFloat = 5.0
    """Budget of the cross-modal layers: they select fusion_beta ln L of L queries."""
    downsample: Annotated[bool, DefinesWeights()] = True
    """Halve the number of tokens after the attention of each layer, by a convolution and max-pooling. The paper calls
    this distilling."""
    layer_scale: PositiveFloat | None = None
    """Start value of LayerScale, a learned factor on the residual branches; no LayerScale by default. Small values
    (0.1) help deep models to start stably."""
    activation_checkpointing: Annotated[Literal["none", "layers"], Execution()] = "none"
    """layers: store only the inputs of each layer, and compute the rest again in the backward pass. Use it for long
    recordings that do not fit into memory; a step takes longer."""
    tile: Annotated[PositiveInt | None, Execution()] = None
    """Number of tokens that feed-forward networks process at a time; their hidden values are then computed again in the
    backward pass. By default all tokens together. Use it (16384, say) to save memory on long recordings."""
    head: Literal["pooled", "additive"] = "additive"
    """pooled: one prediction head on the pooled tokens, as in the paper. additive: one small linear head for each
    modality is added to it; `task.auxiliary` weights the loss of these heads."""
    pooling: Literal["mean", "attention"] = "mean"
    """How the last tokens are pooled for the head: their mean, or a mean weighted by learned scores in each head."""
    head_hidden: NonNegativeFloat = 0.0
    """Hidden width of the head on the pooled tokens, as a multiple of `model.width`. 0: the head is linear."""
    moe: MoeConfig = MoeConfig()
    """Experts of the cross-modal layers."""

    @property
    def needs_statistics(self) -> bool:
        """Whether the model needs the mean and deviation of the training split, to normalize or for the summary."""
        return self.normalize == "dataset" or (self.summary != "none" and self.normalize == "window")
