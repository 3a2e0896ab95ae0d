"""Workers, grid of ranks, model, batch and windows that do not fit each other are refused, with what would fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maestro_dist.config.check import check, check_modalities
from maestro_dist.config.load import load_config
from maestro_dist.errors import ConfigError, MeshError
from maestro_dist.types import Modality

SENSORS = [
    Modality("acc", 3, 32.0, 256, mean=(0.0,) * 3, std=(1.0,) * 3),
    Modality("bvp", 1, 64.0, 512, mean=(0.0,), std=(1.0,)),
    Modality("temp", 1, 4.0, 32, mean=(0.0,), std=(1.0,)),
]


def refused(*overrides: str) -> str:
    with pytest.raises(MeshError) as caught:
        check(load_config(None, ["data.url=d", *overrides]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_inline_is_one_process() -> None:
    assert "use run.launcher=ray" in refused("run.launcher=inline", "run.workers=2")


@pytest.mark.parametrize("override", ["model.attention=dense", "model.attention_kernel=fused"])
def test_a_shared_time_axis_wants_sparse_attention_that_can_be_merged(override: str) -> None:
    shared = ["mesh.sequence=2", "run.workers=2"]
    check(load_config(None, ["data.url=d", *shared]))
    said = refused(*shared, override)
    assert said.startswith("mesh.sequence: 2 ranks")
    assert override in said


def test_ranks_that_share_heads_need_as_many_and_a_context_of_all_tokens() -> None:
    shared = ["data.url=d", "mesh.sequence=4", "run.workers=4", "mesh.sequence_method=ulysses"]
    for works in ([], ["model.attention=dense"], ["model.attention_kernel=fused"], ["model.attention_algorithm=plain"]):
        check(load_config(None, [*shared, *works]))
    check(load_config(None, [*shared, "model.attention=dense", "model.attention_algorithm=rows"]))
    for refused, said in (
        (["model.heads=2"], r"model\.heads is 2"),
        (["model.attention_algorithm=rows"], r"model\.attention_algorithm=rows"),
        (["model.attention_algorithm=absorbed"], r"model\.attention_algorithm=absorbed"),
    ):
        with pytest.raises(MeshError, match=r"mesh\.sequence: 4.*" + said):
            check(load_config(None, [*shared, *refused]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run.workers=6", "mesh.expert=4"], ["groups of 4 ranks", "run.workers 6", "use one of [1, 2]"]),
        (["run.workers=6", "mesh.expert=3"], ["3 ranks do not divide the 4 experts", "[1, 2]", "multiple of 3"]),
        (["run.workers=8", "mesh.expert=8"], ["8 ranks do not divide the 4 experts", "[1, 2, 4]"]),
        (["run.workers=2", "mesh.expert=2", "model.moe.experts=0"], ["model.moe.experts 0", "use mesh.expert=1"]),
        (["run.workers=2", "mesh.expert=2", "model.fusion_layers=0"], ["model.fusion_layers 0", "use mesh.expert=1"]),
    ],
)
def test_experts_must_divide_among_ranks_and_ranks_among_groups(overrides: list[str], words: list[str]) -> None:
    said = refused(*overrides)
    assert said.startswith("mesh.expert: ")
    assert all(word in said for word in words), said


def test_every_data_rank_gets_a_sample() -> None:
    overrides = ["run.workers=64", "mesh.sequence=2", "optim.global_batch=24"]
    said = refused(*overrides)
    for word in ("optim.global_batch: 24 samples for 32 data ranks", "optim.global_batch=32", "run.workers=48"):
        assert word in said
    check(load_config(None, ["data.url=d", *overrides, "optim.global_batch=32"]))
    check(load_config(None, ["data.url=d", *overrides, "run.workers=48"]))


@pytest.mark.parametrize(
    ("overrides", "most", "use"),
    [
        (["run.workers=64", "mesh.sequence=32"], 16, 16),  # 64 words in pieces of 2^2
        (["run.workers=48", "mesh.sequence=24"], 16, 16),
        (["run.workers=40", "mesh.sequence=20"], 16, 10),
        (["run.workers=128", "mesh.sequence=128", "model.downsample=false"], 64, 64),
        (["run.workers=8", "mesh.sequence=8", "model.word={acc: 64, bvp: 64, temp: 8}"], 2, 2),
    ],
)
def test_every_sequence_rank_holds_a_word(overrides: list[str], most: int, use: int) -> None:
    config = load_config(None, ["data.url=d", "optim.global_batch=64", *overrides])
    with pytest.raises(
        MeshError, match=rf"longest modality, 'bvp' with 512 steps, has {most} pieces.*={use}, or short"
    ):
        check_modalities(config, SENSORS)
    fits = config.model_copy(update={"mesh": config.mesh.model_copy(update={"sequence": use})})
    check_modalities(fits, SENSORS)


def test_a_rank_that_holds_one_modality_only_is_let_through() -> None:
    config = load_config(None, ["data.url=d", "run.workers=16", "mesh.sequence=16"])
    check_modalities(config, SENSORS)  # temp has one piece, bvp sixteen


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ([], True),
        (["model.summary=none"], True),
        (["model.normalize=window"], True),
        (["model.normalize=window", "model.summary=none"], False),
        (["model.normalize=recording"], False),
    ],
)
def test_statistics_of_the_training_split_are_asked_for_before_a_start(overrides: list[str], needed: bool) -> None:
    config = load_config(None, ["data.url=d", *overrides])
    check_modalities(config, SENSORS)
    without = [*SENSORS[:2], replace(SENSORS[2], mean=(), std=())]
    if not needed:
        check_modalities(config, without)
        return
    with pytest.raises(ConfigError, match=r"none for modality 'temp'.*model.normalize=window model.summary=none"):
        check_modalities(config, without)
