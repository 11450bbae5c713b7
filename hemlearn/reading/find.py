"""What a path holds for a run to predict: a file, a folder of mixed files, a zip archive or a table of files.

Files become :class:`Series` as they did in training: ``data.geometry`` arranges their slices, of each study the axial
head series is chosen, and ``data.band`` keeps the slices that the run has learnt from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.config.schema import GeometryConfig
from hemlearn.data.choice import choose
from hemlearn.data.geometry import arrange, cut_band
from hemlearn.data.ids import id_notes
from hemlearn.data.readers import reader_for
from hemlearn.data.readers.headers import LEFT_RIGHT
from hemlearn.data.rows import UNKNOWN, is_nifti, read_numbers, same_file, slice_ids
from hemlearn.data.scan import read_headers
from hemlearn.data.series import usable_headers
from hemlearn.data.sources import discover, extract
from hemlearn.training.run import MODALITY_OF, Run
from hemlearn.util.documents import load_json
from hemlearn.util.errors import DataError, count, hint, name_problem, printable
from hemlearn.util.files import cache_dir, special_file
from hemlearn.util.tables import read_csv, refuse_rows

MAX_BYTES = 1 << 30  # a table of ten million files
ROW = ["slice_id", "path", "frame", "z_mm", "modality"]
_IDS = ("patient_id", "study_id", "series_id", "slice_id", "z_mm", "modality")
_FEW = 3  # studies up to which every choice and oddity is a note
_REMEDY = "one row per file: column path, and patient_id, series_id, z_mm, frame, modality where they are known"


@dataclass(frozen=True)
class Series:
    """The slices that are predicted together.

    Args:
        patient_id: Whose they are.
        study_id: Their study.
        series_id: Their series.
        root: Folder that ``path`` starts from.
        rows: One row per slice, in order: slice_id, path, frame, z_mm (mm; NaN: unknown), modality.
        stamp: What tells that the files are the same as in an earlier call; "": their sizes and times do.
        pixel_mm: Row and column spacing; None: unknown.
    """

    patient_id: str
    study_id: str
    series_id: str
    root: Path
    rows: pd.DataFrame
    stamp: str = ""
    pixel_mm: tuple[float, float] | None = None


@dataclass
class Found:
    """What there is to predict, and what is not predicted.

    Args:
        series: In the order they were found.
        failures: (item, reason): files and series that should have been predicted and cannot be.
        skip_reasons: (item, reason): files, slices and series that are no head slices, or not the chosen ones.
        notes: What a reader should know: patients, chosen series and why.
        chosen: Series id -> why it is the one of its study that is predicted.
        problems: Series id -> what is odd about its slices (gaps, tilt ...); "" where nothing is.
    """

    series: list[Series] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    skip_reasons: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InputRules:
    """What a run asks of its input.

    Args:
        modality: ``CT`` or ``MR``: what it has learnt from; "": its pictures did not say.
        default: Modality of files that do not say.
        geometry: What it did about gaps, tilt and repeated positions in training.
        spacing_mm: Median slice distance of its own data, mm; NaN: unknown.
        cache_dir: Where headers are kept.
        band: ``data.band``: the slices of each series that it has learnt from; None: all.
        every: Predict every series of a study, not the chosen one.
        sides: Whether it has labels of left and right (``task.sides``).
    """

    modality: str
    default: str
    geometry: GeometryConfig
    spacing_mm: float
    cache_dir: Path
    band: tuple[float, float] | None = None
    every: bool = False
    sides: bool = False

    @classmethod
    def of(cls, run: Run, *, every: bool = False) -> InputRules:
        """Those of a run."""
        data = run.config.data
        band = None if data.band is None else (float(data.band[0]), float(data.band[1]))
        default, sides = run.modality or MODALITY_OF[run.config.channels.kind], bool(run.config.task.sides)
        cache = cache_dir(data.cache_dir)
        return cls(run.modality, default, data.geometry, run.spacing_mm, cache, band, every, sides)


def find_input(path: Path, rules: InputRules, scratch: Path) -> Found:
    """Find the series at a path.

    Args:
        path: DICOM, NIfTI or picture file, folder, zip archive, or table (CSV, Parquet) of files.
        rules: What the run asks for.
        scratch: Folder that does not exist yet, where an archive is unpacked.

    Raises:
        DataError: There is nothing that can be predicted; the reason names the commonest fault.
    """
    kind = special_file(path.stat().st_mode) if path.exists() else "no such file or folder"
    if kind:
        raise DataError(f"input={path}: {kind}", remedy="give a file, a folder, a zip or a table")
    suffix, found = path.suffix.lower(), Found()
    if path.is_dir():
        _add_folder(found, path, rules)
    elif suffix == ".zip":
        info = path.stat()
        names = [item.relative_to(scratch.resolve()).as_posix() for item in extract(path, scratch)]
        _add_headers(found, names, scratch, rules, stamp=f"{path.resolve()}:{info.st_size}:{info.st_mtime_ns}")
    elif suffix in (".csv", ".parquet"):
        _add_table(found, path, rules)
    elif problem := name_problem(path.name):
        found.failures.append((printable(path.name), problem))
    elif reader_for(path).name == "image":
        _add_pictures(found, [path.name], path.parent, rules)
    else:
        _add_headers(found, [path.name], path.parent, replace(rules, every=True))
    if not found.series:
        reasons = pd.Series([reason for _, reason in found.failures or found.skip_reasons], dtype=object).value_counts()
        most = f": {reasons.index[0]} ({count(reasons.iloc[0], 'time')})" if len(reasons) else ""
        remedy = "give axial slices of the run's modality"
        if len(reasons) and str(reasons.index[0]).startswith("two patients"):
            remedy = "give each patient's slices a series id of their own, or a table with patient_id and series_id"
        raise DataError(f"input={path}: nothing to predict{most}", remedy=remedy)
    patients = len({item.patient_id for item in found.series})
    if patients > 1:
        found.notes.insert(0, f"{patients} patients in {path.name or path}: each is predicted on its own")
    return found


def _add_folder(found: Found, path: Path, rules: InputRules) -> None:
    """The series of a folder; pictures count where it holds no DICOM or NIfTI file, each on its own."""
    listed = discover(path)
    if not listed.files and not listed.skipped:
        raise DataError(f"input={path}: an empty folder", remedy="give a folder with DICOM, NIfTI or PNG/JPG files")
    files, pictures = list(listed.files), list(listed.pictures)
    found.failures += [item for item in listed.skipped if item[1].startswith("its name")]
    others = [item for item in listed.skipped if not item[1].startswith("its name")]
    if files or not pictures:
        found.skip_reasons += others
        if files or not found.failures:
            _add_headers(found, files, path, rules)
        return
    found.skip_reasons += [item for item in others if item[0] not in set(pictures)]
    _add_pictures(found, pictures, path, rules)
    if len(pictures) > 1:
        found.notes.append(
            f"{len(pictures)} pictures, each taken for a patient of its own: a table with patient_id, series_id "
            "and z_mm joins them"
        )


def _add_pictures(found: Found, names: list[str], root: Path, rules: InputRules) -> None:
    """Every picture is a series of one slice."""
    _unsaid(found, rules)
    for name in names:
        row = {"slice_id": name, "path": name, "frame": 0, "z_mm": np.nan, "modality": rules.default}
        rows = pd.DataFrame([row])
        found.series.append(Series(name, name, name, root, rows))


def _unsaid(found: Found, rules: InputRules) -> None:
    """A note on pictures that do not say what they show, for a run that knows what it has learnt from."""
    if rules.modality:
        found.notes.append(f"pictures do not say whether they show CT or MR; the run has learnt from {rules.modality}")


def _add_headers(found: Found, names: list[str], root: Path, rules: InputRules, *, stamp: str = "") -> None:
    """Group DICOM and NIfTI files into series, and choose among those of a study.

    Raises:
        DataError: None of the files is an axial image.
    """
    try:
        headers = _headers(found, names, root, rules)
    except DataError as error:  # its remedy is for data sets
        raise DataError(error.problem, remedy="give axial slices of the run's modality") from error
    _add_arranged(found, headers, root, rules, stamp=stamp)


def _headers(found: Found, names: list[str], root: Path, rules: InputRules) -> pd.DataFrame:
    """The usable headers of some files; those that cannot be read are told from those that are no slices."""
    headers, lost = usable_headers(names, root, cache_dir=rules.cache_dir)
    names = list(dict.fromkeys(lost["item"]))
    broken = read_headers(names, root, progress=False) if names else None
    unreadable = set() if broken is None else set(broken.loc[broken["reason"] != "", "path"])
    for item, reason in lost[["item", "reason"]].itertuples(index=False):
        (found.failures if item in unreadable else found.skip_reasons).append((item, reason))
    headers["modality"] = headers["modality"].where(~is_nifti(headers["path"]), rules.default)
    return headers


def _add_arranged(
    found: Found, headers: pd.DataFrame, root: Path, rules: InputRules, *, stamp: str = "", named: bool = False
) -> None:
    """Add the series of a table of headers (columns of ``readers.slice_header.Header``).

    A series of another modality is skipped where it was merely found, and a failure where it was ``named``.
    """
    other = pd.Series(False, headers.index) if not rules.modality else headers["modality"] != rules.modality
    if not rules.modality:
        told = " and ".join(sorted(set(headers["modality"])))
        found.notes.append(
            f"the run has learnt from pictures that did not say whether they showed CT or MR; these are {told}: train "
            "with data.modality=CT or MR to have others refused"
        )
    for name, rows in headers[other].groupby("series_id", sort=False):
        what = f"{count(len(rows), 'slice')} of modality {rows['modality'].iloc[0]} (first {rows['path'].iloc[0]})"
        reason = f"refused: {what}, but the run has learnt from {rules.modality}"
        (found.failures if named else found.skip_reasons).append((str(name), reason))
    sideless = ~other & rules.sides & headers["remark"].str.contains(LEFT_RIGHT, regex=False)
    found.failures += [(str(name), f"refused: {LEFT_RIGHT}") for name in headers.loc[sideless, "series_id"].unique()]
    headers = headers[~other & ~sideless].reset_index(drop=True)
    if headers.empty:
        return
    geometry = arrange(headers, rules.geometry)
    for item, reason in geometry.skipped[["item", "reason"]].itertuples(index=False):
        (found.failures if reason.startswith("two patients") else found.skip_reasons).append((item, reason))
    table = geometry.rows
    if table.empty:
        return
    if "slice_id" not in table:
        table["slice_id"] = slice_ids(table)
    taken = table["series_id"].drop_duplicates().tolist()
    if not (rules.every or named):
        choices = choose(geometry.series, table, rules.spacing_mm)
        taken = [choice.series_id for choice in choices]
        for choice in choices:
            why = f"another series of this study is predicted ({choice.series_id}): here"
            found.skip_reasons += [(name, f"{why} {reason}") for name, reason in choice.others]
            found.chosen[choice.series_id] = choice.reason
            if choice.others or len(choices) <= _FEW:
                found.notes.append(f"patient {choice.patient_id}: series {choice.series_id}, {choice.reason}")
    problems = geometry.series.set_index("series_id")["problems"]
    for name in taken:
        rows = table[table["series_id"] == name].reset_index(drop=True)
        found.problems[str(name)] = problems[name]
        if problems[name] and len(taken) <= _FEW:
            found.notes.append(f"series {name}: {problems[name]}")
        kept = _in_band(found, rows, rules.band, tell=len(taken) <= _FEW)
        if kept.empty:
            continue
        first = kept.iloc[0]
        ids = (str(first["patient_id"]), str(first["study_id"]), str(name))
        found.series.append(Series(*ids, root, kept[ROW].reset_index(drop=True), stamp, first.get("pixel_mm")))


def _in_band(found: Found, rows: pd.DataFrame, band: tuple[float, float] | None, *, tell: bool) -> pd.DataFrame:
    """The slices of one series within ``data.band``, as training has cut it; the others get their reasons."""
    if band is None or len(rows) == 1:  # a slice alone does not tell its place in a series
        return rows
    kept, outside = cut_band(rows, band)
    lost = list(outside.itertuples(index=False, name=None))
    name = str(rows["series_id"].iloc[0])
    if kept.empty:
        found.failures.append((name, lost[0][1]))
    elif tell and lost:
        found.notes.append(
            f"series {name}: {len(kept)} of {count(len(rows), 'slice')} lie within the run's data.band=[{band[0]:g}, "
            f"{band[1]:g}] and are predicted; the others are in left_out.csv"
        )
    found.skip_reasons += lost
    return kept


# --- tables of files ----------------------------------------------------------------------------------------------


def _add_table(found: Found, path: Path, rules: InputRules) -> None:
    """The series that a table names; all of them are predicted.

    Columns: ``path`` (relative to the table's folder, or absolute); optional ``frame`` (without it a file of several
    slices stands for all of them), and patient_id, study_id, series_id, slice_id, z_mm, modality, which DICOM and
    NIfTI files bring along themselves. Pictures without a series_id are series of their own. The slices of a saved
    manifest are taken as they are: ``data.band`` has been applied to them.

    Raises:
        DataError: No table, too large a one, no column ``path``, a value that is none.
    """
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes: too large for a table of files", remedy=_REMEDY)
    root = path.parent
    if path.suffix.lower() == ".csv":
        table = read_csv(path)
    else:
        table, meta = _parquet(path)
        if "root" in meta:
            root, rules = Path(meta["root"]), replace(rules, band=None)
    if "path" not in table:
        columns = [str(name) for name in table.columns]
        raise DataError(f"{path}: no column 'path'{hint('path', columns)}; found: {', '.join(columns)}", remedy=_REMEDY)
    table = table[["path", *(name for name in ("frame", *_IDS) if name in table)]]
    table = table.astype(object).where(table.notna(), "").astype(str)
    table = table.assign(**{name: table[name].map(printable) for name in _IDS if name in table})
    for name in ("frame", "z_mm"):
        if name in table:
            given = table[name]
            table[name], wrong, remedy = read_numbers(given, whole=name == "frame")
            refuse_rows(wrong, path, lambda row, name=name, given=given: f"{name}={given.iloc[row]!r}", remedy)  # type: ignore[misc]
    table = _each_once(found, table, path)
    if "patient_id" in table:
        found.notes += id_notes(table["patient_id"][table["patient_id"] != ""])
    kinds = [_kind(found, root, name) for name in table["path"]]
    table = table[[bool(kind) for kind in kinds]].reset_index(drop=True)
    picture = pd.Series([kind == "image" for kind in kinds if kind], dtype=bool)
    if (~picture).any():
        _with_headers(found, table[~picture].reset_index(drop=True), root, rules, path)
    if picture.any():
        _join_pictures(found, table[picture].reset_index(drop=True), root, rules)


def _each_once(found: Found, table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table without rows whose image, or whose slice id, an earlier row has; these are failures."""
    keys = pd.DataFrame({"image": same_file(table["path"]) + "#" + _frame(table).astype(str)})
    keys["image"] = keys["image"].where(table["path"] != "")
    if "slice_id" in table:
        keys["slice id"] = table["slice_id"].where(table["slice_id"] != "")
    line = pd.Series(np.arange(len(table)) + 2, table.index)
    for what in keys:
        key = keys.loc[line.index, what]
        first = line.groupby(key).transform("first")  # NaN where nothing is named
        for k in line.index[first < line]:
            reason = f"duplicate: {path.name}, row {line[k]} has the {what} of row {first[k]:.0f}"
            found.failures.append((str(table.loc[k, "path"]), reason))
        line = line[~(first < line)]
    return table.loc[line.index].reset_index(drop=True)


