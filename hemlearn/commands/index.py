"""``hemlearn index``: read and validate a data set, say what is in it, and what a model could learn without looking."""

from __future__ import annotations

from hemlearn.commands import read, take_config_dir
from hemlearn.config.requests import IndexRequest

HELP = """usage: hemlearn index data=NAME data.root=DIR [--config-dir DIR] [KEY=VALUE ...] [out=DIR]

Build and validate the manifest: slices, series and patients, counts per label, how the series lie (order, spacing,
gaps, gantry tilt), what was skipped and why.

Then the audits: exact and near duplicates, and whether any stands on two sides of the split that the configuration
makes; counts per part and label; and how far models get that see no brain: only image size, all file facts (size,
bytes, encoding, manufacturer, kernel, slice thickness ...), only the image's border, only the slice's position. Each is
an AUROC, cross-validated by patient, with its 95 % interval; a plain verdict ends the report.

Each file is opened once: what was read stays in the cache with the decoded slices, so that `prepare` and `train` find
their slice store ready.

options:
{options}

examples:
  hemlearn index data=rsna data.root=/data/rsna
  hemlearn index data=ct_ich data.root=/data/ct-ich data.geometry.min_slices=10
  hemlearn index data=dicom data.root=/data/any-folder-of-dicom
  hemlearn index data=table data.manifest=my.csv task.labels=[bleed] out=/tmp/my-manifest
  hemlearn index data=head_ct data.root=/data/head_ct split=kfold split.folds=5 split.fold=2
"""


def main(argv: list[str]) -> int:
    """Print the report; problems that stop the data set from being used are errors."""
    words, config_dir = take_config_dir(argv)
    request = read(IndexRequest, words, HELP)
    if request is None:
        return 0
    from hemlearn.config.compose import compose

    config = compose(request.overrides, config_dir)
    from hemlearn.audits.audit import audit_manifest
    from hemlearn.data.store import scanned_store
    from hemlearn.datamodules.base import tasks_of
    from hemlearn.reports.tables import print_audits, print_manifest
    from hemlearn.training.build import build_datamodule
    from hemlearn.util.console import set_up_logging
    from hemlearn.util.files import write_json

    set_up_logging()
    data = build_datamodule(config)
    manifest = data.manifest
    print_manifest(manifest)
    scanned_store(manifest, size=data.image_size, fit=data.fit, cache_dir=data.cache)
    audits = audit_manifest(data)
    print_audits(audits, config.split.name)
    absent = [label for label in config.task.labels if label not in manifest.labels]
    if absent and manifest.labels:
        fit = " or ".join(tasks_of(manifest)) or "a task with its labels"
        print(f"to train on it, use {fit} (task={config.task.name} wants {', '.join(absent)}, which it does not have)")
    if request.out:
        folder = request.out
        manifest.save(folder)
        audits.pop("pairs").to_csv(folder / "duplicates.csv", index=False)
        write_json(folder / "audits.json", audits, indent=2, allow_nan=False)
        print(f"written: {folder}")
    return 0
