"""Callbacks that the configuration names (`callbacks`): imported, checked and created."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.errors import ConfigError
from maestro_dist.tracking.client import short

if TYPE_CHECKING:
    from maestro_dist.config.callbacks import CallbackConfig
    from maestro_dist.config.schema import Config
    from maestro_dist.evaluation import Evaluation


_LOG = logging.getLogger(__name__)


def check_callbacks(config: Config, environment: Mapping[str, str] = os.environ) -> None:
    """Raise `ConfigError` where a class cannot be imported, does not take the options, or a secret is missing."""
    for number, settings in enumerate(config.callbacks):
        where = f"callbacks[{number}]"
        found = _class_of(settings, where)
        _secrets_of(settings, where, environment)
        try:
            inspect.signature(found).bind(**settings.options, **dict.fromkeys(settings.secrets))
        except TypeError as error:
            raise ConfigError(f"{where}.options: {settings.class_name} does not take them: {error}") from None


def configured_callbacks(config: Config, environment: Mapping[str, str] = os.environ) -> list[Callback]:
    """Create the callbacks that the configuration names, in its order.

    Raises:
        ConfigError: a class cannot be imported, a secret is missing, or the class refuses its options.
    """
    made: list[Callback] = []
    for number, settings in enumerate(config.callbacks):
        where, name = f"callbacks[{number}]", settings.class_name
        secrets = _secrets_of(settings, where, environment)
        try:
            callback = _class_of(settings, where)(**settings.options, **secrets)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"{where}: {name} cannot be created: {_hidden(error, secrets)}") from None
        made.append(ConfiguredCallback(callback, name, stops=settings.on_error == "stop", secrets=secrets))
    return made


class ConfiguredCallback(Callback):
    """A callback of a user, named as in the configuration.

    Its errors do not end the run unless `stops`: the first one of each hook is reported, with secrets hidden.
    """

    def __init__(self, callback: Callback, name: str, *, stops: bool, secrets: Mapping[str, str]) -> None:
        self.callback = callback
        self._name, self._stops, self._secrets = name, stops, secrets
        self._reported: set[str] = set()

    @property
    def name(self) -> str:
        return self._name

    def on_start(self, state: State) -> None:
        self._call("on_start", lambda: self.callback.on_start(state))

    def on_step(self, state: State, record: StepRecord) -> None:
        self._call("on_step", lambda: self.callback.on_step(state, record))

    def on_validation(self, state: State, evaluation: Evaluation) -> None:
        self._call("on_validation", lambda: self.callback.on_validation(state, evaluation))

    def on_checkpoint(self, state: State, step: int) -> None:
        self._call("on_checkpoint", lambda: self.callback.on_checkpoint(state, step))

    def on_end(self, state: State) -> None:
        self._call("on_end", lambda: self.callback.on_end(state))

    def on_test(self, state: State, evaluation: Evaluation) -> None:
        self._call("on_test", lambda: self.callback.on_test(state, evaluation))

    def on_exception(self, state: State, error: Exception) -> None:
        self._call("on_exception", lambda: self.callback.on_exception(state, error))

    def close(self) -> None:
        self._call("close", self.callback.close)

    def state_dict(self) -> dict[str, Any]:
        return self._call("state_dict", lambda: json.loads(json.dumps(self.callback.state_dict()))) or {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._call("load_state_dict", lambda: self.callback.load_state_dict(saved))

    def _call(self, hook: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            if self._stops:
                raise
            if hook not in self._reported:
                self._reported.add(hook)
                _LOG.warning(f"{self._name}.{hook} failed: {_hidden(error, self._secrets)}; training continues")
            return None


def _class_of(settings: CallbackConfig, where: str) -> type[Callback]:
    name = settings.class_name
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{where}.class: {name}: there is no module {error.name!r}; install it, or start from the folder that "
            "contains it"
        ) from None
    except AttributeError:
        raise ConfigError(f"{where}.class: {name}: module {module!r} has no {attribute!r}") from None
    except Exception as error:
        raise ConfigError(f"{where}.class: {name} cannot be imported: {short(error)}") from None
    if not (isinstance(found, type) and issubclass(found, Callback)):
        raise ConfigError(f"{where}.class: {name} is not a subclass of maestro_dist.callbacks.Callback")
    return found


def _secrets_of(settings: CallbackConfig, where: str, environment: Mapping[str, str]) -> dict[str, str]:
    both = sorted(settings.secrets.keys() & settings.options.keys())
    if both:
        raise ConfigError(f"{where}.secrets: {both[0]!r} is given in options too; keep it in one of them")
    for option, variable in settings.secrets.items():
        if not environment.get(variable):
            raise ConfigError(
                f"{where}.secrets.{option}: the environment variable {variable} is not set; set it where the run is "
                "started; on a cluster, set it where `ray start` runs, on each node"
            )
    return {option: environment[variable] for option, variable in settings.secrets.items()}


def _hidden(error: Exception, secrets: Mapping[str, str]) -> str:
    """The error in one line, without the values of secrets."""
    text = short(error)
    for value in secrets.values():
        text = text.replace(value, "***")
    return text
