"""Measure a part of maestro_dist: `python tools/benchmark.py NAME [--json FILE] [--quick]`.

Prints a table and writes it as JSON where asked. Rows with a target have `reach` and `holds`; the exit code is 0 also
where a target is missed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

# so that it starts as a file and as a module, from any folder
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[0]))

from benchmarks.common import Options, print_table, write_json

from maestro_dist.system.memory import keep_freed_memory
from maestro_dist.system.terminal import never_fail_to_print

NAMES = {
    "step": "where a training step's time goes: data wait, forward, backward, optimizer, tracking",
    "attention": "the attention core against the published formulation, the usual fast implementation, dense attention",
    "layer": "the attention layer with its projections",
    "moe": "the mixture of experts against a masked loop over the experts",
    "sax": "symbols from raw windows against a loop over the words",
    "model": "the whole model in training, time and peak memory; modalities missing; repeatability",
    "long": "a million tokens, and recordings of a million steps",
    "parallel": "one sequence on several ranks in three ways: bytes, wall time, weak scaling, memory",
    "data": "reading a training split from an S3 server: rates against bare GET and webdataset, requests, start",
}
_KEPT = {
    True: "the C library keeps freed memory for all cases: times measure arithmetic, not page faults",
    False: "the C library's allocator has its default settings",
}


def main() -> int:
    """Returns the exit code."""
    never_fail_to_print()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:10} {text}" for name, text in NAMES.items()),
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--json", metavar="FILE", help="write rows, versions and machine there")
    parser.add_argument("--quick", action="store_true", help="few repetitions and small sizes, to see that it works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of the second half of a table (default: all cores)"
    )
    parser.add_argument("--default-allocator", action="store_true", help="do not change the C library's allocator")
    given = parser.parse_args()
    if given.threads is not None and given.threads < 1:
        parser.error("--threads is at least 1")
    notes = []
    if given.name == "parallel":
        notes.append("gloo ranks, one process with one thread each; bytes are those sent to collectives")
    elif given.name == "data":
        notes.append("wall time; processes of the server and of the proxy share the cores")
    elif given.name != "step":
        keep = given.device == "cpu" and not given.default_allocator
        notes.append(_KEPT[keep and keep_freed_memory(large=True)])
    if given.quick:
        notes.append("quick: small sizes; the numbers mean nothing")
    options = Options(quick=given.quick, device=given.device, threads=given.threads)
    rows = importlib.import_module(f"benchmarks.{given.name}").run(options)
    print_table(given.name, rows, notes)
    if given.json:
        write_json(given.json, given.name, rows, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
