"""The page: one HTML file without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from maestro_dist.data.preview.collect import Preview
from maestro_dist.data.preview.draw import GAP, MOST_ROWS, PART, WIDE, WIDTH, Pictures, class_colour, split_colour
from maestro_dist.data.preview.html_text import attribute, counted, duration, legend, number, paragraph, picture, text
from maestro_dist.data.preview.recordings import ShownRecording
from maestro_dist.data.preview.samples import MOST_VARIATES, ShownSample
from maestro_dist.data.preview.tables import balance, coverage, modalities, splits
from maestro_dist.system.figure_labels import one_line, shortened
from maestro_dist.system.redact import redact
from maestro_dist.types import MULTILABEL, label_bits

MOST_BYTES = 5_000_000
_MOST_PICTURE_BYTES = 3_200_000  # before they are written as text, which takes a third more
_MOST_HISTOGRAMS = 60
_MOST_WARNINGS = 100
_MOST_NAMED = 12
_MOST_LABELS = 8

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 0 12px 40px; max-width: 1180px; color: #333; background: #fff;
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6em; margin: .6em 0 .2em; } h2 { font-size: 1.25em; margin: 1.6em 0 .4em; }
h3 { font-size: 1em; margin: 1em 0 .3em; } p { margin: .4em 0; }
dl { display: grid; grid-template-columns: minmax(6em, max-content) 1fr; gap: .15em 1em; margin: .6em 0; }
dt { color: #666; } dd { margin: 0; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .87em; }
th, td { padding: .18em .6em; text-align: right; border-bottom: 1px solid #e6e6e6; overflow-wrap: break-word;
  font-variant-numeric: tabular-nums; max-width: 20em; }
thead th { color: #666; font-weight: normal; vertical-align: bottom; }
th:first-child { text-align: left; font-weight: 600; }
table.heat td { text-align: center; padding: .1em .25em; min-width: 2.2em; border: 1px solid #fff; }
table.heat thead th { writing-mode: vertical-rl; text-align: right; padding: .3em .25em; max-height: 12em; }
table.heat thead th:first-child { writing-mode: horizontal-tb; }
.bar { display: block; width: 120px; height: .55em; background: #eee; } .bar span { display: block; height: 100%; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 14px 16px; }
figure { margin: 0; border-top: 1px solid #e6e6e6; padding-top: .3em; min-width: 0; }
figcaption { font-size: .87em; margin-bottom: .2em; } figcaption b { font-size: 1.05em; }
img { max-width: 100%; height: auto; display: block; } img.wide-picture { min-width: 640px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2em 1em; padding: 0; margin: .4em 0;
  font-size: .87em; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.1em; }
.note { color: #666; font-size: .87em; } .broken { background: #fdecea; padding: .4em .6em; }
.warnings li { margin: .2em 0; }
"""


def render(preview: Preview, url: str) -> bytes:
    """The page as UTF-8, at most `MOST_BYTES`; the same preview gives the same bytes."""
    return _Page(preview).html(url).encode("utf-8", errors="replace")


