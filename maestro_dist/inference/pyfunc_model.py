"""The MLflow pyfunc of an exported model. MLflow copies this file into the logged model and runs it to load it.

Input: a DataFrame, a dict of columns or a list of dicts, one row per sample and one column per modality. A cell is an
array or nested list [T_j][D_j], with None or NaN for a step that was not observed. It is None if the sample lacks this
sensor. Columns of missing sensors may be left out. Models that normalize by recording also need columns
`<modality>_recording` with [D_j][2]. Output: one column per class with its
probability, one per target with its value, or `value`.

A row that is not valid, or without any observed value, makes the whole request fail. MLflow drops columns with other
names, with a warning in the server's output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


def _plain(cell: Any) -> Any:
    """A cell in the form that `predict` accepts: None for a missing sensor, lists for arrays of objects."""
    if isinstance(cell, np.ndarray):
        return cell.tolist() if cell.dtype == object else cell
    return None if pd.api.types.is_scalar(cell) and pd.isna(cell) else cell


class MaestroModel(PythonModel):
    """Loads the folder that `export_model` wrote (artifact `model`) and predicts with it."""

    def load_context(self, context: Any) -> None:
        """Load the weights once."""
        from maestro_dist.inference.predictor import load_model

        self.predictor = load_model(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Probabilities or values of each row. Invalid input is a client error (status 400 when served)."""
        from maestro_dist.errors import DataError, NonFiniteError
        from maestro_dist.inference.inputs import split_recordings

        names, samples, recordings = self.predictor.names, [], []
        for row in model_input.to_dict("records"):  # the signature converts any input to a DataFrame
            given = {name: _plain(cell) for name, cell in row.items()}
            windows, statistics = split_recordings(given, names)
            samples.append(windows)
            recordings.append({name: cell for name, cell in statistics.items() if cell is not None})
        try:
            if model_input.columns.empty:  # MLflow drops unknown columns
                raise DataError(f"no column is one of the sensors {', '.join(names)}")
            predictions = self.predictor.predict(samples, recordings if self.predictor.wants_recording else None)
        except (DataError, NonFiniteError) as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        columns = list(self.predictor.task.flat_columns)
        return pd.DataFrame(predictions.reshape(-1, len(columns)), columns=columns)


set_model(MaestroModel())
