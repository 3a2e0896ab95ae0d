"""Data: raw files to samples, samples to shards and a manifest, shards to micro-batches. See README.md here."""
