"""The exported model in MLflow: a pyfunc from code with signature and input example, ready to load and serve."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import maestro_dist
from maestro_dist.tracking.client import client, short
from maestro_dist.types import Modality

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run
    from mlflow.models import ModelSignature

_LOG = logging.getLogger(__name__)

NAME = "model"
_PACKAGE = Path(maestro_dist.__file__).parent
_NEEDS = ("torch", "numpy", "pydantic", "pandas", "safetensors", "fsspec", "scikit-learn", "mlflow")


def log_model(
    uri: str,
    run_id: str,
    folder: Path,
    *,
    modalities: Sequence[Modality],
    columns: Sequence[str],
    recording: bool = False,
) -> str | None:
    """Log the exported model in the local `folder` to the run. Returns its URI, or None if the upload fails.

    The package's code is part of the logged model: a server needs only the listed libraries.
    `columns`: names of the predicted numbers. `recording`: the model normalizes by recording and needs statistics with
    each sample.
    """
    try:
        server = client(uri)
        import mlflow

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(uri)
        try:
            with mlflow.start_run(run_id=run_id):
                logged = mlflow.pyfunc.log_model(
                    name=NAME,
                    python_model=str(_PACKAGE / "inference" / "pyfunc_model.py"),
                    artifacts={"model": str(folder)},
                    code_paths=[str(_PACKAGE)],
                    signature=signature(modalities, columns, recording=recording),
                    input_example=example(modalities, recording=recording),
                    metadata={"modalities": [asdict(modality) for modality in modalities]},
                    pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _NEEDS],
                )
        finally:
            mlflow.set_tracking_uri(before)
            server.update_run(run_id, status="RUNNING")  # the end of start_run has set it to finished
    except Exception as error:
        _LOG.warning(f"the model was not uploaded to tracking ({short(error)})")
        return None
    return str(logged.model_uri)


def find_logged_model(uri: str, run: Run) -> str | None:
    """The URI of the complete model that the run has logged; None if there is none. Incomplete ones are deleted."""
    server, found = client(uri), None
    for output in run.outputs.model_outputs if run.outputs else ():
        model = server.get_logged_model(output.model_id)
        if model.name != NAME:
            continue
        if str(model.status) == "READY":
            found = model.model_uri
        else:  # an upload that was interrupted
            server.delete_logged_model(output.model_id)
    return found


def signature(modalities: Sequence[Modality], columns: Sequence[str], *, recording: bool) -> ModelSignature:
    """Input: one optional column per sensor. Output: one number for each of `columns`.

    Columns have any type: MLflow's array type refuses integers, and rows that lack a sensor. The model itself checks
    shapes; the `metadata` of the logged model lists them.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    names = [modality.name for modality in modalities]
    names += [f"{name}_recording" for name in names] if recording else []
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name, required=False) for name in names]),
        outputs=Schema([ColSpec(DataType.double, name) for name in columns]),
    )


def example(modalities: Sequence[Modality], *, recording: bool) -> pd.DataFrame:
    """One sample in which every sensor has its training mean at every step."""
    import pandas as pd

    row: dict[str, list[Any]] = {}
    for modality in modalities:
        means = [float(f"{value:.6g}") for value in modality.mean] or [0.0] * modality.variates
        row[modality.name] = [means] * modality.steps
        if recording:
            row[f"{modality.name}_recording"] = [[mean, 1.0] for mean in means]
    return pd.DataFrame([row])
