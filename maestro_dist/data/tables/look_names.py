"""Names of columns, and what they may mean. Part of `--infer`."""

from __future__ import annotations

import re

LABEL = {
    "label", "labels", "class", "target", "activity", "activity_id", "activityid", "activity_label", "state", "stage",
    "event",    "annotation", "condition", "status", "sleep_stage", "outcome", "diagnosis", "death", "died",
    "mortality", "phase",
}  # fmt: skip
SUBJECT = {
    "subject", "subject_id", "subjectid", "person", "person_id", "patient", "patient_id", "patientid", "participant",
    "participant_id", "user", "user_id", "userid", "subj", "pid", "sid", "who", "id", "proband",
}  # fmt: skip
RECORDING = {
    "recording", "recording_id", "session", "session_id", "record", "record_id", "trial", "trial_id", "run", "file",
    "episode",    "stay_id", "segment", "night", "experiment", "series",
}  # fmt: skip
GROUP = {"group", "site", "hospital", "centre", "center", "ward", "device", "device_id", "cohort"}
SPLIT = {"split", "set", "partition", "subset"}
TEXT_NAMES = LABEL | SUBJECT | RECORDING | GROUP | SPLIT
"""Columns that are text also where they look like numbers."""
_UNIT_OF_NAME = re.compile(r"^(.*?)[\s_]*[\[(]\s*([^\])]+?)\s*[\])]\s*$")


def plain_name(column: str) -> tuple[str, str]:
    """A column's name in small letters, digits and _; and the unit in brackets behind it."""
    found = _UNIT_OF_NAME.match(column)
    name, unit = (found[1], found[2]) if found else (column, "")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"), unit
