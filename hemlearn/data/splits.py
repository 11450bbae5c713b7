"""Which patients train, validate and test: stratified by label, no patient and no picture on two sides."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.config.schema import SplitConfig
from hemlearn.data.covariates import PREFIX
from hemlearn.data.duplicates import connected, duplicate_groups
from hemlearn.data.manifest import Manifest
from hemlearn.util.errors import SplitError, count, hint
from hemlearn.util.files import sha256, write_text
from hemlearn.util.tables import csv_text, read_csv

# --- Drawing units (patients, joined by duplicates) at random, every label spread evenly: systematic sampling.


Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
_NEIGHBOURS = 2  # units drawn, on average, from each block of units of about equal size


def ranks(names: Sequence[str] | NDArray[Any], salt: str) -> Codes:
    """Return a shuffled rank of each name, the same on every platform and whatever the order of names.

    Hashes are used rather than a random generator, whose stream may change between versions of numpy.
    """
    digests = [hashlib.sha256(f"{salt}\0{name}".encode()).digest() for name in names]
    order = sorted(range(len(names)), key=digests.__getitem__)
    out = np.empty(len(names), dtype=np.int64)
    out[order] = np.arange(len(names))
    return out


def strata(unit: Codes, patients: Codes, labels: Floats, salt: str) -> tuple[Codes, Codes]:
    """Number the combinations of labels that units have, neighbours being alike.

    The numbers follow a reflected Gray code of the labels: whether there is any, then each, the rarest first. The units
    of a label thus form few runs of consecutive numbers, and rare combinations stand beside similar ones.
    In which direction each label runs is drawn: else two patients of a combination each would always be drawn together.

    Args:
        unit: (N,) unit of each slice, 0 to U-1.
        patients: (N,) patient of each slice, 0 to P-1.
        labels: (N, L), 0, 1 or NaN. A unit has a label when one of its slices has it, and an unknown one when no slice
            is known.
        salt: Another one gives another draw.

    Returns:
        (U,) stratum, which also tells how many patients are joined in the unit, and (U,) slices.
    """
    home = np.zeros(int(patients.max()) + 1, dtype=np.int64)
    home[patients] = unit
    slices = np.bincount(unit)
    value = np.full((len(slices), labels.shape[1]), -1, dtype=np.int64)
    for column, known in zip(value.T, labels.T, strict=True):
        np.maximum.at(column, unit, np.where(np.isnan(known), -1, known).astype(np.int64))
    value = np.where(value < 0, 1, 2 * value)  # without, unknown, with
    rarest = np.argsort(np.minimum((value == 2).sum(axis=0), (value == 0).sum(axis=0)), kind="stable")
    stratum = np.zeros(len(value), dtype=np.int64)
    for number, digit in enumerate((value.max(axis=1, initial=0), *value.T[rarest], np.bincount(home))):
        top = int(digit.max()) + 1
        turned = stratum % 2 == (_uniform(f"{number}:{salt}") < 0.5)
        digit = np.where(turned, top - 1 - digit, digit)
        stratum = np.unique(stratum * top + digit, return_inverse=True)[1].astype(np.int64)
    return stratum, slices


def queue(stratum: Codes, slices: Codes, rank: Codes, interval: float) -> Codes:
    """Units in the order in which every ``interval``-th is drawn: by stratum, then by blocks of similar size.

    A block holds twice ``interval`` units; within it they stand in the order of ``rank``, which is random.
    """
    order = np.lexsort((rank, np.where(stratum % 2 == 1, -slices, slices), stratum))
    first = np.searchsorted(stratum[order], stratum[order])  # where the unit's stratum begins
    block = (np.arange(len(order)) - first) // max(1, round(_NEIGHBOURS * interval))
    return order[np.lexsort((rank[order], block, stratum[order]))]


def draw_folds(stratum: Codes, slices: Codes, names: Sequence[str] | NDArray[Any], folds: int, salt: str) -> Codes:
    """Deal units into ``folds`` parts; each part is a systematic sample as :func:`draw_part` takes one.

    Args:
        stratum: (U,), as :func:`strata` numbers them.
        slices: (U,) of each unit.
        names: (U,) that determine the draw together with ``salt``.
        folds: Number of parts.
        salt: Another one gives another draw.

    Returns:
        (U,) part of each unit. All parts, and the units of each stratum in them, differ by one unit at most.
    """
    order = queue(stratum, slices, ranks(names, salt), folds)
    part = np.empty(len(order), dtype=np.int64)
    part[order] = (np.arange(len(order)) + int(_uniform(salt) * folds)) % folds
    return part


def draw_part(
    stratum: Codes, slices: Codes, names: Sequence[str] | NDArray[Any], fraction: float, salt: str
) -> NDArray[np.bool_]:
    """Draw a fraction of the units by stratified systematic sampling with a random start.

    The units are put in the order of :func:`queue`, and a point is set every ``1 / fraction`` units, the first at
    random: who stands at a point is drawn. Every unit's chance is therefore ``fraction``, and of each stratum its share
    is drawn, rounded up or down. Of few units one is drawn at least.

    Arguments as :func:`draw_folds`.

    Returns:
        (U,) whether each unit is drawn.

    Source: Madow and Madow 1944, Ann Math Stat 15:1.
    """
    size = len(stratum)
    fraction = max(fraction, 1 / size) if size else fraction
    order = queue(stratum, slices, ranks(names, salt), 1 / fraction)
    points = np.floor(_uniform(salt) + fraction * np.arange(size + 1))
    drawn = np.empty(size, dtype=np.bool_)
    drawn[order] = np.diff(points) > 0
    return drawn


def _uniform(salt: str) -> float:
    """A number drawn from [0, 1) by ``salt``."""
    return int.from_bytes(hashlib.sha256(f"uniform\0{salt}".encode()).digest()[:6], "big") / 2**48


logger = logging.getLogger(__name__)
PARTS = ("train", "val", "test")
PART = f"{PREFIX}part"  # column that names the data set each slice of several comes from


@dataclass(frozen=True)
class Split:
    """A division of a data set.

    Args:
        assignment: Columns patient_id (slice_id for a split by slice) and split (``train``, ``val`` or ``test``),
            one row per patient (slice); kept sorted, without further columns.
        leaky: True when slices of one patient may stand on several sides; a table of slice_id without patient_id is.

    Raises:
        SplitError: No table, no rows, a column that is missing, an empty id, one that stands in two rows, or a split of
            another name.

    Example:
        >>> Split(pd.DataFrame({"patient_id": ["b", "a"], "split": ["test", "train"]})).unit
        'patient_id'
        >>> Split(pd.DataFrame({"patient_id": ["a", "a"], "split": ["test", "train"]}))
        Traceback (most recent call last):
        hemlearn.util.errors.SplitError: ...
    """

    assignment: pd.DataFrame
    leaky: bool = False

    def __post_init__(self) -> None:
        table = self.assignment
        if not isinstance(table, pd.DataFrame):
            text = f"the split is a {type(table).__name__}, not a table"
            raise SplitError(text, remedy="give a pandas DataFrame with the columns patient_id and split")
        if "slice_id" in table and "patient_id" not in table:
            object.__setattr__(self, "leaky", True)
        unit = self.unit
        for column in (unit, "split"):
            if column not in table:
                raise SplitError(
                    f"the split has no column {column!r}; it has {', '.join(map(str, table))}",
                    remedy="the columns are patient_id,split (or slice_id,split for a split by slice)",
                )
        if table.empty:
            raise SplitError("the split has no rows", remedy=f"give every {unit} of the data set a row")
        ids = table[unit].astype(str).str.strip().where(table[unit].notna(), "")
        if (ids == "").any():
            row = int((ids == "").to_numpy().argmax()) + 1
            raise SplitError(f"data row {row} of the split has no {unit}", remedy=f"give every row a {unit}")
        known = table["split"].isin(PARTS)
        if not known.all():
            row = int(known.to_numpy().argmin())
            raise SplitError(
                f"data row {row + 1} of the split: split {table['split'].iloc[row]!r} of {unit} {ids.iloc[row]!r}",
                remedy=f"use one of {', '.join(PARTS)}",
            )
        twice = ids.duplicated(keep=False)
        if twice.any():
            names, rows = ids[twice].unique().tolist(), np.flatnonzero(ids == ids[twice].iloc[0]) + 1
            stands = ", ".join(f"data row {row} ({table['split'].iloc[row - 1]})" for row in rows[:5])
            raise SplitError(
                f"the split has {unit} {_some(names)} more than once: {names[0]!r} in {stands}",
                remedy="give each one row only",
            )
        clean = pd.DataFrame({unit: ids.astype(object), "split": table["split"].astype(object)})
        object.__setattr__(self, "assignment", clean.sort_values(unit).reset_index(drop=True))

    @property
    def unit(self) -> str:
        """The column that is divided: ``patient_id``, or ``slice_id`` where leaky."""
        return "slice_id" if self.leaky else "patient_id"

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the assignment."""
        return sha256(str(self.assignment.to_csv(index=False, lineterminator="\n")))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the assignment as CSV, at once or not at all; that of a leaky split has a third column ``leaky``."""
        table = self.assignment.assign(leaky="true") if self.leaky else self.assignment
        write_text(Path(path), csv_text(table))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Split:
        """Read a CSV with columns patient_id (or slice_id) and split.

        Raises:
            DataError: The file cannot be read as a table.
            SplitError: As the constructor; the message names the file.
        """
        table = read_csv(path)
        try:
            return cls(table)
        except SplitError as error:
            raise SplitError(f"{path}: {error.problem}", remedy=error.remedy) from None

    def apply(self, manifest: Manifest) -> pd.Series[str]:
        """Return the part of every manifest row, indexed like ``manifest.table``.

        Raises:
            SplitError: A patient of the manifest is not in the split.
        """
        parts = manifest.table[self.unit].map(self.assignment.set_index(self.unit)["split"])
        if parts.isna().any():
            missing = manifest.table.loc[parts.isna(), self.unit].unique().tolist()
            raise SplitError(
                f"the split lacks {len(missing)} of the data set's {self.unit}s: {_some(missing)}",
                remedy="add them to the split, or make the split anew from this data set",
            )
        return parts.astype(str).rename("split")


class _Division(SplitConfig):
    @classmethod
    def prefix(cls) -> str:
        """As in the configuration."""
        return "split."

    @classmethod
    def what(cls) -> str:
        """Where the errors are."""
        return "the split's arguments"

    @classmethod
    def remedy(cls) -> str:
        """What helps in Python and on the command line."""
        return "correct the arguments above, which are those of hemlearn.KFold, ... and the keys of group split"


class Holdout(_Division):
    """One test set, ``test_fraction`` of the patients; ``val_fraction`` of the others validate.

    Its arguments, like those of the next three classes, are the keys of the group ``split``; impossible values are one
    :class:`ConfigError` that lists them all.

    Example:
        >>> Holdout(test_fraction=0.3, seed=4).val_fraction
        0.15
        >>> Holdout(test_fraction=1.5)
        Traceback (most recent call last):
        hemlearn.util.errors.ConfigError: ...
    """

    name: str = "holdout"


class KFold(_Division):
    """Part ``fold`` of ``folds`` parts of the patients is tested, so that every patient is tested once.

    Example:
        >>> [KFold(folds=3, fold=fold).fold for fold in range(3)]
        [0, 1, 2]
    """

    name: str = "kfold"


class MonteCarlo(_Division):
    """A :class:`Holdout` drawn anew for each repetition ``fold``.

    Example:
        >>> MonteCarlo(fold=3, test_fraction=0.25).name
        'monte_carlo'
    """

    name: str = "monte_carlo"


class LeaveOneOut(_Division):
    """The part ``left_out`` of several data sets is tested, all of it and nothing else; the others train and validate.

    Example:
        >>> LeaveOneOut(left_out="ct_ich").val_fraction
        0.15
    """

    name: str = "leave_one_out"


class SplitFile(_Division):
    """The split of a CSV ``file`` with the columns patient_id (or slice_id) and split.

    Example:
        >>> SplitFile(file="split.csv").file
        'split.csv'
    """

    name: str = "file"


def make_split(
    manifest: Manifest,
    cfg: SplitConfig,
    *,
    labels: Sequence[str] | None = None,
    required: Sequence[str] = PARTS,
    groups: pd.Series[int] | None = None,
) -> Split:
    """Divide a data set as ``cfg`` says, and check that nothing stands on two sides.

    Test patients are drawn first (k-fold: the folds partition all patients), then ``val_fraction`` of the
    others for validation; both at random (:func:`draw_part`), stratified by patient-level label combination.
    Patients that share a duplicate picture move together. The result depends on ids, labels, ``cfg`` and nothing
    else: not on the platform and not on the order of rows.

    Args:
        manifest: The data set.
        cfg: Group ``split``.
        labels: Labels to balance and check; None: all of the manifest.
        required: Parts that need a patient, and a positive and a negative slice of the label. Of several labels
            only one must have both: a rare subtype cannot stand in every fold, and its absence is told as a warning.
        groups: Duplicate group of each manifest row where it is known already (saves comparing pictures).

    Raises:
        ConfigError: A value of ``cfg`` is impossible.
        SplitError: Fewer patients than folds, or a split file that does not fit the data set; and as
            :func:`check_split`.
    """
    chosen = list(manifest.labels if labels is None else labels)
    if groups is None:
        groups = duplicate_groups(manifest, cfg.duplicates)
    split = _from_file(manifest, cfg) if cfg.name == "file" else _drawn(manifest, cfg, chosen, groups)
    needed: dict[str, Any] = {"required": required, "classes": required, "allow_leak": cfg.allow_leak}
    return check_split(split, manifest, chosen, groups, how=cfg, **needed)


def check_split(
    split: Split,
    manifest: Manifest,
    labels: Sequence[str],
    groups: pd.Series[int] | None = None,
    *,
    required: Sequence[str] = PARTS,
    classes: Sequence[str] = ("train",),
    allow_leak: bool = False,
    how: SplitConfig | None = None,
) -> Split:
    """The same split, where it fits the data set and nothing stands on two sides.

    Args:
        split: A split, whoever made it.
        manifest: The data set.
        labels: Labels to check.
        groups: Duplicate group of each manifest row; None: copies are not checked.
        required: Parts that need a patient.
        classes: Parts that need both classes of a label; elsewhere their absence is a warning.
        allow_leak: Accept a split by slice that puts a patient on two sides.
        how: The keys it was drawn by, for the remedies; None: somebody's own.

    Raises:
        SplitError: A patient of the data set that it lacks; a required part without patients, or without a class;
            slices of a patient, or copies of a picture, on two sides; labels of whole series divided by slice.
    """
    if split.leaky and manifest.label_level == "series":
        raise SplitError(
            "a split by slice divides series, but the labels of this data set describe whole series",
            remedy="use split.by=patient; a leak can be shown on labels of slices",
        )
    parts = split.apply(manifest)
    assert_disjoint(manifest, parts, groups, leaky=split.leaky and allow_leak)
    if split.leaky and allow_leak:
        logger.warning("split.by=slice: slices of one patient may stand on both sides; results are optimistic")
    if empty := [part for part in required if not (parts == part).any()]:
        problem, unit = f"no patient in {', '.join(empty)}", _units(manifest, split.unit, groups)
        if (units := len(np.unique(unit))) < len(required):
            reason, remedy = _few(manifest.table[split.unit].nunique(), units, split.unit)
            raise SplitError(f"{problem}: {reason}", remedy=remedy)
        raise SplitError(problem, remedy=f"{_more_of(empty[0], how)}, or add patients")
    for part in PARTS:
        lacking = _lacking(manifest, labels, parts == part)
        if part in classes and lacking and len({label for label, *_ in lacking}) == len(labels):
            _, text, holders = lacking[0]
            held = len(np.unique(_units(manifest, split.unit, groups)[holders]))
            remedy = f"{_more_of(part, how)}, take another split.seed"
            if held < len(classes):
                text += f", which {'cannot stand in each of' if held else 'leaves none for'} {', '.join(classes)}"
                remedy = "add patients with it"
            raise SplitError(f"{part} {text}", remedy=f"{remedy}, or a task without this label")
        for _, text, _ in lacking:
            logger.warning("%s %s: its metrics there are undefined", part, text)
    return split


def _units(manifest: Manifest, column: str, groups: pd.Series[int] | None) -> NDArray[np.int64]:
    """(N,) set of patients (or slices) that must stay together, of each row."""
    member = pd.factorize(manifest.table[column])[0].astype(np.int64)
    return member if groups is None else units_of(member, groups.to_numpy(dtype=np.int64))


def _few(members: int, units: int, column: str) -> tuple[str, str]:
    """Why a data set of so few units cannot be divided, and what helps."""
    if units == members:
        told = f"check that {column} tells {column.removesuffix('_id')}s apart, or add patients"
        return f"the data set has {count(members, column)}", told
    return (
        f"copies of pictures join its {count(members, column)} to {count(units, 'group')}, each kept on one side",
        "look at the pictures (hemlearn index lists the copies); split.duplicates=none divides them all the same",
    )


def _more_of(part: str, how: SplitConfig | None) -> str:
    """What gives a part more patients."""
    if how is not None and how.name == "leave_one_out" and part != "test":
        return f"{'lower' if part == 'train' else 'raise'} split.val_fraction (now {how.val_fraction:g})"
    if how is None or how.name not in ("holdout", "kfold", "monte_carlo"):
        return f"give {part} more patients in the split"
    folds = how.name == "kfold"
    if part == "train":
        return f"{'raise split.folds' if folds else 'lower split.test_fraction'} or lower split.val_fraction"
    if part == "val":
        return f"raise split.val_fraction (now {how.val_fraction:g})"
    return f"lower split.folds (now {how.folds})" if folds else f"raise split.test_fraction (now {how.test_fraction:g})"


def _lacking(
    manifest: Manifest, labels: Sequence[str], inside: pd.Series[bool]
) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Labels without a positive or a negative slice among ``inside``: the sentence that says so, and who has one."""
    found = []
    for label in labels:
        for value, kind in ((1.0, "positive"), (0.0, "negative")):
            holders = manifest.table[label] == value
            if not (holders & inside).any():
                number = manifest.table.loc[holders, "patient_id"].nunique()
                who = count(number, manifest.person)
                told = f"holds no {kind} slice of {label!r}; the whole data set has one in {who}"
                found.append((label, told, holders.to_numpy(dtype=bool)))
    return found


