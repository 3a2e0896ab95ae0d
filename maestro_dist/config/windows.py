"""How recordings are cut into windows, and how a data set is divided into splits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from maestro_dist.config.sections import PositiveFloat, Section, Share

LabelRule = Literal["majority", "mean", "last", "center", "any", "inside"]
MOST_STEPS = 100_000
"""Labels of a window over time."""


class WindowConfig(Section):
    """How recordings are cut into windows. Windows start at the recording's time 0, and then every `stride_s`; a
    recording that is shorter than a window makes one window, with gaps."""

    length_s: PositiveFloat
    """Length of a window, in seconds."""
    stride_s: PositiveFloat | None = None
    """Seconds from the start of a window to that of the next; by default `length_s`, so that windows do not overlap."""
    min_observed: Share = 0.0
    """Share of the steps of a modality that must be observed in a window; else the window does not have the modality. A
    window with none, but for those that are always known, is left out. By default one step is enough."""
    keep_empty: bool = False
    """Keep a window even if no sensor was observed in it, only what is always known, such as the age."""
    min_labelled: Share = 0.5
    """Share of a window that must have a label; else the window is left out. The window of a recording that is shorter
    ends with the recording."""
    label: LabelRule | None = None
    """Label of a window whose label changes. majority: that of most seconds (of equal ones the lowest class); mean: for
    numbers, the mean over time; last, center: the label at the end or in the middle; any: the highest class that
    occurs (an alarm, say); inside: windows start with each label and lie inside it. By default majority for classes,
    and mean for numbers."""

    label_every_s: PositiveFloat | None = None
    """Predict over time: a window has one label for every so many seconds, which divide `length_s`, instead of one
    label. `label` and `min_labelled` then hold for each of these parts. A part without a label takes part neither in
    the loss nor in metrics; a window without any is left out."""

    @property
    def every_s(self) -> float:
        """Seconds from the start of a window to that of the next."""
        return self.length_s if self.stride_s is None else self.stride_s

    @property
    def label_steps(self) -> int:
        """Labels of a window over time; 1: it has one label."""
        return 1 if self.label_every_s is None else round(self.length_s / self.label_every_s)

    @model_validator(mode="after")
    def _whole_parts(self) -> WindowConfig:
        every, steps = self.label_every_s, self.label_steps
        if every is None:
            return self
        if not 2 <= steps <= MOST_STEPS or abs(steps * every - self.length_s) > 1e-6 * self.length_s:
            raise ValueError(
                f"label_every_s: {every:g} s do not divide a window of {self.length_s:g} s into 2 to {MOST_STEPS:,} "
                "equal parts"
            )
        if self.label == "inside":
            raise ValueError("label: a window that lies inside one label has no labels over time (label_every_s)")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `label_every_s` where there is none: earlier runs and data sets keep their fingerprints."""
        body: dict[str, Any] = plain(self)
        if body.get("label_every_s", 0) is None:
            del body["label_every_s"]
        return body


class SplitConfig(Section):
    """How recordings, or packed windows, are divided into train, validation and test. Packed windows are taken from all
    packed splits."""

    by: Literal["given", "subject", "group", "recording", "time"] = "given"
    """What is kept together: all recordings of a subject or of a group (a hospital, say; not stored with packed
    windows), each recording, or (time) parts of each recording, the test last. given: the splits that were packed."""
    folds: Annotated[int, Field(ge=3)] | None = None
    """Number of folds: the test is fold `fold`, the validation the next one. Not for time."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Number of the test fold, from 0."""
    validation: list[str] | Share = 0.15
    """Share of the validation split, or the names of its subjects, groups or recordings. A recording of packed windows
    is named person/recording where several people have one of that name."""
    test: list[str] | Share = 0.15
    """Share of the test split, or the names of its subjects, groups or recordings."""
    seed: int = 0
    """Seed of the random choice of subjects, groups or recordings."""
    allow_shared_people: bool = False
    """Allow a split by recording, group or time, or a given one, that has a person in two splits."""
