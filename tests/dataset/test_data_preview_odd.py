"""Previews of odd data: hostile names, damage, large sets, extreme values, wrong options."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordings as made
from preview_pages import ABOUT, TOOL, Parsed, preview, samples, typed
from tiny import rewrite

from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import RawRecording, RawSample, pack, pack_recordings
from maestro_dist.data.preview import page as page_module
from maestro_dist.data.preview.draw import axis_range
from maestro_dist.data.preview.html_text import share, text
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality

HOSTILE = (
    "<script>alert('1')</script>",
    "a & b &amp; \"quoted\" 'too' </td></table>",
    "x" * 200,
    "日本語のクラス",
    "עברית \u202e reversed \u202c\u2066",
    r"$\frac{1}{2}$ \alpha_{x}^{ \\ $",
    "--><!-- \\N{BULLET} {0} %s",
    "😀 \N{COMBINING ACUTE ACCENT}",
)


def test_hostile_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    units = [Modality(f"m{n}", 1, 16.0, 64, name[:40]) for n, name in enumerate(HOSTILE)]
    texts = {"licence": "\n".join(HOSTILE), "citation": HOSTILE[0] * 100, "source": HOSTILE[4], "target": HOSTILE[5]}
    about = replace(ABOUT, name=HOSTILE[0] + HOSTILE[3], classes=HOSTILE, modalities=tuple(units), **texts)
    draw, given = np.random.default_rng(0), []
    for number in range(16):
        values = {modality.name: draw.normal(size=(64, 1)) for modality in units}
        who = {"subject": HOSTILE[number % 8][:200], "recording": HOSTILE[number % 8][:200]}
        given.append(RawSample("train", f"k{number}", number % 8, **who, start_s=0.0, duration_s=4.0, values=values))
    pack("set", about, given)
    assert typed("set", "--samples", "3") == 0
    (page,) = tmp_path.glob("preview-*.html")
    assert re.fullmatch(r"preview-[A-Za-z0-9_-]+\.html", page.name)
    content = page.read_bytes()
    found = Parsed(content)
    assert b"<script" not in content
    assert "\u202e" not in found.text
    for name in (*HOSTILE[:2], *HOSTILE[5:7]):
        assert found.text.count(re.sub(r"\s+", " ", name)) >= 2  # as a class, and as a person
    assert "日本語のクラス" in found.text
    assert f"{'x' * 53}\N{HORIZONTAL ELLIPSIS}{'x' * 26}|" in found.text
    assert sum(str(image["alt"]).startswith("Sample k") for image in found.images) == 3


def test_texts_are_only_texts() -> None:
    for given in ("a\0b", "a\x1bb", "a\u202eb", "a\u200bb", "a\ud800b"):
        assert text(given) == "<bdi>ab</bdi>"
    assert text("") == text("\u200b") == "&ndash;"
    assert len(text("&" * 5000)) < 600
    assert [share(x) for x in (0.0, 1e-9, 0.5, 0.99999, 1.0)] == [
        "0&nbsp;%", "&lt;0.1&nbsp;%", "50&nbsp;%", "&gt;99.9&nbsp;%", "100&nbsp;%",
    ]  # fmt: skip


def damaged(folder: Path, shard: int, change: Any) -> str:
    """Change the bytes of a training shard, in place."""
    entry = load_manifest(str(folder)).split("train").shards[shard]
    path = folder / entry.path
    path.write_bytes(change(path.read_bytes()))
    return entry.path


def test_a_broken_shard_is_shown_as_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(tmp_path / "set", ABOUT, samples(), shard_bytes=20_000)
    shards = load_manifest(str(tmp_path / "set")).split("train").shards
    assert len(shards) > 2
    name = damaged(tmp_path / "set", 0, lambda data: data[:-512])
    (tmp_path / "set" / shards[1].index).unlink()
    found = preview(tmp_path / "set", "--split", "train", folder=tmp_path, samples=15)
    lost = shards[0].samples + shards[1].samples
    assert found.text.count("Broken: ") == lost
    assert f"{lost} of them broken" in found.text
    assert found.text.count(f"{name}: ") == shards[0].samples
    assert f"the index of shard {shards[1].path} is missing" in found.text
    for number in range(shards[0].samples):  # the index still has their names
        assert re.search(rf"w{number}(rest|walk), person train-\d Broken: ", found.text)
    for number in range(lost, 15):
        assert re.search(rf"w{number}(rest|walk), person train-\d, from 10 s", found.text)
    assert f", {lost} broken" in capsys.readouterr().out


def test_a_broken_sample_does_not_hide_the_others(tmp_path: Path) -> None:
    pack(tmp_path / "set", ABOUT, samples(12))

    def change(key: str, members: dict[str, bytes]) -> None:
        if key == "w3":
            members["ecg.npy"] = members["ecg.npy"][:-4] + np.float32(np.inf).tobytes()
        if key == "w4":
            members["json"] = b"{}"

    rewrite(str(tmp_path / "set"), change)
    found = preview(tmp_path / "set", folder=tmp_path, samples=6)
    assert found.text.count("Broken: ") == 2
    assert re.search(r"w3.{0,40} Broken: [^:]*sample w3: ecg[^:]* has an infinite value", found.text)
    assert re.search(r"w4.{0,40} Broken: [^:]*sample w4: its json has no label", found.text)
    assert "2 of them broken" in found.text


def test_a_broken_recording(tmp_path: Path) -> None:
    pack_recordings(tmp_path / "set", made.ABOUT, made.recordings(3))
    (shard,) = load_manifest(str(tmp_path / "set")).splits["recordings"].shards
    path = tmp_path / "set" / shard.path
    data = path.read_bytes()
    path.write_bytes(data[:-512])
    found = preview(tmp_path / "set", folder=tmp_path)
    assert len(re.findall(rf"r\d: person p\d, [^|]*? Broken: [^:]*{shard.path}: [\d,]+ bytes", found.text)) == 2
    assert "acc|g|16 Hz" in found.text


def test_an_index_that_points_elsewhere(tmp_path: Path) -> None:
    """The bytes of a shard as the manifest says, but no recording is where its index says."""
    pack_recordings(tmp_path / "set", made.ABOUT, made.recordings(3))
    folder, file = tmp_path / "set", tmp_path / "set" / "manifest.json"
    (shard,) = load_manifest(str(folder)).splits["recordings"].shards
    data = (folder / shard.path).read_bytes()
    at = data.index(b"r1.acc.npy")
    changed = data[:at] + b"r1.abc.npy" + data[at + 10 :]
    (folder / shard.path).write_bytes(changed)
    file.write_text(file.read_text().replace(shard.sha256, hashlib.sha256(changed).hexdigest()))
    found = preview(folder, folder=tmp_path, samples=3)
    assert re.search(r"r1: person p0, [^:|]* Broken: .{0,200}: the index does not point at r1.acc.npy", found.text)
    assert "Recording r0, person p0" in str(found.images)


def test_the_seed_decides(tmp_path: Path) -> None:
    pack(tmp_path / "set", ABOUT, samples(60))
    pages = []
    for seed in (0, 0, 1):
        preview(tmp_path / "set", "--split", "train", "--seed", str(seed), folder=tmp_path)
        pages.append((tmp_path / "page.html").read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_only_some_of_many_samples_are_read(tmp_path: Path) -> None:
    given = [replace(sample, key=f"w{n}", split="train") for n, sample in enumerate(samples(500))]
    pack(tmp_path / "set", ABOUT, given, shard_bytes=60_000)
    shards = len(load_manifest(str(tmp_path / "set")).split("train").shards)
    assert shards > 10
    found = preview(tmp_path / "set", folder=tmp_path)
    read = re.search(rf"from (\d+) of 500 samples that were read, in 6 of {shards} shards", found.text)
    assert read is not None
    assert 50 < int(read[1]) <= 200
    assert "from the indexes of 500 of 500 samples" in found.text


def test_many_people_and_classes(tmp_path: Path) -> None:
    about = replace(ABOUT, classes=tuple(f"c{n}" for n in range(70)))
    given = [replace(s, key=f"w{n}", subject=f"p{n:03d}", label=n % 70) for n, s in enumerate(samples(80))]
    given[75] = replace(given[75], values={"acc": given[75].values["acc"]})
    pack(tmp_path / "set", about, given)
    found = preview(tmp_path / "set", folder=tmp_path, samples=1)
    assert "and 20 people with more observed, 100 % on average" in found.text
    assert "p075|1|100|0|" in found.text  # the worst one is shown
    assert "and 20 rarer classes" in found.text


def test_a_full_page_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "set", ABOUT, samples())
    full = len(preview(tmp_path / "set", folder=tmp_path).images)
    monkeypatch.setattr(page_module, "_MOST_PICTURE_BYTES", 50_000)
    found = preview(tmp_path / "set", folder=tmp_path)
    left_out = found.text.count("Not drawn: the page would become larger than 5 MB.")
    assert 0 < left_out < full
    assert len(found.images) == full - left_out


def test_remote(tmp_path: Path) -> None:
    url = "memory://preview/set"
    pack(url, ABOUT, samples())
    words = [f"data.cache={tmp_path}/cache", "run.storage_patience_s=1"]
    found = preview(url, *words, folder=tmp_path)
    assert len(re.findall(r"w\d+(?:rest|walk), person", found.text)) == 6


def test_symbols_only(tmp_path: Path) -> None:
    pack(tmp_path / "set", ABOUT, samples())
    tool = runpy.run_path(str(TOOL.with_name("pack_dataset.py")))["main"]
    out, source = str(tmp_path / "symbols"), str(tmp_path / "set")
    tool(["packed", "--source", source, "--out", out, "--symbols", "instead", "--word", "4", "--normalize", "dataset"])
    found = preview(out, folder=tmp_path)
    assert "The data set holds symbols only" in found.text
    assert "from the indexes of 30 of 30 samples" in found.text


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--samples", "0"], ConfigError, "--samples 0: 1 to 50"),
        (["--split", "tset"], ConfigError, "no split 'tset' in 'set'; did you mean 'test'?"),
        (["model.layers=3"], ConfigError, "model.layers: a preview has no use for it"),
        (["data.window.length_s=3"], ConfigError, "data.window: the data set holds windows, not recordings"),
        (["data.modalities=[eeg]"], ConfigError, "no modality 'eeg'"),
        (["--out", "none/page.html"], ConfigError, "--out none/page.html: cannot be written"),
        (["--out", "s3://bucket/page.html"], ConfigError, "the page is written to this machine"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pack("set", ABOUT, samples(8))
    with pytest.raises(error, match=re.escape(message)):
        typed("set", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    with pytest.raises(DataError, match="no manifest there"):
        typed("nowhere")


def test_odd_values(tmp_path: Path) -> None:
    draw, given = np.random.default_rng(0), samples(12)
    odd = [
        np.full((64, 1), 7.0),
        np.full((64, 1), 3e38),
        draw.normal(size=(64, 1)) * 1e-38,
        np.arange(64.0)[:, None] % 2,
    ]
    for number, values in enumerate(odd):
        given[number] = replace(given[number], values={"ecg": values})
    pack(tmp_path / "set", ABOUT, given)
    found = preview(tmp_path / "set", folder=tmp_path)
    assert "absent: acc" in found.text
    assert axis_range(np.array([5.0, 5.0])) == (4.5, 5.5)
    low, high = axis_range(np.concatenate([np.zeros(1000), np.ones(1000), [1e9]]))
    assert -0.2 < low < 0
    assert 1 < high < 1.2


def test_an_old_index_has_no_people(tmp_path: Path) -> None:
    """An index of an older version is JSON without targets and subjects; the samples themselves have them."""
    pack(tmp_path / "set", ABOUT, samples(12))
    from maestro_dist.data.shard_index import load_index
    from maestro_dist.data.storage import Storage

    manifest = load_manifest(str(tmp_path / "set"))
    for split in manifest.splits.values():
        for shard in split.shards:
            index = load_index(Storage(str(tmp_path / "set")), shard)
            body = {"format": "maestro_dist/1", "keys": index.keys, "members": index.members}
            body |= {"offsets": index.offsets.tolist(), "sizes": index.sizes.tolist()}
            (tmp_path / "set" / shard.index).write_text(json.dumps(body))
    file = tmp_path / "set" / "manifest.json"
    file.write_text(re.sub(r',\s*"index_sha256":\s*"[0-9a-f]*"', "", file.read_text()))
    found = preview(tmp_path / "set", folder=tmp_path)
    assert re.search(r"w\d+(rest|walk), person train-\d, from 10 s", found.text)
    assert "People have no names" in found.text


def test_one_recording_shorter_than_a_window(tmp_path: Path) -> None:
    values = {"acc": np.ones((3, 3)), "age": [[30]]}
    short = RawRecording("short", values, "walk", subject="p", split="train")
    pack_recordings(tmp_path / "set", made.ABOUT, [short])
    found = preview(tmp_path / "set", folder=tmp_path)
    assert re.search(r"short: person p, 0.1875 s, 1 window in train, label walk", found.text)
