"""Whether a run has seen the patients or pictures of a data set before."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.audits.seen import shared_ids, sources_of
from hemlearn.config.schema import Config
from hemlearn.data.duplicates import kept_duplicate_pairs
from hemlearn.data.manifest import COLUMNS, Manifest
from hemlearn.training.build import build_datamodule
from hemlearn.training.run import Run
from hemlearn.util.errors import HemlearnError, RunError, count
from hemlearn.util.files import cache_dir

logger = logging.getLogger(__name__)


@dataclass
class Overlap:
    """What was found.

    Args:
        patients: Patients of the data set whom the run has seen in training or validation.
        findings: How that is known, a sentence each.
        notes: What could not be looked at, and why.
        pairs: Pictures in common: slice_run, slice_data, kind, similarity.
    """

    patients: set[str] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pairs: pd.DataFrame = field(default_factory=pd.DataFrame)


def training_manifest(run: Run) -> tuple[Manifest | None, str]:
    """The manifest of the data a run was made from, or None and why it is not at hand."""
    run.check_code()  # of a stranger's run nothing is built that it may not name
    told = run.provenance.get("data", {})
    root = Path(str(told.get("root", "")))
    if not (run.trust or run.ours):
        return None, f"the data of the run are not looked for at {root}: it was made elsewhere (trust=true reads them)"
    if not str(told.get("root", "")) or not root.is_dir():
        return None, f"the data of the run are not at {root}"
    try:
        # The roots of parts stand in the configuration; what lies above them all is no base for relative ones.
        module = build_datamodule(run.config if run.config.data.parts else run.config.changed({"data.root": str(root)}))
        manifest = module.read(module.root)
    except HemlearnError as error:
        return None, f"the data of the run cannot be read: {error.problem}"
    if manifest.checksum != run.checksum("manifest"):
        return None, f"the data at {root} have changed since the run"
    return manifest, ""


def own_data(run: Run, root: str | None) -> Config:
    """The configuration of a run, to read the data it was made from.

    Args:
        run: The run.
        root: Where the user says that they lie; None: where the run says so.

    Raises:
        RunError: Somebody else's run would decide which files of this machine are read.
    """
    config = run.config if root is None else run.config.changed({"data.root": root})
    places = {"data.root": None if root else config.data.root, "data.manifest": config.data.manifest}
    places["data.labels"] = config.data.labels if isinstance(config.data.labels, str) else None
    for name, spec in config.data.parts.items():
        own = spec if isinstance(spec, dict) else {}
        places |= {f"data.parts.{name}.{key}": own.get(key) for key in ("root", "manifest", "label_file")}
    told = ", ".join(f"{key}={place}" for key, place in places.items() if place is not None)
    if told and not (run.trust or run.ours):
        raise RunError(
            f"run={run.path}: made elsewhere, and its data would be read at {told}",
            remedy=("" if root or config.data.root is None else "say where they lie with data.root=DIR, or ")
            + "give trust=true to read what the run names",
        )
    return config


def find_overlap(
    run: Run,
    manifest: Manifest,
    training: Manifest | None,
    level: str,
    *,
    contents: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
) -> Overlap:
    """Compare a data set with the training and validation patients of a run.

    Three things are looked at: whether it, or one of several data sets in it, is what the run was made from (manifest
    checksum), whether patients have the same id (sources with patient ids, the same source, no phantoms), and whether
    pictures are the same (content, and for ``level=near`` perceptual hash confirmed on pixels).

    Args:
        run: The run.
        manifest: The data set.
        training: The run's own data; None: not at hand.
        level: ``near``, ``exact`` or ``none``: which pictures count as the same.
        contents: :attr:`SliceDataModule.contents` of the data set; None: it is one.
        sources: :attr:`SliceDataModule.sources`, likewise.
    """
    found = Overlap()
    told = run.provenance.get("data", {})
    sides = run.split.assignment
    seen = set() if run.split.leaky else set(sides.loc[sides["split"] != "test", "patient_id"])
    before = {run.checksum("manifest"): ""} | (told.get("contents") or {})
    ours = contents or {manifest.checksum: ""}
    known = {here: before[content] for content, here in ours.items() if content in before}
    if "" in known:
        known = {"": known[""]}
    patients = manifest.table["patient_id"].astype(str)
    rest = np.ones(len(patients), dtype=bool)
    for here, there in known.items():
        inside = patients.str.startswith(here).to_numpy(dtype=bool)
        rest &= ~inside
        own = {here + name.removeprefix(there) for name in seen if name.startswith(there)}
        same = set(patients[inside]) & own if seen else set(patients[inside])
        found.patients |= same
        if same or not there:  # of a part that was left out nobody was seen
            found.findings.append(
                (f"its part {here.rstrip('/')!r}" if here else "it")
                + f" is {'one of the data sets' if there else 'the data set'} the run was made from "
                f"({len(same)} of its patients trained or validated it)"
            )
    if not rest.any():
        return found
    left = replace(manifest, table=manifest.table[rest].reset_index(drop=True))
    of_people = manifest.patients_known and not manifest.synthetic
    named = ({"": manifest.source} if of_people else {}) if sources is None else sources
    same = shared_ids(left.table["patient_id"].astype(str), named, seen, sources_of(told))
    if same:
        found.patients |= same
        stand = count(len(same), "patient id stands", "patient ids stand")
        found.findings.append(f"{stand} in the run's training or validation too, the first {min(same)!r}")
    if level == "none":
        found.notes.append("pictures were not compared with those of the run (duplicates=none)")
    elif training is None:
        found.notes.append("pictures could not be compared with those of the run")
    else:
        _pictures(found, run, left, training, level)
    return found


def _pictures(found: Overlap, run: Run, manifest: Manifest, training: Manifest, level: str) -> None:
    part = run.split.apply(training)
    theirs = _prefixed(training, "run:").loc[(part != "test").to_numpy()]
    both = pd.concat([theirs, _prefixed(manifest, "data:")], ignore_index=True)
    nothing = pd.DataFrame(columns=["item", "reason"], dtype=object)
    joined = Manifest(both, nothing, (), Path("/"), "both")
    pairs = kept_duplicate_pairs(joined, level, cache_dir(run.config.data.cache_dir))
    first, second = (pairs[name].str.startswith("run:").astype(bool) for name in ("slice_a", "slice_b"))
    pairs = pairs[first != second].reset_index(drop=True)  # copies within one of the two sets are none of ours
    if pairs.empty:
        return
    turned = pairs["slice_a"].str.startswith("data:")
    ours = pairs["slice_b"].where(~turned, pairs["slice_a"]).str.removeprefix("data:")
    others = pairs["slice_a"].where(~turned, pairs["slice_b"]).str.removeprefix("run:")
    found.pairs = pd.DataFrame(
        {"slice_run": others, "slice_data": ours, "kind": pairs["kind"], "similarity": pairs["similarity"]}
    )
    rows = manifest.table.set_index("slice_id")["patient_id"]
    found.patients |= set(rows.loc[ours.unique()].astype(str))
    kinds = pairs["kind"].value_counts().to_dict()
    found.findings.append(
        f"{count(ours.nunique(), 'picture is', 'pictures are')} among those the run has learnt from ("
        + ", ".join(f"{count(number, 'pair')} {kind}" for kind, number in kinds.items())
        + f"), the first {ours.iloc[0]!r} = {others.iloc[0]!r}"
    )


def _prefixed(manifest: Manifest, prefix: str) -> pd.DataFrame:
    """The manifest's rows under names of their own, with paths from the root of the file system."""
    table = manifest.table[list(COLUMNS)].copy()
    for name in ("slice_id", "study_id", "series_id"):
        table[name] = prefix + table[name].astype(str)
    table["patient_id"] = prefix  # pairs are sought between patients: so none is sought within one of the two sets
    root = manifest.root.resolve()
    paths = {path: (root / path).as_posix().lstrip("/") for path in table["path"].unique()}
    table["path"] = table["path"].map(paths)
    table["z_mm"] = table["z_mm"].astype(np.float64)
    return table
