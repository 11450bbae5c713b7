"""Finished runs side by side: pooled over folds and seeds, tested pairwise, written as page and tables.

Reads run folders through ``training.run``. Nothing is trained or predicted here. Only ``commands`` and the public
names of hemlearn import it.
"""
