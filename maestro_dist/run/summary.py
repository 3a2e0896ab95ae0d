"""The summaries that are printed at the start and at the end of a run."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from pathlib import Path

from maestro_dist import __version__
from maestro_dist.callbacks.final_test import RESULT_FILE
from maestro_dist.config.schema import Config
from maestro_dist.data.augment import wanted_kinds
from maestro_dist.data.class_balance import balanced_shares, shares_text
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.split_checks import split_warnings
from maestro_dist.data.storage import ObjectMissing, Storage, redact
from maestro_dist.errors import RunError
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.run.record import RunRecord
from maestro_dist.system.memory import available
from maestro_dist.training.builder import ModelAndData, build, count_steps
from maestro_dist.training.worker import work_folder


def print_start(config: Config, manifest: Manifest) -> None:
    """Print every derived number: data, model, mesh, steps, memory. Raises an error for invalid model settings."""
    from maestro_dist.model.attention import describe_attention
    from maestro_dist.model.estimate import count_parameters, tokens_by_modality
    from maestro_dist.parallel.plan import plan_expert_movement, plan_text, plan_world

    run, optim = config.run, config.optim
    pieces = described(config, manifest)
    mesh = build_mesh(config.mesh, world=run.workers)
    used, per_epoch, total = count_steps(config, manifest)
    share = config.engine.micro_batch or math.ceil(optim.global_batch / mesh.data)
    parameters = count_parameters(pieces.model)
    tokens = tokens_by_modality(config.model, pieces.modalities)
    exchanges_heads = mesh.sequence > 1 and config.mesh.sequence_method == "ulysses"
    plans = plan_world(config, pieces.modalities, mesh, parameters=parameters, label_steps=pieces.task.label_steps)
    fullest = max(plans, key=lambda plan: plan.total_memory)
    memory, accumulation = fullest.memory, fullest.micro_batches
    least = min(plan.total_memory for plan in plans)
    which_rank = "a rank" if least == fullest.total_memory else f"on rank {fullest.rank} ({_mib(least)} on another)"
    gathered = f", {_mib(fullest.gathered)} of parameters gathered for a while" if fullest.gathered else ""
    grid = mesh.table(mark=False).splitlines()
    grid[0] += "; ulysses" if exchanges_heads else ""
    launched = f"{run.launcher} on {run.device}, ZeRO {config.engine.zero_stage}, {config.engine.precision}"
    splits = (config.data.train, config.data.validation, config.data.test)
    part = f"{used:,} of " if config.data.label_share < 1.0 else ""
    several = "labels" if pieces.task.kind == "multilabel" else "classes"
    kind = f"{len(manifest.classes)} {several}" if manifest.classes else manifest.target
    kind += f": {', '.join(manifest.targets)}" if manifest.targets else ""
    if pieces.task.label_steps > 1:
        kind += f", every {manifest.window_s / pieces.task.label_steps:g} s"
    kind = "masked symbols" if pieces.task.kind == "pretrain" else kind
    names = ", ".join(f"{m.name} {m.variates} x {m.steps} @ {m.rate_hz:g} Hz" for m in pieces.modalities)
    rows = {
        "run": f"{run.name} in {redact(run.storage)} (maestro_dist {__version__}, seed {run.seed})",
        "data": f"{manifest.name}: "
        + ", ".join(f"{name} {part if name == splits[0] else ''}{manifest.split(name).samples:,}" for name in splits)
        + f" samples of {manifest.window_s:g} s; {kind}",
        "modalities": names,
        "model": f"{parameters:,} parameters, {sum(tokens.values()):,} tokens a sample, d {config.model.width}, "
        f"H {config.model.heads}, E {config.model.moe.experts}",
        "attention": describe_attention(config.model, list(tokens.values()), exchanges_heads=exchanges_heads),
        "mesh": "\n".join([f"{grid[0]}; {launched}", *(grid[1:] if mesh.sequence > 1 else [])]),
        "steps": f"{per_epoch:,} an epoch, {total:,} in all; global batch {optim.global_batch} = {mesh.data} ranks x "
        f"{accumulation} micro-batch{'es' if accumulation > 1 else ''} of up to {share}",
        "memory": f"about {_mib(fullest.total_memory)} {which_rank} besides the libraries: parameters, gradients and "
        f"optimizer {_mib(memory.parameters)}, micro-batch {_mib(memory.inputs)}, at most {_mib(memory.peak)} in "
        f"forward and backward ({_mib(memory.kept)} kept between them){gathered}",
    }
    if config.data.class_balance:
        rows["sampling"] = _sampling(config, manifest)
    learning = _learning(config)
    if learning:
        rows["learning"] = learning
    if mesh.world > 1:
        rows["plan"] = plan_text(mesh, plans)
    if mesh.expert > 1:
        rows["experts"] = str(plan_expert_movement(config, pieces.modalities, mesh))
    free = available() if run.device == "cpu" else None
    if free is not None and fullest.total_memory > free:
        rows["warning"] = (
            f"a rank needs more than the {_mib(free)} of free memory of this machine; these settings reduce it: "
            "model.activation_checkpointing=layers, model.tile=16384, model.keep_attention_weights=false, "
            "a smaller engine.micro_batch"
        )
    for name, text in rows.items():
        print(f"{name:11}{text}")
    for text in split_warnings(config, manifest):
        print(f"{'warning':11}{text}")
    sys.stdout.flush()


def _sampling(config: Config, manifest: Manifest) -> str:
    """What `data.class_balance` does; of several labels the workers say it, which read those of each sample."""
    balance, split = config.data.class_balance, manifest.split(config.data.train)
    if manifest.counter.several:
        return f"by the rarest label of a sample (data.class_balance {balance:g})"
    before = [count / split.samples for count in split.class_counts]
    seen = shares_text(manifest.classes, before, balanced_shares(split.class_counts, balance))
    return f"training sees {seen} (data.class_balance {balance:g})"


def _learning(config: Config) -> str:
    """Optional training methods that are active; empty if there are none."""
    optim, missing = config.optim, config.missing
    parts = [f"average of the weights, decay {optim.ema:g}"] if optim.ema is not None else []
    if optim.schedule == "one_cycle":
        parts.append("one cycle of learning rate and momentum")
    parts += [f"{kind} {getattr(config.augment, kind):g}" for kind in wanted_kinds(config.augment)]
    if missing.consistency:
        parts.append(f"consistency {missing.consistency:g} (each sample is seen whole and with modalities dropped)")
    return ", ".join(parts)


def described(config: Config, manifest: Manifest) -> ModelAndData:
    """The model on the meta device: shapes without memory."""
    import torch

    with torch.device("meta"):
        return build(config, manifest)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 10 << 20 else f"{size / 2**20:,.0f} MiB"


def print_end(config: Config, run: Storage, record: RunRecord) -> None:
    """Print the results, the places of files, and commands for the next steps."""
    from maestro_dist.evaluation import Evaluation
    from maestro_dist.evaluation.table import results_table

    try:
        result = json.loads(run.read(RESULT_FILE))
    except (ObjectMissing, ValueError):
        raise RunError(f"{run.name(RESULT_FILE)}: missing or damaged; `evaluate` computes the results again") from None
    uri, best = record.tracking_uri, result["best_score"]
    score = "undefined" if best is None else f"{best:.3f}"
    print()
    print(results_table(Evaluation.from_json(result["evaluation"])))
    print()
    rows = {
        "checkpoint": f"{_shown(result['checkpoint'])} (step {result['best_step']}, validation {result['metric']} "
        f"{score}: mean over missing rates {config.evaluation.rates})",
        "model": _shown(result["model"]),
        "figures": _shown(str(work_folder(run.url) / "figures")),
        "MLflow run": f"{record.mlflow_run} in {redact(uri)}",
        **commands(run.url, uri, result.get("mlflow_model")),
    }
    for name, text in rows.items():
        print(f"{name:13}{text}")
    if _in_job_folder(run.url):
        print(
            "note: run.storage is inside the job's copy of the working folder, which Ray will remove; "
            "give an absolute path or a URL to keep the run"
        )
    sys.stdout.flush()


def commands(run_url: str, tracking_uri: str, mlflow_model: str | None) -> dict[str, str]:
    """Commands for a finished run, quoted for a shell in the current folder.

    `mlflow_model`: URI of the logged model; without it there is no command to serve.
    """
    python, tracked = _shown(sys.executable), shlex.quote(redact(tracking_uri))
    mlflow = _shown(str(Path(sys.executable).parent / "mlflow"))
    server = tracking_uri.startswith(("http://", "https://"))
    result = {
        "open the UI": redact(tracking_uri)
        if server
        else f"{mlflow} ui --host 127.0.0.1 --backend-store-uri {tracked}",
        "resume": f"{python} -m maestro_dist.train {_shown(run_url + '/config.yaml')}",
        "evaluate": f"{python} -m maestro_dist.evaluate {_shown(run_url)}",
    }
    if mlflow_model:  # MLflow finds its server through PATH; the UI has port 5000
        path = _shown(str(Path(sys.executable).parent))
        result["serve"] = (
            f'PATH={path}:"$PATH" MLFLOW_TRACKING_URI={tracked} {mlflow} models serve -m {shlex.quote(mlflow_model)} '
            "--env-manager local --port 5001"
        )
    return result


def _in_job_folder(path: str) -> bool:
    """Whether a path is in the folder that Ray unpacked for a submitted job."""
    return "/runtime_resources/working_dir_files/" in path


def _shown(path: str) -> str:
    """A short form of a local path, or a URL without credentials; quoted for a shell."""
    if "://" in path:
        return shlex.quote(redact(path))
    relative = os.path.relpath(path)
    if relative.startswith("..") or _in_job_folder(path):
        return shlex.quote(path)
    return shlex.quote(
        relative if os.sep in relative else f".{os.sep}{relative}"
    )  # a shell looks for a bare name in PATH
