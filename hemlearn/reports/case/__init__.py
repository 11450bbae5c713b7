"""One case as a page for a reader: its slices, scores and map, in one file."""
