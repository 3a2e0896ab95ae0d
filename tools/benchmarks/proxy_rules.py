"""Rules of the proxy: which requests are counted, delayed and answered wrongly, and for how long."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["status", "refuse", "lose", "reset", "truncate", "stall", "flip"]


@dataclass
class Rule:
    """What happens to the requests that match, as long as the rule is active.

    method, path  regular expressions: the complete method; a part of the target (path and query)
    after         how many requests that match pass unharmed before it is active
    requests      how many requests it applies to; None: no limit
    lasts_s       seconds from when it was added; None: no limit
    from_first    the seconds begin with the first request that it applies to
    fault         status: answer with `status`, the server sees nothing
                  refuse: close without an answer; a rule for all methods and paths does so at accept
                  lose: the server has the request, but the connection ends with RST before its answer
                  reset, truncate: the response body ends after `at` bytes, with RST or with a normal close
                  stall: the response body stops after `at` bytes, for `stall_s` seconds
                  flip: byte `at` of the response body is wrong
    latency_s     seconds before the request is forwarded or answered
    rate_mb_s     limit of the bodies of each connection, in MB (10^6 bytes) a second

    A body of `at` bytes or fewer comes unchanged. Of several rules that match, the latencies add up, and the lowest
    rate and the first fault count.
    """

    method: str = ".*"
    path: str = ""
    after: int = 0
    requests: int | None = None
    lasts_s: float | None = None
    from_first: bool = False
    fault: Fault | None = None
    status: int = 503
    at: int = 0
    stall_s: float = 0.0
    latency_s: float = 0.0
    rate_mb_s: float | None = None

    def matches(self, method: str, target: str) -> bool:
        """Whether it is about such a request."""
        return bool(re.fullmatch(self.method, method) and re.search(self.path, target))


@dataclass
class _Active:
    rule: Rule
    left: int | None
    until: float | None
    passed: int = 0

    def applies(self) -> bool:
        """Whether it applies to this request, which matches; counts it."""
        if self.passed < self.rule.after:
            self.passed += 1
            return False
        self.left = None if self.left is None else self.left - 1
        if self.until is None and self.rule.lasts_s is not None:
            self.until = time.monotonic() + self.rule.lasts_s
        return True

    @property
    def over(self) -> bool:
        return self.left == 0 or (self.until is not None and time.monotonic() >= self.until)


@dataclass
class Plan:
    """What the rules want for one request."""

    latency_s: float = 0.0
    rate: float | None = None  # bytes a second
    fault: Rule | None = None


@dataclass
class State:
    """Rules and counters.

    counts  requests and bytes of bodies by (method, target)
    hits    how often a rule applied
    """

    rules: list[_Active] = field(default_factory=list)
    counts: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    connections: int = 0
    hits: int = 0

    def add(self, rule: Rule) -> None:
        """Activate a rule."""
        until = None if rule.lasts_s is None or rule.from_first else time.monotonic() + rule.lasts_s
        self.rules.append(_Active(rule, rule.requests, until))

    def refuses(self) -> bool:
        """Whether a new connection is closed at once."""
        for active in self.rules:
            rule = active.rule
            if (
                rule.fault == "refuse"
                and (rule.method, rule.path) == (".*", "")
                and not active.over
                and active.applies()
            ):
                self.hits += 1
                return True
        return False

    def plan(self, method: str, target: str) -> Plan:
        """Count a request, and find what happens to it."""
        self.counts.setdefault((method, target), [0, 0])[0] += 1
        plan = Plan()
        for active in self.rules:
            rule = active.rule
            if active.over or not rule.matches(method, target) or (rule.fault and plan.fault):
                continue
            if not active.applies():
                continue
            self.hits += 1
            plan.latency_s += rule.latency_s
            plan.fault = rule if rule.fault else plan.fault
            if rule.rate_mb_s is not None:
                plan.rate = min(rule.rate_mb_s * 1e6, plan.rate or float("inf"))
        return plan
