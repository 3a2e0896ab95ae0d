"""Exported models: write, load and predict, from Python, the command line and MLflow."""
