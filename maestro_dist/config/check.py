"""Checks across fields, of a run against what it continues, and against its data. No GPU, no network, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from maestro_dist.config.attention import KERNELS, usable_variants
from maestro_dist.config.learning import OptimConfig
from maestro_dist.config.load import flatten
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.places import absolute_path, refuse_credentials, texts
from maestro_dist.config.schema import Config, MeshConfig
from maestro_dist.config.words import check_names, hidden_word_of, word_of
from maestro_dist.errors import ConfigError, MeshError
from maestro_dist.types import Modality

# A resume may change where and how a run executes, never what it computes.
_FREE_SECTIONS = ("mesh.", "tracking.", "checkpoint.", "data.source.")
_FREE_KEYS = frozenset(
    {
        "run.storage", "run.launcher", "run.workers", "run.device", "run.cpus_per_worker", "run.keep_memory",
        "run.max_failures", "run.timeout_s", "data.url", "data.source", "data.loader_workers", "data.prefetch",
        "data.cache", "data.verify", "data.max_bad_samples", "data.timeout_s", "engine.zero_stage",
        "engine.micro_batch", "engine.overlap_comm", "engine.offload",
        "evaluation.batch", "evaluation.predictions", "model.checkpoint", "model.tile",
    }
)  # fmt: skip


def check(config: Config) -> None:
    """Raise `ConfigError` for the first combination of values that cannot work."""
    model, moe = config.model, config.model.moe
    content = config.model_dump()
    refuse_credentials(content)
    for key, text in texts(content):
        if "\0" in text:
            raise ConfigError(f"{key}: {text!r} holds a character that no name of a file has")
    if not config.data.url:
        raise ConfigError("data.url: missing; it names the folder or URL that holds manifest.json")
    if config.tracking.uri is None:
        _check_database(config)
    if model.width % model.heads:
        raise ConfigError(f"model.heads: {model.heads} heads do not divide model.width {model.width}")
    if moe.experts and moe.top_k > moe.experts:
        raise ConfigError(f"model.moe.top_k: {moe.top_k} experts a token, but model.moe.experts is {moe.experts}")
    if moe.balance == "bias" and not (moe.experts and model.fusion_layers):
        raise ConfigError("model.moe.balance: bias, but the model has no experts; use none")
    if model.stem and model.stem.kernel % 2 == 0:
        raise ConfigError(f"model.stem.kernel: {model.stem.kernel} is even; an odd kernel keeps steps aligned")
    if config.missing.full < config.missing.start:
        raise ConfigError(f"missing.full: {config.missing.full} comes before missing.start {config.missing.start}")
    if config.missing.consistency and not config.missing.p_max:
        raise ConfigError(
            "missing.consistency: compares samples with what is left of them when modalities are dropped, but "
            "missing.p_max is 0; set it, or drop the consistency"
        )
    if config.task.teachers and config.augment.mixup:
        raise ConfigError("augment.mixup: mixes samples of which task.teachers have answered each alone; use 0")
    if config.task.kind == "pretrain":
        if config.task.teachers:
            raise ConfigError("task.teachers: answer with labels, which task.kind=pretrain does not look at; use []")
        labelled = {"missing.consistency": config.missing.consistency, "augment.mixup": config.augment.mixup}
        for key, value in labelled.items():
            if value:
                raise ConfigError(f"{key}: {value} needs labels, which task.kind=pretrain does not look at; use 0")
    if config.augment.rotation_groups and not config.augment.rotation:
        raise ConfigError(
            "augment.rotation_groups: given, but augment.rotation is 0 degrees; set it, or drop the groups"
        )
    for key in ("rates", "test_rates", "draws"):
        if not getattr(config.evaluation, key):
            raise ConfigError(f"evaluation.{key}: at least one is needed")
    _check_schedule(config.optim)
    check_mesh(config)
    if config.engine.offload == "parameters" and config.engine.zero_stage < 3:
        raise ConfigError(
            f"engine.offload: parameters, but ZeRO {config.engine.zero_stage} keeps them whole on every rank; use "
            "engine.zero_stage=3, or offload=optimizer"
        )
    if config.engine.micro_batch and config.engine.micro_batch > config.optim.global_batch:
        raise ConfigError(
            f"engine.micro_batch: {config.engine.micro_batch} is more than optim.global_batch "
            f"{config.optim.global_batch}"
        )


def _check_database(config: Config) -> None:
    """By default MLflow's database lies beside the runs; in its URL `?` and `%` do not stand for themselves."""
    storage = config.run.storage
    folder = absolute_path("runs" if "://" in storage else storage, "run.storage")
    if "?" in folder or "%" in folder:
        raise ConfigError(
            f"run.storage: MLflow finds no database in {folder}, because of the ? or % in its name; set tracking.uri, "
            "or choose another folder"
        )


def _check_schedule(optim: OptimConfig) -> None:
    key, high = ("momentum", optim.momentum) if optim.optimizer == "sgd" else ("betas[0]", optim.betas[0])
    if optim.schedule == "one_cycle" and 0.0 < high < optim.low_momentum:
        raise ConfigError(
            f"optim.low_momentum: {optim.low_momentum} is more than optim.{key} {high}, from which one_cycle comes "
            "down to it; use a smaller one"
        )


