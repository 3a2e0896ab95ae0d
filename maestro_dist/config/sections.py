"""Base class of all sections of the configuration, and the number types that they use."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
MetricOfTarget = Annotated[str, Field(pattern=r"^(mae|rmse|loss)\.[A-Za-z][A-Za-z0-9_-]{0,39}$")]
"""The metric of one of several targets, such as mae.systolic."""
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys are errors, docstrings below fields are their help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
