"""What is learned and how, and what the options were measured to be worth (`config/model.py` says how to read that)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from maestro_dist.config.metadata import Location
from maestro_dist.config.sections import Count, NotNegative, Positive, PositiveFloat, Section, Share


class PretrainConfig(Section):
    """Pre-training (`task.kind: pretrain`): words are hidden, and their symbols are told from the rest. No labels.

    With a tenth of the labels (test, complete; 40 % missing): A, macro-F1 .686 -> .717; .615 -> .654. B (one seed),
    AUROC .793 -> .798; .729 -> .733. C, where the gain changes its sign from seed to seed, AUROC .807 -> .790; .779 ->
    .770. Words and shares were tried on C's validation stays, with one draw of a tenth of the labels: AUROC .759
    without pre-training, .818 with it.
    """

    word: Positive | dict[str, Positive] | None = None
    """Steps of a word that is hidden, one number or one a modality; it divides `model.word`, which it is by default.
    Where a word of the model is a whole window, shorter ones leave it something to tell them from. C, validation: 12
    hours of 48 .773; 6 hours (and a `sensor_share` of .2) .778."""
    mask_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of the words that are hidden. To the model they are gaps, as in the data. C, validation: .5 .791."""
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
    """balanced: inverse class frequency of the whole training split, normalised to mean 1 over its samples: A -.005,
    -.010; C -.006, -.007."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the target spread over all classes. None in place of .1: A +.000, +.004. .1: C -.003, -.002."""
    auxiliary: NotNegative = 0.3
    """Weight of the loss of the modalities' own heads (additive head only). .3 in place of 1: A -.003, -.008. 1: C
    -.010, -.013."""
    teachers: Annotated[list[str], Location()] = []
    """Exported models or finished runs on the same data, whose mean answer for each whole training sample this run
    learns from, whatever it sees of the sample itself. None by default. Three, of other seeds, on B: AUROC .813 ->
    .817, with 40 % of the modalities missing .745 -> .752 (macro-F1 .698 -> .685, .651 -> .641). Three runs of the
    recipe: C -.006, +.001 (on five folds of C's training people, one seed, .850 -> .844 and .822 -> .823, which is why
    C's recipe does without)."""
    teacher_share: Share = 1.0
    """Share of the loss that is against the teachers' answers; the rest is against the labels. .5: C -.003, +.000."""


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
    """Decoupled weight decay on matrices (not on biases, norms and embeddings). .05 in place of .5: C +.001, -.001."""
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
    (.3 is usual), half a cosine down, and the momentum (AdamW: its first decay rate) the other way round: A +.000,
    +.003; C -.001, -.001."""
    final_lr: Share = 0.01
    """Last learning rate, as a share of the peak (cosine and one_cycle)."""
    low_momentum: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    """Momentum at the peak of the learning rate (one_cycle)."""
    clip: NotNegative = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    ema: Annotated[float | None, Field(gt=0.0, lt=1.0)] = None
    """Decay of a moving average of the weights (.999, say), which validation, test and the exported model then use;
    less in the first steps: (1 + t) / (10 + t). None by default. Takes 4 bytes a parameter. .998: A -.003, -.002; C
    +.000, +.000."""
    max_skipped: Count = 0
    """Steps with a NaN or infinite loss or gradient that are skipped on all ranks before the run stops."""


class MissingConfig(Section):
    """The modality-dropout curriculum (training only; never drops all of a sample)."""

    max_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.4
    """Final probability that a modality of a sample is dropped. None is: A +.004, -.068; C -.007, -.029."""
    ramp_start: Share = 0.2
    """Share of the steps before the first drop. 0, and .1 in place of .6 below: A -.004, -.004; C -.001, +.000."""
    ramp_end: Share = 0.6
    """Share of the steps from which max_rate holds."""
    consistency: NotNegative = 0.0
    """Weight of a loss that draws what is predicted from what is left towards what is predicted from all. Once
    something is dropped, each sample is then seen twice in a step, whole and with modalities dropped: twice the work.
    0: only what is left is seen. .5: A -.001, -.007; C +.001, +.001."""


class AugmentConfig(Section):
    """Changes of the training windows, drawn anew in each epoch; all off by default. They need raw windows."""

    jitter: NotNegative = 0.0
    """Gaussian noise: its deviation, in units of the training split's. .05: A -.107, -.105; C +.001, +.000."""
    scaling: NotNegative = 0.0
    """Deviation of a factor, about 1, of each variate's distance from the training split's mean. .1: A +.006, +.008; C
    +.000, -.002."""
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Largest angle (degrees) of a random rotation of three axes, in the samples that have all three. 15: A +.004,
    +.003."""
    rotation_groups: list[list[str]] = []
    """Modalities whose axes turn together, in threes: [[acc_x, acc_y, acc_z], [gyro]]; [[acc, gyro]] turns both alike.
    By default each modality of three variates turns by itself."""
    time_warp: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest change of the speed of time, smooth and the same for all modalities of a sample. .1: A -.009, -.009; C
    +.000, -.001."""
    shift: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest shift in time, as a share of the window, the same for all modalities; what moves in is not observed. .1:
    A +.002, +.001; C -.001, -.002."""
    time_mask: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Longest span of a window, as a share of it, that is taken as not observed, in each modality by itself. .2: A
    -.001, +.002; C +.001, +.000."""
    mixup: NotNegative = 0.0
    """alpha of mixup: each sample is mixed with another of its global batch, values and loss, by a share drawn from
    Beta(alpha, alpha) (.2, say); a modality that only one of them has is taken as it is. Reads twice as much. .2: A
    +.002, +.001; C -.028, -.029."""
