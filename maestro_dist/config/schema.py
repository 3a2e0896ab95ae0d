"""The whole configuration, as frozen pydantic models. The docstring under a field is its help text."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_LOG = logging.getLogger(__name__)

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, field docstrings kept as descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class RunConfig(Section):
    """What identifies a run and how its processes are started."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run. The same name and storage continue the same run."""
    storage: str = "runs"
    """Folder or fsspec URL that holds runs, checkpoints and models. Relative paths start at the current folder."""
    seed: int = 2711
    """Seed of every draw of the run."""
    start: str | None = None
    """Another run, one of its checkpoints, or an exported model (folder or URL), whose weights this run begins with.
    Heads start anew; modalities and symbols must be the same."""
    launcher: Literal["ray", "inline"] = "ray"
    """ray: Ray Train workers, on a cluster or a local Ray. inline: this process alone, for debuggers and notebooks."""
    workers: Positive = 1
    """Number of workers (processes, ranks). World size = mesh.data x mesh.sequence."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the workers."""
    cpus_per_worker: Positive = 1
    """CPU cores that Ray reserves for each worker, and threads that torch uses there."""
    keep_memory: Literal["none", "small", "all"] = "small"
    """Freed memory that workers on CPU keep for the next step instead of returning it: faster, the peak higher.
    `small`: arrays up to 32 MiB; `all`: the others too, for long sequences where memory is plenty (half as much again).
    """
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """How often Ray restarts the workers from the newest checkpoint before the run fails; -1: without limit."""
    timeout_s: Positive = 300
    """Time limit of a collective operation, in seconds: a hung worker becomes an error."""


class MeshConfig(Section):
    """The grid of ranks: world = data x sequence; expert groups are cut from the world."""

    data: Positive | None = None
    """Data-parallel ranks; by default world size / sequence."""
    sequence: Positive = 1
    """Ranks that share the time axis of one sample."""
    sequence_method: Literal["sparse", "ulysses"] = "sparse"
    """How they attend. sparse: only what the selected queries need crosses ranks, whatever the length; ulysses: each
    rank gets whole sequences for its share of the heads: dense attention too, but what crosses grows with the length.
    """
    expert: Positive = 1
    """Ranks over which the experts of a layer are spread."""
    expert_movement: Literal["auto", "tokens", "weights"] = "auto"
    """What travels between these ranks: tokens to their experts, or the experts' weights; by default what is less."""


class SourceConfig(Section):
    """Raw files to pack when `data.url` holds no manifest yet."""

    converter: Literal["uci_hapt", "stress_predict", "physionet2012"]
    """Converter that reads the raw files."""
    path: str
    """Folder or archive with the raw files."""
    options: dict[str, str | int | float] = {}
    """Options of the converter, named as those of `tools/pack_dataset.py`."""


class DataConfig(Section):
    """Where the samples come from."""

    url: str = ""
    """Folder or fsspec URL that holds `manifest.json` (for instance s3://bucket/wesad). The only URL a run needs."""
    source: SourceConfig | None = None
    """Raw files that are packed to `data.url` first where it holds no manifest; none by default."""
    modalities: list[str] | None = None
    """Modalities to use; by default all of the manifest."""
    train: str = "train"
    """Split to train on."""
    validation: str = "validation"
    """Split that chooses the best weights."""
    test: str = "test"
    """Split of the one final test."""
    label_share: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 1.0
    """Share of the training samples that are trained on (which ones: `run.seed` says; a smaller share is part of a
    larger). Epochs and steps follow; balanced class weights, means and deviations stay those of the whole split."""
    shuffle_shards: Positive = 8
    """Number of shards in the window within which samples are shuffled (shards themselves are shuffled globally)."""
    loader_workers: Count = 0
    """Reader processes a rank; 0 reads in a thread of the worker itself."""
    prefetch: Positive = 4
    """Micro-batches that a reader prepares ahead."""
    cache: str | None = None
    """Local folder for shards of remote data; by default `~/.cache/maestro_dist/shards`."""
    verify: Literal["size", "sha256"] = "sha256"
    """How a shard is checked against the manifest when it is first opened."""
    max_bad_samples: Count = 0
    """Bad samples (wrong shape, type or label) that are skipped, counted and logged before the run stops."""


class StemConfig(Section):
    """A small convolutional stem inside each modality, before the words."""

    channels: Positive = 32
    """Channels of the stem's convolutions."""
    kernel: Positive = 5
    """Kernel length, in steps (odd)."""
    layers: Positive = 2
    """Convolutions, each followed by GELU."""
    pool: Positive = 1
    """Neighbouring steps that are averaged between two convolutions, as long as what is left of a word can be cut so:
    with 2, a convolution sees twice as far as the one before, at half the cost."""


