"""Samples: manifest and shards in any fsspec storage, one global order, ragged micro-batches."""
