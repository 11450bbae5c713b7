"""Several data sets as one: their manifests put together under common labels, each case with the name of its part."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.config.base import Problem, raise_problems
from hemlearn.config.parts import KEYS, OWN, PROPORTIONAL, part_data, part_problems
from hemlearn.config.schema import DATA_SETS, DataConfig, SplitConfig
from hemlearn.data.batches import SliceDataset, balanced_weights
from hemlearn.data.covariates import PREFIX
from hemlearn.data.manifest import COLUMNS, Manifest
from hemlearn.data.rows import unknown_values
from hemlearn.data.splits import PART, check_left_out
from hemlearn.datamodules.base import SliceDataModule, skipped_table
from hemlearn.plugins import REGISTRY, calling
from hemlearn.util.errors import ConfigError, DataError, count, hint

_IDS = ("slice_id", "patient_id", "study_id", "series_id")


class MultiDataModule(SliceDataModule):
    """Several data sets as one, as ``data=multi`` makes it of ``data.parts``.

    Each part is a data set with a root and options of its own. Its labels are renamed to the common ones; what a part
    does not label is unknown there (null), masked in loss and metrics. Ids get the part's name in front
    (``ct_ich/049``), so that nobody is taken for somebody else of another part, and the covariate ``part`` tells it
    again, for ``compare subgroups='[part]'``, ``split=leave_one_out`` and the transfer matrix. Copies are sought across
    parts too, and kept on one side.

    What the network sees is what all parts have: HU where all of them are DICOM or NIfTI, and then any windows. Where
    one part is 8-bit pictures, all become pictures: HU is shown through the brain window (0 to 80 HU), pictures stay as
    they were published, each in a window of its own; ``channels=head_tone`` brings their tones together, and
    ``fit=head`` the sizes of their heads. Parts of CT and of MR are refused. A part without positions (``z_mm``) has no
    neighbours: with ``channels.neighbours`` its slices stand in for their own. In a part without patient ids each
    picture counts as a patient.

    Labels of slices and of whole series go together at ``level="series"`` alone: there a series has a label if one of
    its slices has it.

    Args:
        parts: Name -> data module, or keys as in ``data.parts``: ``data`` (a name, or a data module; left out: the
            part's own name), ``labels`` (its label -> the common one; None leaves it out; labels that are not named
            keep their names), and options of the data set, ``root`` above all (None: its synthetic phantom). A part
            of ``data: dicom`` takes its table of labels as ``label_file`` with ``label_key``.
        root: Folder that relative roots of parts start from; None: the working directory.
        part_weights: Training slices drawn of each part: ``proportional`` to its slices, each once in an epoch;
            ``equal``; or a weight for each part. Anything but ``proportional`` draws with replacement, and
            ``sampler="balanced"`` then balances within each part.
        **options: Those of :class:`SliceDataModule`; ``geometry``, ``band``, ``phantom_patients`` and ``phantom_seed``
            hold for parts without their own.

    Raises:
        ConfigError: A part of an unknown data set or without a label that another part has, a mapping of a label that
            does not exist, or two parts of the same files.
        SplitError: The part that is left out and the others do not have the same labels.
        DataError: Parts of different modality, or labels of slices beside labels of series.

    Example:
        >>> from hemlearn.datamodules import CTICHDataModule
        >>> parts = {"head_ct": {"labels": {"hemorrhage": "any"}}, "ours": CTICHDataModule("DIR")}
        >>> data = MultiDataModule(parts, labels=["any"], image_size=96, part_weights="equal")
        >>> {name: type(part).__name__ for name, part in data.parts.items()}
        {'head_ct': 'HeadCTDataModule', 'ours': 'CTICHDataModule'}
    """

    name = "multi"

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Any] | SliceDataModule | None],
        root: str | Path | None = None,
        *,
        part_weights: str | Mapping[str, float] = PROPORTIONAL,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        specs: dict[str, Any] = {
            name: {"data": spec} if isinstance(spec, SliceDataModule) else spec for name, spec in parts.items()
        }
        _check(specs, part_weights)
        self.part_weights = part_weights
        self.maps: dict[str, dict[str, str | None]] = {
            name: dict((spec or {}).get("labels") or {}) for name, spec in specs.items()
        }
        self.parts = {name: self._part(name, spec or {}) for name, spec in specs.items()}
        known = {name: part.default_labels for name, part in self.parts.items() if part.default_labels}
        self._common(known)

    def _part(self, name: str, spec: Mapping[str, Any]) -> SliceDataModule:
        from hemlearn.datamodules import datamodule_class

        data = part_data(name, spec)
        if isinstance(data, SliceDataModule):
            return data
        given: dict[str, Any] = {key: value for key, value in spec.items() if key in OWN and value is not None}
        if self._root is not None and "root" in given:
            given["root"] = Path(self._root) / Path(given["root"]).expanduser()
        shared: dict[str, Any] = {
            "geometry": self.geometry,
            **({} if self.band is None else {"band": self.band}),
            "phantom_patients": self.phantom_patients,
            "phantom_seed": self.phantom_seed,
        }
        if self.maps[name] and (data == "table" or "label_file" in given):
            given["labels"] = [label for label, common in self.maps[name].items() if common is not None]
        return datamodule_class(data)(
            image_size=self.image_size, fit=self.fit, cache_dir=self.cache, **(shared | given)
        )

    # --- labels ---
    def _common(self, own: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
        """Part -> its label -> the common one; refused where parts share none.

        Args:
            own: Labels of the parts, as far as they are known.
        """
        found: dict[str, dict[str, str]] = {}
        for name, labels in own.items():
            mapping = self.maps[name]
            for label in mapping:
                if label not in labels:
                    raise ConfigError(
                        f"data.parts.{name}.labels={mapping}: data={self.parts[name].title} has no label "
                        f"{label!r}{hint(label, labels)}; it has {', '.join(labels) or 'none'}",
                        remedy="before the colon stands a label of the part, after it the common one",
                    )
            pairs = {label: mapping.get(label, label) for label in labels}
            found[name] = {label: common for label, common in pairs.items() if common is not None}
            if len(set(found[name].values())) < len(found[name]):
                text = f"data.parts.{name}.labels={mapping}: two of its labels would have one name"
                raise ConfigError(text, remedy="leave one of them out: LABEL: null")
        if len(found) == len(self.parts):
            self._check_shared(found)
        return found

    def _check_shared(self, found: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse a part that shares no label with another, and a common label that nobody asks for."""
        held = {name: set(pairs.values()) for name, pairs in found.items()}
        wanted = self._choice("labels")
        if wanted is not None and set(wanted).isdisjoint(set().union(*held.values())):
            wanted = None  # a task of other data, as where one only looks at these
        for name, mine in held.items():
            others = set().union(*(theirs for other, theirs in held.items() if other != name))
            asked = others if wanted is None else others & set(wanted)
            if not mine & asked:
                told = "; ".join(f"{part}: {', '.join(pairs.values()) or 'none'}" for part, pairs in found.items())
                ours, theirs = next(iter(found[name]), "LABEL"), sorted(asked or others or {"any"})[0]
                which = f"data.parts.{name}.labels={{{ours}: {theirs}}}"
                raise ConfigError(
                    f"data.parts.{name} shares no label with the other parts"
                    + ("" if wanted is None else f" among task.labels={list(wanted)}")
                    + f" ({told})",
                    remedy=f"say which of its labels is which common one: {which}",
                )
            for label, common in self.maps[name].items():
                if common is not None and label != common and common not in {*(wanted or ()), *others}:
                    known = [*(wanted or ()), *sorted(others)]
                    raise ConfigError(
                        f"data.parts.{name}.labels={{{label}: {common}}}: neither the task nor another part has a "
                        f"label {common!r}{hint(common, known)}",
                        remedy=f"map it to one of {', '.join(dict.fromkeys(known))}",
                    )
        how = self.splitter
        if wanted is not None and isinstance(how, SplitConfig) and how.name == "leave_one_out" and how.left_out in held:
            there = set().union(*(theirs for other, theirs in held.items() if other != how.left_out))
            check_left_out(how.left_out, wanted, held[how.left_out], there)

    # --- manifests ---
    @cached_property
    def root(self) -> Path:
        """The deepest folder that holds all parts."""
        return Path(os.path.commonpath([os.path.realpath(part.root) for part in self.parts.values()]))

    @cached_property
    def _read(self) -> dict[str, Manifest]:
        found = {}
        for name, part in self.parts.items():
            with calling(part, "read"):
                found[name] = part.read(part.root)
        return found

    @cached_property
    def manifest(self) -> Manifest:
        """One row per slice of all parts."""
        return self.read(self.root)

    def _forget(self) -> None:
        super()._forget()
        for name in ("manifest", "store"):  # the level that is asked for decides about the labels
            self.__dict__.pop(name, None)

    def read(self, root: Path) -> Manifest:
        """The manifests of all parts as one, with paths from their common folder."""
        pairs = self._common({name: manifest.labels for name, manifest in self._read.items()})
        labels = tuple(dict.fromkeys(common for found in pairs.values() for common in found.values()))
        level = self._level()
        kinds = {name: set(made.table["modality"]) for name, made in self._read.items()}
        if {"CT", "MR"} <= set().union(*kinds.values()):
            told = "; ".join(f"{name}: {', '.join(sorted(kind))}" for name, kind in kinds.items())
            raise DataError(f"data.parts: parts of CT and of MR ({told})", remedy="put together parts of one modality")
        tables, series, skipped, notes = [], [], [], []
        for name, made in self._read.items():
            # What is left out goes first: another label may take its name.
            table = made.table.drop(columns=[x for x in made.labels if x not in pairs[name]])
            table = table.rename(columns=pairs[name])
            if level == "series" and made.label_level == "slice":
                own = list(pairs[name].values())
                table[own] = table.groupby("series_id")[own].transform("max")
            folder = Path(os.path.relpath(os.path.realpath(made.root), root)).as_posix()
            table["path"] = table["path"] if folder == "." else folder + "/" + table["path"]
            table[PART] = name
            for column in _IDS:
                table[column] = f"{name}/" + table[column]
            tables.append(table)
            series.append(made.series.assign(**{x: f"{name}/" + made.series[x].astype(str) for x in _IDS[1:]}))
            skipped.append(made.skipped.assign(item=f"{name}/" + made.skipped["item"].astype(str)))
            notes += [_summary(name, made, table, labels), *(f"{name}: {x}" for x in made.notes)]
        every = _joined(tables)
        more = [column for column in every if str(column).startswith(PREFIX)]
        return Manifest(
            every[[*COLUMNS, *labels, *more]],
            skipped_table(*skipped),
            labels,
            root,
            self.title,
            all(made.synthetic for made in self._read.values()),
            pd.concat([part for part in series if len(part)] or series[:1], ignore_index=True),
            level,
            tuple(notes),
            all(made.patients_known for made in self._read.values()),
        )

    @property
    def contents(self) -> dict[str, str]:
        """Those of the parts too."""
        return super().contents | {made.checksum: f"{name}/" for name, made in self._read.items()}

    @property
    def sources(self) -> dict[str, str]:
        """Those of the parts."""
        known = {name: made for name, made in self._read.items() if made.patients_known and not made.synthetic}
        return {f"{name}/": made.source for name, made in known.items()}

    def _level(self) -> str:
        """What the labels of all parts together describe."""
        levels = {name: made.label_level for name, made in self._read.items()}
        asked = self._choice("level")
        if len(set(levels.values())) == 1:
            return next(iter(levels.values()))
        if asked != "series":
            told = ", ".join(f"{name}: {level}" for name, level in levels.items())
            raise DataError(
                f"task.level={asked or 'slice'}: labels of slices beside labels of whole series ({told})",
                remedy="set task.level=series (a series has a label if one of its slices has it), or leave a part out",
            )
        return "series"

    # --- sampling ---
    def draw_weights(self, data: SliceDataset) -> NDArray[np.float64] | None:
        """Of each training slice, so that parts are drawn as ``part_weights`` says."""
        if self.part_weights == PROPORTIONAL:
            return super().draw_weights(data)
        found, labels = np.ones(len(data)), data.labels.numpy()
        owner = self.manifest.table[PART].to_numpy()[data.index.numpy()]
        for name in np.unique(owner.astype(str)):
            inside = owner == name
            share = 1.0 if isinstance(self.part_weights, str) else self.part_weights[name]
            own = balanced_weights(labels[inside]) if self.sampler == "balanced" else found[inside]
            found[inside] = own * share / own.sum()
        return found


