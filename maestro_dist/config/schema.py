"""The complete configuration, as frozen pydantic models. The docstring under a field is its help text.

A key that changes where or how a run executes, but not its result, is marked `Execution`; a path or URL `Location`.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from maestro_dist.config.callbacks import CallbackConfig
from maestro_dist.config.learning import AugmentConfig, MissingConfig, OptimConfig, TaskConfig
from maestro_dist.config.metadata import Execution, Location
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.sections import (
    MetricOfTarget,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    Text,
)
from maestro_dist.config.windows import SplitConfig, WindowConfig

_LOG = logging.getLogger(__name__)


class RunConfig(Section):
    """Name, storage and processes of a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run. A command with the same name and storage continues the same run."""
    storage: Annotated[Text, Location(), Execution()] = "runs"
    """Folder or fsspec URL for runs, checkpoints and models. Relative paths start at the current folder."""
    seed: int = 2711
    """Seed of all random draws of the run. The same seed, data and configuration give the same result."""
    init_from: Annotated[str | None, Location()] = None
    """A run, one of its checkpoints, or an exported model (folder or URL), whose weights this run starts with; random
    weights by default. Heads always start with random weights. Modalities and symbols must be the same. Use it after
    pre-training."""
    launcher: Annotated[Literal["ray", "inline"], Execution()] = "ray"
    """ray: workers of Ray Train, on a cluster or a local Ray. inline: this process alone, for debuggers and
    notebooks."""
    workers: Annotated[PositiveInt, Execution()] = 1
    """Number of workers (processes, ranks). It is mesh.data x mesh.sequence."""
    device: Annotated[Literal["cpu", "cuda"], Execution()] = "cpu"
    """Device of the workers."""
    cpus_per_worker: Annotated[PositiveInt, Execution()] = 1
    """Number of CPU cores that Ray reserves for each worker, and of threads that torch uses in it."""
    allocator_cache: Annotated[Literal["none", "small", "all"], Execution()] = "small"
    """Freed memory that a worker on CPU keeps for the next step. none: returns it to the system; small: keeps arrays up
    to 32 MiB; all: keeps all, which is faster on long sequences but needs about half as much memory again."""
    max_failures: Annotated[int, Field(ge=-1), Execution()] = 3
    """How often Ray restarts the workers from the newest checkpoint before the run fails; -1: no limit."""
    timeout_s: Annotated[PositiveInt, Execution()] = 300
    """Time limit of a collective operation, in seconds. A worker that hangs longer ends the run with an error. Raise it
    for large models on slow networks."""
    storage_patience_s: Annotated[PositiveInt, Execution()] = 300
    """How long a failed request to remote storage is repeated before the run fails, in seconds. Raise it to outlive
    longer outages. Where workers wait for one another, at most four fifths of `run.timeout_s` are used."""


class S3Config(Section):
    """How S3 is reached. Keys and secrets come from the environment only."""

    endpoint_url: Text | None = None
    """URL of an S3-compatible server; by default AWS_ENDPOINT_URL, or AWS itself."""
    region: Text | None = None
    """Region of the buckets; by default AWS_DEFAULT_REGION or AWS_REGION, or that of the profile."""
    profile: Text | None = None
    """Profile in the shared files of AWS (`~/.aws`) that has the credentials; by default AWS_PROFILE."""
    anonymous: bool = False
    """Send requests without credentials, for public buckets."""
    client: Literal["s3fs", "obstore"] = "s3fs"
    """Library that sends the requests. obstore moves large objects faster, and has to be installed."""


class MeshConfig(Section):
    """The grid of ranks: world size = data x sequence. Consecutive ranks form the groups that share experts; their size
    divides the world."""

    data: PositiveInt | None = None
    """Number of data-parallel ranks; by default run.workers / mesh.sequence."""
    sequence: PositiveInt = 1
    """Number of ranks that share the time axis of each sample. Use it for recordings too long for one worker."""
    sequence_method: Literal["sparse", "ulysses"] = "sparse"
    """How these ranks attend. sparse: ranks exchange only data for the selected queries, for any length; ulysses:
    each rank gets complete sequences for its share of the heads, so dense attention works, but traffic grows with the
    length."""
    expert: PositiveInt = 1
    """Number of ranks over which the experts of a layer are spread. Use it for many or large experts."""
    expert_movement: Literal["auto", "tokens", "weights"] = "auto"
    """What travels between these ranks. tokens: the tokens go to their experts; weights: the experts' weights go to the
    tokens; auto: the choice with fewer bytes."""


class SourceConfig(Section):
    """Raw files that are packed if `data.url` contains no manifest yet."""

    converter: Text
    """Name of the converter that reads the raw files; `tools/pack_dataset.py --help` lists them."""
    path: Annotated[Text, Location()]
    """Folder or archive with the raw files."""
    options: dict[str, str | int | float] = {}
    """Options of the converter, with the names that `tools/pack_dataset.py` uses."""


class DataSource(Section):
    """One of several data sets that a run trains on."""

    url: Annotated[Text, Location(), Execution()]
    """Folder or fsspec URL that holds its `manifest.json`."""
    weight: PositiveFloat | None = None
    """Its share of the training samples, relative to the other weights; by default its share of all samples."""


class DataConfig(Section):
    """Where the samples come from."""

    url: Annotated[str, Location(), Execution()] = ""
    """Folder or fsspec URL that holds `manifest.json` (s3://bucket/wesad, say). A run needs no other URL."""
    sources: Annotated[list[DataSource], Location()] = []
    """Several data sets to train on together, instead of `data.url`: `[{url: a, weight: 2}, {url: b, weight: 1}]`. They
    have the same task, classes and window; a modality that a data set lacks is absent in its samples. `data.window` and
    `data.split` apply to each. Use it for pre-training on several archives."""
    source: Annotated[SourceConfig | None, Execution()] = None
    """Raw files to pack to `data.url` first, if it contains no manifest; none by default."""
    window: WindowConfig | None = None
    """For a data set of recordings: how they are cut into windows; by default as the data set says."""
    split: SplitConfig | None = None
    """How the data set is divided into train, validation and test; by default as it was packed, and recordings without
    packed splits by subject."""
    modalities: list[str] | None = None
    """Names of the modalities to use; by default all that the manifest has."""
    train: Text = "train"
    """Name of the split to train on."""
    validation: Text = "validation"
    """Name of the split that chooses the best weights."""
    test: Text = "test"
    """Name of the split for the final test."""
    label_share: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 1.0
    """Share of the training samples to train on. `run.seed` chooses them; a smaller share is part of a larger one.
    Class weights, means and deviations still use the complete split. Use it to measure learning from few labels."""
    class_balance: Share = 0.0
    """How far rare classes are sampled more often: a sample of a class with n training samples comes in proportion to
    n^-class_balance. 0: each sample once in an epoch; 1: each class equally often. An epoch stays as long as it is, so
    samples of rare classes come several times and those of frequent ones not in each epoch, but in turn. Of several
    labels the rarest counts. The model then finds rare classes more probable than they are. Only where samples have
    classes, and instead of `task.class_weights`."""
    shuffle_shards: PositiveInt = 8
    """Number of shards whose samples are shuffled together; the order of shards is shuffled over all. A higher
    number shuffles better, but reads from more shards at a time."""
    like_lengths: PositiveInt = 1
    """Make batches of like lengths: the samples of so many global batches are sorted by their length, and the batches
    come in random order. What no sample of a batch has is not computed, so 16 or more save time where recordings are
    shorter than the window. 1: not sorted. For recordings only."""
    lanes: PositiveInt = 64
    """Number of parts into which the order of a data set with more than `data.shuffle_shards` shards is cut. Each node
    reads its share of the parts, so it downloads only its share of the shards. Raise it for more nodes than this."""
    loader_workers: Annotated[NonNegativeInt, Execution()] = 0
    """Number of reader processes for each rank; 0 reads in a thread of the worker. Raise it where training waits for
    data."""
    prefetch: Annotated[PositiveInt, Execution()] = 4
    """Number of micro-batches that the readers of a rank prepare ahead in all; at least one per reader."""
    cache: Annotated[str | None, Location(), Execution()] = None
    """Local folder for shards of remote data; by default `~/.cache/maestro_dist/shards`, or a folder of the user in the
    temporary folder if the first is not writable."""
    cache_gb: Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, Execution()] = None
    """Size of the shard cache in GB (10^9 bytes), for all runs that use its folder: shards that were not used for the
    longest time are removed. By default it grows until the disk is full."""
    read_ahead_mb: Annotated[NonNegativeInt, Execution()] = 1024
    """Megabytes of remote shards that a rank downloads ahead of the training step, several at a time. Raise it to train
    on through longer outages of the storage; 0 downloads shards when their first samples are needed."""
    verify: Annotated[Literal["size", "sha256"], Execution()] = "sha256"
    """How a shard is checked against the manifest when it is first opened: by size, which is fast, or by sha256."""
    max_bad_samples: Annotated[NonNegativeInt, Execution()] = 0
    """Number of bad training samples (wrong shape, type or label) that a run skips and names before it stops. Different
    samples are counted, over all ranks, epochs and restarts. Ranks that share the time axis then read complete windows,
    not only their parts."""
    timeout_s: Annotated[PositiveInt, Execution()] = 240
    """Longest time, in seconds, that a reader may make no progress before the run ends with an error. At most four
    fifths of `run.timeout_s` are used, so that the error names the reader."""


