"""Files on disk become a manifest, a split, a slice store and batches.

Readers open files, ``scan`` and ``manifest`` make the one table, ``splits`` decides about patients, ``store`` keeps the
decoded slices, ``batches`` hands them out. Imports ``util`` and the option classes of ``config``; no network is known
here. Every room above may import it.
"""
