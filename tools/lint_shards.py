"""Look for what is wrong or odd in a packed data set, and say it.

Exit code 1 if something is wrong (damage, a person or a window in two splits), with --strict also for warnings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict

from maestro_dist.config.load import load_config
from maestro_dist.config.paths import expand_home
from maestro_dist.data.lint import Remark, lint
from maestro_dist.data.storage import redact
from maestro_dist.data.storage.settings import configure
from maestro_dist.errors import run_main


def main(argv: list[str] | None = None) -> int:
    """Print all remarks, and how many errors and warnings there were."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="folder or fsspec URL of the packed data set")
    parser.add_argument("--no-hashes", action="store_true", help="do not compare the sha256 of each shard")
    parser.add_argument("--strict", action="store_true", help="exit code 1 also for warnings")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each remark")
    keys = "data.window.*, data.split.*, data.cache, s3.*, run.storage_patience_s"
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=keys)
    options = parser.parse_intermixed_args(argv)  # keys may follow options
    config = load_config(None, options.settings)
    configure(config)
    url, levels = expand_home(options.url, "url"), Counter[str]()
    for remark in lint(config.data.model_copy(update={"url": url}), hashes=not options.no_hashes):
        levels[remark.level] += 1
        print(json.dumps(asdict(remark)) if options.json else _line(remark), flush=True)
    if not options.json:
        print(f"{redact(url)}: {levels['error']} errors, {levels['warning']} warnings")
    return int(bool(levels["error"] or (options.strict and levels["warning"])))


def _line(remark: Remark) -> str:
    return f"{remark.level}: {remark.where}: {remark.text}"


if __name__ == "__main__":
    sys.exit(run_main(main, debug=False))
