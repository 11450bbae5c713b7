"""CQ500 (Centre for Advanced Research in Imaging, Neurosciences and Genomics): 491 head CTs read by three radiologists.

Chilamkurthy S et al. Deep learning algorithms for detection of critical findings in head CT scans. Lancet
2018;392:2388-2396.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.data.choice import SLICES, choose
from hemlearn.data.manifest import Manifest
from hemlearn.data.rows import slice_ids
from hemlearn.data.sources import discover
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.datamodules.rsna import LABELS, contradictions
from hemlearn.util.console import NOTED
from hemlearn.util.errors import DataError, count
from hemlearn.util.tables import label_table, read_flags, refuse_rows

logger = logging.getLogger(__name__)
_READS = "reads.csv"
SPACING_MM = 5.0  # wanted; a thin series of the same scan shows the same head in up to ten times as many slices
_SHOWN = 5  # patients named in one line
_FINDINGS = {
    "EDH": "epidural",
    "IPH": "intraparenchymal",
    "IVH": "intraventricular",
    "SAH": "subarachnoid",
    "SDH": "subdural",
    "ICH": "any",
}
_READERS = ("R1", "R2", "R3")


class CQ500DataModule(SliceDataModule):
    """``ROOT/reads.csv`` and ``ROOT/CQ500CT0 CQ500CT0/Unknown Study/<series>/*.dcm``; labels describe whole patients.

    The votes of three radiologists count by majority of those given; a tie is unknown. Of each patient one series is
    used, as ``hemlearn predict`` chooses (:func:`hemlearn.data.choice.rank_series`): the head before its parts, 10 to
    600 slices before others, original before derived, plain before contrast-enhanced and before what does not say, a
    soft-tissue kernel before one that sharpens bone, and of equals the one whose slices are nearest to 5 mm apart, the
    routine head CT on which runs are trained. The others are
    recorded with the reason. Arguments are those of :class:`hemlearn.datamodules.base.SliceDataModule`.

    Example:
        >>> CQ500DataModule(image_size=96, geometry={"min_slices": 20}).geometry.min_slices
        20
    """

    name = "cq500"
    layout = "cq500"
    default_labels = LABELS

    def read(self, root: Path) -> Manifest:
        """The manifest, one series per patient; refused without a sound ``reads.csv`` and a usable series."""
        file = root / _READS
        labels = read_votes(file)
        notes = contradictions(labels, labels.index.tolist(), _READS)
        found = discover(root)
        patients = {path: patient_of(path) for path in found.files}
        skipped = [item for item in found.skipped if item[0] not in (_READS, "PHANTOM.txt", "phantom.csv")]
        known = [path for path, name in patients.items() if name in labels.index]
        skipped += [
            (path, "image without label" if name else "no patient: no folder is named CQ500CT<number>")
            for path, name in patients.items()
            if name not in labels.index
        ]
        absent = labels.index.difference(list(patients.values()), sort=False)
        skipped += [(name, "label without image: no folder of this patient holds images") for name in absent]
        if not known:
            raise DataError(
                f"{root}: no image of the {count(len(labels), 'patient')} in {_READS} "
                f"(first {labels.index[0]!r}; {count(len(found.files), 'image')} in all)",
                remedy="unpack the archives: folders 'CQ500CT0 CQ500CT0' must lie here",
            )
        headers, lost = self.headers(known, root, whole=False)
        headers["patient_id"] = headers["path"].map(patients)
        geometry = self.arrange(headers)
        chosen, others, odd = choose_series(geometry.series, geometry.rows)
        rows = geometry.rows[geometry.rows["series_id"].isin(chosen)].reset_index(drop=True)
        rows["slice_id"] = slice_ids(rows)
        return self.build(
            rows.join(labels, on="patient_id"),
            root,
            series=geometry.series[geometry.series["series_id"].isin(chosen)],
            skipped=(skipped, lost, geometry.skipped, others),
            label_level="series",
            notes=[*notes, *odd],
        )


def patient_of(path: str) -> str:
    """``CQ500-CT-12`` from a path through a folder ``CQ500CT12 CQ500CT12`` or the like; "" where there is none."""
    for part in path.split("/")[:-1]:
        match = re.match(r"CQ500-?CT-?(\d+)(?!\d)", part, re.I)
        if match:
            return f"CQ500-CT-{int(match.group(1))}"
    return ""


def read_votes(file: Path) -> pd.DataFrame:
    """Six labels per patient by majority of the radiologists' votes: R1:ICH ... R3:SAH with 0, 1 or nothing.

    Returns:
        (patients, six labels), 0, 1 or NaN (no vote, or a tie), indexed by ``CQ500-CT-<number>``.
    """
    table = label_table(
        file,
        ("name", *(f"{reader}:{finding}" for reader in _READERS for finding in _FINDINGS)),
        layout=f"data.root must hold {_READS} and the folders 'CQ500CT0 CQ500CT0' ...",
        header="give the label file as it comes with CQ500",
    )
    names = table["name"].map(lambda name: patient_of(f"{name}/"))
    remedy = "give every patient one row"
    refuse_rows(names == "", file, lambda k: f"name={table['name'].iloc[k]!r} is no patient like CQ500-CT-0", remedy)
    refuse_rows(names.duplicated(), file, lambda k: f"name={table['name'].iloc[k]!r} has a row already", remedy)
    out = {}
    for finding, label in _FINDINGS.items():
        votes = [
            read_flags(table, f"{reader}:{finding}", file, "votes are 0, 1 or empty (not given)") for reader in _READERS
        ]
        out[label] = majority(np.stack(votes, axis=1))
    return pd.DataFrame(out, index=pd.Index(names, dtype=object))[list(LABELS)]


def majority(votes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Majority of each row (N, readers) of 0, 1 and NaN (no vote); NaN for a tie and where nobody voted."""
    given = (~np.isnan(votes)).sum(axis=1)
    yes = (votes == 1).sum(axis=1)
    return np.where(2 * yes > given, 1.0, np.where(2 * yes < given, 0.0, np.nan))


def choose_series(series: pd.DataFrame, rows: pd.DataFrame) -> tuple[set[str], pd.DataFrame, list[str]]:
    """Ids of one series per patient, as ``hemlearn predict`` chooses (:mod:`hemlearn.data.choice`).

    Returns:
        The ids; (folder, reason) of the other series; a note on chosen ones that something speaks against.
    """
    folder = rows.drop_duplicates("series_id").set_index("series_id")["path"].str.rpartition("/")[0]
    kept = series.set_index("series_id")["kept"]
    lost: list[tuple[str, str]] = []
    odd: list[str] = []
    chosen: set[str] = set()
    # All of a patient's series count: the votes describe the patient.
    for choice in choose(series.sort_values("series_id").assign(study_id=series["patient_id"]), rows, SPACING_MM):
        best = choice.series_id
        if not SLICES[0] <= kept[best] <= SLICES[1]:
            too = f"no series of {SLICES[0]} to {SLICES[1]} slices: {choice.patient_id}, here"
            lost += [(folder[name], f"{too} {kept[name]}") for name in (best, *(name for name, _ in choice.others))]
            continue
        chosen.add(best)
        lost += [(folder[name], f"another series of this patient is used: {why}") for name, why in choice.others]
        if choice.faults:
            odd.append(f"{choice.patient_id} ({folder[best].rpartition('/')[2]}: {', '.join(choice.faults)})")
    notes = []
    if odd:
        shown = ", ".join(odd[:_SHOWN]) + (", ..." if len(odd) > _SHOWN else "")
        notes.append(f"{count(len(odd), 'patient has', 'patients have')} no faultless plain head series: {shown}")
        logger.warning(notes[0], extra=NOTED)
    return chosen, pd.DataFrame(lost, columns=["item", "reason"], dtype=object), notes
