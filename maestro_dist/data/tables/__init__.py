"""Recordings from tables that people have: CSV and Parquet files in any folders, described by a small YAML file."""
