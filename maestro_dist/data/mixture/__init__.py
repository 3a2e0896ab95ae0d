"""Several data sets that one run trains on together (`data.sources`)."""
