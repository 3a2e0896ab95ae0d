"""The sections about the goal and the method of learning: `task`, `optim`, `missing` and `augment`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from maestro_dist.config.metadata import Location
from maestro_dist.config.sections import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Share


class PretrainConfig(Section):
    """Pre-training without labels (`task.kind: pretrain`): words are hidden, and the model predicts their symbols."""

    word: PositiveInt | dict[str, PositiveInt] | None = None
    """Number of time steps in a hidden word, one number or one for each modality; by default `model.word`, which it
    must divide. Use shorter words if a word of the model is a complete window."""
    mask_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of the words that are hidden. The model sees a hidden word as a gap in the data."""
    span: PositiveInt = 4
    """Number of consecutive words that are hidden together; at most a quarter of a modality's words is used."""
    sensor_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that all words of a modality are hidden and predicted from the other modalities. At least one
    modality always stays visible."""
    predict: PositiveInt = 32
    """Largest number of hidden words that are predicted for each modality of a sample. It limits the cost on long
    recordings."""


class TaskConfig(Section):
    """What is predicted, and the loss."""

    kind: Literal["auto", "classification", "multilabel", "regression", "pretrain"] = "auto"
    """auto: the task that the data set's manifest names; pretrain: predict hidden words, on any data, without
    labels."""
    pretrain: PretrainConfig = PretrainConfig()
    """Hidden words (only with `task.kind: pretrain`)."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the classes in the loss. balanced: inverse class frequency in the complete training split, with mean 1
    over its samples. Use it where rare classes matter as much as frequent ones."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target that is spread evenly over all classes (0.1, say). Use it against overconfident
    predictions."""
    auxiliary: NonNegativeFloat = 0.3
    """Weight of the loss of the modalities' own heads (only with `model.head: additive`). More makes the model depend
    less on single sensors."""
    teachers: Annotated[list[str], Location()] = []
    """Finished runs or exported models (folders or URLs) on the same data, for knowledge distillation: the run
    learns from their mean prediction for each complete training sample. None by default. Three runs with other seeds
    are a start."""
    teacher_share: Share = 1.0
    """Share of the loss that compares with the teachers' predictions; the rest compares with the labels."""


class OptimConfig(Section):
    """Optimizer, schedule and length of training."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer: AdamW, or stochastic gradient descent."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon, added to the denominator."""
    momentum: Share = 0.0
    """Momentum of SGD."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay on matrices (not on biases, norms and embeddings). AdamW decouples it from the gradient, SGD adds it
    to the gradient."""
    epochs: PositiveInt = 10
    """Number of passes over the training split."""
    max_steps: PositiveInt | None = None
    """Stop after this number of optimizer steps, if that comes first; no limit by default."""
    global_batch: PositiveInt = 64
    """Number of samples in an optimizer step, over all ranks."""
    warmup: Share = 0.05
    """Share of the steps during which the learning rate rises to its peak. 0.3 is usual with `schedule: one_cycle`."""
    schedule: Literal["cosine", "constant", "one_cycle"] = "cosine"
    """Learning rate after the warm-up. cosine: falls by half a cosine to `optim.final_lr`; constant: stays at the peak;
    one_cycle: rises by half a cosine from a 25th of the peak, then falls by half a cosine to `optim.final_lr`; the
    momentum does the opposite."""
    final_lr: Share = 0.01
    """Learning rate at the last step, as a share of the peak (cosine and one_cycle)."""
    low_momentum: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    """Momentum (AdamW: first decay rate) at the peak of the learning rate (only one_cycle)."""
    clip: NonNegativeFloat = 1.0
    """Largest global norm of the gradient; larger gradients are scaled down to it. 0 turns clipping off."""
    ema: Annotated[float | None, Field(gt=0.0, lt=1.0)] = None
    """Decay of an exponential moving average of the weights (0.999, say), which validation, test and the exported model
    use. None by default. It takes 4 bytes per parameter; the decay is min(ema, (1 + t) / (10 + t)) at step t."""
    max_skipped: NonNegativeInt = 0
    """Number of steps with a NaN or infinite loss or gradient that all ranks skip before the run stops with an
    error."""


class MissingConfig(Section):
    """Modality dropout: a curriculum that removes modalities from training samples, so that sensors may fail later.

    At least one modality of a sample always stays.
    """

    max_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.4
    """Probability that a modality of a sample is dropped, at the end of the ramp. 0 turns modality dropout off. Set it
    to the missing rate that you expect in use."""
    ramp_start: Share = 0.2
    """Share of the steps before the first modality is dropped."""
    ramp_end: Share = 0.6
    """Share of the steps after which `missing.max_rate` is reached. In between, the probability rises linearly."""
    consistency: NonNegativeFloat = 0.0
    """Weight of a loss that pulls the prediction from the remaining modalities towards the prediction from all. 0 turns
    it off. Each step then takes twice the time, as the model sees each sample twice."""


class AugmentConfig(Section):
    """Data augmentation of training windows, with new draws in each epoch. All kinds are off by default.

    It needs raw windows: data that was packed as symbols alone is refused.
    """

    jitter: NonNegativeFloat = 0.0
    """Standard deviation of added Gaussian noise, in standard deviations of the training split. 0.05 is a start."""
    scaling: NonNegativeFloat = 0.0
    """Standard deviation of a random factor, with mean 1, on each variate's distance from its mean. 0.1 is a start."""
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Largest angle, in degrees, of a random rotation of three axes, in samples that have all three. Use it where
    sensors are worn at varying angles."""
    rotation_groups: list[list[str]] = []
    """Modalities whose axes rotate together, in groups of three axes: [[acc_x, acc_y, acc_z], [gyro]]; [[acc, gyro]]
    rotates both alike. By default each modality with three variates rotates separately."""
    time_warp: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest relative change of speed of a smooth time warp, the same for all modalities of a sample. 0.1 is a
    start."""
    shift: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest shift in time, as a share of the window, the same for all modalities of a sample. Steps without a value
    become missing."""
    time_mask: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Longest span that becomes missing, as a share of the window; drawn separately for each modality."""
    mixup: NonNegativeFloat = 0.0
    """alpha of mixup (0.2, say): each sample is mixed with another of its global batch, values and loss, by a share
    drawn from Beta(alpha, alpha). It reads twice as much data."""
