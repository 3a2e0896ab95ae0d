"""Packs small data sets, and reads the pages that show them as a browser does."""

from __future__ import annotations

import base64
import io
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from maestro_dist.data.description import Description
from maestro_dist.data.pack import RawSample
from maestro_dist.types import Modality

TOOL = Path(__file__).parents[2] / "tools" / "preview.py"
VOID = {"meta", "img", "br"}
ECG, ACC = Modality("ecg", 1, 16.0, 64, "mV"), Modality("acc", 2, 8.0, 32, "g")
ABOUT = Description(
    name="set",
    licence="CC0",
    citation="A. Author 2026",
    source="a test",
    task="classification",
    classes=("rest", "walk"),
    target="activity",
    window_s=4.0,
    modalities=(ECG, ACC),
)


class Parsed(HTMLParser):
    """What a browser finds: each tag is closed where it should be, and nothing is fetched or run."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.images: list[dict[str, str | None]] = []
        self.feed(page.decode())
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form", "a", "svg"}
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in {"href", "srcset", "action", "data"}
            assert name != "src" or str(value).startswith("data:image/png;base64,")
            assert "url(" not in str(value)
        if tag == "img":
            self.images.append(dict(attrs))
            assert dict(attrs)["alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += "|" if tag in ("td", "th") else " " if tag in ("figcaption", "p", "li", "dd", "dt") else ""

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            assert "url(" not in data
            assert "@import" not in data
        else:
            self.text += data

    def pictures(self) -> list[Image.Image]:
        return [
            Image.open(io.BytesIO(base64.b64decode(str(image["src"]).partition(",")[2]))).convert("RGB")
            for image in self.images
        ]


def samples(count: int = 30) -> list[RawSample]:
    draw, found = np.random.default_rng(0), []
    for number in range(count):
        split = "train" if number < count // 2 else "validation" if number < 3 * count // 4 else "test"
        values = {"ecg": draw.normal(size=(64, 1)), "acc": draw.normal(5, 2, size=(32, 2))}
        values["ecg"][20:40] = np.nan
        who = {"subject": f"{split}-{number % 3}", "recording": f"night-{number}"}
        found.append(RawSample(split, f"w{number}", number % 2, **who, start_s=10.0, duration_s=4.0, values=values))
    return found


def typed(*words: str) -> int:
    return runpy.run_path(str(TOOL))["main"]([str(word) for word in words])


def preview(url: Path | str, *words: str, folder: Path, samples: int = 2) -> Parsed:
    """The page of a data set, with few samples, because pictures take time."""
    out = folder / "page.html"
    assert typed(str(url), "--out", str(out), "--samples", str(samples), *words) == 0
    page = out.read_bytes()
    assert len(page) <= 5_000_000
    return Parsed(page)


def close_to(picture: Image.Image, colour: str) -> np.ndarray:
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return (np.abs(np.asarray(picture).astype(int) - wanted) <= 6).all(axis=2)