class EngineConfig(Section):
    """DeepSpeed: how a step is computed."""

    zero_stage: Annotated[Literal[1, 2, 3], Execution()] = 1
    """What ZeRO shards over ranks. 1: optimizer state; 2: gradients too; 3: parameters too. 0 is accepted and used
    as 1. Raise it if a rank has too little memory."""
    micro_batch: Annotated[PositiveInt | None, Execution()] = None
    """Number of samples that a rank processes at a time; by default its complete share of the global batch. Lower it to
    save memory: gradients are then accumulated, with the same result up to rounding."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 autocast for GPUs; parameters and gradients stay fp32."""
    overlap_comm: Annotated[bool, Execution()] = False
    """Overlap gradient reduction with the backward pass. Use it with several GPUs."""
    offload: Annotated[Literal["none", "optimizer", "parameters"], Execution()] = "none"
    """What is kept in host memory instead of GPU memory: nothing, the optimizer state, or the parameters too (needs
    ZeRO 3). It saves GPU memory and takes time."""

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _never_zero(cls, stage: Any) -> Any:
        if stage == 0 and not isinstance(stage, bool):
            _LOG.warning("engine.zero_stage: 0 is taken as 1; without ZeRO, DeepSpeed clips gradients by a wrong norm")
            return 1
        return stage


