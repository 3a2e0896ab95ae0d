"""Optional work: figures, tables, uploads. Its errors never end a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from maestro_dist.tracking.client import short

T = TypeVar("T")


@dataclass
class BestEffort:
    """Runs optional work and records failures.

    left_out  name of the failed work -> the reason; "" if a warning has already given the reason
    """

    left_out: dict[str, str] = field(default_factory=dict)

    def attempt(self, what: str, call: Callable[[], T]) -> T | None:
        """Return `call()`, or None if it raises. The error becomes the reason why `what` is left out.

        A call that returns False has also failed, and has logged the reason itself.
        """
        try:
            done = call()
        except Exception as error:
            self.left_out[what] = short(error)
            return None
        if done is False:
            self.left_out.setdefault(what, "")
        return done

    def text(self) -> str:
        """The failed work with its reasons, each reason once; "" if nothing failed."""
        by_reason: dict[str, list[str]] = {}
        for what, why in self.left_out.items():
            by_reason.setdefault(why, []).append(what)
        return "; ".join(", ".join(names) + (f" ({why})" if why else "") for why, names in by_reason.items())
