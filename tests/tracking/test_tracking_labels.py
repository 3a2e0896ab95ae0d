"""Names in pictures: shown as they are, told apart, and replaced only where no font has the letters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager

from maestro_dist.system import figure_labels as labels_module
from maestro_dist.system.figure_labels import LabelFonts
from maestro_dist.tracking.best_effort import BestEffort
from maestro_dist.tracking.figures import Story, draw, save

ODD = ["$50_$100", "<$50", "_hidden", r"\frac{a}{b}", "x^2_{3}", "%s {}", "süß", "مشي"]


def labels(*texts: str) -> list[str]:
    return LabelFonts(texts).labels(texts, "class")


def test_names_are_shown_as_they_are() -> None:
    assert labels(*ODD) == ODD


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines\tand  more", "two lines and more"),
        ("\u202eabc\x07", "abc"),
        ("walk \u263a\ufe0f", "walk \u263a"),
        ("a" * 25 + "b" * 175, "a" * 19 + "\u2026" + "b" * 10),
        ("", "class 0"),
        (" \n", "class 0"),
        ("\ud800", "class 0"),
        ("\ue000 private", "private"),
        ("\U00012000", "class 0"),  # cuneiform, which no font of matplotlib has
    ],
)
def test_what_cannot_be_drawn(name: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])  # the fonts of this machine may have everything
    monkeypatch.setattr(labels_module, "_lacks", lambda family, letters: letters & {"\U00012000"})
    labels_module._families.cache_clear()
    assert labels(name) == [shown]
    labels_module._families.cache_clear()


def test_names_that_look_alike_are_numbered() -> None:
    assert labels("same", "other", " same\n") == ["same (0)", "other", "same (2)"]
    long = "x" * 50
    assert labels(long + "a" + long, long + "b" + long)[0].endswith("x (0)")


@pytest.fixture
def runic(tmp_path: Path) -> Iterator[None]:
    """A machine with a font that has one letter more than those of matplotlib."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "sign"])
    builder.setupCharacterMap({0x12000: "sign"})
    pen = TTGlyphPen(None)
    for place, point in enumerate([(0, 0), (500, 0), (500, 700)]):
        (pen.lineTo if place else pen.moveTo)(point)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "sign": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (600, 0), "sign": (600, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "One Sign", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "sign.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(str(tmp_path / "sign.ttf"))
    labels_module._families.cache_clear()
    yield
    font_manager.fontManager.ttflist[:] = before
    labels_module._families.cache_clear()


@pytest.mark.usefixtures("runic")
def test_a_font_that_has_the_letters_is_found() -> None:
    letters = LabelFonts(["\U00012000 a", "\U00012001"])
    assert letters.families == ["DejaVu Sans", "One Sign"]
    assert letters.labels(["\U00012000 a"], "class") == ["\U00012000 a"]
    assert letters.title("\U00012000 \U00012001") == "\U00012000"


def test_pictures_of_odd_names_are_drawn_without_a_warning(tmp_path: Path) -> None:
    odd = [*ODD, "歩く", "\U0001f6b6", "\ud800", "\x00", "W" * 200, "", "\n"]
    steps = np.arange(1, 4)
    story = Story(
        title="$a$ \ud800 " + "T" * 300,
        history={f"budgets/{name}": (steps, steps) for name in odd},
        modalities=odd,
        metric="accuracy",
        label="$x_1$ 歩",
        classes=odd,
        confusion=np.eye(len(odd), dtype=int).tolist(),
    )
    effort = BestEffort()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = draw(story, effort)
        save({"confusion": figures["confusion"]}, tmp_path, effort)
    assert effort.left_out == {}
    assert set(figures) == {"budgets", "confusion", "overview"}
    shown = [label.get_text() for label in figures["confusion"].axes[0].get_yticklabels()]
    assert shown[: len(ODD)] == ODD
    assert all(not label.get_parse_math() for label in figures["confusion"].axes[0].get_yticklabels())
    rows = story.tables()["confusion"]().splitlines()
    assert rows[1] == "$50_$100,$50_$100,1", "the table has every name as it is"


def test_user_settings_of_matplotlib_do_not_matter(tmp_path: Path) -> None:
    import matplotlib

    steps = np.arange(1, 4)
    story = Story("t", {"train/loss": (steps, 1 / steps)}, ["a"], "accuracy", "accuracy")
    effort = BestEffort()
    with matplotlib.rc_context({"text.usetex": True}):
        save({"loss": draw(replace(story, title="$_"), effort)["loss"]}, tmp_path, effort)
    assert effort.left_out == {}
