"""Exported models: written, loaded, asked; from Python, the command line and MLflow."""
