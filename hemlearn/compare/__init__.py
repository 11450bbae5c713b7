"""Finished runs side by side: pooled over folds and seeds, tested pairwise, written as page and tables.

Reads run folders through ``training.run``; only ``commands`` and the public names import it.
"""