def assert_disjoint(
    manifest: Manifest, parts: pd.Series[str], groups: pd.Series[int] | None = None, *, leaky: bool = False
) -> None:
    """Check that no patient and no duplicate group stands on two sides.

    Args:
        manifest: The data set.
        parts: Part of every manifest row.
        groups: Duplicate group of every manifest row; None: not checked.
        leaky: True allows a patient on two sides.

    Raises:
        SplitError: Something does; its message names it.
    """
    table = manifest.table
    remedy = "put both on one side; a split file is mended by hand or left out (split=holdout)"
    if not leaky:
        sides = parts.groupby(table["patient_id"].to_numpy()).nunique()
        if (sides > 1).any():
            raise SplitError(f"patient {_some(sides.index[sides > 1].tolist())} stands on two sides", remedy=remedy)
    if groups is None:
        return
    sides = parts.groupby(groups.to_numpy()).nunique()
    if (sides > 1).any():
        inside = (groups == sides.index[sides > 1][0]).to_numpy()
        found = [f"{row} ({part})" for row, part in zip(table.loc[inside, "slice_id"], parts[inside], strict=True)]
        raise SplitError(
            f"copies of one picture stand on two sides: {', '.join(found[:6])}",
            remedy=f"{remedy}; split.duplicates=none accepts it",
        )


