"""Callbacks that a user adds to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model

from maestro_dist.config.sections import Section

_Class = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="The class, as `package.module:Name`; a subclass of `maestro_dist.callbacks.Callback`.",
    ),
]
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class CallbackSettings(Section):
    """One callback; see `maestro_dist.callbacks.base.Callback`."""

    options: dict[str, Any] = {}
    """Keyword arguments of the class. They are written to the run's `config.yaml`, so they must not be secret."""
    secrets: dict[str, Annotated[str, Field(pattern=_VARIABLE)]] = {}
    """Secret keyword arguments: name of the argument -> name of the environment variable that holds its value. Each
    worker reads the variable when it starts. The value is never written or sent anywhere."""
    on_error: Literal["warn", "stop"] = "warn"
    """warn: an error in the callback is reported once for each hook, and training continues. stop: it ends the run."""

    @property
    def class_name(self) -> str:
        """Value of the key `class`."""
        return str(getattr(self, "class"))


if TYPE_CHECKING:
    CallbackConfig = CallbackSettings
else:  # a field cannot be called `class` in a class body
    CallbackConfig = create_model("CallbackConfig", __base__=CallbackSettings, **{"class": (_Class, ...)})
