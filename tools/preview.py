"""Show a packed data set on one HTML page: facts, samples, recordings, values, labels, people.

The page needs nothing else: no network, no JavaScript. A bounded, random number of samples is read; the same seed
makes the same page.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import uuid
from pathlib import Path

from maestro_dist.config.load import load_config
from maestro_dist.config.paths import expand_home
from maestro_dist.data.preview.collect import MOST_SAMPLES, PreviewOptions, collect
from maestro_dist.data.preview.page import render
from maestro_dist.data.storage import redact
from maestro_dist.data.storage.settings import configure
from maestro_dist.errors import ConfigError, run_main

_KEYS = ("data.window", "data.split", "data.modalities", "data.cache", "data.cache_gb", "data.verify", "s3")
_ALSO = "run.storage_patience_s"


def main(argv: list[str] | None = None) -> int:
    """Write the page, and say where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="folder or fsspec URL of the packed data set")
    parser.add_argument("--out", metavar="FILE", help="the page (default ./preview-NAME.html)")
    samples = f"samples of each split that are drawn, 1 to {MOST_SAMPLES} (default 6)"
    parser.add_argument("--samples", type=int, default=6, metavar="N", help=samples)
    parser.add_argument("--seed", type=int, default=0, help="of the random choice (default 0)")
    parser.add_argument("--split", action="append", default=[], metavar="NAME", help="only this split; may be repeated")
    keys = "data.window.*, data.split.*, data.modalities, data.cache, s3.*, run.storage_patience_s"
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=keys)
    options = parser.parse_intermixed_args(argv)  # keys may follow options
    for setting in options.settings:
        key = setting.partition("=")[0]
        if key != _ALSO and not any(key == known or key.startswith(f"{known}.") for known in _KEYS):
            raise ConfigError(f"{key}: a preview has no use for it; it takes {keys}")
    if "://" in (options.out or ""):
        raise ConfigError(f"--out {redact(options.out)}: the page is written to this machine; give a path")
    page = Path(expand_home(options.out, "--out")) if options.out else None
    if page is not None and (page.is_dir() or not page.absolute().parent.is_dir()):
        raise ConfigError(f"--out {page}: cannot be written: it is a folder, or its folder does not exist")
    config = load_config(None, options.settings)
    configure(config)
    url = expand_home(options.url, "url")
    data = config.data.model_copy(update={"url": url})
    preview = collect(data, PreviewOptions(options.samples, options.seed, tuple(dict.fromkeys(options.split))))
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", preview.manifest.name)[:60].strip("-") or "data"
    page = page or Path(f"preview-{name}.html")
    content = render(preview, url)
    _write(page, content)
    shown = [sample for samples in preview.samples.values() for sample in samples.shown]
    broken = sum(samples.broken for samples in preview.samples.values())
    damaged = f", {broken} broken" if broken else ""
    print(f"{redact(url)}: {len(shown)} samples shown{damaged}, {len(preview.warnings)} warnings")
    print(f"{page}: {len(content) / 1e6:.1f} MB")
    return 0


def _write(page: Path, content: bytes) -> None:
    """Write the page, or leave what was there."""
    part = page.with_name(f".{page.name}.{uuid.uuid4().hex}")
    try:
        part.write_bytes(content)
        os.replace(part, page)
    except OSError as error:
        raise ConfigError(f"--out {page}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(run_main(main, debug=False))
