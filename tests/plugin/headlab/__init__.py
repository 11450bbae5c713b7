"""A laboratory's own package beside hemlearn: one part of each kind, and a ``conf`` folder."""

from headlab import registered as registered

__version__ = "0.3.0"