def _check_sequence(model: ModelConfig, mesh: MeshConfig) -> None:
    ranks = mesh.sequence
    where = f"mesh.sequence: {ranks} ranks share the time axis"
    if mesh.sequence_method == "ulysses":
        if model.heads % ranks:
            raise MeshError(
                f"{where}, but mesh.sequence_method=ulysses gives each the same number of heads, and model.heads is "
                f"{model.heads}; use a divisor of it, or mesh.sequence_method=sparse"
            )
        if not usable_variants(model, sequence_ranks=ranks, exchanges_heads=True):
            raise MeshError(
                f"{where}, but mesh.sequence_method=ulysses exchanges a context of all tokens, which "
                f"model.attention_form={model.attention_form} does not make; use auto or plain"
            )
        return
    if not usable_variants(model, sequence_ranks=ranks, exchanges_heads=False):
        raise MeshError(
            f"{where}, but model.attention={model.attention} needs all of it in one place; use sparse, or "
            "mesh.sequence_method=ulysses"
        )
    kernel = KERNELS.get(model.attention_kernel)
    if kernel and not kernel.shares_sequence:
        raise MeshError(
            f"{where}, but model.attention_kernel={model.attention_kernel} gives nothing to merge; use auto or tiles, "
            "or mesh.sequence_method=ulysses"
        )


def check_mesh(config: Config) -> None:
    """Raise `MeshError` where workers, grid of ranks, model and global batch do not fit each other."""
    model, run, mesh, experts = config.model, config.run, config.mesh, config.model.moe.experts
    if run.launcher == "inline" and run.workers != 1:
        raise MeshError(f"run.workers: {run.workers}, but run.launcher=inline is one process; use run.launcher=ray")
    if mesh.sequence > 1:
        _check_sequence(model, mesh)
    if mesh.expert > 1:
        if not (experts and model.fusion_layers):
            raise MeshError(
                f"mesh.expert: {mesh.expert} ranks, but the model has no experts to spread (model.moe.experts "
                f"{experts}, model.fusion_layers {model.fusion_layers}); use mesh.expert=1"
            )
        fit = [ranks for ranks in range(1, experts + 1) if experts % ranks == 0 and run.workers % ranks == 0]
        if run.workers % mesh.expert:
            raise MeshError(
                f"mesh.expert: groups of {mesh.expert} ranks do not divide run.workers {run.workers}; use one of {fit}"
            )
        if experts % mesh.expert:
            raise MeshError(
                f"mesh.expert: {mesh.expert} ranks do not divide the {experts} experts of model.moe.experts evenly; "
                f"use one of {fit}, or a multiple of {mesh.expert} experts"
            )
    data, batch = run.workers // mesh.sequence, config.optim.global_batch
    if batch < data:
        raise MeshError(
            f"optim.global_batch: {batch} samples for {data} data ranks (run.workers {run.workers} / mesh.sequence "
            f"{mesh.sequence}), so some would never train; use optim.global_batch={data} or more, or run.workers="
            f"{batch * mesh.sequence} or fewer"
        )


def _check_slices(config: Config, modalities: Sequence[Modality]) -> None:
    """Each sequence rank must hold a word. Slices are cut between words that no downsampling layer joins."""
    model, ranks = config.model, config.mesh.sequence
    joined = 2 ** (model.encoder_layers + model.fusion_layers) if model.distil else 1
    words = {m.name: word_of(model.word, m.name) for m in modalities}
    pieces = {m.name: -(-m.steps // (words[m.name] * joined)) for m in modalities}
    longest = max(modalities, key=lambda modality: pieces[modality.name])
    most = pieces[longest.name]
    if most < ranks:
        fit = max(number for number in range(1, most + 1) if config.run.workers % number == 0)
        raise MeshError(
            f"mesh.sequence: {ranks} ranks share the time axis, but the longest modality, {longest.name!r} with "
            f"{longest.steps:,} steps, has {most} pieces of {joined} words of {words[longest.name]} steps, and a rank "
            f"without any would do nothing; use mesh.sequence={fit}, or shorter words (model.word)"
        )


def check_modalities(config: Config, modalities: Sequence[Modality]) -> None:
    """Raise `ConfigError` where the model, or the mesh, does not fit the data's modalities."""
    names = [modality.name for modality in modalities]
    pretrain = config.task.pretrain
    check_names(config.model.word, names, "model.word")
    words = {name: word_of(config.model.word, name) for name in names}
    if config.task.kind == "pretrain":
        check_names(pretrain.word, names, "task.pretrain.word")
        for name, word in words.items():
            hidden_word_of(pretrain, name, word)
    if config.mesh.sequence > 1:
        _check_slices(config, modalities)
    if config.model.needs_statistics:
        model = config.model
        for modality in modalities:
            if len(modality.mean) != modality.variates or len(modality.std) != modality.variates:
                raise ConfigError(
                    f"model.normalize: {model.normalize} with model.summary: {model.summary} needs the training "
                    f"split's mean and std, but the manifest has none for modality {modality.name!r}; pack the data "
                    "again, or set model.normalize=window model.summary=none"
                )


def decides(key: str) -> bool:
    """Whether a key, `section.key`, decides the result of a run: it may not change when the run is resumed."""
    return key not in _FREE_KEYS and not key.startswith(_FREE_SECTIONS)


def identity(config: Config) -> dict[str, Any]:
    """The flattened values that decide the result of a run (plain JSON)."""
    flat = {key: value for key, value in flatten(config).items() if decides(key)}
    return json.loads(json.dumps(flat, default=lambda model: model.model_dump(mode="json")))


def check_resume(config: Config, saved: dict[str, Any]) -> None:
    """Raise `ConfigError` listing the differences where `config` is not the run that was begun as `saved`.

    A key that `saved` lacks is newer than the run: its default stands for what was done then.
    """
    now, saved = identity(config), {key: value for key, value in saved.items() if decides(key)}
    saved = identity(Config()) | saved
    changed = [
        f"{key} {saved.get(key)!r} -> {now.get(key)!r}"
        for key in sorted({*saved, *now})
        if saved.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError(
            f"run {config.run.name!r} was begun with another configuration: {'; '.join(changed)}; "
            "choose another run.name or the old values"
        )
