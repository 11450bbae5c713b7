"""Finished runs on data they were not trained with: any files (``predict``) or labelled data sets (``evaluate``)."""

from __future__ import annotations

from hemlearn.inference.loading import Loaded, Member, load_members, load_run
from hemlearn.inference.manifest import UnseenSlices, predict_manifest

__all__ = ["Loaded", "Member", "UnseenSlices", "load_members", "load_run", "predict_manifest"]
