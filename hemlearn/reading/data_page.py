"""The page of ``hemlearn index page=true``: a data set in pictures and figures, one self-contained HTML file.

It holds what the user's own files show and his own ids, so that he can find what he sees: it is made for his disk.
Slices are those of the store, as the network sees them; how many of each kind are drawn is bounded, and stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.audits.baselines import BASELINES, different_levels, figure, is_unremarkable
from hemlearn.data.manifest import Manifest
from hemlearn.data.preprocess import Preprocess, resize_square
from hemlearn.data.readers import AIR, reader_for
from hemlearn.data.rows import by_kind
from hemlearn.data.splits import PARTS
from hemlearn.data.store import SliceStore
from hemlearn.reading.case import WINDOWS, as_json, pack_slice, self_contained, signal_ends
from hemlearn.reading.distributions import any_finding, distributions
from hemlearn.util.console import track
from hemlearn.util.errors import DataError
from hemlearn.util.files import write_text
from hemlearn.util.privacy import STAYS_MARK

PAGE = "data.html"
STAYS = "Patient data. This page shows images and ids from this data set: keep it on this disk, do not send it on."
_ASSETS = ("page.css", "data.css", "unpack.js", "data.js")
_SIDE, _LARGE = 96, 160  # pixels of a thumbnail, and of those that are compared side by side
_SHEETS, _PER_SHEET, _LEAST = 288, 24, 6  # thumbnails of all contact sheets, at most and at least in one
_STRIPS, _ODD, _PER_STRIP = 16, 6, 14  # series, of which so many for their oddities; slices of each
_PAIRS, _KINDS, _PER_KIND = 24, 12, 4  # pairs of copies; kinds of what was skipped, pictures of each
_NOTES, _CLASSES = 12, 12


@dataclass(frozen=True)
class _Thumb:
    """A picture that is packed once, wherever it stands.

    Args:
        pixels: (S, S) HU, signal or grey.
        low: Value that is black; None: that of the chosen window (HU).
        high: Value that is white.
    """

    pixels: NDArray[Any]
    low: float | None = None
    high: float | None = None


class _Pictures:
    """Thumbnails of a data set, decoded from its store, else from its files.

    Args:
        manifest: The data set.
        store: Its decoded slices; None: files are opened.
        size: Side of the squares that are cut from files.
        fit: How a slice becomes a square.
    """

    def __init__(self, manifest: Manifest, store: SliceStore | None, size: int, fit: str) -> None:
        self.manifest, self.store = manifest, store
        self.size, self.fit = size, fit
        self.thumbs: list[_Thumb] = []
        self._known: dict[tuple[int, int], int | None] = {}
        self._ends: dict[str, tuple[float, float]] = {}
        self.units: set[str] = set()

    def slice(self, row: int, side: int = _SIDE) -> int | None:
        """Number of the thumbnail of a row of the manifest; None where its file can no longer be read."""
        key = row, side
        if key not in self._known:
            self._known[key] = self._made(row, side)
        return self._known[key]

    def file(self, path: str, frame: int) -> int | None:
        """Number of the thumbnail of any file below the root; None where it shows nothing that can be drawn."""
        file = self.manifest.root / path
        if not file.is_file():
            return None
        for modality in dict.fromkeys([*self.manifest.table["modality"].unique(), "CT", "MR"]):
            try:
                reader = reader_for(file)
                pixels = reader.decode(file, frame, modality)
            except (DataError, OSError):
                continue
            unit = reader.unit_of(modality)
            self.thumbs.append(self._thumb(resize_square(pixels, _SIDE, "letterbox", AIR[unit]), unit, ""))
            return len(self.thumbs) - 1
        return None

    def _made(self, row: int, side: int) -> int | None:
        item = self.manifest.table.iloc[row]
        if self.store is not None:
            square, unit = self.store.array[self.store.rows[item["slice_id"]]], self.store.unit
        else:
            path = self.manifest.root / str(item["path"])
            try:
                reader = reader_for(path)
                unit = reader.unit_of(item["modality"])
                pixels = reader.decode(path, int(item["frame"]), item["modality"])
            except (DataError, OSError):
                return None
            fit = "letterbox" if self.fit == "head" else self.fit
            square = Preprocess(self.size, fit, unit).square(pixels, unit)
        small = resize_square(np.asarray(square), min(side, len(square)), "squash", AIR[unit])
        self.thumbs.append(self._thumb(small, unit, str(item["series_id"])))
        return len(self.thumbs) - 1

    def _thumb(self, pixels: NDArray[Any], unit: str, series: str) -> _Thumb:
        self.units.add(unit)
        if unit == "HU":
            return _Thumb(pixels)
        if unit == "display":
            return _Thumb(pixels, 0.0, 255.0)
        if series not in self._ends or not series:
            self._ends[series] = signal_ends(self._signal(series) if series and self.store is not None else pixels)
        return _Thumb(pixels, *self._ends[series])

    def _signal(self, series: str) -> NDArray[Any]:
        """A few slices of a series, so that all of it is shown through one window."""
        assert self.store is not None
        rows = np.flatnonzero((self.manifest.table["series_id"] == series).to_numpy())
        some = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 5)).round().astype(np.int64))]
        ids = self.manifest.table["slice_id"].iloc[some]
        return np.stack([self.store.array[self.store.rows[name]] for name in ids])

    def packed(self) -> list[list[Any]]:
        """For the page: packed pixels, side, and the two ends of a window of their own (None: HU)."""
        return [[pack_slice(one.pixels.astype(np.int16)), *one.pixels.shape, one.low, one.high] for one in self.thumbs]


def write_data_page(
    folder: Path,
    manifest: Manifest,
    audits: Mapping[str, Any],
    *,
    store: SliceStore | None,
    size: int,
    fit: str,
    command: str,
    split: str,
) -> Path:
    """Write ``data.html`` into a folder, whole or not at all.

    Args:
        folder: Where it goes.
        manifest: The data set.
        audits: Those of :func:`hemlearn.audits.audit.audit_manifest`, with ``pairs`` and ``sides``.
        store: Its decoded slices; None: those that are drawn are decoded from their files.
        size: ``data.image_size``.
        fit: ``data.fit``.
        command: What was called, for the page.
        split: Name of the split that the configuration makes.

    Returns:
        The file.
    """
    pictures = _Pictures(manifest, store, size, fit)
    sides = audits.get("sides")
    table = manifest.table.assign(
        split="all slices" if sides is None else sides.to_numpy(), row=range(len(manifest.table))
    )
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("sheets", lambda: _sheets(manifest, table, pictures)),
        ("strips", lambda: _strips(manifest, table, pictures)),
        ("pairs", lambda: _pairs(audits, table, pictures)),
        ("skipped", lambda: _skipped(manifest, pictures)),
    ]
    drawn = distributions(manifest)
    view = {name: make() for name, make in track(steps, "Drawing the data page", len(steps), show=len(table) > 2000)}
    calm = [text for text in audits.get("verdict", ()) if is_unremarkable(text)]
    text = self_contained(
        "data.html.j2",
        _ASSETS,
        stays=STAYS,
        mark=STAYS_MARK,
        windows=WINDOWS,
        manifest=manifest,
        counts=_counts(manifest),
        people=manifest.patients_known,
        notes=[text for text in dict.fromkeys([*audits.get("verdict", ()), *manifest.notes]) if text not in calm],
        calm=calm,
        most=_NOTES,
        labels=_labels(manifest, table),
        baselines=_baselines(audits),
        note=audits.get("split", {}).get("note", ""),
        duplicates=audits["duplicates"],
        split=split,
        splits=_splits(audits),
        how=f"{size} x {size} pixels, data.fit={fit}",
        command=command,
        thumbs=as_json(pictures.packed()),
        hounsfield=any(one.low is None for one in pictures.thumbs),
        units=pictures.units,
        constant=[one for one in drawn if len(one.bars) == 1],
        distributions=[one for one in drawn if len(one.bars) > 1],
        **view,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PAGE, text)
    return folder / PAGE


# --- figures ------------------------------------------------------------------------------------------------------


def _counts(manifest: Manifest) -> list[tuple[str, str]]:
    """Number and unit of what the data set holds."""
    summary = manifest.summary()
    found = [(summary["slices"], "slice", "slices")]
    if summary["series"] < summary["slices"]:
        found.append((summary["series"], "series", "series"))
    if manifest.patients_known:
        found.append((summary["patients"], "patient", "patients"))
    found.append((len(manifest.skipped), "item left out", "items left out"))
    return [(f"{number:,}", one if number == 1 else many) for number, one, many in found]


def _splits(audits: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    parts = audits.get("split", {}).get("parts", {})
    return [(name, sizes.get("patients", 0), sizes["slices"]) for name, sizes in parts.items()]


def _labels(manifest: Manifest, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Per label: positive, negative and unknown slices; positive series and patients; positive of known per split."""
    rows = []
    for label in manifest.labels:
        values = table[label]
        hits = table[values == 1]
        sides = [(split, values[table["split"] == split]) for split in PARTS if (table["split"] == split).any()]
        known = int(values.notna().sum())
        rows.append(
            {
                "label": label,
                "positive": len(hits),
                "negative": int((values == 0).sum()),
                "unknown": int(values.isna().sum()),
                "series": hits["series_id"].nunique(),
                "patients": hits["patient_id"].nunique(),
                "share": 100 * len(hits) / known if known else None,
                "sides": [(split, int((own == 1).sum()), int(own.notna().sum())) for split, own in sides],
            }
        )
    return rows


