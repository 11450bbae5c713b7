"""``hemlearn phantom``: a synthetic data set in the on-disk layout of a real one."""

from __future__ import annotations

import os
from pathlib import Path

from hemlearn.commands.options import parse_options, whole_number
from hemlearn.util.errors import ConfigError

HELP = """usage: hemlearn phantom layout=LAYOUT out=DIR [patients=24] [seed=0] [jobs=CORES]

Write synthetic head CT or brain MRI in the exact layout of a real data set. The images are computed anatomy, not
patients.

layouts: head_ct, rsna, ct_ich, ct_ich_nifti, cq500, basal_ganglia, six_class, hydrocephalus_mri
examples:
  hemlearn phantom layout=head_ct out=/tmp/phantom patients=240
  hemlearn train data=head_ct data.root=/tmp/phantom
  hemlearn phantom layout=rsna out=/tmp/rsna patients=60
  hemlearn train experiment=rsna data.root=/tmp/rsna
  hemlearn phantom layout=hydrocephalus_mri out=/tmp/mri patients=200
  hemlearn train data=hydrocephalus_mri data.root=/tmp/mri channels=mr task=hydrocephalus
"""


def main(argv: list[str]) -> int:
    """Write the set and print what it holds."""
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    options = parse_options(
        argv,
        {"layout": "head_ct", "out": None, "patients": "24", "seed": "0", "jobs": str(os.cpu_count() or 1)},
        "phantom",
    )
    if not options["out"]:
        raise ConfigError("out is not set", remedy="say where to write: out=DIR")
    patients, seed = whole_number(options, "patients", 2), whole_number(options, "seed", 0)
    from hemlearn.phantom.layouts import write_phantom
    from hemlearn.util.console import counter

    with counter("Drawing synthetic heads") as progress:
        summary = write_phantom(
            str(options["layout"]),
            Path(str(options["out"])).expanduser(),
            patients=patients,
            seed=seed,
            progress=progress,
            n_jobs=whole_number(options, "jobs", 1),
        )
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(summary.subtypes.items()))
    print(
        f"{summary.out}: SYNTHETIC {summary.layout} data, {summary.patients} patients, {summary.images} images, "
        f"{summary.positives} {summary.finding} ({kinds}), seed {summary.seed}"
    )
    return 0
