"""What every data module shares: root or phantom -> manifest -> split -> store -> loaders."""

from __future__ import annotations

import logging
import weakref
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, SequentialSampler

from hemlearn.config.base import raise_problems
from hemlearn.config.compose import conf_dir
from hemlearn.config.schema import PRETRAINING, ChannelsConfig, DataConfig, GeometryConfig, SplitConfig, TaskConfig
from hemlearn.data.batches import (
    Batch,
    EpochSampler,
    LengthBatches,
    SeriesBatch,
    SeriesDataset,
    SliceDataset,
    balanced_weights,
    batch_loader,
    neighbour_stack,
)
from hemlearn.data.covariates import PREFIX, within_range
from hemlearn.data.duplicates import duplicate_groups, kept_duplicate_pairs, opposite_labels
from hemlearn.data.geometry import PLACE, Geometry, arrange, cut_band, placed
from hemlearn.data.ids import header_notes
from hemlearn.data.manifest import Manifest, build_manifest
from hemlearn.data.scan import keeping_squares
from hemlearn.data.series import usable_headers
from hemlearn.data.splits import Split, assert_disjoint, check_split, make_split
from hemlearn.data.store import SliceStore, open_store
from hemlearn.data.volumes import stored_pixel_mm
from hemlearn.models.embeddings import Embeddings
from hemlearn.plugins import calling
from hemlearn.util.console import NOTED, ON_DATA, counter
from hemlearn.util.disk import hold_open, set_limit
from hemlearn.util.errors import ConfigError, DataError, SplitError, count
from hemlearn.util.files import cache_dir as cache_folder

logger = logging.getLogger(__name__)
_SHOWN = 5  # contradicting copies named
Labels = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


class _Loaders(pl.LightningDataModule):
    """Validation and test loaders from :meth:`eval_dataloader`."""

    @abstractmethod
    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Batches of ``val`` or ``test`` in manifest order."""

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of the validation patients."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of the test patients."""
        return self.eval_dataloader("test")