class MoeConfig(Section):
    """The sparse mixture of experts in the cross-modal layers (the paper: k = 1, E = 4, no balancing loss)."""

    experts: Count = 4
    """Experts E of a layer; 0 puts a plain feed-forward there."""
    top_k: Positive = 1
    """Experts k that a token is sent to."""
    shared: Count = 0
    """Experts that every token is sent to besides."""
    hidden: PositiveFloat = 1.0
    """Hidden width of an expert, as a multiple of the model width."""
    balance: Literal["none", "bias"] = "none"
    """bias: a per-expert bias, for selection only, nudged by the observed load after each step."""
    balance_rate: PositiveFloat = 0.001
    """Size of that nudge."""


class ModelConfig(Section):
    """MAESTRO: symbolic tokens, sparse attention with adaptive budgets, cross-modal sparse attention and experts."""

    width: Positive = 64
    """Model width d."""
    heads: Positive = 8
    """Attention heads H; H divides d."""
    encoder_layers: Count = 1
    """Layers inside each modality."""
    fusion_layers: Count = 1
    """Cross-modal layers."""
    feedforward: PositiveFloat = 4.0
    """Hidden width of a feed-forward, as a multiple of d."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout after the output projection, on the attention of the selected queries and in the feed-forward."""
    attention_dropout: Annotated[float | None, Field(ge=0.0, lt=1.0)] = None
    """Dropout on the attention of the selected queries, where it should differ from `dropout`."""
    alphabet: Annotated[int, Field(ge=2, le=255)] = 20
    """Number of SAX symbols alpha; symbol 0 means missing."""
    word: Positive | dict[str, Positive] = 8
    """Steps a word; one number, or one a modality."""
    normalize: Literal["window", "recording", "dataset"] = "dataset"
    """Whose mean and deviation make z-scores: the window's, the recording's so far, or the training split's."""
    embedding: Literal["ordinal", "table", "patch"] = "patch"
    """ordinal: the symbol as a number; table: a learned row a symbol; patch: table plus the word's own samples."""
    stem: StemConfig | None = None
    """Convolutional stem inside each modality; none by default."""
    summary: Literal["none", "level", "statistics"] = "none"
    """One more token a present modality: window level, or window statistics."""
    summary_bands: Count = 0
    """Bands of the spectrum of a modality's words, of equal width in octaves, whose powers are statistics too; 0: none.
    What rhythm a signal has, pulse and breath among them, shows in words that last some of its periods."""
    summary_pieces: Count = 0
    """Pieces of a piecewise-linear encoding of each of these statistics, beside its value; 0: its value alone."""
    attention: Literal["sparse", "dense"] = "sparse"
    """sparse: full attention for the best queries only; dense: for all."""
    attention_form: Literal["auto", "plain", "rows", "absorbed"] = "auto"
    """How sparse attention is computed, all equal: auto takes the cheapest by a cost model (see `model/cost.py`)."""
    attention_kernel: Literal["auto", "tiles", "fused"] = "auto"
    """Attention of the selected queries: own tiles, or torch's fused kernel (auto: where it can, on a GPU)."""
    keep_scores: bool | None = None
    """Keep the selected queries' probabilities for the backward, or compute them again (less memory, more time); by
    default they are kept where they take no more room than two rows of the model's width a token."""
    sample_factor: PositiveFloat = 5.0
    """c in U = ceil(c ln L), the number of sampled keys."""
    budget: Literal["gate", "reallocate", "fixed"] = "gate"
    """gate: learned per modality; reallocate: a constant total shared among the present; fixed: beta for all."""
    budget_inputs: Literal["presence", "content"] = "presence"
    """What the budget gate sees: which modalities are present, or their mean token embedding too."""
    budget_band: NotNegative = 0.0
    """Selected queries over which the budget's gradient is spread; 0: the boundary query alone."""
    beta: PositiveFloat = 5.0
    """Largest budget u of a modality: up to beta ln L queries."""
    fusion_beta: PositiveFloat = 5.0
    """Fixed budget of the cross-modal layers."""
    distil: bool = True
    """Halve the tokens after each attention (inside each modality's segment)."""
    layer_scale: PositiveFloat | None = None
    """Start value of LayerScale on the residual branches; none by default."""
    checkpoint: Literal["none", "layers"] = "none"
    """layers: keep only what enters the layers, and compute the rest again in the backward: for long recordings."""
    tile: Positive | None = None
    """Tokens at a time in feed-forwards, whose hidden values are then not kept; by default they are. Not in experts."""
    head: Literal["pooled", "additive"] = "additive"
    """pooled: one head on the pooled tokens; additive: plus one small head a modality."""
    pooling: Literal["mean", "attention"] = "mean"
    """How the last tokens become one for that head: their mean, or a mean weighted by learned scores, in each of the
    H slices of the channels by itself."""
    head_hidden: NotNegative = 0.0
    """Hidden width of the head on the pooled tokens, as a multiple of d; 0: none, it is linear."""
    moe: MoeConfig = MoeConfig()
    """Experts of the cross-modal layers."""


