"""Configuration: schema, loading and cross-field checks. Imports neither torch nor Ray."""
