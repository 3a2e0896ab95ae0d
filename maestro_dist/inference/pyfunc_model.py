"""The MLflow pyfunc of an exported model. MLflow copies this file into the logged model and runs it to load it.

Input: a DataFrame, a dict of columns or a list of dicts, one row a sample. There is one column a modality, its cells
arrays or nested lists [T_j][D_j] (None or NaN where a step was not observed), or None where the sample has no such
sensor; columns of sensors that are not there may be left out. Models that normalise by recording also take columns
`<modality>_recording` with [D_j][2]. Output: one column a class with its probability, or `value`.

A row in which nothing was observed is refused as one that does not fit is, and the whole request with it. Columns of
other names never reach the model: MLflow drops them, with a warning in the server's output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


def _plain(cell: Any) -> Any:
    """A cell as `predict` takes it: None where the row has no such sensor; lists for arrays of objects."""
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
        """Probabilities or values of each row. What does not fit is a client's error (400 when served)."""
        from maestro_dist.errors import DataError, NonFiniteError
        from maestro_dist.inference.inputs import split_recordings

        names, samples, recordings = self.predictor.names, [], []
        for row in model_input.to_dict("records"):  # the signature makes a DataFrame of any input
            given = {name: _plain(cell) for name, cell in row.items()}
            windows, statistics = split_recordings(given, names)
            samples.append(windows)
            recordings.append({name: cell for name, cell in statistics.items() if cell is not None})
        try:
            if model_input.columns.empty:  # MLflow drops the columns that it does not know
                raise DataError(f"no column is one of the sensors {', '.join(names)}")
            answers = self.predictor.predict(samples, recordings if self.predictor.wants_recording else None)
        except (DataError, NonFiniteError) as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        if answers.ndim == 1:
            return pd.DataFrame({"value": answers})
        return pd.DataFrame(answers, columns=list(self.predictor.classes))


set_model(MaestroModel())
