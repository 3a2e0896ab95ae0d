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
    """Import DeepSpeed for `device` ("cpu" or "cuda")."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # otherwise it prints a warning that it guesses
    # its ZeRO 3 hooks use a torch API that warns at every call
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(deepspeed|torch)\b.*")
    with _hidden("mlflow"):  # its unused autotuner would load it: slow, and much memory
        import deepspeed

    # a shared-memory op for inference; compiling it takes more than a minute on a CPU
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Inside, the module cannot be imported (as if it were not installed), unless it was imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # then an import fails
    try:
        yield
    finally:
        del sys.modules[name]
