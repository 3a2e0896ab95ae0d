"""The driver: checks, records and launches a run, on this machine or on a Ray cluster."""