class EvaluationConfig(Section):
    """Validation, choice of the best weights, and the final test."""

    every_epochs: PositiveInt = 1
    """Number of epochs between validations. The last epoch always ends with one."""
    metric: (
        Literal["auto", "accuracy", "macro_f1", "auroc", "auprc", "loss", "mae", "rmse", "perplexity"] | MetricOfTarget
    ) = "auto"
    """Metric that chooses the best weights. auto: accuracy for classification, MAE for regression, the loss in
    pre-training. Of several targets it is the mean over them; where their units differ, loss weighs them alike. That of
    one target is mae.NAME, rmse.NAME or loss.NAME, such as mae.systolic."""
    rates: list[Share] = [0.0, 0.4]
    """Missing rates (shares of the modalities removed) of validation. The mean over them chooses the best weights."""
    test_rates: list[Share] = [0.0, 0.1, 0.2, 0.3, 0.4]
    """Missing rates of the final test and of the `evaluate` command."""
    draws: list[NonNegativeInt] = [0, 1, 2]
    """Numbers of the random masks that are averaged at each rate of the final test. Validation uses the first."""
    batch: Annotated[PositiveInt, Execution()] = 256
    """Number of samples that a rank evaluates at a time. It changes speed and memory only."""
    predictions: Annotated[bool, Execution()] = True
    """Save the predictions of the final test for each sample and missing rate, as `predictions.npz` in the run's
    folder."""
    patience: PositiveInt | None = None
    """Stop early when the metric has not improved for this number of validations; never by default."""


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every_steps: PositiveInt | None = None
    """Number of steps between checkpoints; by default there is one at each validation only. A restart repeats at most
    this number of steps."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints that are kept, besides the best."""


class TrackingConfig(Section):
    """MLflow: where metrics, pictures and models are logged."""

    uri: Annotated[str | None, Location(service=True)] = None
    """MLflow tracking URI; by default an SQLite file in `run.storage` (in `runs/` if the storage is remote)."""
    experiment: Text = "maestro_dist"
    """Name of the MLflow experiment."""
    every_steps: PositiveInt = 10
    """Number of steps between two writes of the training metrics, and between progress lines."""


class Config(Section):
    """maestro_dist: train MAESTRO on many unreliable sensors, on a laptop or a cluster."""

    run: RunConfig = RunConfig()
    """Name, storage and processes of the run."""
    s3: Annotated[S3Config, Execution()] = S3Config()
    """How S3 is reached, if data or runs are there."""
    mesh: Annotated[MeshConfig, Execution()] = MeshConfig()
    """The grid of ranks."""
    data: DataConfig = DataConfig()
    """Where the samples come from."""
    model: ModelConfig = ModelConfig()
    """The model."""
    task: TaskConfig = TaskConfig()
    """What is predicted, and the loss."""
    optim: OptimConfig = OptimConfig()
    """Optimizer, schedule and length of training."""
    engine: EngineConfig = EngineConfig()
    """DeepSpeed: how a step is computed."""
    missing: MissingConfig = MissingConfig()
    """Modality dropout in training."""
    augment: AugmentConfig = AugmentConfig()
    """Data augmentation in training."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Validation and final test."""
    checkpoint: Annotated[CheckpointConfig, Execution()] = CheckpointConfig()
    """When checkpoints are written, and which are kept."""
    tracking: Annotated[TrackingConfig, Execution()] = TrackingConfig()
    """MLflow."""
    callbacks: Annotated[list[CallbackConfig], Execution()] = []
    """Callbacks of your own: `[{class: "package.module:Name", options: {...}, secrets: {url: WEBHOOK_URL}}]`."""
