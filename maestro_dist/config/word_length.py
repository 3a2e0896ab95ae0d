"""The number of time steps in a word: one number for all modalities, or one number for each modality."""

from __future__ import annotations

from collections.abc import Sequence

from maestro_dist.config.learning import PretrainConfig
from maestro_dist.errors import ConfigError


def word_length(word: int | dict[str, int], name: str, key: str = "model.word") -> int:
    """Number of steps in a word of modality `name`.

    word  one number, or a number for each modality
    key   the key of the configuration that holds `word`, for the error

    Raises `ConfigError` if `word` has no number for the modality.
    """
    if isinstance(word, int):
        return word
    if name not in word:
        raise ConfigError(f"{key}: no word length for modality {name!r}; add it, or give one number for all")
    return word[name]


def hidden_word_length(pretrain: PretrainConfig, name: str, word: int) -> int:
    """Number of steps in a hidden word of pre-training, for modality `name`.

    word  number of steps in the model's words of this modality

    Raises `ConfigError` if the modality has no number, or if its number does not divide `word`.
    """
    steps = word if pretrain.word is None else word_length(pretrain.word, name, "task.pretrain.word")
    if word % steps:
        raise ConfigError(f"task.pretrain.word: {steps} steps of modality {name!r} do not divide its model.word {word}")
    return steps


def check_word_names(word: int | dict[str, int] | None, names: Sequence[str], key: str) -> None:
    """Raise `ConfigError` if `word` names a modality that is not among `names`."""
    for name in word if isinstance(word, dict) else ():
        if name not in names:
            raise ConfigError(f"{key}: modality {name!r} is not used; there are {', '.join(names)}")
