"""Which of the shipped tasks a data set's labels are those of, as it is given on the command line."""

from __future__ import annotations

from omegaconf import OmegaConf

from hemlearn.config import conf_dir
from hemlearn.data.manifest import Manifest


def tasks_of(manifest: Manifest) -> list[str]:
    """For example ``["task=six_class loss=cross_entropy"]``.

    Args:
        manifest: The data set.

    Returns:
        Tasks of ``conf/task`` whose labels are those of the data set, with what else they need: the loss of exclusive
        classes, the channels of MR, slices where these labels describe slices. No such task: those that need only
        some of the labels.
    """
    exact, part = [], []
    for file in sorted((conf_dir() / "task").glob("*.yaml")):
        task = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(task, dict)
        words = [f"task={file.stem}"]
        if task.get("level") == "series" and task.get("kind") == "multiclass" and manifest.label_level == "slice":
            words.append("task.level=slice")
        if task.get("level", "slice") == "slice" and manifest.label_level == "series":
            words.append("task.level=series")
        if task.get("kind") == "multiclass":
            words.append("loss=cross_entropy")
        if set(manifest.table["modality"]) == {"MR"}:
            words.append("channels=mr")
        labels = set(task.get("labels", ()))
        if labels == set(manifest.labels):
            exact.append(" ".join(words))
        elif labels and labels < set(manifest.labels):
            part.append(" ".join(words))
    return exact or part
