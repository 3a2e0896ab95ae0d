"""What a driver does: checks, records and launches a run, here or on a Ray cluster."""
