"""`evaluate` of runs, checkpoints and exported models, on data sets that lack something or do not fit."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import runs
import synthetic as synthetic_data

from maestro_dist.data.pack import RawSample, pack
from maestro_dist.evaluate import main
from maestro_dist.run.summary import commands

SHORT = ["optim.max_steps=2", "evaluation.test_rates=[0]"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, synthetic: str) -> Path:
    """Storage of a short run, in a folder with an awkward name."""
    storage = tmp_path_factory.mktemp("a b='c") / "runs"
    assert runs.train(storage, synthetic, *SHORT) == 0
    return storage


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be damaged."""
    return Path(shutil.copytree(whole / "tiny", tmp_path / "runs" / "tiny"))


@pytest.fixture
def evaluate(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command; returns its exit code and what it printed on stdout and stderr."""

    def call(*arguments: Path | str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([*map(str, arguments), "--threads", "1"])
        printed, said = capfd.readouterr()
        return code, printed, said.strip()

    return call


Evaluate = Callable[..., tuple[int, str, str]]


def packed(folder: Path, change: Callable[[RawSample], RawSample] = lambda sample: sample, **about: Any) -> str:
    """The generated samples of the test split, changed, as a set of that split alone."""
    samples = [change(sample) for sample in synthetic_data.samples() if sample.split == "test"]
    pack(str(folder), replace(synthetic_data.describe(), name="other", **about), samples, splits=("test",))
    return str(folder)


def only(*names: str) -> Callable[[RawSample], RawSample]:
    """Leaves these modalities."""
    return lambda sample: replace(sample, values={n: v for n, v in sample.values.items() if n in names})


def test_run_checkpoint_and_exported_model_give_the_same_table(
    whole: Path, tmp_path: Path, synthetic: str, evaluate: Evaluate
) -> None:
    elsewhere = shutil.copytree(whole / "tiny" / "model", tmp_path / "copied")
    first, *others = (
        evaluate(*target)
        for target in (
            [whole / "tiny"],
            [f"file://{whole}/tiny/"],
            [whole / "tiny" / "config.yaml"],
            [whole / "tiny" / "checkpoints" / "step-000000002"],
            [whole / "tiny" / "model"],
            [elsewhere, "--data", synthetic, "--rates", "0"],
        )
    )
    assert first[0] == 0
    assert "test: 37 samples" in first[1]
    for code, printed, said in others:
        assert (code, said) == (0, "")
        assert printed.splitlines()[1:] == first[1].splitlines()[1:]
    code, _, said = evaluate(elsewhere)
    assert code == 2
    assert said.endswith("an exported model does not name its data; add --data URL (a packed data set)")


def test_the_commands_at_the_end_of_a_run_are_for_a_shell(
    whole: Path, synthetic: str, monkeypatch: pytest.MonkeyPatch, evaluate: Evaluate, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(whole)
    assert runs.train(whole, synthetic, *SHORT) == 0  # it is finished, and tells again
    printed = capfd.readouterr().out
    shown = {line[:13].strip(): line[13:] for line in printed.splitlines()}
    typed = {name: shlex.split(shown[name]) for name in ("open the UI", "resume", "evaluate", "serve")}
    uri = f"sqlite:///{whole}/mlflow.db"
    assert typed["resume"][1:] == ["-m", "maestro_dist.train", "tiny/config.yaml"]
    assert evaluate(*typed["evaluate"][3:])[0] == 0
    assert typed["open the UI"][1:] == ["ui", "--host", "127.0.0.1", "--backend-store-uri", uri]
    path, tracking, _, *serve = typed["serve"]
    assert path == f"PATH={Path(sys.executable).parent}:$PATH"
    assert tracking == f"MLFLOW_TRACKING_URI={uri}"
    assert serve[:3] == ["models", "serve", "-m"]
    assert serve[3] == json.loads((whole / "tiny" / "result.json").read_text())["mlflow_model"]


@pytest.mark.parametrize("url", ["s3://bucket/my runs/it's", "file:///a b/runs;x", "s3://bucket/$HOME"])
def test_urls_are_quoted_too_and_servers_have_a_ui(url: str) -> None:
    found = commands(url, "http://127.0.0.1:5000", None)
    assert shlex.split(found["evaluate"])[3:] == [url]
    assert shlex.split(found["resume"])[3:] == [f"{url}/config.yaml"]
    assert found["open the UI"] == "http://127.0.0.1:5000"
    assert "serve" not in found, "nothing was logged"
    assert shlex.split(commands(url, "postgresql://h/it's", None)["open the UI"])[-1] == "postgresql://h/it's"


def test_a_set_of_one_split_that_lacks_a_modality_and_has_another(
    whole: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    modalities = synthetic_data.MODALITIES
    some = packed(tmp_path / "some", only("acc", "temp"), modalities=(modalities[0], modalities[2]))
    renamed = replace(modalities[1], name="ppg")

    def rename(sample: RawSample) -> RawSample:
        return replace(sample, values={n.replace("bvp", "ppg"): v for n, v in sample.values.items()})

    more = packed(tmp_path / "more", rename, modalities=(modalities[0], renamed, modalities[2]))
    plain = packed(tmp_path / "plain", only("acc", "temp"))
    results = [evaluate(whole / "tiny", "--data", url) for url in (plain, some, more)]
    assert [result[0] for result in results] == [0, 0, 0]
    assert len({result[1] for result in results}) == 1, "what lacks is absent, what is more is not used"
    assert results[1][2] == "note: 'other' has no bvp: absent from all samples"
    assert "note: ppg of 'other' are not among the model's modalities" in results[2][2]


def test_samples_without_anything_known_are_counted(whole: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    url = packed(
        tmp_path / "data",
        lambda sample: only("acc" if sample.key == "test_0000" else "bvp")(sample),
    )
    code, _, said = evaluate(whole / "tiny", "--data", url)
    assert code == 0
    assert "samples of split 'test' have none of the model's modalities" in said
    nothing = packed(tmp_path / "nothing", only())
    code, printed, said = evaluate(whole / "tiny", "--data", nothing)
    assert (code, printed) == (1, "")
    assert "no sample has any of the model's modalities" in said


def test_other_units_and_scales_are_refused_unless_wanted(whole: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    def micro(sample: RawSample) -> RawSample:
        return replace(sample, values={n: v * 1000 if n == "bvp" else v for n, v in sample.values.items()})

    code, printed, said = evaluate(whole / "tiny", "--data", packed(tmp_path / "a", micro))
    assert (code, printed) == (1, "")
    assert said.startswith("error: modality 'bvp' is ")
    acc, bvp, temp = synthetic_data.MODALITIES
    milli = packed(tmp_path / "b", modalities=(acc, replace(bvp, unit="1/1000"), temp))
    code, _, said = evaluate(whole / "tiny", "--data", milli)
    assert code == 1
    assert said.startswith("error: modality 'bvp' is in '1/1000' in 'other', in '1' in training; ")
    code, printed, said = evaluate(whole / "tiny", "--data", milli, "--any-units")
    assert code == 0
    assert said.startswith("warning: modality 'bvp' is in '1/1000'")
    assert "test: 37 samples" in printed


@pytest.mark.parametrize(("factor", "share", "code"), [(1000.0, 1.0, 1), (1e-3, 1.0, 0), (1e6, 0.1, 0), (20.0, 1.0, 0)])
def test_the_evaluated_split_may_differ_from_its_set(
    factor: float, share: float, code: int, whole: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    """The statistics of a data set are those of its training split; a few absurd samples are no other unit."""

    def change(number: int, sample: RawSample) -> RawSample:
        if sample.split != "test" or number % 10 >= 10 * share:
            return sample
        return replace(sample, values={n: v * factor if n == "acc" else v for n, v in sample.values.items()})

    samples = [change(number, sample) for number, sample in enumerate(synthetic_data.samples())]
    pack(str(tmp_path), replace(synthetic_data.describe(), name="other"), samples)
    found, _, said = evaluate(whole / "tiny", "--data", tmp_path)
    assert found == code
    assert ("standard deviations" in said) == (share == 1.0)
    if share == 1.0:
        assert said.startswith(("error: " if code else "warning: ") + "variate 0 of modality 'acc', split 'test'")


def test_another_split_is_named_with_those_there_are(whole: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    samples = [replace(sample, split="new") for sample in synthetic_data.samples() if sample.split == "test"]
    pack(str(tmp_path), replace(synthetic_data.describe(), name="other"), samples, splits=("new",))
    code, _, said = evaluate(whole / "tiny", "--data", tmp_path)
    assert (code, said) == (2, "error: no split 'test' in 'other'; it has new (choose another with --split)")
    assert evaluate(whole / "tiny", "--data", tmp_path, "--split", "new")[0] == 0


def test_what_is_no_run_is_told_with_what_may_be_meant(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate: Evaluate
) -> None:
    monkeypatch.chdir(whole / "tiny")
    assert evaluate("config.yaml")[0] == evaluate(".")[0] == 0
    monkeypatch.chdir(whole.parent)
    for target, said in (
        ("tiny", ""),
        ("tinny", "did you mean runs/tiny?"),
        ("runs/tnyi", "did you mean "),
        ("runs", "it contains the runs tiny: choose one of them"),
        ("runs/tiny/checkpoints/step-000000099", "complete steps: 2"),
        ("nothing/like/it", "nor an exported model (it has no model.json)"),
        ("", "nor an exported model"),
        ("nosuch://bucket/run", "nosuch"),
    ):
        code, _, line = evaluate(target)
        assert (code == 0) == (not said), target
        assert said in line
        assert line.count("\n") == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("config.yaml", "config.yaml is damaged (ScannerError)"),
        ("empty", "config.yaml is damaged (TypeError)"),
        ("no url", "config.yaml is damaged (KeyError)"),
        ("sections", "config.yaml is damaged (TypeError)"),
        ("unknown key", "model.widht: unknown key"),
        ("not begun", "this run ended before training started"),
        ("no checkpoint", "no complete checkpoint yet"),
        ("no manifest", "the run's own copy of its manifest is missing"),
        ("cut manifest", "the run's own copy of its manifest is damaged"),
        ("other model", "does not fit the model in config.yaml"),
        ("cut part", "is damaged"),
        ("other data", "to evaluate on it anyway, name it with --data"),
        (
            "moved data",
            "no manifest there; pack the data set first, or mend data.url (choose another place with --data)",
        ),
    ],
)
def test_a_damaged_run_is_one_line(run: Path, damage: str, said: str, synthetic: str, evaluate: Evaluate) -> None:
    config = run / "config.yaml"
    text, manifest = config.read_text(), run / "data" / "manifest.json"
    changes: dict[str, Callable[[], Any]] = {
        "config.yaml": lambda: config.write_text("a: b: {"),
        "empty": lambda: config.write_text(""),
        "no url": lambda: config.write_text("data: {test: test}\nevaluation: {}\n"),
        "sections": lambda: config.write_text("data: [1]\nevaluation: 3\n"),
        "unknown key": lambda: config.write_text(text.replace("width:", "widht:")),
        "not begun": config.unlink,
        "no checkpoint": lambda: next(run.rglob("checkpoint.json")).unlink(),
        "no manifest": manifest.unlink,
        "cut manifest": lambda: manifest.write_text("{"),
        "other model": lambda: config.write_text(text.replace("width: 16", "width: 32")),
        "cut part": lambda: next(run.rglob("rank-*.safetensors")).write_bytes(b"nothing"),
        "moved data": lambda: config.write_text(text.replace(f"url: {synthetic}", "url: /nowhere")),
        "other data": lambda: manifest.write_text(manifest.read_text().replace("CC0", "CC1")),
    }
    changes[damage]()
    code, printed, line = evaluate(run)
    assert code != 0
    assert printed == ""
    assert said in line
    assert line.count("\n") == 0
    assert evaluate(run / "model", "--data", synthetic)[0] == 0, "the exported model needs none of this"


def test_a_run_that_goes_on_is_evaluated_as_it_is(run: Path, evaluate: Evaluate) -> None:
    (run / "result.json").unlink()
    code, printed, said = evaluate(run)
    assert code == 0
    assert "test: 37 samples" in printed
    assert said == "note: the run has not ended; this is its best checkpoint so far"


def test_results_that_cannot_be_kept_are_printed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate: Evaluate
) -> None:
    for place, why in ((tmp_path, "not writable"), (tmp_path / "none" / "a", "no such folder")):
        code, printed, said = evaluate(whole / "tiny", "--json", place)
        assert (code, printed) == (2, "")
        assert why in said
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    code, printed, said = evaluate(whole / "tiny", "--json", tmp_path / "e.json")
    assert code == 1
    assert "test: 37 samples" in printed
    assert said == f"error: the results were not saved: cannot write --json {tmp_path}/e.json: No space left"
