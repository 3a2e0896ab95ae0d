"""Predict with a trained model: `python -m maestro_dist.predict MODEL DATA`, or from Python:

from maestro_dist.predict import load_model

model = load_model("runs/mine")
model.predict({"ecg": ecg, "spo2": spo2})        # one sample: [[.9, .1]], one probability per class in model.classes
model.predict([{"ecg": ecg}, {"spo2": spo2}])    # several samples, each with its own sensors
"""

from __future__ import annotations

import sys

from maestro_dist.inference.exported_model import TaskDescription, export_model
from maestro_dist.inference.predictor import Predictor, load_model

__all__ = ["Predictor", "TaskDescription", "export_model", "load_model"]

if __name__ == "__main__":
    from maestro_dist.inference.command import main

    sys.exit(main())