class SliceDataModule(_Loaders):
    """A data set of labelled slices.

    A subclass says in :meth:`read` how its files become a manifest; splitting, decoding and loading are shared.
    Everything is computed when it is first needed. ``labels``, ``kind``, ``level`` and ``neighbours`` left at None
    follow the task that a Trainer brings, and without a task the data set itself.

    Args:
        root: Folder of the data set; None: a synthetic phantom in the same layout, drawn on first use.
        labels: Names of the labels to learn, in the order of the task's outputs.
        kind: ``binary``, ``multiclass`` (the labels exclude each other), ``multilabel``, or ``self_supervised``: every
            slice is used, labelled or not.
        level: What the labels describe: ``slice`` or ``series``.
        split: Who trains, validates and tests: a :class:`hemlearn.KFold`, :class:`hemlearn.Holdout`, ... or an object
            of your own with ``split(manifest, labels=, groups=)``; None: 20 % test and 15 % of the others validation.
        image_size: Side of the square network input, pixels.
        fit: How a slice becomes a square: ``letterbox``, ``squash``, ``crop`` or ``head`` (cut out around the head).
        batch_size: Slices per batch.
        num_workers: Loader processes; None: none on a CPU, by its cores for a GPU.
        resident: Where slices lie while they are used: ``device``, ``memory``, ``disk``; ``auto``: on a GPU where they
            fit, else on the disk.
        sampler: ``shuffle``, or ``balanced``: slices of rarer label combinations are drawn more often.
        neighbours: Slices added on each side of a slice, in position order.
        geometry: What is done about gaps, tilt, repeated positions and short series: a ``GeometryConfig`` or a
            dictionary of its fields.
        band: Lowest and highest slice kept of each series, as shares of its length from below; None: all.
        cache_dir: Folder of slice stores and phantoms; None: ``$HEMLEARN_CACHE``, else ``~/.cache/hemlearn``.
        cache_limit: What it may hold, such as ``20GB``; None: ``$HEMLEARN_CACHE_LIMIT``, else no limit.
        phantom_patients: Patients of the phantom that stands in for ``root=None``.
        phantom_seed: Its seed.
        seed: Of the order of training batches.
        pin_memory: Whether loaders use page-locked memory, for training on a GPU.

    Attributes:
        name: As in ``data=NAME``, and ``source`` of the manifest.
        layout: Phantom layout that stands in when there is no root; None: there is none.
        default_labels: Labels that the data set has.
        default_kind: Their kind.
        modality: ``CT`` or ``MR``, of files that do not say.
        display_window: Centre and width in HU in which the pictures of the data set were published.
        patients_known: Whether patient ids name people; else each picture counts as a patient.

    Raises:
        ConfigError: An argument out of range; all of them are reported together.

    Example:
        A data set of one's own needs one method:

        >>> import pandas as pd
        >>> class Mine(SliceDataModule):
        ...     name = "mine"
        ...
        ...     def read(self, root):
        ...         rows = pd.read_csv(root / "mine.csv")  # slice_id, patient_id, path, bleed
        ...         return self.build(rows, root, labels=["bleed"])
        >>> Mine(image_size=96).image_size
        96
    """

    name: str | None = None
    layout: ClassVar[str | None] = None
    default_labels: ClassVar[tuple[str, ...]] = ()
    default_kind: ClassVar[str | None] = None
    modality: str = "CT"
    display_window: ClassVar[tuple[float, float]] = (40.0, 80.0)
    patients_known: bool = True

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        labels: Sequence[str] | None = None,
        kind: str | None = None,
        level: str | None = None,
        split: Any = None,
        image_size: int = 192,
        fit: str = "letterbox",
        batch_size: int = 16,
        num_workers: int | None = None,
        resident: str = "auto",
        sampler: str = "shuffle",
        neighbours: int | None = None,
        geometry: GeometryConfig | Mapping[str, Any] | None = None,
        band: Sequence[float] | None = None,
        cache_dir: str | Path | None = None,
        cache_limit: str | None = None,
        phantom_patients: int = 240,
        phantom_seed: int = 0,
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self._root = None if root is None else str(root)
        given = {"labels": labels, "kind": kind, "level": level, "neighbours": neighbours}
        self._asked: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        self._followed: dict[str, Any] = {}
        self.splitter = SplitConfig() if split is None else split
        if isinstance(split, str) or not (isinstance(self.splitter, SplitConfig | Split) or hasattr(split, "split")):
            raise ConfigError(
                f"split={split!r}: no split",
                remedy="give hemlearn.KFold(...), hemlearn.Holdout(...), ... or an object with split(manifest, ...)",
            )
        options = _checked(
            self._asked,
            root=self._root,
            image_size=image_size,
            fit=fit,
            batch_size=batch_size,
            num_workers=num_workers,
            resident=resident,
            sampler=sampler,
            phantom_patients=phantom_patients,
            phantom_seed=phantom_seed,
            geometry=geometry or {},
        )
        self.image_size, self.fit, self.geometry = options.image_size, options.fit, options.geometry
        self.batch_size, self.num_workers, self.sampler = options.batch_size, options.num_workers, options.sampler
        self.resident = options.resident
        self.band: tuple[float, ...] | None = None if band is None else tuple(band)
        self.phantom_patients, self.phantom_seed = options.phantom_patients, options.phantom_seed
        self.cache = cache_folder(cache_dir)
        set_limit(self.cache, cache_limit)
        self.seed, self.pin_memory = seed, pin_memory
        # Of a resumed run; loader workers ask for their batches before Lightning tells the sampler.
        self.first_epoch = 0

    # --- files -> manifest ---
    _told: Sequence[str] = ()  # of headers that were read

    @abstractmethod
    def read(self, root: Path) -> Manifest:
        """The manifest of the files under ``root``; :meth:`build` makes it from a table of rows."""

    def build(
        self,
        rows: pd.DataFrame,
        root: Path,
        *,
        labels: Sequence[str] | None = None,
        skipped: Iterable[Any] = (),
        synthetic: bool | None = None,
        cut: bool = True,
        **more: Any,
    ) -> Manifest:
        """Check the rows, leave out those outside the band, open every file and make the manifest.

        Args:
            rows: One row per slice, see :func:`hemlearn.data.manifest.build_manifest`.
            root: Folder that their paths start from.
            labels: Label columns; None: ``default_labels``.
            skipped: Tables or lists of (item, reason) of what cannot be used.
            synthetic: Whether it is a phantom; None: where the folder holds ``PHANTOM.txt``.
            cut: Whether ``band`` is applied.
            **more: Further arguments of ``build_manifest``: ``series``, ``images``, ``label_level``, ``notes``.
        """
        if synthetic is None:
            synthetic = (root / "PHANTOM.txt").is_file()
        told = [] if synthetic else self._told
        for note in told:
            logger.warning("%s: %s", root, note, extra=NOTED)
        outside = None
        if cut and self.band is not None:
            rows, outside = _within_band(rows, self.band)
            if more.get("images") is not None:  # they have a row
                more["images"] = sorted(set(more["images"]) - set(outside["item"]))
        return build_manifest(
            rows,
            root=root,
            labels=self.default_labels if labels is None else tuple(labels),
            source=self.name or type(self).__name__,
            modality=self.modality,
            cache_dir=self.cache,
            skipped=skipped_table(*skipped, *([] if outside is None else [outside])),
            synthetic=synthetic,
            patients_known=self.patients_known,
            **more | {"notes": [*more.get("notes", ()), *told]},
        )

    def headers(
        self, paths: Sequence[str], root: Path, *, nifti: str = "OT", whole: bool = True
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """One row per axial slice of DICOM and NIfTI files, and (item, reason) of the other files.

        Args:
            paths: Files, relative to ``root``.
            root: Folder of the data set.
            nifti: Modality of NIfTI volumes, which do not tell.
            whole: Every slice will be used; False where some are chosen by what their headers say.
        """
        whole = whole and self.band is None
        found = usable_headers(paths, root, cache_dir=self.cache, nifti=nifti, whole=whole)
        made, odd = within_range(found[0], {"age_years": "PatientAge", "thickness_mm": "SliceThickness"})
        self._told = [*header_notes(made), *odd]
        return made.rename(columns={"sex": f"{PREFIX}sex", "age_years": f"{PREFIX}age"}), found[1]

    def arrange(self, headers: pd.DataFrame) -> Geometry:
        """The slices of each series in order, without those that ``geometry`` refuses; each knows its place."""
        found = arrange(headers, self.geometry)
        return found if self.band is None else replace(found, rows=placed(found.rows))

    def of_modality(self, headers: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows of the data set's modality, and (item, reason) of the others."""
        wrong = headers["modality"] != self.modality
        reasons = "modality " + headers.loc[wrong, "modality"] + f": {self.title} is {self.modality}"
        lost = pd.DataFrame({"item": headers.loc[wrong, "path"], "reason": reasons}, dtype=object)
        return headers[~wrong].reset_index(drop=True), lost.drop_duplicates()

    @cached_property
    def root(self) -> Path:
        """Folder of the data set; the phantom is written on first use where none was given."""
        if self._root is None:
            return self._phantom()
        root = Path(self._root).expanduser()
        if not root.is_dir():
            raise DataError(
                f"data.root={self._root}: {'not a folder' if root.exists() else 'no such folder'}",
                remedy=f"give the folder of the {self.name} data set, or leave data.root out "
                "to use the synthetic phantom",
            )
        self._hold(root)
        return root

    def _hold(self, root: Path) -> None:
        """Keep `hemlearn prune` from a phantom as long as this object lives; nothing for other data."""
        if (note := root / "PHANTOM.txt").is_file():
            weakref.finalize(self, hold_open(note).close)

    def _phantom(self) -> Path:
        from filelock import FileLock

        from hemlearn.phantom.layouts import phantom_version, write_phantom

        if self.layout is None:
            raise ConfigError(f"data={self.title}: data.root is not set", remedy="give the folder with data.root=DIR")
        name = f"{self.layout}-v{phantom_version(self.layout)}-{self.phantom_patients}-{self.phantom_seed}"
        folder = self.cache / "phantom" / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{name}.lock"):
            if not folder.is_dir():
                patients, seed = self.phantom_patients, self.phantom_seed
                with counter("Drawing synthetic heads") as bar:
                    write_phantom(self.layout, folder, patients=patients, seed=seed, progress=bar, n_jobs=-1)
            self._hold(folder)
        logger.warning("data.root is not set: using SYNTHETIC phantom data (%s), not patients", folder, extra=ON_DATA)
        return folder

    @property
    def title(self) -> str:
        """How messages call the data set."""
        return self.name or type(self).__name__

    @cached_property
    def manifest(self) -> Manifest:
        """One row per slice (see :class:`hemlearn.data.manifest.Manifest`)."""
        root = self.root
        with keeping_squares(self.image_size, self.fit), calling(self, "read"):
            found = self.read(root)
        if not isinstance(found, Manifest):
            kind = type(self)
            raise DataError(
                f"{kind.__module__}.{kind.__qualname__}.read returned {type(found).__name__}, not a hemlearn Manifest",
                remedy="return self.build(rows, root, labels=[...])",
            )
        return found

    @property
    def contents(self) -> dict[str, str]:
        """Checksum of the manifest, and of each data set in it -> what stands before its ids here."""
        return {self.manifest.checksum: ""}

    @property
    def sources(self) -> dict[str, str]:
        """What stands before the ids of each data set here -> its source; of phantoms and ids of nobody none."""
        return {"": self.manifest.source} if self.manifest.patients_known and not self.manifest.synthetic else {}

    # --- what is asked of the data ---
    def select(self, **asked: Any) -> None:
        """Ask for other ``labels``, ``kind``, ``level`` or ``neighbours`` than at construction."""
        self._asked |= asked
        self._forget()

    def _forget(self) -> None:
        for name in ("label_names", "labels", "split", "_sides", "_stack"):
            self.__dict__.pop(name, None)

    def _follow(self) -> Any:
        """Take what was left open from the Trainer's task, if there is one; the task."""
        task = getattr(self.trainer, "lightning_module", None)
        found = wishes(task)
        if found != self._followed:
            self._followed = found
            self._forget()
        return task

    def _choice(self, key: str) -> Any:
        return self._asked.get(key, self._followed.get(key))

    @property
    def kind(self) -> str:
        """``binary``, ``multiclass`` or ``multilabel``."""
        given = self._choice("kind")
        if given is None and self.default_kind is not None and set(self.label_names) == set(self.default_labels):
            return self.default_kind
        return str(given or ("binary" if len(self.label_names) == 1 else "multilabel"))

    @property
    def level(self) -> str:
        """What the labels describe: ``slice`` or ``series``."""
        return str(self._choice("level") or self.manifest.label_level)

    @property
    def neighbours(self) -> int:
        """Slices added on each side."""
        return int(self._choice("neighbours") or 0)

    @cached_property
    def label_names(self) -> list[str]:
        """The labels to learn, in the order of the columns of :attr:`labels`; refused where the data have none such."""
        own = self.manifest.labels
        wanted = self._choice("labels")
        names = list(own if wanted is None else wanted)
        absent = [label for label in names if label not in own]
        if absent:
            fit = " or ".join(tasks_of(self.manifest))
            text = f"task.labels={absent}: not among the labels of data={self.title} ({', '.join(own)})"
            raise ConfigError(
                text, remedy=f"use {fit}" if fit else "choose a task whose labels the data set has: task=NAME"
            )
        if names and self.manifest.label_level == "series" and self.level == "slice":
            raise ConfigError(
                f"task.level=slice: the labels of data={self.title} describe whole series",
                remedy="set task.level=series",
            )
        return names

    @cached_property
    def labels(self) -> Labels:
        """``(N, L)`` labels in the order of :attr:`label_names`; NaN is unknown."""
        table = self.manifest.table[self.label_names]
        found = np.asarray(table.to_numpy(dtype=np.float32), dtype=np.float32)
        return self._one_class(found) if self.kind == "multiclass" else found

    def _one_class(self, labels: Labels) -> Labels:
        """Rows with one class: a single 1 decides the row; a row that leaves its class open is unknown as a whole."""
        hits = (labels == 1).sum(axis=1)
        table = self.manifest.table
        wrong = np.flatnonzero((hits > 1) | ((hits == 0) & ~np.isnan(labels).any(axis=1)))
        if len(wrong):
            names = [name for name, value in zip(self.label_names, labels[wrong[0]], strict=True) if value == 1]
            item = table["slice_id"].iloc[wrong[0]]
            raise DataError(
                f"{count(len(wrong), 'slice does', 'slices do')} not have exactly one class; "
                f"the first is {item!r} with {names}",
                remedy="correct the labels, or use a task of kind multilabel",
            )
        unknown = hits == 0
        if unknown.any():
            logger.warning("%s left out: class not known", count(int(unknown.sum()), "slice is", "slices are"))
        decided = np.where(np.isnan(labels), np.float32(0), labels)
        decided[unknown] = np.nan
        return decided

    def label_counts(self, split: str) -> tuple[list[float], list[float]]:
        """Known positive and negative slices per label in ``train``, ``val`` or ``test``."""
        return _ones_and_zeros(self.labels[self.rows(split)])

    # --- who trains, validates and tests ---
    @cached_property
    def split(self) -> Split:
        """The split that ``splitter`` makes of the data set, checked to keep patients and copies on one side."""
        return self.divide(self.label_names)

    def divide(self, labels: Sequence[str], groups: pd.Series[int] | None = None) -> Split:
        """Divide the patients as ``splitter`` says, with these labels spread evenly.

        Duplicates stay together: slices of equal number in ``groups``; None: as ``splitter.duplicates`` says.
        """
        how = self.splitter
        if groups is None:
            pairs = kept_duplicate_pairs(self.manifest, getattr(how, "duplicates", "near"), self.cache)
            groups = duplicate_groups(self.manifest, pairs=pairs)
            for a, b, label in opposite_labels(self.manifest, pairs).head(_SHOWN).itertuples(index=False):
                logger.warning("%r and %r are the same picture with opposite labels %r", a, b, label, extra=ON_DATA)
        if isinstance(how, SplitConfig):
            return make_split(self.manifest, how, labels=labels, groups=groups)
        found: Any = how
        if not isinstance(how, Split):
            with calling(how, "split", SplitError):
                found = how.split(self.manifest, labels=labels, groups=groups)
        allow_leak = getattr(how, "allow_leak", False)
        return check_split(_a_split(found, how), self.manifest, labels, groups, allow_leak=allow_leak)

    @cached_property
    def _sides(self) -> pd.Series[str]:
        """The split of every manifest row; a split that a subclass makes by itself is checked here too."""
        with calling(self, "split", SplitError):
            found = self.split
        sides = _a_split(found, self).apply(self.manifest)
        assert_disjoint(self.manifest, sides, leaky=getattr(self.splitter, "allow_leak", False))
        return sides

    def rows(self, split: str) -> Rows:
        """Manifest rows of ``train``, ``val`` or ``test`` with at least one known label; all for pretraining."""
        chosen = (self._sides == split).to_numpy()
        if self.kind == PRETRAINING:
            return np.flatnonzero(chosen).astype(np.int64)
        return np.flatnonzero(chosen & ~np.isnan(self.labels).all(axis=1)).astype(np.int64)

    # --- pixels ---
    @cached_property
    def store(self) -> SliceStore:
        """Decoded slices, built on first use."""
        return open_store(self.manifest, size=self.image_size, fit=self.fit, cache_dir=self.cache)

    @property
    def unit(self) -> str:
        """Unit of the stored intensities: ``HU``, ``signal`` (MR) or ``display`` (8-bit pictures)."""
        return self.store.unit

    def dataset(self, split: str) -> SliceDataset:
        """The labelled slices of ``train``, ``val`` or ``test``."""
        rows = self.rows(split)
        return SliceDataset(self.store.array, self._stack[rows], self.labels[rows], rows)

    def all_slices(self) -> SliceDataset:
        """Every slice of the manifest in its order, whatever its split and labels."""
        return SliceDataset(self.store.array, self._stack, self.labels, np.arange(len(self.labels), dtype=np.int64))

    @cached_property
    def _stack(self) -> Rows:
        """``(N, K)`` rows of the store that make each sample, neighbours included."""
        table = self.manifest.table
        if self.neighbours:
            self.check_positions()
        store_rows = np.array([self.store.rows[item] for item in table["slice_id"]], dtype=np.int64)
        series, z_mm = table["series_id"].to_numpy(dtype=object), table["z_mm"].to_numpy(dtype=np.float64)
        return neighbour_stack(series, z_mm, store_rows, self.neighbours)

    def check_positions(self) -> None:
        """Refuse a series of which some slices have a position; where none has one, the order of the files counts."""
        missing = self.manifest.table["z_mm"].isna().groupby(self.manifest.table["series_id"])
        share = missing.mean()
        broken = share[(share > 0) & (share < 1)]
        if len(broken):
            raise DataError(
                f"{count(len(broken), 'series has', 'series have')} slices without z_mm beside slices with it; "
                f"the first is {broken.index[0]!r}",
                remedy="fill the column for all slices of a series, or for none",
            )

    # --- Lightning ---
    def prepare_data(self) -> None:
        """Write what all processes of a run share: phantom, manifest cache and store."""
        self._follow()
        _ = self.store

    def setup(self, stage: str | None = None) -> None:
        """Adopt what the Trainer's task asks for, and check that the data have it.

        Raises:
            ConfigError: The task's labels are not those of the data set, or differ in number from those asked for.
            DataError: The network was trained with slices of another unit.
            SplitError: No split can be made, or one with a patient on two sides.
        """
        task = self._follow()
        unit = getattr(task, "unit", None)
        if unit is not None and unit != self.unit:
            raise DataError(
                f"{self.manifest.root}: slices in {self.unit}, but the network was trained on {unit}",
                remedy="give the same kind of files as in training",
            )
        if stage == "predict":
            return
        theirs = self._followed.get("labels")
        if theirs is not None and len(theirs) != len(self.label_names):
            raise ConfigError(
                f"labels={self.label_names} of the data, but the task has {len(theirs)}: {list(theirs)}",
                remedy="name as many labels in the same order, or leave labels out of the data module",
            )
        _ = self._sides

    def draw_weights(self, data: SliceDataset) -> NDArray[np.float64] | None:
        """How often each of the training slices is drawn, up to a factor; None: each once in an epoch."""
        return balanced_weights(data.labels.numpy()) if self.sampler == "balanced" else None

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled or balanced batches; the last incomplete batch is kept unless it holds a single slice."""
        data = self.dataset("train")
        sampler = EpochSampler(len(data), self.seed, self.draw_weights(data), share_of(self.trainer))
        sampler.set_epoch(self.first_epoch)
        # BatchNorm cannot normalise a batch of one.
        drop_last = len(sampler) > self.batch_size and len(sampler) % self.batch_size == 1
        return self.loader(data, batch_size=self.batch_size, sampler=sampler, drop_last=drop_last)

    def eval_dataloader(self, split: str) -> DataLoader[Batch]:
        """Batches of ``val`` or ``test`` in manifest order."""
        data = self.dataset(split)
        return self.loader(data, batch_size=self.batch_size, sampler=SequentialSampler(data))

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Batches of every slice in manifest order; labels are NaN, since none are needed."""
        size = len(self.manifest.table)
        unknown = np.full((size, len(self._choice("labels") or self.manifest.labels)), np.nan, dtype=np.float32)
        data = SliceDataset(self.store.array, self._stack, unknown, np.arange(size, dtype=np.int64))
        return self.loader(data, batch_size=self.batch_size, sampler=SequentialSampler(data))

    def loader(self, data: Any, **options: Any) -> DataLoader[Any]:
        """A loader of ready-made batches, with the processes and memory that were asked for."""
        if self.trainer is not None:
            options |= {"processes": self.trainer.num_devices}
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        how: dict[str, Any] = {
            "resident": self.resident,
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory,
        }
        return batch_loader(data, device, **how, **options)


class ManifestDataModule(SliceDataModule):
    """The slices of a manifest that is there already, such as that of somebody else's data module.

    Args:
        manifest: The slices.
        **options: Those of :class:`SliceDataModule`; the root is the manifest's.

    Example:
        >>> from hemlearn.datamodules import HeadCTDataModule
        >>> manifest = HeadCTDataModule(phantom_patients=10).manifest
        >>> len(ManifestDataModule(manifest, image_size=64).manifest.table)
        10
    """

    def __init__(self, manifest: Manifest, **options: Any) -> None:
        super().__init__(manifest.root, **options)
        self.given, self.name = manifest, manifest.source

    def read(self, root: Path) -> Manifest:
        """The given manifest, without slices outside the band."""
        if self.band is None:
            return self.given
        table, outside = cut_band(self.given.table, self.band)
        return replace(self.given, table=table, skipped=skipped_table(self.given.skipped, outside))


class VolumeDataModule(_Loaders):
    """The series of a data set, as images or as cached embeddings of their slices.

    Args:
        slices: Its slices, with manifest, split and store.
        embeddings: Cached embeddings of all of them; None hands out images.
        series_per_batch: Series per batch.
        in_mm: Whether batches tell the size of a pixel, which 3D networks read.

    Example:
        >>> from hemlearn.datamodules import CTICHDataModule
        >>> VolumeDataModule(CTICHDataModule(image_size=64), series_per_batch=2).series_per_batch
        2
    """

    def __init__(
        self,
        slices: SliceDataModule,
        embeddings: Embeddings | None = None,
        *,
        series_per_batch: int = 8,
        in_mm: bool = False,
    ) -> None:
        super().__init__()
        self.slices = slices
        self.embeddings = embeddings
        self.series_per_batch = series_per_batch
        self.in_mm = in_mm

    def __getattr__(self, name: str) -> Any:
        if name in ("manifest", "split", "unit", "label_names"):  # those of the slices
            return getattr(self.slices, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @cached_property
    def series(self) -> list[NDArray[np.int64]]:
        """Manifest rows of every series in position order; slices without a position keep the manifest's order."""
        self.slices.check_positions()
        table = self.manifest.table
        codes = np.unique(table["series_id"].to_numpy(dtype=object).astype(str), return_inverse=True)[1]
        z_mm = np.nan_to_num(table["z_mm"].to_numpy(dtype=np.float64), nan=0.0)
        order = np.lexsort((np.arange(len(table)), z_mm, codes)).astype(np.int64)
        return list(np.split(order, np.flatnonzero(np.diff(codes[order])) + 1))

    @cached_property
    def pixel_mm(self) -> NDArray[np.float32] | None:
        """(N, 2) height and width of a stored pixel in mm, NaN where unknown; None unless asked for."""
        return stored_pixel_mm(self.manifest, self.slices.image_size, self.slices.fit) if self.in_mm else None

    def label_counts(self, split: str) -> tuple[list[list[float]], list[list[float]]]:
        """Known positives and negatives per label, each ``[of slices, of series]``."""
        slices, series = self.slices.label_counts(split), _ones_and_zeros(self.dataset(split).series_labels)
        return [slices[0], series[0]], [slices[1], series[1]]

    def dataset(self, split: str) -> SeriesDataset:
        """Series with at least one labelled slice in ``train``, ``val`` or ``test``, all their slices included."""
        used = np.zeros(len(self.slices.labels), dtype=bool)
        used[self.slices.rows(split)] = True
        return self._series([rows for rows in self.series if used[rows].any()], self.slices.labels, used)

    def _series(self, chosen: list[NDArray[np.int64]], labels: Labels, used: NDArray[np.bool_]) -> SeriesDataset:
        z_mm = self.manifest.table["z_mm"].to_numpy(dtype=np.float64)
        if self.embeddings is not None:
            return SeriesDataset(chosen, labels, used, z_mm, vectors=self.embeddings.array)
        return SeriesDataset(chosen, labels, used, z_mm, slices=self.slices.all_slices(), pixel_mm=self.pixel_mm)

    def prepare_data(self) -> None:
        """As that of the slices."""
        self.slices.trainer = self.trainer
        self.slices.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """As that of the slices."""
        self.slices.trainer = self.trainer
        self.slices.setup(stage)

    def train_dataloader(self) -> DataLoader[SeriesBatch]:
        """Batches of training series by length."""
        data = self.dataset("train")
        batches = LengthBatches(data.lengths, self.series_per_batch, self.slices.seed, share_of(self.trainer))
        batches.set_epoch(self.slices.first_epoch)
        return self.slices.loader(data, batch_sampler=batches)

    def eval_dataloader(self, split: str) -> DataLoader[SeriesBatch]:
        """Batches of ``val`` or ``test`` series in manifest order."""
        data = self.dataset(split)
        return self.slices.loader(data, batch_sampler=LengthBatches(data.lengths, self.series_per_batch, None))

    def predict_dataloader(self) -> DataLoader[SeriesBatch]:
        """Batches of every series."""
        labels = self.slices.labels
        data = self._series(self.series, labels, np.ones(len(labels), dtype=bool))
        return self.slices.loader(data, batch_sampler=LengthBatches(data.lengths, self.series_per_batch, None))


def _within_band(rows: pd.DataFrame, band: tuple[float, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """An adapter's rows within a band, and (item, reason) of the others."""
    patient = rows["patient_id"]
    told = {"series_id": rows.get("series_id", patient), "patient_id": patient, "path": rows["path"].astype(str)}
    given = pd.to_numeric(rows["z_mm"], errors="coerce") if "z_mm" in rows else pd.Series(np.nan, rows.index)
    frame = pd.to_numeric(rows["frame"], errors="coerce").fillna(0) if "frame" in rows else 0
    own = pd.DataFrame(told | {"z_mm": given, "frame": frame}, index=rows.index).astype({"frame": np.int64})
    if PLACE in rows:
        own[PLACE] = rows[PLACE]
    partly = own["z_mm"].isna().groupby(own["series_id"]).transform("any")
    own["z_mm"] = own["z_mm"].mask(partly)
    own = own.assign(row=rows.index).sort_values(["series_id", "z_mm"], kind="stable", ignore_index=True)
    kept, outside = cut_band(own, band)
    return rows.loc[sorted(kept["row"])].reset_index(drop=True), outside


def skipped_table(*parts: Any) -> pd.DataFrame:
    """One table (item, reason) of tables and lists of pairs."""
    columns = ["item", "reason"]
    tables = [
        part if isinstance(part, pd.DataFrame) else pd.DataFrame(list(part), columns=columns, dtype=object)
        for part in ([], *parts)
    ]
    return pd.concat(tables, ignore_index=True)


def _checked(asked: dict[str, Any], **options: Any) -> DataConfig:
    """The options of group ``data``; they and what is asked of the task's keys are held against their rules."""
    found, problems = DataConfig.attempt(options, "data.")
    for group, prefix, keys in (
        (TaskConfig, "task.", ("labels", "kind", "level")),
        (ChannelsConfig, "channels.", ("neighbours",)),
    ):
        given = {key: asked[key] for key in keys if key in asked}
        problems += group.attempt(given, prefix, set(given))[1]
    raise_problems(problems, "the data module's arguments", "correct the arguments above")
    return found


def share_of(trainer: pl.Trainer | None) -> tuple[int, int]:
    """The rank of this process and the number of processes that train together."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def _a_split(found: Any, maker: Any) -> Split:
    if not isinstance(found, Split):
        raise SplitError(
            f"{type(maker).__module__}.{type(maker).__qualname__}.split returned {type(found).__name__}, not a Split",
            remedy="return hemlearn.data.splits.Split(table of patient_id and split)",
        )
    return found


def wishes(task: Any) -> dict[str, Any]:
    """What a task asks of its data: ``labels``, ``kind``, ``level`` and ``neighbours``, as far as it says."""
    types = {"labels": list | tuple, "kind": str, "level": str, "neighbours": int}
    found = {key: getattr(task, key, None) for key in types}
    return {key: value for key, value in found.items() if isinstance(value, types[key])}


def _ones_and_zeros(labels: NDArray[np.float32]) -> tuple[list[float], list[float]]:
    """Known positives and negatives per label."""
    ones, zeros = (np.sum(labels == value, axis=0).astype(float).tolist() for value in (1, 0))
    return ones, zeros


def tasks_of(manifest: Manifest) -> list[str]:
    """Shipped tasks whose labels are those of a data set, as on the command line.

    For example ``["task=six_class loss=cross_entropy"]``: with what else they need, which is the loss of exclusive
    classes, the channels of MR, slices where these labels describe slices. No such task: those that need only some of
    the labels.
    """
    exact, part = [], []
    for file in sorted((conf_dir() / "task").glob("*.yaml")):
        task = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(task, dict)
        words = [f"task={file.stem}"]
        if task.get("level") == "series" and task.get("kind") == "multiclass" and manifest.label_level == "slice":
            words.append("task.level=slice")
        if task.get("level", "slice") == "slice" and manifest.label_level == "series":
            words.append("task.level=series")
        if task.get("kind") == "multiclass":
            words.append("loss=cross_entropy")
        if set(manifest.table["modality"]) == {"MR"}:
            words.append("channels=mr")
        labels = set(task.get("labels", ()))
        if labels == set(manifest.labels):
            exact.append(" ".join(words))
        elif labels and labels < set(manifest.labels):
            part.append(" ".join(words))
    return exact or part
