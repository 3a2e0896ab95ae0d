"""Checkpoint folders written by a real engine in this process, then read, damaged, fenced, filled up and removed."""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maestro_dist.checkpoint import Saver, best, complete_steps, find, full_weights, newest, restore
from maestro_dist.checkpoint.layout import PartName
from maestro_dist.checkpoint.retain import surplus
from maestro_dist.checkpoint.save import take_snapshot
from maestro_dist.config.learning import OptimConfig
from maestro_dist.config.schema import Config, MeshConfig
from maestro_dist.engine.engine import Engine, destroy_process_group, init_process_group
from maestro_dist.engine.partition import buffers, owned_slices
from maestro_dist.errors import CheckpointError, MaestroError, RunError
from maestro_dist.optim import build_optimizer
from maestro_dist.parallel.mesh import Mesh, build_mesh
from maestro_dist.types import Batch, Output

BATCH = Batch(
    {"acc": torch.ones(2, 4)}, {"acc": torch.arange(2)}, torch.ones(2, 1, dtype=torch.bool),
    torch.arange(2), torch.arange(2), global_samples=2,
)  # fmt: skip


class Model(nn.Module):
    def __init__(self, width: int = 6, extra: bool = False) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, width), nn.Linear(width, 2)
        self.register_buffer("selection_bias", torch.zeros(3))
        if extra:
            self.extra = nn.Parameter(torch.zeros(2))

    def forward(self, batch: Batch, step: int = 0) -> Output:
        return Output(logits=self.head(torch.tanh(self.hidden(batch.values["acc"]))))


def make_engine(model: nn.Module | None = None, **optim: Any) -> Engine:
    model, config = model or Model(), Config(optim=OptimConfig(**optim))
    return Engine(model, build_optimizer(model, config.optim), config, build_mesh(MeshConfig(), world=1))


def train(engine: Engine) -> None:
    engine.backward(engine.scale_loss(engine(BATCH)["logits"].pow(2).sum(1), BATCH), True)
    assert engine.step(0.01).applied


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    init_process_group("cpu", 60)
    yield
    destroy_process_group()


@pytest.fixture(scope="module")
def engine(process_group: None) -> Iterator[Engine]:
    made = make_engine()
    train(made)
    yield made
    made.close()


def saver_of(folder: Path, *, attempt: int = 1, keep_last: int = 2, world: int = 1, timeout_s: float = 20) -> Saver:
    saver = Saver(str(folder), Mesh(0, 1, 1), attempt=attempt, keep_last=keep_last, timeout_s=timeout_s)
    saver.mesh = Mesh(0, world, world)
    return saver


def save(saver: Saver, engine: Engine, step: int, **metadata: Any) -> None:
    saver.save(engine, step=step, position=10 * step, epoch=step // 2, metadata=metadata)
    saver.wait()


def record_path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:09d}" / "checkpoint.json"


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_saved_is_found_with_its_metadata(tmp_path: Path, engine: Engine) -> None:
    assert newest(str(tmp_path)) is None
    save(saver_of(tmp_path), engine, 3, best_step=None, score=math.inf, note="é")
    info = newest(str(tmp_path))
    assert info is not None
    assert (info.step, info.position, info.epoch, info.attempt) == (3, 30, 1, 1)
    assert info.metadata == {"best_step": None, "score": math.inf, "note": "é"}
    assert info.record.mesh == {"world": 1, "data": 1, "sequence": 1, "expert": 1}
    assert_equal(full_weights(info), weights(engine))
    suffixes = sorted(path.suffix for path in record_path(tmp_path, 3).parent.iterdir())
    assert suffixes == [".json", ".safetensors"]


