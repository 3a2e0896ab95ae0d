"""The exported model in MLflow: a pyfunc from code, with signature and input example, loadable and servable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import maestro_dist
from maestro_dist.tracking.client import client, short
from maestro_dist.tracking.extras import warn
from maestro_dist.types import Modality

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

NAME = "model"
_PACKAGE = Path(maestro_dist.__file__).parent
_NEEDS = ("torch", "numpy", "pydantic", "pandas", "safetensors", "fsspec", "scikit-learn", "mlflow")


def log_model(
    uri: str,
    run_id: str,
    folder: Path,
    *,
    modalities: Sequence[Modality],
    classes: Sequence[str],
    recording: bool = False,
) -> str | None:
    """Log the exported model in the local `folder` to the run. Returns its URI, or None when MLflow does not take it.

    The package's code goes with it, so that the model is served where only the listed libraries are installed.
    `recording`: the model normalises by recording and takes statistics with each sample.
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
                    signature=signature(modalities, classes, recording=recording),
                    input_example=example(modalities, recording=recording),
                    metadata={"modalities": [asdict(modality) for modality in modalities]},
                    pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _NEEDS],
                )
        finally:
            mlflow.set_tracking_uri(before)
            server.update_run(run_id, status="RUNNING")  # leaving start_run has set it to finished
    except Exception as error:
        warn(f"the model was not uploaded to tracking ({short(error)})")
        return None
    return str(logged.model_uri)


def signature(modalities: Sequence[Modality], classes: Sequence[str], *, recording: bool) -> ModelSignature:
    """Optional columns in, one number a class (or `value`) out.

    Columns are of any type: MLflow's own arrays refuse whole numbers and a sensor that one of several rows lacks. The
    model itself checks shapes, and `metadata` of the logged model tells them.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    names = [modality.name for modality in modalities]
    names += [f"{name}_recording" for name in names] if recording else []
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name, required=False) for name in names]),
        outputs=Schema([ColSpec(DataType.double, name) for name in classes or ["value"]]),
    )


def example(modalities: Sequence[Modality], *, recording: bool) -> pd.DataFrame:
    """One sample in which every sensor shows its training mean."""
    import pandas as pd

    row: dict[str, list[Any]] = {}
    for modality in modalities:
        means = [float(f"{value:.6g}") for value in modality.mean] or [0.0] * modality.variates
        row[modality.name] = [means] * modality.steps
        if recording:
            row[f"{modality.name}_recording"] = [[mean, 1.0] for mean in means]
    return pd.DataFrame([row])
