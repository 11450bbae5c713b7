"""A six-class set in the manner of Zhou 2022 from CT-ICH: its normal slices and those of exactly one subtype.

python experiments/zhou2022/from_ct_ich.py data.root=DIR out=OUT

DIR is CT-ICH 1.0.0 (``Patients_CT/049/brain/1.jpg``). OUT, a new folder outside this repository, gets ``labels.csv``
(path,class,patient_id) and ``images/049_01.jpg ...``, links to the absolute paths of the pictures: nothing is copied.
Slices of several subtypes, and of hemorrhage without a subtype, have no one class; they are left out and counted.
Then: ``hemlearn train -m experiment=zhou2022 data.root=OUT channels=brain``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hemlearn.config.compose import compose
from hemlearn.datamodules.rsna import SUBTYPES
from hemlearn.training.build import build_datamodule
from hemlearn.util.errors import ConfigError, DataError, HemlearnError

PROJECT = Path(__file__).resolve().parents[2]


def one_class(table: pd.DataFrame) -> tuple[pd.Series[str], dict[str, int]]:
    """The class of each slice, "" where it has none, and how many have none, by reason.

    Args:
        table: A manifest's table with the five subtypes and ``any`` (0, 1, NaN).
    """
    counts = table[list(SUBTYPES)].sum(axis=1)
    known = table[[*SUBTYPES, "any"]].notna().all(axis=1)
    normal = known & (counts == 0) & (table["any"] == 0)
    single = known & (counts == 1) & (table["any"] == 1)
    word = table[list(SUBTYPES)].fillna(0.0).idxmax(axis=1).where(single, "").mask(normal, "normal")
    left = {
        "of several subtypes": int((known & (counts > 1)).sum()),
        "with an unknown label": int((~known).sum()),
        "whose any contradicts the subtypes": int((known & (counts <= 1) & (word == "")).sum()),
    }
    return word, left


def write(root: Path, out: Path) -> pd.DataFrame:
    """Write the set; returns its table (path, class, patient_id).

    Raises:
        ConfigError: ``out`` lies in this repository or holds files.
        DataError: ``root`` is not CT-ICH, or holds volumes; links cannot be made.
    """
    out = out.resolve()
    if out.is_relative_to(PROJECT):
        raise ConfigError(
            f"out={out}: inside the repository, which must not hold patients' images", remedy="name a folder elsewhere"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out}: is there already", remedy="name a new folder, or delete this one")
    manifest = build_datamodule(compose(["data=ct_ich", f"data.root={root}", "task=subtypes"])).manifest
    table = manifest.table
    volumes = table["path"].str.contains(".nii", regex=False)
    if volumes.any():
        raise DataError(
            f"{root / table['path'][volumes].iloc[0]}: a volume, but a six-class image is one slice",
            remedy="give CT-ICH 1.0.0, which holds JPG pictures",
        )
    word, left = one_class(table)
    chosen = table[word != ""]
    made = pd.DataFrame(
        {"path": "images/" + chosen["slice_id"] + ".jpg", "class": word[word != ""], "patient_id": chosen["patient_id"]}
    )
    (out / "images").mkdir(parents=True)
    for target, name in zip(chosen["path"], made["path"], strict=True):
        try:
            (out / name).symlink_to((root / target).resolve())
        except OSError as error:
            raise DataError(
                f"{out / name}: no link can be made ({error.strerror or error})",
                remedy="choose a folder on a file system with symbolic links",
            ) from error
    made.to_csv(out / "labels.csv", index=False)
    for reason, count in left.items():
        if count:
            print(f"left out: {count} slices {reason}")
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    given = dict(text.partition("=")[::2] for text in argv)
    if set(given) != {"data.root", "out"}:
        print(__doc__)
        return 2
    try:
        made = write(Path(given["data.root"]), Path(given["out"]))
    except HemlearnError as error:
        print(error, file=sys.stderr)
        return 1
    each = made.groupby("class").agg(slices=("path", "size"), patients=("patient_id", "nunique"))
    print(each.sort_values("slices", ascending=False).to_string())
    print(f"{len(made)} slices of {made['patient_id'].nunique()} patients: {given['out']}/labels.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