def test_a_snapshot_is_a_copy() -> None:
    engine = make_engine()
    train(engine)
    expected = {f"{one.name}/{kind}": t.clone() for one in owned_slices(engine) for kind, t in one.tensors.items()}
    snapshot = take_snapshot(engine, with_buffers=True)
    train(engine)
    buffers(engine)["selection_bias"].fill_(9.0)
    assert_equal(snapshot.tensors, {**expected, "selection_bias/buffer": torch.zeros(3)})
    assert not torch.equal(expected["head.bias/exp_avg"], snapshot_of(engine)["head.bias/exp_avg"])
    engine.close()


def snapshot_of(engine: Engine) -> dict[str, Tensor]:
    return take_snapshot(engine, with_buffers=False).tensors


def test_training_goes_on_while_the_record_waits_for_the_fence(tmp_path: Path) -> None:
    engine, saver = make_engine(), saver_of(tmp_path)
    train(engine)
    before = weights(engine)
    released = threading.Event()
    saver.save(engine, step=1, position=1, epoch=0, metadata={}, fence=lambda: released.wait(20) and None)
    train(engine)
    assert newest(str(tmp_path)) is None
    released.set()
    saver.wait()
    assert_equal(full_weights(find(str(tmp_path), 1)), before)
    engine.close()


@pytest.mark.parametrize("optim", [{}, {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "sgd"}])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_fresh_engine_goes_on_bitwise(tmp_path: Path, optim: dict[str, Any], steps: int) -> None:
    first, second = make_engine(**optim), make_engine(**optim)
    buffers(first)["selection_bias"].fill_(2.0)
    buffers(second)["selection_bias"].fill_(5.0)
    for _ in range(steps):
        train(first)
    save(saver_of(tmp_path), first, steps)
    restore(second, find(str(tmp_path), steps))
    for _ in range(3):
        train(first)
        train(second)
    assert_equal(weights(second), weights(first))
    first.close()
    second.close()


def test_incomplete_and_foreign_folders_do_not_exist(tmp_path: Path, engine: Engine) -> None:
    save(saver_of(tmp_path), engine, 2)
    later = tmp_path / "checkpoints" / "step-000000009"
    later.mkdir()
    part = next(record_path(tmp_path, 2).parent.glob("*.safetensors"))
    (later / part.name).write_bytes(part.read_bytes())
    (tmp_path / "checkpoints" / "notes").mkdir()
    (tmp_path / "checkpoints" / "step-best").mkdir()
    found = newest(str(tmp_path))
    assert found is not None
    assert found.step == 2
    assert complete_steps(str(tmp_path)) == [2]
    with pytest.raises(CheckpointError, match=r"no complete checkpoint of step 9 .* complete steps: 2"):
        find(str(tmp_path), 9)


def flip_a_byte(part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte, "is damaged: its sha256"),
        (lambda part: part.write_bytes(part.read_bytes()[:-8]), "is damaged: "),
        (lambda part: part.unlink(), "is missing from its checkpoint"),
    ],
)
def test_a_damaged_part_is_named(tmp_path: Path, engine: Engine, damage: Any, words: str) -> None:
    save(saver_of(tmp_path), engine, 2)
    part = next(record_path(tmp_path, 2).parent.glob("*.safetensors"))
    damage(part)
    info = find(str(tmp_path), 2)
    for read in (full_weights, lambda info: restore(engine, info)):
        with pytest.raises(CheckpointError) as error:
            read(info)
        assert str(part) in str(error.value)
        assert words in str(error.value)