def _drawn(manifest: Manifest, cfg: SplitConfig, labels: list[str], groups: pd.Series[int]) -> Split:
    """Draw the units of each part."""
    table = manifest.table
    leaky = cfg.by == "slice"
    column = "slice_id" if leaky else "patient_id"
    names, inverse = np.unique(table[column].to_numpy(dtype=object).astype(str), return_inverse=True)
    member = inverse.astype(np.int64)
    unit = units_of(member, np.asarray(groups, dtype=np.int64))
    units = int(unit.max()) + 1
    if cfg.name == "kfold" and units < cfg.folds:
        reason, remedy = _few(len(names), units, column)
        remedy = f"use fewer folds than patients; {remedy}" if units == len(names) else remedy
        raise SplitError(f"split.folds={cfg.folds}, but {reason}", remedy=remedy)
    salt = f"{cfg.name}:{cfg.seed}"
    draw = f"{salt}:{cfg.fold}" if cfg.name == "monte_carlo" else salt  # all folds of k-fold come from one draw
    stratum, slices = strata(unit, member, table[labels].to_numpy(dtype=np.float64), draw)
    home = np.empty(len(names), dtype=np.int64)
    home[member] = unit
    first: NDArray[Any] = names[np.unique(home, return_index=True)[1]]  # names a unit by its first member
    if cfg.name == "leave_one_out":
        test = _left_out(manifest, cfg, labels, unit)
    elif cfg.name == "kfold":
        test = draw_folds(stratum, slices, first, cfg.folds, draw) == cfg.fold
    else:
        test = draw_part(stratum, slices, first, cfg.test_fraction, draw)
    parts = np.where(test, "test", "train").astype(object)
    rest = np.flatnonzero(~test)
    if len(rest) and cfg.val_fraction > 0:
        own = f"{draw}:{cfg.fold}:val" if cfg.name == "kfold" else f"{draw}:val"
        val = draw_part(stratum[rest], slices[rest], first[rest], cfg.val_fraction, own)
        parts[rest[val]] = "val"
    return Split(pd.DataFrame({column: names.astype(object), "split": parts[home]}), leaky)