def _baselines(audits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """AUROC of the models that see no brain, a table per level."""
    blind = {name: audits[name]["cv"] for name in BASELINES if audits.get(name, {}).get("cv")}
    out = []
    for level in different_levels(next(iter(blind.values()), {})):
        own = {name: found[level] for name, found in blind.items()}
        labels = list(next(iter(own.values()))["labels"])
        rows = [[label, *(figure(found["labels"][label]["auroc"]) for found in own.values())] for label in labels]
        out.append({"level": level, "names": list(own), "rows": rows})
    return out


# --- pictures -----------------------------------------------------------------------------------------------------


def _classes(manifest: Manifest, table: pd.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Title of each class -> its slices; a slice with several findings stands in several."""
    values = table[list(manifest.labels)].to_numpy(dtype=np.float64)
    if not manifest.labels:
        return {"slices": np.ones(len(table), dtype=bool)}
    found = {label: values[:, column] == 1 for column, label in enumerate(manifest.labels)}
    one = len(manifest.labels) == 1
    found[f"{manifest.labels[0]}: no" if one else "none of these"] = (values == 0).all(axis=1)
    found["not known"] = np.isnan(values).any(axis=1) & ~(values == 1).any(axis=1)
    return {title: mask for title, mask in found.items() if mask.any()}


def _sheets(manifest: Manifest, table: pd.DataFrame, pictures: _Pictures) -> dict[str, Any]:
    """Contact sheets, class by class, each split beside the others."""
    classes = _classes(manifest, table)
    shown = dict(list(classes.items())[:_CLASSES])
    splits = [split for split in (*PARTS, "all slices") if (table["split"] == split).any()]
    each = min(_PER_SHEET, max(_LEAST, _SHEETS // max(1, len(shown) * len(splits))))
    groups = []
    for title, mask in shown.items():
        sheets = []
        for split in splits:
            own = table[mask & (table["split"] == split).to_numpy()]
            thumbs = [_caption(manifest, table, row, pictures.slice(row)) for row in _spread(own, each)]
            sheets.append(
                {"split": split, "slices": len(own), "patients": own["patient_id"].nunique(), "thumbs": thumbs}
            )
        groups.append({"title": title, "sheets": sheets})
    return {"groups": groups, "left": list(classes)[_CLASSES:]}


def _spread(own: pd.DataFrame, most: int) -> list[int]:
    """Rows of at most so many slices, of as many patients as possible; drawn, the same ones every time."""
    drawn = own.sample(frac=1.0, random_state=0)
    turn = drawn.groupby("patient_id", sort=False).cumcount()
    return sorted(drawn.iloc[np.argsort(turn.to_numpy(), kind="stable")]["row"].head(most).tolist())


def _caption(manifest: Manifest, table: pd.DataFrame, row: int, thumb: int | None) -> dict[str, Any]:
    item = table.iloc[row]
    found = [label for label in manifest.labels if item[label] == 1]
    unknown = [label for label in manifest.labels if item[label] != item[label]]
    place = f", z {item['z_mm']:.1f} mm" if item["z_mm"] == item["z_mm"] else ""
    whose = f"; patient {item['patient_id']}" if manifest.patients_known else ""
    said = ", ".join(found) or ("not known" if unknown else "none" if manifest.labels else "")
    return {
        "thumb": thumb,
        "id": str(item["slice_id"]),
        "text": f"{item['slice_id']}{whose}{place}{'; ' if said else ''}{said}",
        "positive": bool(found),
        "labels": said,
        "split": item["split"],
    }


def _strips(manifest: Manifest, table: pd.DataFrame, pictures: _Pictures) -> dict[str, Any]:
    """Whole series from the lowest to the topmost slice: the oddest first, then some of every class and split."""
    sizes = table["series_id"].value_counts(sort=False)
    several = sizes.index[sizes > 1]
    told = manifest.series.set_index("series_id") if len(manifest.series) else pd.DataFrame()
    odd: list[str] = []
    if len(told):
        remarks = told.loc[told.index.isin(several) & (told["problems"] != ""), "problems"]
        odd = remarks.str.len().sort_values(ascending=False, kind="stable").index[:_ODD].tolist()
    first = table.drop_duplicates("series_id").set_index("series_id")
    found = any_finding(table, manifest.labels).groupby(table["series_id"]).max()
    rest = first.loc[[name for name in several if name not in odd], ["split"]]
    rest = rest.assign(found=found.reindex(rest.index))
    drawn = rest.sample(frac=1.0, random_state=0)
    turn = drawn.groupby(["split", "found"], sort=False, dropna=False).cumcount()
    names = odd + drawn.index[np.argsort(turn.to_numpy(), kind="stable")][: _STRIPS - len(odd)].tolist()
    strips = []
    for name in names:
        own = table[table["series_id"] == name]
        places = np.unique(np.linspace(0, len(own) - 1, min(len(own), _PER_STRIP)).round().astype(np.int64))
        item = told.loc[name] if name in told.index else None
        hits = {label: int((own[label] == 1).sum()) for label in manifest.labels}
        strips.append(
            {
                "series": str(name),
                "patient": str(own["patient_id"].iloc[0]),
                "split": own["split"].iloc[0],
                "description": "" if item is None else item["description"],
                "spacing": ""
                if item is None or item["spacing_mm"] != item["spacing_mm"]
                else f"{item['spacing_mm']:.2f}",
                "problems": "" if item is None else item["problems"],
                "slices": len(own),
                "found": {label: number for label, number in hits.items() if number},
                "thumbs": [
                    _caption(manifest, table, row, pictures.slice(row)) for row in own["row"].iloc[places].tolist()
                ],
            }
        )
    return {"of": strips, "total": len(several), "odd": len(odd), "single": int((sizes == 1).sum())}


def _pairs(audits: Mapping[str, Any], table: pd.DataFrame, pictures: _Pictures) -> list[dict[str, Any]]:
    """Copies side by side: first those with opposite labels or on two sides of the split."""
    pairs: pd.DataFrame = audits["pairs"]
    if pairs.empty:
        return []
    place = pd.Series(table["row"].to_numpy(), index=table["slice_id"].to_numpy(dtype=object))
    side = pd.Series(table["split"].to_numpy(), index=table["slice_id"].to_numpy(dtype=object))
    opposed = {(a, b): label for a, b, label in audits["duplicates"].get("opposite_labels", ())}
    apart = side.loc[pairs["slice_a"]].to_numpy() != side.loc[pairs["slice_b"]].to_numpy()
    contrary = np.array([pair in opposed for pair in zip(pairs["slice_a"], pairs["slice_b"], strict=True)])
    order = np.lexsort((np.arange(len(pairs)), ~apart, ~contrary))
    out = []
    for pair in pairs.iloc[order[:_PAIRS]].itertuples():
        ids = (pair.slice_a, pair.slice_b)
        out.append(
            {
                "kind": pair.kind,
                "similarity": pair.similarity,
                "opposite": opposed.get(ids, ""),
                "apart": side[ids[0]] != side[ids[1]],
                "two": [
                    _caption(pictures.manifest, table, int(place[name]), pictures.slice(int(place[name]), _LARGE))
                    for name in ids
                ],
            }
        )
    return out


def _skipped(manifest: Manifest, pictures: _Pictures) -> dict[str, Any]:
    """What was left out, kind by kind, with a picture of those that can be read."""
    kinds = []
    groups = by_kind(manifest.skipped)
    for kind, rows in list(groups.items())[:_KINDS]:
        shown = []
        for item, reason in rows[["item", "reason"]].head(_PER_KIND).itertuples(index=False):
            path, _, frame = str(item).rpartition("#") if "#" in str(item) else (str(item), "", "")
            thumb = pictures.file(path, int(frame) if frame.isdigit() else 0)
            shown.append({"item": str(item), "reason": str(reason), "thumb": thumb})
        kinds.append({"kind": kind, "number": len(rows), "items": shown})
    return {"of": kinds, "left": len(groups) - len(kinds), "total": len(manifest.skipped)}