def edit(record: Path, change: Any) -> None:
    content = json.loads(record.read_text())
    change(content)
    record.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["parts"][0]["slices"].update({"head.bias": [0, 1]}), "elements 1..1 of parameter head.bias"),
        (lambda c: c.update(format="other/9"), "format is 'other/9', expected 'maestro_dist/checkpoint/1'"),
        (lambda c: c["parts"][0].update(file="../../evil.safetensors"), "is damaged: parts.0.file"),
        (lambda c: c.pop("position"), "is damaged: position"),
        (lambda c: c.update(moments=["exp_avg", "exp_avg_sq", "third"]), "cannot read tensor hidden.weight/third"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_hold_together_is_named(tmp_path: Path, engine: Engine, change: Any, words: str) -> None:
    save(saver_of(tmp_path), engine, 2)
    edit(record_path(tmp_path, 2), change)
    with pytest.raises(CheckpointError) as error:
        restore(make_engine(), find(str(tmp_path), 2))
    assert words in str(error.value)
    assert str(record_path(tmp_path, 2).parent) in str(error.value)


@pytest.mark.parametrize(
    ("other", "optim", "words"),
    [
        (Model(width=7), {}, "parameter head.weight has shape [2, 6], in the model it is [2, 7]"),
        (Model(extra=True), {}, "has no parameter extra, which the model has"),
        (Model(), {"optimizer": "sgd"}, "was written with AdamW, this run has SGD"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, engine: Engine, other: Model, optim: Any, words: str) -> None:
    save(saver_of(tmp_path), engine, 2)
    stranger = make_engine(other, **optim)
    before = weights(stranger)
    with pytest.raises(CheckpointError) as error:
        restore(stranger, find(str(tmp_path), 2))
    assert words in str(error.value)
    assert_equal(weights(stranger), before)
    stranger.close()


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


def test_nothing_in_a_checkpoint_folder_is_ever_unpickled(tmp_path: Path, engine: Engine) -> None:
    witness = tmp_path / "executed"
    save(saver_of(tmp_path), engine, 2)
    folder = record_path(tmp_path, 2).parent
    evil = pickle.dumps(Evil(witness))
    torch.save(Evil(witness), folder / "model.pt")
    (folder / "rank-00000.pkl").write_bytes(evil)
    restore(make_engine(), find(str(tmp_path), 2))  # strangers beside the parts are not looked at

    part = next(folder.glob("*.safetensors"))
    for content in (evil, (folder / "model.pt").read_bytes()):
        part.write_bytes(content)  # a pickle under a part's name, with the right size and hash in the record
        import hashlib

        digest = hashlib.sha256(content).hexdigest()
        edit(folder / "checkpoint.json", lambda c: c["parts"][0].update(bytes=len(content), sha256=digest))  # noqa: B023
        for read in (full_weights, lambda info: restore(engine, info)):
            with pytest.raises(CheckpointError, match="is not a safetensors file"):
                read(find(str(tmp_path), 2))
    assert not witness.exists()
    pickle.loads(evil)  # the trap itself works
    assert witness.exists()


def test_the_newest_and_the_best_stay(tmp_path: Path, engine: Engine) -> None:
    saver = saver_of(tmp_path, keep_last=2)
    for step, chosen in ((1, None), (2, 2), (3, 2), (4, 2), (5, 5)):
        save(saver, engine, step, best_step=chosen)
    assert complete_steps(str(tmp_path)) == [4, 5]
    save(saver, engine, 6, best_step=4)
    save(saver, engine, 7, best_step=4)
    assert complete_steps(str(tmp_path)) == [4, 6, 7]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [f"step-{s:09d}" for s in (4, 6, 7)]
    assert best(str(tmp_path)).step == 4


def test_the_best_is_the_newest_before_any_validation(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(CheckpointError, match="no complete checkpoint yet"):
        best(str(tmp_path))
    save(saver_of(tmp_path), engine, 1, best_step=None)
    save(saver_of(tmp_path), engine, 2, best_step=None)
    assert best(str(tmp_path)).step == 2


def test_surplus_is_all_but_the_newest_and_the_best() -> None:
    assert surplus([1, 2, 3, 4, 5], keep_last=2, best=[2]) == [1, 3]
    assert surplus([5, 1], keep_last=3, best=[9]) == []
    assert surplus([], keep_last=1, best=[]) == []


def test_leftovers_of_crashed_saves_go_and_those_to_come_stay(tmp_path: Path, engine: Engine) -> None:
    for step in (1, 9):
        crashed = record_path(tmp_path, step).parent
        crashed.mkdir(parents=True)
        (crashed / PartName(0, 1, 77, 1).file()).write_bytes(b"half")
    save(saver_of(tmp_path, attempt=2), engine, 5)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000000005", "step-000000009"]


def test_a_later_attempt_overwrites_a_crashed_one_and_an_earlier_save(tmp_path: Path, engine: Engine) -> None:
    folder = record_path(tmp_path, 5).parent
    folder.mkdir(parents=True)
    (folder / PartName(0, 1, 77, 5).file()).write_bytes(b"half")
    (folder / PartName(3, 1, 77, 1).file("json")).write_bytes(b"{}")
    newer = folder / PartName(0, 9, 77, 1).file()
    newer.write_bytes(b"a driver that took over is writing")
    saver = saver_of(tmp_path, attempt=2)
    save(saver, engine, 5, turn=1)
    save(saver, engine, 5, turn=2)
    info = find(str(tmp_path), 5)
    assert info.metadata == {"turn": 2}
    assert_equal(full_weights(info), weights(engine))
    # a checkpoint.json beside files of a later driver may be that driver's, so it stays
    assert info.file != "checkpoint.json"
    kept = {"checkpoint.json", info.file, newer.name, info.record.parts[0].file}
    assert {path.name for path in folder.iterdir()} == kept


def test_a_lost_lease_stops_the_record(tmp_path: Path, engine: Engine) -> None:
    def fence() -> None:
        raise RunError("run demo is held by another driver")

    saver = saver_of(tmp_path)
    saver.save(engine, step=1, position=1, epoch=0, metadata={}, fence=fence)
    with pytest.raises(RunError, match="held by another driver"):
        saver.wait()
    assert newest(str(tmp_path)) is None
    save(saver, engine, 2)  # told once, then as new
    assert complete_steps(str(tmp_path)) == [2]


def test_a_rank_that_never_writes_is_named_in_time(tmp_path: Path, engine: Engine) -> None:
    saver = saver_of(tmp_path, world=3, timeout_s=0.3)
    started = time.monotonic()
    saver.save(engine, step=1, position=1, epoch=0, metadata={})
    with pytest.raises(CheckpointError, match=r"step-000000001 is incomplete: no part from rank 1, 2 within 0.3 s"):
        saver.wait()
    assert time.monotonic() - started < 10
    assert newest(str(tmp_path)) is None


def test_a_stale_part_of_another_session_is_not_taken(tmp_path: Path, engine: Engine) -> None:
    saver = saver_of(tmp_path, world=2, timeout_s=0.3)
    folder = record_path(tmp_path, 1).parent
    folder.mkdir(parents=True)
    (folder / PartName(1, 1, 77, 1).file("json")).write_text('{"rank": 1}')  # same attempt, same step, earlier start
    saver.save(engine, step=1, position=1, epoch=0, metadata={})
    with pytest.raises(CheckpointError, match="no part from rank 1"):
        saver.wait()


def test_a_full_disk_surfaces_at_the_next_save_with_the_url(tmp_path: Path) -> None:
    engine, saver = make_engine(Model(width=4000)), saver_of(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the kernel refuses larger files, as a full disk would
    try:
        saver.save(engine, step=1, position=1, epoch=0, metadata={})
        with pytest.raises(MaestroError) as error:
            saver.save(engine, step=2, position=2, epoch=0, metadata={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write" in str(error.value)
    assert str(record_path(tmp_path, 1).parent) in str(error.value)
    assert newest(str(tmp_path)) is None
    save(saver, engine, 3)
    assert complete_steps(str(tmp_path)) == [3]
    engine.close()


def test_a_remote_url_works_alike(engine: Engine) -> None:
    url = "memory://runs/demo"
    saver = Saver(url, Mesh(0, 1, 1), attempt=1, keep_last=1)
    save(saver, engine, 1)
    save(saver, engine, 2)
    assert complete_steps(url) == [2]
    info = newest(url)
    assert info is not None
    assert_equal(full_weights(info), weights(engine))
