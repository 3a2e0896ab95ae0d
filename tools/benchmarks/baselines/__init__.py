"""Conventional models on the same shards, masks and metrics: MiniRocket with a ridge classifier, LightGBM.

`python -m benchmarks.baselines minirocket|lightgbm [CONFIG] [key=value ...]` fits one and writes what a run of
maestro_dist writes: `result.json`, `predictions.npz`, and a run with the same metric names in MLflow.
"""
