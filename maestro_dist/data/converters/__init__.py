"""Converters: from the files of a public data set to samples. One file a data set; `CONVERTERS` names them."""

from __future__ import annotations

from maestro_dist.data.converters import physionet2012, stress_predict, uci_hapt
from maestro_dist.data.converters.source import Conversion, Converter

CONVERTERS: dict[str, Converter] = {
    "physionet2012": physionet2012,
    "stress_predict": stress_predict,
    "uci_hapt": uci_hapt,
}

__all__ = ["CONVERTERS", "Conversion", "Converter"]
