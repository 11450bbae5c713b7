"""``hemlearn index``: read and validate a data set, and say what is in it."""

from __future__ import annotations

from hemlearn.config import compose

HELP = """usage: hemlearn index data=NAME data.root=DIR [KEY=VALUE ...] [out=DIR]

Build and validate the manifest: slices and patients, counts per label, what was skipped and why, exact and near
duplicates. With out=DIR the manifest and the skipped table are written there.

examples:
  hemlearn index data=head_ct data.root=/data/head_ct
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
    from hemlearn.reports.summary import print_manifest

    set_up_logging()
    data = build_datamodule(config)
    print_manifest(data.manifest, duplicates=config.split.duplicates)
    if out:
        folder = Path(out[-1]).expanduser()
        data.manifest.save(folder)
        print(f"written: {folder}")
    return 0