class _Page:
    """The sections. Pictures are made in the order of the page, as long as there is room."""

    def __init__(self, preview: Preview) -> None:
        self.preview, self.manifest = preview, preview.manifest
        names = [self.manifest.target, *self.manifest.targets]
        self._pictures = Pictures(preview.modalities, list(self.manifest.splits), names)
        self._room, self._left_out = _MOST_PICTURE_BYTES, 0
        self._colours = {name: split_colour(place) for place, name in enumerate(self.manifest.splits)}

    def html(self, url: str) -> str:
        """The whole page."""
        recordings = self._recordings()  # the pictures that say most get room first
        histograms = self._histograms()
        samples = self._samples()
        sections = [
            self._heading(url),
            self._warnings(),
            modalities(self.preview),
            balance(self.preview, self._colours, self._targets()),
            samples,
            recordings,
            histograms,
            coverage(self.preview),
        ]
        title = attribute(f"{self.manifest.name}: preview", 100)
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
            + "".join(sections)
            + "</main>\n</body>\n</html>\n"
        )

    def _drawn(self, draw: Callable[[], bytes], alt: str, width: int = WIDTH) -> str:
        """A picture, or a note where the page has no more room."""
        png = draw() if self._room > 0 else b""
        if not png or len(png) > self._room:
            self._room = 0
            return '<p class="note">Not drawn: the page would become larger than 5 MB.</p>'
        self._room -= len(png)
        return picture(png, alt, width)

    def _heading(self, url: str) -> str:
        manifest, preview = self.manifest, self.preview
        task = manifest.task + (f" of {counted(len(manifest.classes), 'class')}" if manifest.classes else "")
        window = duration(manifest.window_s)
        if manifest.cut is not None:
            cut = manifest.cut
            rule = f", label: {cut.window.label}" if cut.window.label else ""
            by = "as packed" if cut.split.by == "given" else f"by {cut.split.by}"
            window += f", one every {duration(cut.window.every_s)}, cut from recordings{rule}; splits {by}"
        entries = {
            "place": text(redact(url), 300),
            "task": text(task),
            "target": text(manifest.target, 300),
            "window": text(window, 300),
            "size": f"{preview.bytes / 1e6:,.1f} MB",
            "source": paragraph(manifest.source),
            "licence": paragraph(manifest.licence),
            "citation": paragraph(manifest.citation),
        }
        listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>\n" for name, value in entries.items())
        return f"<h1>{text(manifest.name, 200)}</h1>\n<dl>\n{listed}</dl>\n{splits(preview)}"

    def _warnings(self) -> str:
        lines = self.preview.warnings
        if not lines:
            none = "None in the manifest and the indexes. tools/lint_shards.py reads everything."
            return f"<h2>Warnings</h2>\n<p>{none}</p>\n"
        items = "".join(f"<li>{text(redact(line), 600)}</li>\n" for line in lines[:_MOST_WARNINGS])
        more = f"<li>and {len(lines) - _MOST_WARNINGS:,} more</li>\n" if len(lines) > _MOST_WARNINGS else ""
        return f'<h2>Warnings</h2>\n<ul class="warnings">\n{items}{more}</ul>\n'

    def _targets(self) -> str:
        """The histogram of a regression's targets."""
        if self.manifest.task != "regression":
            return ""
        count = len(self.manifest.targets)  # over time each part is one more row
        targets = {
            name: facts.targets.reshape(-1, count) if count else facts.targets.reshape(-1)
            for name, facts in self.preview.facts.items()
            if len(facts.targets)
        }
        if not targets:
            return ""
        names = self.manifest.targets or [self.manifest.target]
        alt = f"Histogram of the target {', '.join(names)}, by split"
        return self._drawn(lambda: self._pictures.targets(targets, names), alt)

    def _legend(self) -> str:
        return legend((self._colours[name], text(name)) for name in self.preview.facts)

    def _label(self, label: float | np.ndarray | None) -> str:
        """A label as plain text."""
        if self.manifest.task == "none":
            return "no label"
        if label is None:
            return "label unknown"
        if isinstance(label, np.ndarray):
            pairs = zip(self.manifest.targets, label.tolist(), strict=True)
            return ", ".join(f"{name} {number:g}" if number == number else f"{name} unknown" for name, number in pairs)
        if self.manifest.task == "regression":
            return f"{label:g}"
        if self.manifest.task == MULTILABEL and label == label:
            has = label_bits(np.array([int(label)]), len(self.manifest.classes))[0]
            return " + ".join(name for name, bit in zip(self.manifest.classes, has, strict=True) if bit) or "no label"
        whole = int(label) if label == label else -1
        return self.manifest.classes[whole] if 0 <= whole < len(self.manifest.classes) else f"class {label:g}"

    def _over_time(self, labels: np.ndarray) -> str:
        """The labels of a sample over time as plain text: of numbers their range, of classes one after the other."""
        manifest, names = self.manifest, self.manifest.targets or [self.manifest.target]
        parts = labels.reshape(manifest.label_steps, -1)
        if manifest.task == "regression":
            known = [(name, own[~np.isnan(own)]) for name, own in zip(names, parts.T, strict=True)]
            ranges = [f"{own.min():g} to {own.max():g}" if len(own) else "unknown" for _, own in known]
            return ", ".join(
                f"{name} {said}" if manifest.targets else said for name, said in zip(names, ranges, strict=True)
            )
        own = parts[:, 0]
        begins = [0, *(np.flatnonzero((own[1:] != own[:-1]) & ~(np.isnan(own[1:]) & np.isnan(own[:-1]))) + 1).tolist()]
        every = manifest.window_s / manifest.label_steps
        said = [f"{'unknown' if np.isnan(own[at]) else self._label(own[at])} from {at * every:g} s" for at in begins]
        return ", ".join(said[:_MOST_LABELS]) + (", ..." if len(said) > _MOST_LABELS else "")

    def _samples(self) -> str:
        shades = legend(((GAP, "nothing observed"), (PART, "some variates or steps missing")))
        parts = [f"<h2>Samples</h2>\n{shades}"]
        if self.manifest.symbols is not None and not self.manifest.symbols.raw:
            return "<h2>Samples</h2>\n<p>The data set holds symbols only, so there are no values to draw.</p>\n"
        for split, samples in self.preview.samples.items():
            total, shards = self.manifest.split(split).samples, len(self.manifest.split(split).shards)
            broken = f", {samples.broken:,} of them broken" if samples.broken else ""
            wanted = min(self.preview.options.samples, total)
            fewer = ", fewer than asked for, because they are long" if len(samples.shown) < wanted else ""
            note = (
                f"{counted(len(samples.shown), 'sample')} at random{fewer}, from {samples.read:,} of {total:,} samples "
                f"that were read, in {samples.shards:,} of {counted(shards, 'shard')}{broken}."
            )
            parts.append(f'<h3>{text(split)}</h3>\n<p class="note">{note}</p>\n')
            parts.append(f'<div class="grid">\n{"".join(self._sample(sample) for sample in samples.shown)}</div>\n')
        return "".join(parts)

    def _sample(self, sample: ShownSample) -> str:
        name = sample.key or f"sample number {sample.number}"
        person = f"person {sample.subject}" if sample.subject else "person unknown"
        if isinstance(sample.label, np.ndarray) and self.manifest.label_steps > 1:
            label = self._over_time(sample.label)
        else:
            label = self._label(sample.label)
        title = f"<b>{text(name)}</b><br>{text(label)}, {text(person)}"
        if sample.start_s is not None:
            of = f" of {text(sample.recording)}" if sample.recording else ""
            title += f", from {sample.start_s:,.6g} s{of}"
        if sample.broken:
            reason = text(redact(sample.broken), 600)
            return f'<figure><figcaption>{title}</figcaption><p class="broken">Broken: {reason}</p></figure>\n'
        body = ""
        if sample.curves:
            alt = f"Sample {name}, {shortened(one_line(label))}, {person}: {_named(sample.curves)} over time"
            body = self._drawn(lambda: self._pictures.sample(sample), alt)
        return f"<figure><figcaption>{title}</figcaption>{body}{_remaining(sample)}</figure>\n"

    def _recordings(self) -> str:
        shown = self.preview.recordings
        if self.manifest.cut is None:
            return ""
        classes = self.manifest.classes
        numbers = sorted({int(n) for r in shown for n in r.facts.intervals[:, 2]}) if classes else []
        known = [n for n in numbers if 0 <= n < self.manifest.label_numbers]
        again = '<p class="note">Colours repeat after 20 classes.</p>\n' if len(known) > 20 else ""
        listed = legend((class_colour(n), text(self._label(n))) for n in known)
        labels = f"<p>Labels:</p>\n{listed}{again}" if known else ""
        body = "".join(self._recording(recording) for recording in shown)
        note = f"{len(shown)} of {counted(self.preview.known_recordings, 'recording')}, at random. Where there are "
        note += "more steps than pixels, a pixel shows the smallest and the largest value in it."
        return (
            f'<h2>Recordings from end to end</h2>\n<p class="note">{note}</p>\n<p>Windows:</p>\n{self._legend()}'
            f"{labels}{body}"
        )

    def _recording(self, recording: ShownRecording) -> str:
        facts, windows = recording.facts, []
        for split, count in recording.counts.items():
            windows.append(f"{counted(count, 'window')} in {text(split)}" if split else f"{count:,} in no split")
        person = f"person {facts.subject}" if facts.subject else "person unknown"
        title = (
            f"<b>{text(facts.key)}</b>: {text(person)}, {duration(facts.length_s)}, {', '.join(windows) or 'no window'}"
        )
        if not np.isnan(facts.whole).all():
            title += f", label {text(self._label(facts.whole))}"
        if recording.broken:
            reason = text(redact(recording.broken), 600)
            return f'<figure><figcaption>{title}</figcaption><p class="broken">Broken: {reason}</p></figure>\n'
        alt = f"Recording {facts.key}, {person}: splits of its windows, labels, {_named(recording.curves)} over time"
        classes = self.manifest.label_numbers
        body = self._drawn(lambda: self._pictures.recording(recording, classes), alt, WIDE)
        cut = [f"{name}: only its first {duration(seconds)}" for name, seconds in recording.cut_short.items()]
        note = f'<p class="note">{text("; ".join(cut), 600)}</p>' if cut else ""
        return f"<figure><figcaption>{title}</figcaption>{body}{_remaining(recording)}{note}</figure>\n"

    def _histograms(self) -> str:
        values = [facts for facts in self.preview.values.values() if facts.samples]
        if not values:
            return ""
        parts = []
        for facts in values[:_MOST_HISTOGRAMS]:
            unit = f" [{text(facts.modality.unit)}]" if facts.modality.unit else ""
            alt = f"Histograms of {facts.modality.name}, by split"
            drawn = self._drawn(lambda facts=facts: self._pictures.histogram(facts), alt)  # type: ignore[misc]
            more = max(0, facts.modality.variates - MOST_VARIATES)
            note = f'<p class="note">and {counted(more, "variate")}</p>' if more else ""
            caption = f"<figcaption><b>{text(facts.modality.name)}</b>{unit}</figcaption>"
            parts.append(f"<figure>{caption}{drawn}{note}</figure>\n")
        more = len(values) - _MOST_HISTOGRAMS
        note = f'<p class="note">and {counted(more, "modality")}</p>\n' if more > 0 else ""
        about = "Of the samples that were read; each split adds up to 100 %. "
        about += "&ldquo;Beyond&rdquo; is the share of values outside the axis."
        return (
            f'<h2>Values</h2>\n<p class="note">{about}</p>\n{self._legend()}'
            f'<div class="grid">\n{"".join(parts)}</div>\n{note}'
        )


def _named(curves: dict[str, Any]) -> str:
    """Some names of modalities."""
    names = list(curves)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _remaining(shown: ShownSample | ShownRecording) -> str:
    """What a picture does not show: modalities without time, and those that are absent or have no row."""
    lines = []
    for name, values in shown.constants.items():
        numbers = ", ".join(number(float(value)) for value in values[:_MOST_NAMED])
        more = f" and {len(values) - _MOST_NAMED:,} more" if len(values) > _MOST_NAMED else ""
        lines.append(f"{text(name)}: {numbers}{more}")
    hidden = list(shown.curves)[MOST_ROWS:]
    if hidden:
        lines.append(f"not drawn: {text(', '.join(hidden), 400)}")
    if shown.absent:
        lines.append(f"absent: {text(', '.join(shown.absent), 400)}")
    return "".join(f'<p class="note">{line}</p>' for line in lines)
