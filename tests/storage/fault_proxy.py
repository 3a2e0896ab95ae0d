"""The proxy that makes a server slow or faulty, for tests of this folder; benchmarks use it too."""

from __future__ import annotations

from benchmarks.fault_proxy import Count, FaultProxy, Rule

__all__ = ["Count", "FaultProxy", "Rule"]
