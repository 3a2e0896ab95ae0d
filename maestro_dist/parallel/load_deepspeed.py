"""Import DeepSpeed without its messages and without compiling anything."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def load_deepspeed(device: str) -> Any:
    """Import DeepSpeed for `device` ("cpu" or "cuda") without its chatter and without compiling anything."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # else it warns on stdout that it guesses
    # its ZeRO 3 hooks use a torch API that warns at every call
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(deepspeed|torch)\b.*")
    with _hidden("mlflow"):  # its autotuner, unused here, would load it: a third of the time, and much memory a worker
        import deepspeed

    # a shared-memory op for inference, that it would compile for more than a minute on a CPU
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """The module cannot be imported inside, as if it were not installed, unless it was imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # the import system's own word for it
    try:
        yield
    finally:
        del sys.modules[name]
