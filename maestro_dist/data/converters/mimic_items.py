"""Which items of MIMIC-III and MIMIC-IV are which variable: only those whose meaning and unit are beyond doubt.

Chart items below 220000 are of CareVue (MIMIC-III alone), others of MetaVision (both). Items of the laboratory have the
same numbers in both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClinicalVariable:
    """One variable.

    low, high   values outside are errors of entry, or of the unit
    chart, lab  item numbers; `fahrenheit` are chart items in degrees Fahrenheit
    """

    name: str
    unit: str
    low: float
    high: float
    chart: tuple[int, ...] = ()
    lab: tuple[int, ...] = ()
    fahrenheit: tuple[int, ...] = ()


VARIABLES = (
    ClinicalVariable("heart_rate", "1/min", 0, 350, chart=(211, 220045)),
    ClinicalVariable("abp_systolic", "mmHg", 0, 375, chart=(51, 220050)),
    ClinicalVariable("abp_diastolic", "mmHg", 0, 375, chart=(8368, 220051)),
    ClinicalVariable("abp_mean", "mmHg", 0, 375, chart=(52, 220052)),
    ClinicalVariable("nbp_systolic", "mmHg", 0, 375, chart=(455, 220179)),
    ClinicalVariable("nbp_diastolic", "mmHg", 0, 375, chart=(8441, 220180)),
    ClinicalVariable("nbp_mean", "mmHg", 0, 375, chart=(456, 220181)),
    ClinicalVariable("respiratory_rate", "1/min", 0, 150, chart=(618, 220210)),
    ClinicalVariable("spo2", "%", 0, 100, chart=(646, 220277)),
    ClinicalVariable("temperature", "degC", 24, 46, chart=(676, 223762), fahrenheit=(678, 223761)),
    ClinicalVariable("gcs_eye", "1-4", 1, 4, chart=(184, 220739)),
    ClinicalVariable("gcs_verbal", "1-5", 0, 5, chart=(723, 223900)),
    ClinicalVariable("gcs_motor", "1-6", 1, 6, chart=(454, 223901)),
    ClinicalVariable("albumin", "g/dL", 0, 10, lab=(50862,)),
    ClinicalVariable("anion_gap", "mEq/L", -20, 100, lab=(50868,)),
    ClinicalVariable("bicarbonate", "mEq/L", 0, 100, lab=(50882,)),
    ClinicalVariable("bilirubin", "mg/dL", 0, 100, lab=(50885,)),
    ClinicalVariable("bun", "mg/dL", 0, 400, lab=(51006,)),
    ClinicalVariable("chloride", "mEq/L", 40, 200, lab=(50902,)),
    ClinicalVariable("creatinine", "mg/dL", 0, 80, lab=(50912,)),
    ClinicalVariable("glucose", "mg/dL", 0, 3000, lab=(50931,)),
    ClinicalVariable("hematocrit", "%", 0, 100, lab=(51221,)),
    ClinicalVariable("hemoglobin", "g/dL", 0, 40, lab=(51222,)),
    ClinicalVariable("inr", "1", 0, 60, lab=(51237,)),
    ClinicalVariable("lactate", "mmol/L", 0, 60, lab=(50813,)),
    ClinicalVariable("magnesium", "mg/dL", 0, 40, lab=(50960,)),
    ClinicalVariable("pco2", "mmHg", 0, 300, lab=(50818,)),
    ClinicalVariable("po2", "mmHg", 0, 900, lab=(50821,)),
    ClinicalVariable("ph", "1", 6, 8.5, lab=(50820,)),
    ClinicalVariable("platelets", "K/uL", 0, 5000, lab=(51265,)),
    ClinicalVariable("potassium", "mEq/L", 0, 20, lab=(50971,)),
    ClinicalVariable("sodium", "mEq/L", 50, 250, lab=(50983,)),
    ClinicalVariable("wbc", "K/uL", 0, 1000, lab=(51301,)),
)
