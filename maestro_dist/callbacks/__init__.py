"""Optional behaviour of a run, each in a small class that the loop calls at fixed moments."""
