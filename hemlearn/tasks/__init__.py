"""LightningModules: what is predicted, trained how, and how validation is scored.

``slices`` holds the 2D task, ``volumes`` the task over whole series, ``pretrain`` pretraining without labels, ``base``
what they share. Imports ``models``,
``transforms``, ``evaluation`` and below; ``training`` and ``reading`` run them.
"""

from hemlearn.tasks.base import Classification
from hemlearn.tasks.pretrain import Pretraining
from hemlearn.tasks.slices import SliceClassification
from hemlearn.tasks.volumes import VolumeClassification

__all__ = ["Classification", "Pretraining", "SliceClassification", "VolumeClassification"]
