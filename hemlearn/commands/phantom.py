"""``hemlearn phantom``: a synthetic data set in the on-disk layout of a real one."""

from __future__ import annotations

from hemlearn.commands import read
from hemlearn.config.requests import PhantomRequest

HELP = """usage: hemlearn phantom layout=LAYOUT out=DIR [KEY=VALUE ...]

Write synthetic head CT or brain MRI in the exact layout of a real data set. The images are computed anatomy, not
patients.

options:
{options}

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
    request = read(PhantomRequest, argv, HELP)
    if request is None:
        return 0
    from hemlearn.phantom.layouts import write_phantom
    from hemlearn.util.console import counter

    with counter("Drawing synthetic heads") as progress:
        summary = write_phantom(
            request.layout,
            request.out,
            patients=request.patients,
            seed=request.seed,
            progress=progress,
            n_jobs=request.jobs,
        )
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(summary.subtypes.items()))
    print(
        f"{summary.out}: SYNTHETIC {summary.layout} data, {summary.patients} patients, {summary.images} images, "
        f"{summary.positives} {summary.finding} ({kinds}), seed {summary.seed}"
    )
    return 0