def _check(specs: Mapping[str, Any], weights: Any) -> None:
    """Hold parts against the rules of the configuration; a data module takes the place of a name."""
    plain: dict[str, Any] = {}
    for name, spec in specs.items():
        plain[name] = spec
        if isinstance(spec, Mapping):
            plain[name] = {key: str(value) if isinstance(value, Path) else value for key, value in spec.items()}
            if isinstance(spec.get("data"), SliceDataModule):
                plain[name] |= {"data": "head_ct", "root": f"module {id(spec['data'])}"}
    known = [*(name for name in DATA_SETS if name != "multi"), *REGISTRY.names("data")]
    problems = [
        Problem(key, f"data.{key}={value!r}: {text}")
        for key, value, text in part_problems(plain, weights, known, DataConfig.attempt)
    ]
    raise_problems(
        problems, "the data module's arguments", f"correct the arguments above; a part has {', '.join(KEYS)}"
    )


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of all parts; a covariate that is a number in one part and a text in another is a text in all."""
    for name in dict.fromkeys(str(name) for table in tables for name in table if str(name).startswith(PREFIX)):
        if all(pd.api.types.is_numeric_dtype(table[name]) for table in tables if name in table):
            continue
        for table in tables:
            given = table[name] if name in table else pd.Series("", index=table.index)
            table[name] = given.astype(object).where(~unknown_values(given), "").astype(str)
    return pd.concat(tables, ignore_index=True)


def _summary(name: str, made: Manifest, table: pd.DataFrame, labels: Sequence[str]) -> str:
    """One sentence on a part."""
    lacks = [label for label in labels if label not in table]
    text = f"part {name}: data={made.source}, {count(len(table), 'slice')}"
    text += f" of {count(table['patient_id'].nunique(), 'patient')}" if made.patients_known else ""
    text += ", SYNTHETIC" if made.synthetic else ""
    text += "" if made.patients_known else ", each picture taken for a patient"
    return text + (f"; unknown there: {', '.join(lacks)}" if lacks else "")