def _frame(table: pd.DataFrame) -> pd.Series[int]:
    return table["frame"].fillna(0).astype(np.int64) if "frame" in table else pd.Series(0, table.index)


def _parquet(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows of a Parquet file, and what a saved manifest says of itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        arrow = pq.read_table(path)
        return arrow.to_pandas(), load_json((arrow.schema.metadata or {}).get(b"hemlearn", b"{}"))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{path}: not a Parquet file, or a damaged one: {str(error).splitlines()[0]}", remedy=_REMEDY
        ) from error


def _kind(found: Found, root: Path, name: str) -> str:
    """``image``, ``dicom`` or ``nifti``; "" for a row that is a failure."""
    kind, problem = "", name_problem(name) if name else "a row without a path"
    try:
        kind = reader_for(root / name).name if name and not problem else ""
    except DataError as error:
        problem = error.problem.removeprefix(f"{root / name}: ")
    if kind and not (root / name).is_file():
        problem = "no such file"
    if problem:
        found.failures.append((printable(name), problem))
    return "" if problem else kind


def _with_headers(found: Found, given: pd.DataFrame, root: Path, rules: InputRules, path: Path) -> None:
    try:
        headers = _headers(found, list(dict.fromkeys(given["path"])), root, rules)
    except DataError as error:
        found.failures.append((path.name, error.problem))
        return
    keys = ["path"]
    if "frame" in given:
        given["frame"] = _frame(given)
        keys.append("frame")
    both = headers.merge(given, on=keys, how="inner" if "frame" in given else "left", suffixes=("", "_given"))
    for name in _IDS:
        if f"{name}_given" in both:
            told = both[f"{name}_given"]
            both[name] = told.where(told.notna() & (told.astype(str) != ""), both[name])
    if "slice_id" in both:  # a row may stand for all slices of its file
        several = both["path"].duplicated(keep=False) & ("frame" not in given)
        both["slice_id"] = both["slice_id"].where(both["slice_id"] != "", both["path"])
        both["slice_id"] = both["slice_id"].where(~several, both["slice_id"] + "#" + both["frame"].astype(str))
    _add_arranged(found, both, root, rules, named=True)