class PretrainConfig(Section):
    """Pre-training (`task.kind: pretrain`): words are hidden, and their symbols are told from the rest. No labels."""

    word: Positive | dict[str, Positive] | None = None
    """Steps of a word that is hidden, one number or one a modality; it divides `model.word`, which it is by default.
    Where a word of the model is a whole window, shorter ones leave it something to tell them from."""
    mask_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of the words that are hidden. To the model they are gaps, like those in the data."""
    span: Positive = 4
    """Words that are hidden together; never more than a quarter of a modality's words."""
    sensor_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that all words of a modality are hidden, to be told from the other modalities; never all of them."""
    predict: Positive = 32
    """Most hidden words of a modality and sample that are asked for: what bounds the cost on long recordings."""


class TaskConfig(Section):
    """What is predicted and how it is scored."""

    kind: Literal["auto", "classification", "regression", "pretrain"] = "auto"
    """auto: as the manifest says; pretrain: the symbols of hidden words, on any data, whatever its labels."""
    pretrain: PretrainConfig = PretrainConfig()
    """Hidden words (pretrain only)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: inverse class frequency of the whole training split, normalised to mean 1 over its samples."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target spread over all classes."""
    auxiliary: NotNegative = 0.3
    """Weight of the loss of the modalities' own heads (additive head only)."""
    teachers: list[str] = []
    """Exported models or finished runs on the same data, whose mean answer for each whole training sample this run
    learns from, whatever it sees of the sample itself. None by default. Three, of other seeds: on test people of five
    folds of stress_predict AUROC .813 -> .817, with 40 % of the modalities missing .745 -> .752; on physionet2012's
    set-b .866 -> .864 and .835 -> .841 (on five folds of set-a .850 -> .844 and .822 -> .823, one seed)."""
    teacher_share: Share = 1.0
    """Share of the loss that is against the teachers' answers; the rest is against the labels. .5 on folds of
    stress_predict's training people: AUROC .818 -> .815, 40 % missing .756 -> .752; on five folds of physionet2012's
    set-a .844 -> .848 and .823 -> .823."""


class OptimConfig(Section):
    """Optimizer, schedule and length of training."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """AdamW's decay rates."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    momentum: Share = 0.0
    """SGD's momentum."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay on matrices (not on biases, norms and embeddings)."""
    epochs: Positive = 10
    """Passes over the training split."""
    max_steps: Positive | None = None
    """Stop after this many optimizer steps, if that is sooner."""
    global_batch: Positive = 64
    """Samples an optimizer step, over all ranks."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "constant", "one_cycle"] = "cosine"
    """Shape of the learning rate after the warm-up. one_cycle: half a cosine up from a 25th of the peak over `warmup`
    (.3 is usual), half a cosine down, and the momentum (AdamW: its first decay rate) the other way round."""
    final_lr: Share = 0.01
    """Last learning rate, as a share of the peak (cosine and one_cycle)."""
    low_momentum: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    """Momentum at the peak of the learning rate (one_cycle)."""
    clip: NotNegative = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    ema: Annotated[float | None, Field(gt=0.0, lt=1.0)] = None
    """Decay of a moving average of the weights (.999, say), which validation, test and the exported model then use;
    less in the first steps: (1 + t) / (10 + t). None by default. Takes 4 bytes a parameter."""
    max_skipped: Count = 0
    """Steps with a NaN or infinite loss or gradient that are skipped on all ranks before the run stops."""


class EngineConfig(Section):
    """DeepSpeed."""

    zero_stage: Literal[1, 2, 3] = 1
    """ZeRO stage: shards optimizer state (1), gradients too (2), parameters too (3). 0 is taken as 1."""
    micro_batch: Positive | None = None
    """Samples a rank takes at a time; by default its whole share of the global batch (no accumulation)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; parameters and gradients stay fp32."""
    overlap_comm: bool = False
    """Overlap gradient reduction with the backward pass."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What lies in the host's memory instead of the GPU's: the optimizer's state; or the parameters too (ZeRO 3)."""

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _never_zero(cls, stage: Any) -> Any:
        if stage == 0 and not isinstance(stage, bool):
            _LOG.warning("engine.zero_stage: 0 is taken as 1; without ZeRO, DeepSpeed clips gradients by a wrong norm")
            return 1
        return stage


