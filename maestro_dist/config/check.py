"""Checks across keys, and of a configuration against the modalities of its data. No GPU, network or torch."""

from __future__ import annotations

from collections.abc import Sequence

from maestro_dist.config.attention import KERNEL_ABILITIES, usable_variants
from maestro_dist.config.credentials import refuse_credentials, texts
from maestro_dist.config.learning import OptimConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.paths import absolute_path
from maestro_dist.config.schema import Config, MeshConfig
from maestro_dist.config.word_length import check_word_names, hidden_word_length, word_length
from maestro_dist.errors import ConfigError, MeshError
from maestro_dist.types import Modality


def _check_sources(config: Config) -> None:
    data = config.data
    if not data.url and not data.sources:
        raise ConfigError("data.url: missing; set it to the folder or URL that holds manifest.json")
    if not data.sources:
        return
    if data.url or data.source is not None:
        raise ConfigError("data.sources: set it, or data.url (and data.source), not both")
    if data.label_share < 1 or config.augment.mixup:
        key = "augment.mixup" if config.augment.mixup else "data.label_share"
        raise ConfigError(f"{key}: not with several data sets (data.sources)")


def _check_class_balance(config: Config) -> None:
    data, task = config.data, config.task
    if not data.class_balance:
        return
    where = f"data.class_balance: {data.class_balance:g}"
    if data.sources or data.label_share < 1:
        other = "several data sets (data.sources)" if data.sources else f"data.label_share={data.label_share:g}"
        raise ConfigError(f"{where} is not possible with {other}; use 0")
    if task.kind in ("pretrain", "regression"):
        raise ConfigError(f"{where} needs classes, which task.kind={task.kind} does not use; use 0")
    if task.class_weights == "balanced":
        raise ConfigError(
            f"{where} with task.class_weights=balanced corrects for rare classes twice, in the samples and in the "
            "loss; use data.class_balance=0, or task.class_weights=none"
        )


def check(config: Config) -> None:
    """Raise `ConfigError` for the first combination of values that cannot work."""
    model, moe = config.model, config.model.moe
    content = config.model_dump()
    refuse_credentials(content)
    for key, text in texts(content):
        if "\0" in text:
            raise ConfigError(f"{key}: {text!r} holds a null character, which no file name may have")
    _check_sources(config)
    _check_class_balance(config)
    if config.tracking.uri is None:
        _check_database(config)
    if model.width % model.heads:
        raise ConfigError(f"model.heads: {model.heads} heads do not divide model.width {model.width}")
    if moe.experts and moe.top_k > moe.experts:
        raise ConfigError(f"model.moe.top_k: {moe.top_k} experts per token, but model.moe.experts is {moe.experts}")
    if moe.balance == "bias" and not (moe.experts and model.fusion_layers):
        raise ConfigError("model.moe.balance: bias, but the model has no experts; use none")
    if model.stem and model.stem.kernel % 2 == 0:
        raise ConfigError(
            f"model.stem.kernel: {model.stem.kernel} is even; use an odd kernel, which keeps time steps aligned"
        )
    if config.missing.ramp_end < config.missing.ramp_start:
        raise ConfigError(
            f"missing.ramp_end: {config.missing.ramp_end} comes before missing.ramp_start {config.missing.ramp_start}"
        )
    if config.missing.consistency and not config.missing.max_rate:
        raise ConfigError(
            "missing.consistency: compares samples with and without dropped modalities, but missing.max_rate is 0; set "
            "missing.max_rate, or set missing.consistency to 0"
        )
    if config.task.teachers and config.augment.mixup:
        raise ConfigError(
            "augment.mixup: mixes samples, but task.teachers predict single samples; use 0, or no teachers"
        )
    if config.task.kind == "pretrain":
        if config.task.teachers:
            raise ConfigError("task.teachers: predict labels, which task.kind=pretrain does not use; use []")
        labelled = {"missing.consistency": config.missing.consistency, "augment.mixup": config.augment.mixup}
        for key, value in labelled.items():
            if value:
                raise ConfigError(f"{key}: {value} needs labels, which task.kind=pretrain does not use; use 0")
    if config.augment.rotation_groups and not config.augment.rotation:
        raise ConfigError(
            "augment.rotation_groups: given, but augment.rotation is 0 degrees; set augment.rotation, or remove the "
            "groups"
        )
    for key in ("rates", "test_rates", "draws"):
        if not getattr(config.evaluation, key):
            raise ConfigError(f"evaluation.{key}: the list is empty; give at least one value")
    _check_schedule(config.optim)
    check_mesh(config)
    if config.engine.offload == "parameters" and config.engine.zero_stage < 3:
        raise ConfigError(
            f"engine.offload: parameters, but ZeRO {config.engine.zero_stage} keeps all of them on every rank; use "
            "engine.zero_stage=3 or engine.offload=optimizer"
        )
    if config.engine.micro_batch and config.engine.micro_batch > config.optim.global_batch:
        raise ConfigError(
            f"engine.micro_batch: {config.engine.micro_batch} is more than optim.global_batch "
            f"{config.optim.global_batch}"
        )