def _join_pictures(found: Found, table: pd.DataFrame, root: Path, rules: InputRules) -> None:
    if "series_id" not in table:
        if "patient_id" not in table:
            table["patient_id"] = table["path"]
        table["series_id"] = table["path"]  # nothing tells that a patient's pictures are slices of one series
    path, series = table["path"], table["series_id"]
    names = ("series_id", "patient_id", "study_id", "slice_id")
    for name, default in zip(names, (path, series, series, path), strict=True):
        given = table.get(name, default)
        table[name] = given.where(given != "", default)
    told = table["modality"].str.strip().str.upper() if "modality" in table else pd.Series("", table.index)
    if (unsaid := told.str.lower().isin(UNKNOWN)).any():
        _unsaid(found, rules)
    table = table.assign(z_mm=table.get("z_mm", np.nan), modality=told.where(~unsaid, rules.default), frame=0)
    for name, rows in table.groupby("series_id", sort=False):
        wrong = rows["modality"][rows["modality"] != rules.modality] if rules.modality else rows["modality"][:0]
        if len(wrong):
            reason = f"refused: pictures of {wrong.iloc[0]} by the table, but the run has learnt from {rules.modality}"
            found.failures.append((str(name), reason))
            continue
        patients = rows["patient_id"].unique()
        if len(patients) > 1:
            found.failures.append((str(name), f"two patients in one series: {', '.join(patients[:5])}"))
            continue
        if rows["z_mm"].isna().any():
            rows = rows.assign(z_mm=np.nan)  # half an axis misleads: the table's order stands
        rows = rows.sort_values("z_mm", kind="stable").reset_index(drop=True)
        rows = _in_band(found, rows, rules.band, tell=False)
        if len(rows):
            ids = (str(patients[0]), str(rows["study_id"].iloc[0]), str(name))
            found.series.append(Series(*ids, root, rows[ROW].reset_index(drop=True)))
