"""hemlearn: train, compare and believe classifiers of brain hemorrhage on head CT and hydrocephalus on brain MRI."""

__version__ = "0.1.0"