def _left_out(manifest: Manifest, cfg: SplitConfig, labels: list[str], unit: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each unit is tested: it holds a slice of the part that is left out.

    Raises:
        SplitError: No parts, or the part and the others do not have the same labels to learn and to be judged by.
    """
    table, key = manifest.table, f"split.left_out={cfg.left_out}"
    if PART not in table:
        remedy = "use data=multi, or a table with data.covariates=[part]"
        raise SplitError(f"{key}: the data set has no parts (no covariate 'part')", remedy=remedy)
    owner = table[PART].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    names = sorted(set(owner[table[PART].notna()]) - {""})
    if cfg.left_out not in names:
        text = f"{key}: no part of this name{hint(str(cfg.left_out), names)}"
        raise SplitError(text, remedy=f"leave out one of {', '.join(names)}")
    inside = (owner == cfg.left_out).to_numpy()
    known = ~np.isnan(table[labels].to_numpy(dtype=np.float64))
    here, there = (
        {name for name, has in zip(labels, known[rows].any(axis=0), strict=True) if has} for rows in (inside, ~inside)
    )
    check_left_out(str(cfg.left_out), labels, here, there)
    test = np.zeros(int(unit.max()) + 1, dtype=bool)
    test[unit[inside]] = True
    copies = table.loc[test[unit] & ~inside, "patient_id"].nunique()
    if copies:
        logger.warning(
            "%s: %s of other parts show the same pictures, and are tested with it", key, count(copies, "patient")
        )
    return test


def given_split(cfg: SplitConfig, manifest: Manifest) -> str | None:
    """Checksum of what somebody has written down to divide patients: ``split.file``, or the parts of a table.

    None where ids and keys alone decide, as in ``data=multi``, whose ids have the part's name in front.
    """
    if cfg.name == "file" and cfg.file and Path(cfg.file).is_file():
        return sha256(Path(cfg.file))
    if cfg.name == "leave_one_out" and manifest.source != "multi" and PART in manifest.table:
        return sha256(manifest.table[["slice_id", PART]].sort_values("slice_id").to_csv(index=False))
    return None


def check_left_out(part: str, labels: Sequence[str], here: Collection[str], there: Collection[str]) -> None:
    """Refuse to leave out a part that has a label nobody else has, or none that others have.

    Args:
        part: Its name.
        labels: Those of the task.
        here: Labels that it has.
        there: Labels that the other parts have.

    Raises:
        SplitError: With the labels.
    """
    key, kept = f"split.left_out={part}", [label for label in labels if label in there]
    if alone := [label for label in labels if label in here and label not in there]:
        raise SplitError(
            f"{key}: no other part has {', '.join(map(repr, alone))} of task.labels, so nobody would train it",
            remedy=(f"train task.labels=[{','.join(kept)}], " if kept else "")
            + f"add a part that has it, or map a label to it: data.parts.NAME.labels={{LABEL: {alone[0]}}}",
        )
    if labels and not any(label in here for label in kept):
        raise SplitError(
            f"{key}: it has none of task.labels that the other parts have ({', '.join(kept)})",
            remedy=f"map one of its labels: data.parts.{part}.labels={{LABEL: {min(kept, default='any')}}}",
        )


def units_of(member: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number, for each slice, the set of patients (or slices) that must stay together.

    Args:
        member: (N,) patient (or slice) of each slice, 0, 1, ...
        groups: (N,) duplicate group of each slice.
    """
    count = offset = int(member.max()) + 1
    codes = pd.factorize(groups)[0] + offset
    components = connected(int(codes.max()) + 1, member, codes.astype(np.int64))
    numbers = np.unique(components[:count], return_inverse=True)[1]
    return np.asarray(numbers[member], dtype=np.int64)


def _from_file(manifest: Manifest, cfg: SplitConfig) -> Split:
    split = Split.load(str(cfg.file))
    if split.leaky and not cfg.allow_leak:
        raise SplitError(
            f"{cfg.file} divides by slice, so patients may stand on both sides",
            remedy="divide by patient_id, or say split.allow_leak=true",
        )
    unknown = sorted(set(split.assignment[split.unit]) - set(manifest.table[split.unit]))
    if unknown:
        raise SplitError(
            f"{cfg.file} names {count(len(unknown), split.unit)} that the data set lacks: {_some(unknown)}",
            remedy="check that the split belongs to this data set; patients without usable images are skipped",
        )
    return split


def _some(names: Sequence[object]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
