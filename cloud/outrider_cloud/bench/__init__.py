"""`outrider bench`: measurements as commands. Each prints ours beside a baseline of the same run, with units."""