class MissingConfig(Section):
    """The modality-dropout curriculum (training only; never drops all of a sample)."""

    p_max: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.4
    """Final probability that a modality of a sample is dropped."""
    start: Share = 0.2
    """Share of the steps before the first drop."""
    full: Share = 0.6
    """Share of the steps from which p_max holds."""
    consistency: NotNegative = 0.0
    """Weight of a loss that draws what is predicted from what is left towards what is predicted from all. Once
    something is dropped, each sample is then seen twice in a step, whole and with modalities dropped: twice the work.
    0: only what is left is seen."""


class AugmentConfig(Section):
    """Changes of the training windows, drawn anew in each epoch; all off by default. They need raw windows."""

    jitter: NotNegative = 0.0
    """Gaussian noise: its deviation, in units of the training split's."""
    scaling: NotNegative = 0.0
    """Deviation of a factor, about 1, of each variate's distance from the training split's mean."""
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Largest angle (degrees) of a random rotation of three axes, in the samples that have all three."""
    rotation_groups: list[list[str]] = []
    """Modalities whose axes turn together, in threes: [[acc_x, acc_y, acc_z], [gyro]]; [[acc, gyro]] turns both alike.
    By default each modality of three variates turns by itself."""
    time_warp: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest change of the speed of time, smooth and the same for all modalities of a sample."""
    shift: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest shift in time, as a share of the window, the same for all modalities; what moves in is not observed."""
    time_mask: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Longest span of a window, as a share of it, that is taken as not observed, in each modality by itself."""
    mixup: NotNegative = 0.0
    """alpha of mixup: each sample is mixed with another of its global batch, values and loss, by a share drawn from
    Beta(alpha, alpha) (.2, say); a modality that only one of them has is taken as it is. Reads twice as much."""


class EvaluationConfig(Section):
    """Validation, choice of the best weights, and the final test."""

    every_epochs: Positive = 1
    """Epochs between validations; the last epoch always ends with one."""
    metric: Literal["auto", "accuracy", "macro_f1", "auroc", "auprc", "loss", "mae", "rmse", "perplexity"] = "auto"
    """Metric that chooses the best weights; auto: accuracy, MAE for regression, the loss in pre-training."""
    rates: list[Share] = [0.0, 0.4]
    """Missing rates at which validation is scored; the mean over them chooses."""
    test_rates: list[Share] = [0.0, 0.1, 0.2, 0.3, 0.4]
    """Missing rates of the final test and of `evaluate`."""
    draws: list[Count] = [0, 1, 2]
    """Mask draws averaged at each rate of the final test; validation uses the first."""
    batch: Positive = 256
    """Samples a rank takes at a time."""
    predictions: bool = True
    """Keep what the final test answered for each sample, in every scenario, as `predictions.npz` beside the result."""
    patience: Positive | None = None
    """Stop when the metric has not improved for this many validations; never by default."""


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every_steps: Positive | None = None
    """Steps between checkpoints, besides one at each validation; none by default."""
    keep_last: Positive = 2
    """Newest checkpoints kept, besides the best."""


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = None
    """Tracking URI; by default SQLite in `run.storage` (or in `runs/` when the storage is remote)."""
    experiment: str = "maestro_dist"
    """Experiment name."""
    every_steps: Positive = 10
    """Steps between two records of the training metrics, and between progress lines."""


class Config(Section):
    """maestro_dist: train MAESTRO on many unreliable sensors, on a laptop or a cluster."""

    run: RunConfig = RunConfig()
    """The run and its processes."""
    mesh: MeshConfig = MeshConfig()
    """The grid of ranks."""
    data: DataConfig = DataConfig()
    """The samples."""
    model: ModelConfig = ModelConfig()
    """The model."""
    task: TaskConfig = TaskConfig()
    """The task."""
    optim: OptimConfig = OptimConfig()
    """The optimizer and the length of training."""
    engine: EngineConfig = EngineConfig()
    """DeepSpeed."""
    missing: MissingConfig = MissingConfig()
    """The modality-dropout curriculum."""
    augment: AugmentConfig = AugmentConfig()
    """Changes of the training windows."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Validation and test."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
