"""Names of columns, and what they may mean. Part of `--infer`."""

from __future__ import annotations

import re
import unicodedata

LABEL = {
    "label", "labels", "class", "target", "activity", "activity_code",
    "activity_name", "activity_type", "activity_id", "activityid", "activity_label", "state", "stage",
    "event", "annotation", "annotations", "condition", "status", "sleep_stage", "outcome", "diagnosis", "death", "died",
    "mortality", "phase", "classification", "category", "behavior", "behaviour", "posture", "task", "ground_truth",
    "aktivitaet", "klasse", "zustand", "ereignis", "etiqueta", "clase", "actividad", "activite", "classe", "etiquette",
}  # fmt: skip
SUBJECT = {
    "subject", "subject_id", "subjectid", "person", "person_id", "patient", "patient_id", "patientid", "participant",
    "participant_id", "user", "user_id", "userid", "subj", "pid", "sid", "who", "id", "proband",
    "probandin", "teilnehmer", "patientin", "vp", "participant_full_id", "sujet", "sujeto", "paciente",
}  # fmt: skip
RECORDING = {
    "recording", "recording_id", "visit",
    "visit_id", "session", "session_id", "record", "record_id", "trial", "trial_id", "run", "file",
    "episode", "stay_id", "segment", "night", "experiment", "series",
}  # fmt: skip
GROUP = {"group", "site", "hospital", "centre", "center", "ward", "device", "device_id", "cohort"}
SPLIT = {"split", "set", "partition", "subset"}
TIME = {
    "time", "timestamp", "time_stamp", "datetime", "date_time", "date", "ts", "t", "unixtime", "unix_time", "unix",
    "epoch", "seconds", "secs", "sec", "s", "ms", "millis", "milliseconds", "elapsed", "charttime", "utc", "clock",
    "local_time", "zeit", "datum", "zeitstempel", "uhrzeit", "heure", "fecha", "hora", "minutes", "hours", "hour",
}  # fmt: skip
TEXT_NAMES = LABEL | SUBJECT | RECORDING | GROUP | SPLIT
"""Columns that are text also where they look like numbers."""
ITEM = {
    "item", "itemname", "item_name", "itemid", "item_id", "variable", "variable_name", "parameter", "param",
    "measurement", "measure", "signal", "sensor", "channel", "concept", "concept_name", "code", "vital", "test",
    "analyte", "feature", "metric", "type", "observation", "quantity", "field",
}  # fmt: skip
VALUE = {"value", "valuenum", "value_num", "val", "result", "reading", "wert", "numeric_value", "measured_value"}
UNIT = {"unit", "units", "valueuom", "uom", "value_uom", "einheit"}
_LABEL_ENDS = (
    "label", "labels", "class", "target", "annotation", "death", "died", "mortality", "outcome", "diagnosis",
)  # fmt: skip
_LETTERS = str.maketrans({
    "ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "µ": "u", "μ": "u", "ø": "o",
    "æ": "ae",
})  # fmt: skip
_UNIT_OF_NAME = re.compile(r"^(.*?)[\s_]*[\[(]\s*([^\])]+?)\s*[\])]\s*$")


def may_be_label(name: str) -> bool:
    """Whether a plain name is that of a label: activity, or sepsis_label."""
    return name in LABEL or name.rpartition("_")[2] in _LABEL_ENDS or name.startswith("label_")


def plain_name(column: str) -> tuple[str, str]:
    """A column's name in small letters, digits and _; and the unit in brackets behind it."""
    found = _UNIT_OF_NAME.match(column)
    name, unit = (found[1], found[2]) if found else (column, "")
    name = unicodedata.normalize("NFKD", name.translate(_LETTERS)).encode("ascii", "ignore").decode()
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"), unit
