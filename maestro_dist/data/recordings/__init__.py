"""Data sets of whole recordings, which are cut into windows when they are read."""
