"""LightningModules: what is predicted, trained how, and how validation is scored.

``slices`` holds the 2D task, ``volumes`` the task over whole series, ``volumes3d`` that of 3D networks, ``pretrain``
pretraining without labels, ``base`` what they share. Imports ``models``,
``transforms``, ``evaluation`` and below; ``training`` and ``reading`` run them.
"""

from hemlearn.tasks.base import Classification
from hemlearn.tasks.pretrain import Pretraining
from hemlearn.tasks.slices import SliceClassification
from hemlearn.tasks.volumes import VolumeClassification
from hemlearn.tasks.volumes3d import Volume3DClassification

__all__ = ["Classification", "Pretraining", "SliceClassification", "Volume3DClassification", "VolumeClassification"]
