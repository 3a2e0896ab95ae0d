"""What a run can do without: pictures, tables, uploads. None of them may cost its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from maestro_dist.tracking.client import short

T = TypeVar("T")


@dataclass
class BestEffort:
    """Does what is wanted but not needed, and counts what did not work.

    left_out  what was not done, and why; "" where a warning has said it already
    """

    left_out: dict[str, str] = field(default_factory=dict)

    def attempt(self, what: str, call: Callable[[], T]) -> T | None:
        """`call()`. Whatever it raises is kept as the reason why `what` is left out, and None returned.

        A call that returns False has failed too, and has said why.
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
        """What was left out and why, each reason once; "" where all went well."""
        by_reason: dict[str, list[str]] = {}
        for what, why in self.left_out.items():
            by_reason.setdefault(why, []).append(what)
        return "; ".join(", ".join(names) + (f" ({why})" if why else "") for why, names in by_reason.items())
