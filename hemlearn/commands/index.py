"""``hemlearn index``: read and validate a data set, and say what is in it."""

from __future__ import annotations

from hemlearn.config import compose

HELP = """usage: hemlearn index data=NAME data.root=DIR [KEY=VALUE ...] [out=DIR]

Build and validate the manifest: slices, series and patients, counts per label, how the series lie (order, spacing,
gaps, gantry tilt), what was skipped and why, exact and near duplicates. With out=DIR the manifest, the table of
series and the skipped table are written there.

examples:
  hemlearn index data=rsna data.root=/data/rsna
  hemlearn index data=ct_ich data.root=/data/ct-ich data.geometry.min_slices=10
  hemlearn index data=dicom data.root=/data/any-folder-of-dicom
  hemlearn index data=table data.manifest=my.csv task.labels=[bleed] out=/tmp/my-manifest
"""


def main(argv: list[str]) -> int:
    """Print the report; problems that stop the data set from being used are errors."""
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    out = [text.partition("=")[2] for text in argv if text.startswith("out=")]
    config = compose([text for text in argv if not text.startswith("out=")])
    from pathlib import Path

    from hemlearn.console import set_up_logging
    from hemlearn.datamodules import build_datamodule
    from hemlearn.reports.dataset import print_manifest

    set_up_logging()
    data = build_datamodule(config)
    # Not data.manifest: that also asks for the labels of a task, and a look at a data set needs none.
    manifest = data.read(data.root)
    print_manifest(manifest, duplicates=config.split.duplicates)
    absent = [label for label in config.task.labels if label not in manifest.labels]
    if absent and manifest.labels:
        print(f"to train on it, choose a task with its labels: task={config.task.name} has {', '.join(absent)}")
    if out:
        folder = Path(out[-1]).expanduser()
        manifest.save(folder)
        print(f"written: {folder}")
    return 0