def _check_database(config: Config) -> None:
    """By default MLflow's database is in the storage. `?` and `%` in its path have a meaning in a database URL."""
    storage = config.run.storage
    folder = absolute_path("runs" if "://" in storage else storage, "run.storage")
    if "?" in folder or "%" in folder:
        raise ConfigError(
            f"run.storage: MLflow finds no database in {folder}, because its name holds ? or %; set tracking.uri, or "
            "choose another folder"
        )


def _check_schedule(optim: OptimConfig) -> None:
    key, high = ("momentum", optim.momentum) if optim.optimizer == "sgd" else ("betas[0]", optim.betas[0])
    if optim.schedule == "one_cycle" and 0.0 < high < optim.low_momentum:
        raise ConfigError(
            f"optim.low_momentum: {optim.low_momentum} is more than optim.{key} {high}, but one_cycle lowers the "
            "momentum to it; use a smaller optim.low_momentum"
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
                f"{where}, but mesh.sequence_method=ulysses exchanges the attention output of all tokens, which "
                f"model.attention_algorithm={model.attention_algorithm} does not compute; use auto or plain"
            )
        return
    if not usable_variants(model, sequence_ranks=ranks, exchanges_heads=False):
        raise MeshError(
            f"{where}, but model.attention={model.attention} needs the whole time axis on one rank; use sparse, or "
            "mesh.sequence_method=ulysses"
        )
    kernel = KERNEL_ABILITIES.get(model.attention_kernel)
    if kernel and not kernel.shares_sequence:
        raise MeshError(
            f"{where}, but model.attention_kernel={model.attention_kernel} has no results to merge over ranks; use "
            "auto or tiles, or mesh.sequence_method=ulysses"
        )


def check_mesh(config: Config) -> None:
    """Raise `MeshError` if the workers, the grid of ranks, the model and the global batch do not fit together."""
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
            f"{mesh.sequence}), so some ranks would get none; use optim.global_batch={data} or more, or run.workers="
            f"{batch * mesh.sequence} or fewer"
        )


def _check_slices(config: Config, modalities: Sequence[Modality]) -> None:
    """Each sequence rank must hold a word. Slices are cut only between words that downsampling never joins."""
    model, ranks = config.model, config.mesh.sequence
    joined = 2 ** (model.encoder_layers + model.fusion_layers) if model.downsample else 1
    words = {m.name: word_length(model.word, m.name) for m in modalities}
    pieces = {m.name: -(-m.steps // (words[m.name] * joined)) for m in modalities}
    longest = max(modalities, key=lambda modality: pieces[modality.name])
    count = pieces[longest.name]
    if count < ranks:
        fit = max(number for number in range(1, count + 1) if config.run.workers % number == 0)
        raise MeshError(
            f"mesh.sequence: {ranks} ranks share the time axis, but the longest modality, {longest.name!r} with "
            f"{longest.steps:,} steps, has {count} pieces of {joined} words of {words[longest.name]} steps, fewer "
            f"than ranks; use mesh.sequence={fit}, or shorter words (model.word)"
        )


def check_modalities(config: Config, modalities: Sequence[Modality]) -> None:
    """Raise `ConfigError` if the model does not fit the data's modalities, `MeshError` if the mesh does not."""
    names = [modality.name for modality in modalities]
    pretrain = config.task.pretrain
    check_word_names(config.model.word, names, "model.word")
    words = {name: word_length(config.model.word, name) for name in names}
    if config.task.kind == "pretrain":
        check_word_names(pretrain.word, names, "task.pretrain.word")
        for name, word in words.items():
            hidden_word_length(pretrain, name, word)
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
