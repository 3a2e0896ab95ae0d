"""The whole configuration, as frozen pydantic models. The docstring under a field is its help text."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from maestro_dist.config.learning import AugmentConfig, MissingConfig, OptimConfig, TaskConfig
from maestro_dist.config.metadata import Execution, Location
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.sections import Count, Positive, Section, Share, Text

_LOG = logging.getLogger(__name__)


class RunConfig(Section):
    """What identifies a run and how its processes are started."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run. The same name and storage continue the same run."""
    storage: Annotated[Text, Location(), Execution()] = "runs"
    """Folder or fsspec URL that holds runs, checkpoints and models. Relative paths start at the current folder."""
    seed: int = 2711
    """Seed of every draw of the run."""
    init_from: Annotated[str | None, Location()] = None
    """Another run, one of its checkpoints, or an exported model (folder or URL), whose weights this run begins with.
    Heads start anew; modalities and symbols must be the same."""
    launcher: Annotated[Literal["ray", "inline"], Execution()] = "ray"
    """ray: Ray Train workers, on a cluster or a local Ray. inline: this process alone, for debuggers and notebooks."""
    workers: Annotated[Positive, Execution()] = 1
    """Number of workers (processes, ranks). World size = mesh.data x mesh.sequence."""
    device: Annotated[Literal["cpu", "cuda"], Execution()] = "cpu"
    """Device of the workers."""
    cpus_per_worker: Annotated[Positive, Execution()] = 1
    """CPU cores that Ray reserves for each worker, and threads that torch uses there."""
    allocator_cache: Annotated[Literal["none", "small", "all"], Execution()] = "small"
    """Freed memory that workers on CPU keep for the next step instead of returning it: faster, the peak higher.
    `small`: arrays up to 32 MiB; `all`: the others too, for long sequences where memory is plenty (half as much again).
    """
    max_failures: Annotated[int, Field(ge=-1), Execution()] = 3
    """How often Ray restarts the workers from the newest checkpoint before the run fails; -1: without limit."""
    timeout_s: Annotated[Positive, Execution()] = 300
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
    path: Annotated[Text, Location()]
    """Folder or archive with the raw files."""
    options: dict[str, str | int | float] = {}
    """Options of the converter, named as those of `tools/pack_dataset.py`."""


class DataConfig(Section):
    """Where the samples come from."""

    url: Annotated[str, Location(), Execution()] = ""
    """Folder or fsspec URL that holds `manifest.json` (for instance s3://bucket/wesad). The only URL a run needs."""
    source: Annotated[SourceConfig | None, Execution()] = None
    """Raw files that are packed to `data.url` first where it holds no manifest; none by default."""
    modalities: list[str] | None = None
    """Modalities to use; by default all of the manifest."""
    train: Text = "train"
    """Split to train on."""
    validation: Text = "validation"
    """Split that chooses the best weights."""
    test: Text = "test"
    """Split of the one final test."""
    label_share: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 1.0
    """Share of the training samples that are trained on (which ones: `run.seed` says; a smaller share is part of a
    larger). Epochs and steps follow; balanced class weights, means and deviations stay those of the whole split."""
    shuffle_shards: Positive = 8
    """Number of shards in the window within which samples are shuffled (shards themselves are shuffled globally)."""
    loader_workers: Annotated[Count, Execution()] = 0
    """Reader processes a rank; 0 reads in a thread of the worker itself."""
    prefetch: Annotated[Positive, Execution()] = 4
    """Micro-batches that a rank's readers prepare ahead, all together; at least one each."""
    cache: Annotated[str | None, Location(), Execution()] = None
    """Local folder for shards of remote data; by default `~/.cache/maestro_dist/shards`, or one of the user below the
    temporary folder where that cannot be written to."""
    verify: Annotated[Literal["size", "sha256"], Execution()] = "sha256"
    """How a shard is checked against the manifest when it is first opened."""
    max_bad_samples: Annotated[Count, Execution()] = 0
    """Bad samples (wrong shape, type or label) of the training split that a run skips and names before it stops:
    different ones, over all ranks, epochs and restarts. A rank knows its own at once; all are counted where metrics are
    summed (every `tracking.every_steps`, at the end of an epoch, before a checkpoint)."""
    timeout_s: Annotated[Positive, Execution()] = 240
    """How long a reader may show no progress, in seconds, until that becomes an error. Never more than
    four fifths of `run.timeout_s` is used: else the other ranks would give up first, without knowing why."""


class EngineConfig(Section):
    """DeepSpeed."""

    zero_stage: Annotated[Literal[1, 2, 3], Execution()] = 1
    """ZeRO stage: shards optimizer state (1), gradients too (2), parameters too (3). 0 is taken as 1."""
    micro_batch: Annotated[Positive | None, Execution()] = None
    """Samples a rank takes at a time; by default its whole share of the global batch (no accumulation)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; parameters and gradients stay fp32."""
    overlap_comm: Annotated[bool, Execution()] = False
    """Overlap gradient reduction with the backward pass."""
    offload: Annotated[Literal["none", "optimizer", "parameters"], Execution()] = "none"
    """What lies in the host's memory instead of the GPU's: the optimizer's state; or the parameters too (ZeRO 3)."""

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _never_zero(cls, stage: Any) -> Any:
        if stage == 0 and not isinstance(stage, bool):
            _LOG.warning("engine.zero_stage: 0 is taken as 1; without ZeRO, DeepSpeed clips gradients by a wrong norm")
            return 1
        return stage


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
    batch: Annotated[Positive, Execution()] = 256
    """Samples a rank takes at a time."""
    predictions: Annotated[bool, Execution()] = True
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

    uri: Annotated[str | None, Location(service=True)] = None
    """Tracking URI; by default SQLite in `run.storage` (or in `runs/` when the storage is remote)."""
    experiment: Text = "maestro_dist"
    """Experiment name."""
    every_steps: Positive = 10
    """Steps between two records of the training metrics, and between progress lines."""


class Config(Section):
    """maestro_dist: train MAESTRO on many unreliable sensors, on a laptop or a cluster."""

    run: RunConfig = RunConfig()
    """The run and its processes."""
    mesh: Annotated[MeshConfig, Execution()] = MeshConfig()
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
    checkpoint: Annotated[CheckpointConfig, Execution()] = CheckpointConfig()
    """Checkpoints."""
    tracking: Annotated[TrackingConfig, Execution()] = TrackingConfig()
    """MLflow."""
