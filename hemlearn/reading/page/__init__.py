"""One case as a page for a reader: its slices, scores and maps in one file that makes no request."""
