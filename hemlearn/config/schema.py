"""Every key of the configuration: its type, default, meaning and rules, a class for each group.

``None`` always means "not set". Values are plain scalars, lists and dictionaries, so that a resolved configuration can
be stored in a checkpoint that is read back without unpickling code. The same defaults stand in ``conf/schema.yaml``.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from hemlearn.config.base import Checked, Found, Place, Wrong, key, one_of, raise_problems, rule
from hemlearn.config.parts import PROPORTIONAL, part_problems, weight_problems
from hemlearn.plugins import REGISTRY, load_plugins
from hemlearn.util.disk import parse_size
from hemlearn.util.errors import hint
from hemlearn.util.run_files import KEPT

FEATURES = ("none", "pca", "variance", "anova", "mutual_info", "l1", "random_projection")
SEQUENCES = (
    *("none", "slice", "mean", "max", "lstm", "gru", "attention", "transformer", "conv_gru"),
    *("smooth_attention", "transmil", "clam"),
)
NETWORKS_3D = ("densenet121_3d", "resnet18_3d", "resnet50_3d", "swin_unetr_3d", "fluid_3d")  # backbones of whole series
MEASURED = ("fluid_3d",)  # those of them that are no networks and have no weights
TARGETS = {"sensitivity": 0.95, "specificity": 0.9, "cost": 5.0}  # threshold rules with a number; an example of each
DATA_SETS = (  # the names of hemlearn.datamodules.DATAMODULES
    *("head_ct", "ct_ich", "rsna", "cq500", "dicom", "table"),
    *("six_class", "basal_ganglia", "hydrocephalus_mri", "multi"),
)
MONITORS = {  # validation metrics that pick the best checkpoint, and which way is better
    "log_loss": "min",
    "weighted_log_loss": "min",
    "brier": "min",
    "auroc": "max",
    "ap": "max",
    "accuracy": "max",
    "last": "min",
}
PRETRAINING = "self_supervised"  # task.kind of runs that learn without labels
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=4_294_967_295)]  # what numpy takes
MAX_WIDTH = 65_536
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]


def _registered(group: str) -> Callable[[], Iterable[str]]:
    """Names that plug-ins have registered in a group; asked for before an unknown name is refused."""

    def names() -> Iterable[str]:
        load_plugins()
        return REGISTRY.names(group)

    return names


def _by_name(nodes: Any) -> Any:
    """``[mine]`` and ``{mine: mine}`` as ``{mine: {name: mine}}``: parts that plug-ins have registered by name."""
    if isinstance(nodes, list) and all(isinstance(node, str) for node in nodes):
        nodes = {node: node for node in nodes}
    if isinstance(nodes, dict):
        return {name: {"name": node} if isinstance(node, str) else node for name, node in nodes.items()}
    return nodes


def _is_size(text: str) -> str:
    try:
        parse_size(text)
    except ValueError as error:
        raise PydanticCustomError("rule", "{text}", {"text": str(error).partition(": ")[2]}) from error
    return text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Section(Checked):
    """Keys that belong together."""

    @classmethod
    def prefix(cls) -> str:
        """Dotted name of the section, with a dot at its end."""
        inside = {"GeometryConfig": "data.geometry", "ScheduleConfig": "optimizer.schedule", "Config": ""}
        name = inside.get(cls.__name__, cls.__name__.removesuffix("Config").lower())
        return f"{name}." if name else ""

    @classmethod
    def check(cls, prefix: str, /, **values: Any) -> Self:
        """The object of these values.

        Raises:
            ConfigError: Lists everything wrong with them, under keys that start with ``prefix``.
        """
        made, problems = cls.attempt(values, f"{prefix}." if prefix else "")
        raise_problems(problems, cls.what(), cls.remedy())
        return made

    def changed(self, keys: Mapping[str, Any]) -> Self:
        """A copy with other values for some keys, dotted ones inside; they are not checked again.

        Example:
            >>> Config().changed({"data.root": "/data", "seed": 3}).data.root
            '/data'
        """
        update: dict[str, Any] = {}
        for dotted, value in keys.items():
            name, dot, rest = dotted.partition(".")
            update[name] = update.get(name, getattr(self, name)).changed({rest: value}) if dot else value
        return self.model_copy(update=update)

    @classmethod
    def near(cls, prefix: str, key: str) -> str:
        """The nearest key of the whole configuration."""
        return hint(f"{prefix}{key}", [*schema_keys(), "experiment", "sweep"])


class Group(Section):
    """A section that takes ``_target_``: it then describes a class of the user's own, and holds its arguments too."""

    target_: str | None = key(None, "dotted name of a class of your own", alias="_target_", repr=False)


class GeometryConfig(Section):
    """How series that are not evenly spaced, upright stacks are handled (inside group ``data``)."""

    duplicates: Annotated[str, one_of("first", "keep", "refuse")] = key(
        "first", "slices at one position: first (the others are skipped and recorded), keep, refuse"
    )
    gaps: Annotated[str, one_of("keep", "refuse")] = key(
        "keep", "uneven or missing positions: keep (reported), refuse (the series is skipped and recorded)"
    )
    tilt: Annotated[str, one_of("keep", "refuse")] = key(
        "keep", "gantry tilt: keep (reported; positions run along the slice normal), refuse"
    )
    min_slices: int = key(1, "shorter series are skipped and recorded", ge=1)


LABEL_KEYS = ("PatientID", "AccessionNumber", "SeriesInstanceUID")  # DICOM (0010,0020), (0008,0050), (0020,000E)


class DataConfig(Group):
    """Which data set, and how its slices become batches (group ``data``)."""

    name: str = key("head_ct", "data set: one of hemlearn.datamodules.DATAMODULES")
    root: str | None = key(None, "folder of the data set; null: a synthetic set of the same layout")
    manifest: str | None = key(None, "data=table: CSV or .xlsx file with one row per image, volume or folder of them")
    labels: Any = key(None, "data=dicom: CSV or .xlsx file of labels: a column of ids, and one of 0 and 1 per label")
    label_key: str | None = key(
        None,
        "data=dicom: what the ids of data.labels are, and what their column is called: PatientID, AccessionNumber "
        "or SeriesInstanceUID",
    )
    series: Any = key(
        None,
        "data=dicom: one: of each study the axial head series that `hemlearn predict` would choose; all; null: one "
        "where labels describe patients or accessions",
    )
    parts: dict[str, Any] = key(
        {},
        "data=multi: NAME: {data, root, labels: {its label: the common one}, ...} of each data set; data: NAME if "
        "left out, root: null is its synthetic set",
    )
    part_weights: Any = key(
        PROPORTIONAL,
        "data=multi: training slices drawn per part: proportional (every slice once), equal, or {NAME: weight, ...}",
    )
    path_column: str = key("path", "data=table: column of that table that names the file or folder")
    patient_column: str | None = key(
        "patient_id",
        "data=table: column of that table that names the patient; null: it has none, and images count as people, which "
        "every output says",
    )
    modality: Annotated[str, one_of("CT", "MR")] | None = key(
        None, "data=table, dicom: CT or MR, of files that do not say (pictures, NIfTI); null: unknown of pictures"
    )
    covariates: list[str] = key(
        [],
        "data=table: columns that say more of patients or images, such as [sex, age]; no network sees them, see "
        "`hemlearn compare subgroups=`",
    )
    image_size: int = key(192, "side of the square network input, pixels", ge=32, le=4096)
    patient_pattern: str | None = key(
        None,
        "regular expression (group `patient`) for the patient in a file's path: data=six_class, "
        "basal_ganglia, hydrocephalus_mri",
    )
    band: list[float] | None = key(
        None,
        "slices kept of each series: [low, high] as shares of its length from below; null: all (not of single slices: "
        "data=head_ct, six_class)",
    )
    fit: Annotated[str, one_of("letterbox", "squash", "crop", "head")] = key(
        "letterbox", "how a non-square image becomes square: letterbox, squash, crop, head (cut out)"
    )
    batch_size: int = key(16, "slices per step", ge=1)
    num_workers: int | None = key(
        None,
        "processes that load batches; null: none on a CPU, one per core but one for a GPU (8 at most)",
        ge=0,
        le=1024,
    )
    resident: Annotated[str, one_of("auto", "device", "memory", "disk")] = key(
        "auto",
        "where slices lie while they are used: device, memory, disk; auto: on a GPU where they fit, else on disk",
    )
    sampler: Annotated[str, one_of("shuffle", "balanced")] = key(
        "shuffle", "shuffle, or balanced: slices of rarer label combinations are drawn more often"
    )
    cache_dir: str | None = key(None, "slice stores and synthetic sets; null: $HEMLEARN_CACHE, else ~/.cache/hemlearn")
    cache_limit: Annotated[str, AfterValidator(_is_size)] | None = key(
        None, "what that folder may hold, such as 20GB; null: $HEMLEARN_CACHE_LIMIT, else no limit"
    )
    phantom_patients: int = key(240, "size of the synthetic set that is used when root is null", ge=10, le=1_000_000)
    phantom_seed: Seed = key(0, "seed of that set")
    geometry: GeometryConfig = GeometryConfig()

    @rule
    def _name(name: str, target_: str | None) -> Found:
        if name not in DATA_SETS and target_ is None and name not in (known := [*DATA_SETS, *_registered("data")()]):
            text = f"expected one of {', '.join(known)}{hint(name, known)}; any CSV of images is data=table"
            yield Wrong("name", name, text)

    @rule
    def _table(name: str, manifest: str | None, target_: str | None) -> Found:
        if name == "table" and manifest is None and target_ is None:
            yield Wrong("manifest", manifest, "data=table needs the CSV file: data.manifest=FILE")
        if manifest is not None and name in DATA_SETS and name != "table" and target_ is None:
            yield Wrong("manifest", manifest, f"data={name} does not read it; data=table does")

    @rule
    def _labels(name: str, labels: Any, label_key: str | None, series: Any, target_: str | None) -> Found:
        if target_ is not None or name not in DATA_SETS:  # such arguments of a class of the user's own are its own
            return
        for given, value in (("labels", labels), ("label_key", label_key), ("series", series)):
            if value is not None and name == "multi":
                part = "data.parts.NAME={data: dicom, root: DIR, label_file: FILE, label_key: PatientID}"
                yield Wrong(given, value, f"data=multi does not read it; a part of DICOM files does: {part}")
            elif value is not None and name != "dicom":
                yield Wrong(given, value, f"data={name} does not read it; data=dicom does")
        if labels is not None and not isinstance(labels, str):
            yield Wrong("labels", labels, "expected one CSV or .xlsx file; its columns are named by task.labels")
        if series not in (None, "one", "all"):
            yield Wrong("series", series, "expected one, all or null")
        if (labels is not None and label_key is None) or label_key not in (None, *LABEL_KEYS):
            yield Wrong("label_key", label_key, f"say what the ids of data.labels are: {', '.join(LABEL_KEYS)}")
        if label_key is not None and labels is None:
            yield Wrong("labels", None, "data.label_key is of a table of labels: data.labels=FILE")

    @rule
    def _parts(name: str, parts: dict[str, Any], part_weights: Any, target_: str | None) -> Found:
        if name == "multi" and target_ is None:
            known = [known for known in (*DATA_SETS, *_registered("data")()) if known != "multi"]
            yield from part_problems(parts, part_weights, known, DataConfig.attempt)
        elif target_ is None:
            if parts:
                yield Wrong("parts", parts, f"data={name} does not read them; data=multi does")
            yield from weight_problems(part_weights, parts)

    @rule
    def _covariates(name: str, covariates: list[str], target_: str | None) -> Found:
        if covariates and name in DATA_SETS and name != "table" and target_ is None:
            text = f"data={name} does not read them; `hemlearn compare covariates=FILE.csv` takes them from a table"
            yield Wrong("covariates", covariates, text)

    @rule
    def _modality(name: str, modality: str | None, target_: str | None) -> Found:
        if modality is not None and name not in ("table", "dicom") and target_ is None:
            yield Wrong("modality", modality, f"data={name} does not read it")

    @rule
    def _band(name: str, band: list[float] | None, target_: str | None) -> Found:
        if band is not None and not (len(band) == 2 and 0 <= band[0] < band[1] <= 1):
            yield Wrong("band", band, "two rising shares from 0 (lowest slice) to 1 (topmost), or null")
        if band is not None and name in ("head_ct", "six_class") and target_ is None:
            yield Wrong("band", band, f"data={name} has single slices, which have no place in a series")

    @rule
    def _pattern(name: str, patient_pattern: str | None, target_: str | None) -> Found:
        reads = name in ("basal_ganglia", "hydrocephalus_mri", "six_class") or target_ is not None
        if patient_pattern is not None and not reads:
            yield Wrong("patient_pattern", patient_pattern, f"data={name} does not read it")


class ChannelsConfig(Group):
    """How stored intensities become network channels (group ``channels``)."""

    name: str = key("brain", "name for messages")
    kind: Annotated[str, one_of("ct", "mr")] = key("ct", "ct: windows in HU; mr: percentile scaling")
    windows: list[Any] = key([[40.0, 80.0]], "[centre, width] in HU, one per channel")
    neighbours: int = key(0, "slices added on each side (2.5D)", ge=0, le=100)
    percentiles: list[float] = key([1.0, 99.0], "kind=mr: the two that become 0 and 1")
    tone: list[float] | None = key(
        None,
        "kind=ct, one window: [median, interquartile range] that the tissue of each image is brought to, between air 0 "
        "and bone 1; null: as the window shows it",
    )

    @rule
    def _tone(kind: str, windows: list[Any], tone: list[float] | None) -> Found:
        if tone is None:
            return
        if kind != "ct" or len(windows) != 1:
            yield Wrong("tone", tone, "only one window of CT has a tone: channels.kind=ct, one of channels.windows")
        if not (len(tone) == 2 and 0 < tone[0] < 1 and 0 < tone[1] < 1):
            yield Wrong("tone", tone, "median and interquartile range strictly between 0 and 1, such as [0.4, 0.1]")

    @rule
    def _windows(kind: str, windows: list[Any]) -> Found:
        if not windows and kind == "ct":
            yield Wrong("windows", windows, "give at least one, such as [[40, 80]]")
        for window in windows:
            good = isinstance(window, list | tuple) and len(window) == 2 and all(map(_is_number, window))
            if not good or not window[1] > 0:
                yield Wrong("windows", window, "[centre, width] in HU with a width above 0, such as [40, 80] for brain")

    @rule
    def _percentiles(percentiles: list[float]) -> Found:
        if not (len(percentiles) == 2 and 0 <= percentiles[0] < percentiles[1] <= 100):
            yield Wrong("percentiles", percentiles, "two rising numbers from 0 to 100, such as [1, 99]")


class SplitConfig(Group):
    """Which patients train, validate and test (group ``split``)."""

    name: Annotated[
        str, one_of("holdout", "kfold", "monte_carlo", "leave_one_out", "file", more=_registered("split"))
    ] = key("holdout", "holdout, kfold, monte_carlo, leave_one_out, file")
    by: Annotated[str, one_of("patient", "slice")] = key(
        "patient", "unit kept whole: patient, slice (leaks; needs allow_leak)"
    )
    allow_leak: bool = key(False, "accept a split that puts one patient on two sides; the run is LEAKY")
    fold: int = key(0, "kfold: test fold; monte_carlo: index of the repetition", ge=0)
    folds: int = key(5, "kfold: number of folds", ge=2)
    test_fraction: float = key(0.2, "holdout, monte_carlo: share of the patients", gt=0, lt=1)
    val_fraction: float = key(0.15, "share of the patients that are not test", gt=0, lt=1)
    left_out: str | None = key(None, "leave_one_out: the part of data=multi that is tested and nothing else")
    seed: Seed = key(0, "of the split alone, so that runs of different seeds share their patients")
    file: Place | None = key(None, "split=file: CSV with patient_id,split")
    duplicates: Annotated[str, one_of("near", "exact", "none")] = key(
        "near", "images kept on one side: near or exact duplicates, none"
    )

    @rule
    def _fold(name: str, fold: int, folds: int) -> Found:
        if name == "kfold" and fold >= folds:
            yield Wrong("fold", fold, f"0 to {folds - 1} (split.folds={folds})")

    @rule
    def _file(name: str, file: str | None, target_: str | None) -> Found:
        if name == "file" and file is None and target_ is None:
            yield Wrong("file", file, "split=file needs a CSV with patient_id,split: split.file=FILE")

    @rule
    def _left_out(name: str, left_out: str | None, target_: str | None) -> Found:
        if name == "leave_one_out" and left_out is None and target_ is None:
            yield Wrong("left_out", left_out, "split=leave_one_out needs the part that is tested: split.left_out=NAME")

    @rule
    def _leak(by: str, allow_leak: bool) -> Found:
        if by != "patient" and not allow_leak:
            text = "puts slices of one patient on both sides; say split.allow_leak=true to do it knowingly"
            yield Wrong("by", by, text)


class AugmentationConfig(Group):
    """Ordered augmentation steps on the device (group ``augmentation``)."""

    name: str = key("none", "name for tables")
    steps: list[Any] = key([], "each {_target_: package.Class, argument: value, ...}")
    mixup: float = key(0.0, "alpha of the Beta distribution; 0: off", ge=0, le=100)
    note: str = key("", "a remark for readers")


class BackboneConfig(Group):
    """The image encoder (group ``backbone``)."""

    name: str = key(
        "tf_efficientnet_lite0.in1k", f"any timm name, alexnet or googlenet; of whole series: {', '.join(NETWORKS_3D)}"
    )
    pretrained: bool = key(True, "start from the weights; false: from random ones, whatever `weights` names")
    weights: str | None = key(
        None,
        "null: the weights that timm names; or FILE, package:NAME, a finished run folder; read with pretrained=true "
        "alone, so that a sweep over `pretrained` may name them",
    )
    drop_rate: Share = key(0.0, "dropout before the head")
    drop_path_rate: Share = key(0.0, "stochastic depth")
    options: dict[str, Any] = key({}, "further arguments of timm.create_model")
    note: str = key("", "a remark for readers")


class FreezeConfig(Group):
    """What is trained when, and how fast (group ``freeze``)."""

    name: str = key("none", "name for tables")
    trainable: Any = key("all", "from epoch 0: all, head, or N (head and the last N backbone groups)")
    schedule: dict[int, Any] = key({}, "epoch: all, head or N, replaces `trainable` from there on")
    layer_decay: float = key(1.0, "learning-rate factor per group from head to stem", gt=0, le=1)
    head_lr_scale: float = key(1.0, "learning-rate factor of the head", gt=0, le=10_000)
    freeze_batchnorm: bool = key(False, "keep the BatchNorm statistics of trainable layers too")
    method: Annotated[str, one_of("full", "lora", "bitfit", "norm")] = key(
        "full", "what trains in these groups: full (all), lora (adapters), bitfit (biases), norm (normalisation layers)"
    )
    layers: list[str] = key(
        [], "method=lora, bitfit, norm: regular expressions for the names of the layers that train; []: all they can"
    )
    rank: int = key(8, "method=lora: rank", ge=1, le=1024)
    alpha: float = key(16.0, "method=lora: its change of the weights is scaled by alpha / rank", gt=0, le=10_000)
    dropout: Share = key(0.0, "method=lora: dropout before the first matrix")
    cached_draws: int = key(
        0, "augmented views per slice whose frozen layers are computed once; 0: in every step, afresh", ge=0, le=1000
    )

    @rule
    def _trainable(trainable: Any, schedule: dict[int, Any]) -> Found:
        for epoch, value in {0: trainable, **schedule}.items():
            key = "trainable" if epoch == 0 and 0 not in schedule else f"schedule.{epoch}"
            number = str(value).isdecimal() and len(str(value)) < 5 and not isinstance(value, bool)
            if not number and value not in ("all", "head"):
                yield Wrong(key, value, "all, head, or a number of groups from 0")
            if epoch < 0:
                yield Wrong("schedule", schedule, "epochs count from 0")

    @rule
    def _method(method: str, layers: list[str], trainable: Any, schedule: dict[int, Any]) -> Found:
        if method == "full" and layers:
            yield Wrong("layers", layers, "needs freeze.method=lora, bitfit or norm; groups: freeze.trainable=N")
        if method != "full" and all(str(value) in ("head", "0") for value in {0: trainable, **schedule}.values()):
            yield Wrong("method", method, "trains nothing with freeze.trainable=head; set freeze.trainable=all or N")
        for index, pattern in enumerate(layers):
            try:
                re.compile(pattern)
            except re.error as error:
                yield Wrong(f"layers[{index}]", pattern, f"no regular expression: {error}")


class TaskConfig(Group):
    """What is predicted (group ``task``)."""

    name: str = key("hemorrhage", "name for tables")
    kind: Annotated[str, one_of("binary", "multiclass", "multilabel", PRETRAINING)] = key(
        "binary", f"binary, multiclass, multilabel; {PRETRAINING}: pretraining, whose weights another run starts from"
    )
    labels: list[str] = key(["hemorrhage"], "label columns of the data")
    level: Annotated[str, one_of("slice", "series")] = key(
        "slice", "what the labels of the data describe: slice, series"
    )
    labels_from: Annotated[str, one_of("slices", "series")] = key(
        "slices",
        "what trains a sequence model: labels of slices, or of series alone, where those of slices only judge it",
    )
    hidden: list[Width] = key([], "widths of hidden layers in the head")
    dropout: Share = key(0.0, "in the head")
    monitor: str = key(
        "log_loss", "validation metric that picks the best checkpoint, also one of group metrics; last: the last epoch"
    )
    threshold: Any = key(
        "youden",
        "a number strictly between 0 and 1; or chosen on validation: youden, accuracy, f1, "
        "sensitivity:0.95, specificity:0.9, cost:5 (of a missed positive against a false alarm)",
    )
    tta: list[Annotated[str, one_of("horizontal", "vertical")]] = key(
        [], "flips averaged at evaluation: horizontal, vertical"
    )
    aggregate: Annotated[str, one_of("mean", "max", "top_k", "noisy_or", "logistic", "model")] = key(
        "mean",
        "slice to series to patient: mean, max, top_k (mean of the largest), noisy_or, logistic (of the largest, the "
        "mean and the smoothed largest log odds), model (the sequence model's series output)",
    )
    top_k: int = key(
        3, "slices with the largest probability that aggregate=top_k averages, and logistic among others", ge=1
    )
    label_weights: list[float] | None = key(None, "of the weighted log loss; null: equal. RSNA 2019: any 2, subtypes 1")
    calibration: Annotated[str, one_of("none", "temperature", "platt", "isotonic")] = key(
        "none", "none, temperature, platt, isotonic: per label, fitted on validation only"
    )
    sides: list[list[str]] = key([], "label pairs that a horizontal flip exchanges")
    method: Annotated[str, one_of("simclr", "dino")] = key("simclr", f"{PRETRAINING}: simclr, dino")
    projection: Width | None = key(
        None, f"{PRETRAINING}: outputs of the projection head; null: 128 (simclr), 1024 prototypes (dino)"
    )
    temperature: float = key(0.1, f"{PRETRAINING}: of the loss; of dino the student's", gt=0, le=10)
    momentum: Share = key(0.996, f"{PRETRAINING}, dino: of the teacher's average at the start; it rises to 1")
    triage_error: float | None = key(
        None,
        "call patients positive, negative or undecided: at most this share of either class is called the other, such "
        "as 0.05 (19 validation patients of each class); null: off",
        gt=0,
        lt=1,
    )
    triage_value: float | None = key(
        None, "the same by predictive value: this share of those called is called rightly, such as 0.9", gt=0, lt=1
    )

    @property
    def trained_level(self) -> str:
        """Whose labels train the network and pick its checkpoint: slice or series."""
        return "slice" if self.level == "slice" and self.labels_from == "slices" else "series"

    @property
    def scores_slices(self) -> bool:
        """Whether slices have scores of their own, rather than that of their series."""
        return self.level == "slice" or self.labels_from == "series"

    @rule
    def _labels(kind: str, labels: list[str], target_: str | None) -> Found:
        count = len(labels)
        if kind == PRETRAINING and not count:  # they divide the patients evenly and judge a probe, where there are any
            return
        if not count or len(set(labels)) != count or not all(label.strip() for label in labels):
            yield Wrong("labels", labels, "at least one label, each once and none empty")
        if kind == "binary" and count > 1 and target_ is None:
            yield Wrong("labels", labels, "a binary task has exactly one label")
        if kind in ("multiclass", "multilabel") and count == 1 and target_ is None:
            yield Wrong("labels", labels, f"a {kind} task has two labels or more")

    @rule
    def _aggregate(kind: str, aggregate: str) -> Found:
        if kind == "multiclass" and aggregate in ("noisy_or", "logistic"):
            yield Wrong("aggregate", aggregate, "exclusive classes are put together by mean, max or top_k")

    @rule
    def _sides(labels: list[str], sides: list[list[str]]) -> Found:
        seen: list[str] = []
        for pair in sides:
            if len(pair) != 2 or not set(pair) <= set(labels) or len({*seen, *pair}) < len(seen) + 2:
                yield Wrong("sides", pair, "pairs of two labels of task.labels, each label in one pair")
            seen += pair

    @rule
    def _tta(tta: list[str]) -> Found:
        if len(set(tta)) < len(tta):
            yield Wrong("tta", tta, "each flip once")

    @rule
    def _monitor(kind: str, monitor: str) -> Found:
        if monitor == "weighted_log_loss" and kind != "multilabel":
            yield Wrong("monitor", monitor, f"a {kind} task has no label weights: use log_loss")
        elif kind == PRETRAINING and monitor not in ("log_loss", "last"):
            yield Wrong(
                "monitor", monitor, "pretraining is watched by log_loss, that of its two views, or keeps the last"
            )

    @rule
    def _triage(kind: str, triage_error: float | None, triage_value: float | None) -> Found:
        for name, value in (("triage_error", triage_error), ("triage_value", triage_value)):
            if value is not None and kind == "multiclass":
                yield Wrong(name, value, "exclusive classes have no positive and negative: leave it out")

    @rule
    def _threshold(threshold: Any) -> Found:
        text = threshold_problem(threshold)
        if text:
            yield Wrong("threshold", threshold, text)

    @rule
    def _weights(labels: list[str], label_weights: list[float] | None) -> Found:
        weights = label_weights
        if weights is not None and not (len(weights) == len(labels) and min(weights) >= 0 and sum(weights) > 0):
            yield Wrong("label_weights", weights, "one number of 0 or more per label, not all 0")


def threshold_problem(given: Any) -> str | None:
    """What is wrong with an operating point: a number, a criterion, or one with its target (``sensitivity:0.95``)."""
    if not isinstance(given, str):
        return None if _is_number(given) and 0 < given < 1 else "a number strictly between 0 and 1"
    name, colon, text = given.partition(":")
    plain = ("youden", "accuracy", "f1", *(f"{name}:{value:g}" for name, value in TARGETS.items()))
    if not colon:
        return None if given in plain[:3] else f"expected one of {', '.join(plain)}{hint(given, plain)}"
    if name not in TARGETS:
        return f"expected one of {', '.join(TARGETS)}{hint(name, TARGETS)}"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if name == "cost":
        return (
            None if 0 < value < math.inf else "the cost of a missed positive when a false alarm costs 1, such as cost:5"
        )
    return None if 0 < value <= 1 else f"a share above 0 and up to 1, such as {name}:{TARGETS[name]:g}"


class FeaturesConfig(Group):
    """What a sequence model sees of the cached slice embeddings (group ``features``)."""

    name: Annotated[str, one_of(*FEATURES, more=_registered("features"))] = key("none", ", ".join(FEATURES))
    k: int | None = key(None, "features kept; null: all of them", ge=1, le=65_536)
    strength: float = key(0.1, "l1: inverse regularisation strength C", gt=0, le=1e12)


class SequenceConfig(Group):
    """The model over the slices of a series (group ``sequence``)."""

    name: str = key(
        "none",
        "none (2D slice task), slice, mean, max, lstm, gru, attention, transformer, conv_gru, smooth_attention, "
        "transmil, clam; several joined by + are averaged: slice+attention+gru",
    )
    hidden: Width = key(128, "width of the sequence model (per direction)")
    layers: int = key(1, "recurrent or attention layers", ge=0, le=100)
    heads: int = key(4, "transformer, attention, smooth_attention, transmil, clam", ge=1, le=1024)
    steps: int = key(10, "smooth_attention: how often neighbouring slices are averaged", ge=1, le=1000)
    instances: int = key(8, "clam: slices of most and of least attention in its clustering loss", ge=1, le=1000)
    instance_weight: float = key(0.3, "clam: weight of that loss", ge=0, le=1000)
    kernel: int = key(3, "conv_gru: an odd number of slices", ge=1, le=999)
    bidirectional: bool = key(True, "lstm, gru, conv_gru")
    dropout: Share = key(0.3, "between layers and before the output layer")
    output_dropout: Share | None = key(None, "before the output layer; null: as dropout")
    input_dropout: Share = key(0.0, "of the features that enter")
    smoothing: int = key(
        0, "each slice's features are averaged with those of this many slices below and above", ge=0, le=1000
    )
    probabilities: Annotated[str, one_of("none", "in", "out", "both")] = key(
        "none", "the slice run's own probabilities: none, in, out, both (Burduja 2020)"
    )
    differences: bool = key(False, "add the differences to the slices below and above")
    position: bool = key(False, "add a z encoding, in mm from the series' lowest slice")
    reverse_tta: bool = key(False, "average with the reversed series at evaluation")
    series_weight: float = key(0.0, "weight of the series output's loss beside the slices'", ge=0, le=1000)
    members: int = key(1, "networks from different initialisations, trained side by side and averaged", ge=1, le=1000)
    series_per_batch: int = key(8, "series per step", ge=1)
    chunk: int = key(16, "end to end: slices that pass the backbone at once, recomputed in the backward pass", ge=1)

    @rule
    def _name(name: str, target_: str | None) -> Found:
        names = name.split("+")
        for one in names if target_ is None else ():
            known = list(SEQUENCES if len(names) == 1 else SEQUENCES[1:])
            if one not in known and one not in (known := [*known, *_registered("sequence")()]):
                yield Wrong("name", one, f"expected one of {', '.join(known)}{hint(one, known)}")

    @rule
    def _kernel(kernel: int) -> Found:
        if kernel % 2 == 0:
            yield Wrong("kernel", kernel, "an odd number, so that it has a centre")


class VolumeConfig(Section):
    """How a series becomes the input of a 3D network (group ``volume``); read by 3D backbones alone."""

    spacing: list[float] | None = key(
        [5.0, 1.5, 1.5], "depth, height and width of a voxel, mm; null: slices as they stand, each drawn to the size"
    )
    size: list[int] = key([32, 128, 128], "depth, height and width, voxels: padded with air, or cut around the middle")
    series_per_batch: int = key(2, "series per step", ge=1)

    @rule
    def _three(spacing: list[float] | None, size: list[int]) -> Found:
        if spacing is not None and not (len(spacing) == 3 and all(0.1 <= value <= 100 for value in spacing)):
            yield Wrong("spacing", spacing, "three lengths from 0.1 to 100 mm (depth, height, width), or null")
        if not (len(size) == 3 and all(4 <= value <= 1024 for value in size)):
            yield Wrong("size", size, "three numbers of voxels from 4 to 1024: depth, height, width")


class StageConfig(Section):
    """A slice run that is trained first and gives the weights, unless ``backbone.weights`` does (group ``stage``)."""

    name: str = key("none", "name for tables")
    experiment: str | None = key(
        None, "file of conf/experiment; data, split, task, seed, logger and devices are shared"
    )
    set: dict[str, Any] = key(
        {}, "further keys of that run: stage.set.trainer.max_epochs=1; of a slice run also stage.set.data, split"
    )


class LossConfig(Group):
    """The training loss (group ``loss``)."""

    name: Annotated[str, one_of("bce", "cross_entropy", "focal", more=_registered("loss"))] = key(
        "bce", "bce, cross_entropy, focal"
    )
    label_weights: list[float] | None = key(None, "one weight per label or class")
    positive_weight: Any = key(None, "bce, focal: null, balanced, or a list with one per label")
    label_smoothing: Share = key(0.0, "share of the other class in each target")
    gamma: float = key(2.0, "focal", ge=0, le=100)


class ScheduleConfig(Group):
    """The learning-rate schedule inside group ``optimizer``."""

    name: Annotated[str, one_of("constant", "cosine", "step", "plateau", more=_registered("optimizer.schedule"))] = key(
        "cosine", "constant, cosine, step, plateau"
    )
    warmup_epochs: float = key(0.0, "linear rise from 0 at the start", ge=0, le=1_000_000)
    step_epochs: int = key(5, "step: epochs between two multiplications by `factor`", ge=1)
    factor: float = key(0.1, "step, plateau", gt=0, lt=1)
    patience: int = key(3, "plateau: epochs without a better monitored metric", ge=0)
    min_lr_ratio: float = key(0.0, "cosine: final rate / initial rate", ge=0, le=1)


class OptimizerConfig(Group):
    """Optimiser and learning-rate schedule (group ``optimizer``)."""

    name: str = key("adamw", "adamw, adam, sgd, or any name of timm.optim")
    lr: float = key(5e-4, "learning rate at the start", gt=0)
    weight_decay: float = key(0.01, "of weights, not of biases and norms", ge=0, le=1000)
    momentum: Share = key(0.9, "sgd")
    betas: list[float] = key([0.9, 0.999], "adam, adamw")
    schedule: ScheduleConfig = ScheduleConfig()

    @rule
    def _betas(betas: list[float]) -> Found:
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            yield Wrong("betas", betas, "two numbers in [0, 1)")


class TrainerConfig(Section):
    """The fit loop (group ``trainer``)."""

    name: str = key("cpu", "name for messages")
    max_epochs: int = key(8, "epochs", ge=1)
    accelerator: Annotated[str, one_of("cpu", "gpu", "cuda", "mps", "tpu", "auto")] = key(
        "cpu", "cpu, gpu, cuda, mps, tpu, auto"
    )
    devices: Any = key(1, "as Lightning takes them: a number, a list, auto")
    num_nodes: int = key(1, "machines", ge=1, le=100_000)
    strategy: str = key("auto", "as Lightning names them: auto, ddp, ...")
    precision: Annotated[str, one_of("32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true")] = key(
        "32-true", "32-true, 16-mixed, bf16-mixed, bf16-true, 64-true"
    )
    channels_last: bool = key(True, "memory layout of images and weights")
    compile: bool = key(False, "torch.compile of the backbone while it trains")
    find_batch_size: bool = key(
        False,
        "GPU: the largest power of two of slices that fits, instead of data.batch_size; optimizer.lr follows: linearly "
        "for sgd, else by the square root",
    )
    gradient_clip: float | None = key(1.0, "L2 norm; 0 or null: off", ge=0, le=1e12)
    accumulate_grad_batches: int = key(1, "batches per optimiser step", ge=1)
    early_stopping_patience: int | None = key(None, "epochs without a better monitored metric", ge=0)
    ema_decay: float | None = key(None, "moving average of the weights; null: off", gt=0, lt=1)
    deterministic: bool = key(
        True, "the same numbers in every run on the same device; false: on a GPU the fastest kernels, found by trying"
    )
    log_every_n_steps: int = key(10, "steps between two points of a curve", ge=1)
    limit_train_batches: Any = key(1.0, "a share in (0, 1], or a number of batches")
    threads: Annotated[int, BeforeValidator(lambda given: 1 if given is None else given)] = key(
        1, "CPU threads; sums over several differ in their last digits, so they are part of the result", ge=1, le=4096
    )
    options: dict[str, Any] = key({}, "further arguments of pytorch_lightning.Trainer")

    @rule
    def _limit(limit_train_batches: Any) -> Found:
        limit = limit_train_batches
        whole = isinstance(limit, int) and not isinstance(limit, bool) and 1 <= limit < 2**32
        if not whole and not (isinstance(limit, float) and 0 < limit <= 1):
            yield Wrong("limit_train_batches", limit, "a share in (0, 1] or a number of batches")

    @rule
    def _which(devices: Any) -> Found:
        listed = devices.split(",") if isinstance(devices, str) and "," in devices else devices
        given = listed if isinstance(listed, list) else [listed]
        numbers = [int(item) if re.fullmatch(r"\s*-?[0-9]{1,6}\s*", str(item)) else None for item in given]
        if isinstance(listed, list):
            good = None not in numbers and len(set(numbers)) == len(numbers) > 0 and min(numbers) >= 0  # type: ignore[type-var, operator]
        else:
            good = listed == "auto" or numbers[0] == -1 or (numbers[0] or 0) > 0
        if not good or any(isinstance(item, bool) for item in given):
            yield Wrong("devices", devices, "auto, -1 (all), how many (1, 2, ...), or a list of their numbers from 0")


class CheckpointsConfig(Section):
    """What a run keeps of its weights (group ``checkpoints``); no part of its hash."""

    keep: Annotated[str, one_of(*KEPT)] = key(
        "both", "of a complete run: both, best (tested), last (of the last epoch), none (predictions and metrics alone)"
    )
    whole: bool = key(
        False,
        "also the frozen layers that are in the weights it started from; of a complete run they are put in, without "
        "training",
    )


class LoggerConfig(Group):
    """Where curves go (group ``logger``)."""

    name: str = key("wandb", "name for messages")
    kinds: list[Annotated[str, one_of("wandb", "csv", "tensorboard", "mlflow")]] = key(
        ["wandb", "csv"], "wandb, csv, tensorboard, mlflow"
    )
    project: str = key("hemlearn", "wandb, mlflow: project or experiment")
    entity: str | None = key(None, "wandb: user or team")
    mode: Annotated[str, one_of("auto", "online", "offline", "disabled")] = key(
        "auto", "wandb: auto (online when logged in, else offline), online, offline, disabled"
    )
    tags: list[str] = key([], "wandb, mlflow")
    tracking_uri: str | None = key(None, "mlflow; null: a folder inside the run")
    show_patient: bool = key(
        False, "ids of the data in trackers and train.log; false: pseudonyms, whose key file lies beside the run"
    )


class Config(Section):
    """One run."""

    data: DataConfig = DataConfig()
    channels: ChannelsConfig = ChannelsConfig()
    split: SplitConfig = SplitConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    backbone: BackboneConfig = BackboneConfig()
    freeze: FreezeConfig = FreezeConfig()
    task: TaskConfig = TaskConfig()
    features: FeaturesConfig = FeaturesConfig()
    sequence: SequenceConfig = SequenceConfig()
    volume: VolumeConfig = VolumeConfig()
    stage: StageConfig = StageConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    logger: LoggerConfig = LoggerConfig()
    callbacks: Annotated[dict[str, Any], BeforeValidator(_by_name)] = key(
        {}, "name: {_target_: class of a Lightning callback, ...}"
    )
    metrics: Annotated[dict[str, Any], BeforeValidator(_by_name)] = key(
        {}, "name: {_target_: class of a torchmetrics Metric, ...}"
    )
    plugins: list[str] = key([], "packages of your own that are imported in every process")
    seed: Seed = key(0, "of weights, order and augmentation")
    output_dir: Place = key("runs", "folder of all runs")
    name: str = key("default", "folder of these runs inside output_dir")
    force: bool = key(False, "make the run anew though it is complete; the old result stays until then")

    @rule
    def _run_name(name: str) -> Found:
        if not re.fullmatch(r"[\w+-][\w.+-]{0,199}", name):
            yield Wrong("name", name, "at most 200 letters, digits and . _ + - that do not start with a dot")

    @rule
    def _series_split(split: SplitConfig, task: TaskConfig) -> Found:
        if split.by == "slice" and task.trained_level == "series":
            told = "task.level=series judges" if task.level == "series" else "task.labels_from=series trains on"
            text = f"{told} whole series, which a split by slice divides; use split.by=patient"
            yield Wrong("split.by", split.by, text)

    @rule
    def _left_out_part(data: DataConfig, split: SplitConfig) -> Found:
        if split.name != "leave_one_out" or split.target_ or data.target_ or split.left_out in (None, *data.parts):
            return
        if data.name == "multi":
            text = f"no part of this name{hint(str(split.left_out), data.parts)}; there are {', '.join(data.parts)}"
            yield Wrong("split.left_out", split.left_out, text)
        elif "part" not in data.covariates:
            text = f"data={data.name} has no parts; use data=multi, or a table with data.covariates=[part]"
            yield Wrong("split.name", split.name, text)

    @rule
    def _part_weights(data: DataConfig, sequence: SequenceConfig) -> Found:
        if is_volume(sequence) and data.part_weights != PROPORTIONAL:
            text = f"a sequence model is shown every series once in an epoch: {PROPORTIONAL}"
            yield Wrong("data.part_weights", data.part_weights, text)

    @rule
    def _loss_fits(loss: LossConfig, task: TaskConfig) -> Found:
        if loss.target_ is None and task.target_ is None:
            if loss.name == "bce" and task.kind == "multiclass":
                yield Wrong("loss.name", loss.name, "a multiclass task needs loss=cross_entropy or loss=focal")
            if loss.name == "cross_entropy" and task.kind != "multiclass":
                yield Wrong("loss.name", loss.name, f"a {task.kind} task needs loss=bce or loss=focal")

    @rule
    def _cached_views(
        freeze: FreezeConfig, sequence: SequenceConfig, augmentation: AugmentationConfig, trainer: TrainerConfig
    ) -> Found:
        for fails, why in (
            (is_volume(sequence), "sequence models cache embeddings by themselves"),
            (freeze.schedule, "freeze.schedule changes what is frozen"),
            (freeze.target_, "needs the frozen layers that freeze.trainable names"),
            (augmentation.mixup, "augmentation.mixup mixes images, not what is cached of them"),
            (is_parallel(trainer), "use trainer.devices=1"),
        ):
            if freeze.cached_draws and fails:
                yield Wrong("freeze.cached_draws", freeze.cached_draws, why)

    @rule
    def _batch_search(sequence: SequenceConfig, freeze: FreezeConfig, trainer: TrainerConfig) -> Found:
        for fails, why in (
            (is_volume(sequence), "a batch of a sequence model is whole series: set sequence.series_per_batch"),
            (freeze.cached_draws, "freeze.cached_draws holds the frozen layers' output: give data.batch_size"),
            (is_parallel(trainer), "search with trainer.devices=1, then give data.batch_size and optimizer.lr"),
        ):
            if trainer.find_batch_size and fails:
                yield Wrong("trainer.find_batch_size", trainer.find_batch_size, why)

    @rule
    def _devices(freeze: FreezeConfig, stage: StageConfig, backbone: BackboneConfig, trainer: TrainerConfig) -> Found:
        if is_parallel(trainer) and freeze.schedule:
            text = "several devices synchronise only what trains from the start; use trainer.devices=1"
            yield Wrong("freeze.schedule", freeze.schedule, text)
        if is_parallel(trainer) and stage.experiment is not None and backbone.weights is None:
            text = (
                "with several devices train the slice run by a command of its own and give its folder: "
                "stage.experiment=null backbone.weights=RUN"
            )
            yield Wrong("stage.experiment", stage.experiment, text)

    @rule
    def _volumes(
        backbone: BackboneConfig,
        task: TaskConfig,
        channels: ChannelsConfig,
        sequence: SequenceConfig,
        augmentation: AugmentationConfig,
        freeze: FreezeConfig,
        trainer: TrainerConfig,
        stage: StageConfig,
    ) -> Found:
        if not is_volume3d(backbone):
            if task.name == "volume3d" and backbone.target_ is None:
                text = f"task=volume3d needs a 3D network: backbone={', '.join(NETWORKS_3D)}"
                yield Wrong("backbone.name", backbone.name, text)
            return
        for where, value, fails, text in (
            ("task.level", task.level, task.level != "series", "a 3D network judges whole series: task.level=series"),
            ("task.labels_from", task.labels_from, task.labels_from != "slices", "task.level=series says it already"),
            ("channels.neighbours", channels.neighbours, channels.neighbours, "a 3D network has all slices: use 0"),
            ("sequence.name", sequence.name, is_volume(sequence), "a 3D network has the series itself: use none"),
            ("augmentation.mixup", augmentation.mixup, augmentation.mixup, "would mix slices of different series"),
            ("freeze.cached_draws", freeze.cached_draws, freeze.cached_draws, "a 3D network has no cache: use 0"),
            ("stage.experiment", stage.experiment, stage.experiment, "stages train 2D networks: use null"),
            ("trainer.find_batch_size", True, trainer.find_batch_size, "set volume.series_per_batch"),
        ):
            if fails:
                yield Wrong(where, value, text)

    @rule
    def _slice_run(sequence: SequenceConfig, stage: StageConfig, backbone: BackboneConfig) -> Found:
        text = "there is no slice run to take them from: stage.experiment=NAME, or its folder as backbone.weights=RUN"
        for part, reads in (("probabilities", sequence.probabilities != "none"), ("name", sequence.name == "smoothed")):
            if is_volume(sequence) and reads and stage.experiment is None and backbone.weights is None:
                yield Wrong(
                    f"sequence.{part}", getattr(sequence, part), f"it reads a slice run's probabilities; {text}"
                )

    @rule
    def _slices_alone(
        sequence: SequenceConfig, features: FeaturesConfig, task: TaskConfig, backbone: BackboneConfig
    ) -> Found:
        if is_volume(sequence):
            if task.kind == "multiclass" and task.target_ is None:
                yield Wrong("task.kind", task.kind, "a sequence model needs binary or multilabel")
            return
        if features.name != "none" or features.target_:
            text = "feature selection needs a sequence model: sequence=slice, lstm, ..."
            yield Wrong("features.name", features.name, text)
        if task.aggregate == "model" and not is_volume3d(backbone) and task.name != "volume3d":
            text = "only a sequence model has a series output: use mean, max or another, or set sequence=..."
            yield Wrong("task.aggregate", task.aggregate, text)

    @rule
    def _pretraining(
        task: TaskConfig,
        data: DataConfig,
        backbone: BackboneConfig,
        augmentation: AugmentationConfig,
        freeze: FreezeConfig,
        sequence: SequenceConfig,
        trainer: TrainerConfig,
    ) -> Found:
        steps, own = augmentation.steps, augmentation.target_
        for name, value, fails, why in (
            ("sequence.name", sequence.name, is_volume(sequence), "pretraining is of slices: sequence=none"),
            ("backbone.name", backbone.name, is_volume3d(backbone), "pretraining is of slices: name a 2D network"),
            ("augmentation.steps", steps, not steps and not own, "two equal views teach nothing: augmentation=views"),
            ("augmentation.mixup", augmentation.mixup, augmentation.mixup, "views are of one slice each: 0"),
            ("freeze.cached_draws", freeze.cached_draws, freeze.cached_draws, "every view is another one: 0"),
            ("freeze.method", freeze.method, freeze.method == "lora", "a teacher has no adapters: full, bitfit, norm"),
            (
                "data.batch_size",
                data.batch_size,
                data.batch_size < 2,
                "slices are told apart within a batch: 2 or more",
            ),
            ("data.sampler", data.sampler, data.sampler == "balanced", "knows no labels: shuffle"),
            ("trainer.find_batch_size", True, trainer.find_batch_size, "the batch is part of the task: give its size"),
            ("trainer.devices", trainer.devices, is_parallel(trainer), "pretraining runs on one device: 1"),
        ):
            if task.kind == PRETRAINING and fails:
                yield Wrong(name, value, why)

    @rule
    def _labels_of_series(task: TaskConfig, sequence: SequenceConfig, stage: StageConfig) -> Found:
        if task.labels_from != "series":
            return
        if not is_volume(sequence):
            text = "only a sequence model learns from labels of series: sequence=smooth_attention, attention, ..."
            yield Wrong("task.labels_from", task.labels_from, text)
            return
        own = "learnt from labels of slices, which task.labels_from=series leaves out: use "
        if task.aggregate != "model":
            yield Wrong("task.aggregate", task.aggregate, "labels of series train the series' own output: use model")
        if task.calibration != "none":
            yield Wrong("task.calibration", task.calibration, f"{own}none")
        if stage.experiment is not None and stage.name == "none":  # the others need no label of these patients
            yield Wrong("stage.experiment", stage.experiment, f"{own}null")
        if sequence.probabilities != "none":
            yield Wrong("sequence.probabilities", sequence.probabilities, f"{own}none")
        if sequence.name == "smoothed":
            yield Wrong("sequence.name", sequence.name, f"{own}smooth_attention or another")

    @rule
    def _monitor(task: TaskConfig, metrics: dict[str, Any]) -> Found:
        known = [*MONITORS, *metrics]
        if task.target_ is None and task.monitor not in MONITORS and task.monitor.partition("/")[0] not in metrics:
            text = f"expected one of {', '.join(known)}{hint(task.monitor, known)}"
            yield Wrong("task.monitor", task.monitor, text)

    @rule
    def _nodes(callbacks: dict[str, Any], metrics: dict[str, Any]) -> Found:
        for group, nodes in (("callbacks", callbacks), ("metrics", metrics)):
            for name, node in nodes.items():
                if node is None or (isinstance(node, dict) and isinstance(node.get("_target_"), str)):
                    continue
                text, called = "expected {_target_: package.Class, argument: value}", None
                if isinstance(node, dict) and "_target_" not in node and isinstance(called := node.get("name"), str):
                    known = list(_registered(group)())
                    if called in known:
                        continue
                    text += f", or a name that a plug-in has registered{hint(called, known)}"
                yield Wrong(f"{group}.{name}", called or node, text)


def is_volume(sequence: SequenceConfig) -> bool:
    """Whether there is a model over the slices of a series."""
    return sequence.name != "none" or sequence.target_ is not None


def is_volume3d(backbone: BackboneConfig) -> bool:
    """Whether the backbone is a 3D network of whole series."""
    return backbone.name in NETWORKS_3D and backbone.target_ is None


def is_parallel(trainer: TrainerConfig) -> bool:
    """Whether several devices or machines train together."""
    return trainer.devices not in (1, "1", [0]) or trainer.num_nodes > 1


@cache
def schema_keys() -> dict[str, Any]:
    """Dotted name of every key (groups included) and its type."""
    found: dict[str, Any] = {}

    def walk(cls: type[Section], prefix: str) -> None:
        for name, field in cls.model_fields.items():
            if name == "target_":
                continue
            found[f"{prefix}{name}"] = field.annotation
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                walk(field.annotation, f"{prefix}{name}.")

    walk(Config, "")
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration, or a group of it, as plain dictionaries, lists and scalars."""
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name != "target_" or value is not None:
            found[field.alias or name] = to_dict(value) if isinstance(value, Section) else copy.deepcopy(value)
    return found | copy.deepcopy(config.model_extra or {})


def from_dict(tree: Mapping[str, Any]) -> Config:
    """The checked configuration of a plain dictionary, such as a run folder's ``config.yaml``.

    Raises:
        ConfigError: Listing every unknown key, value of a wrong type and value out of range together.
    """
    return Config.check("", **tree)


def schema_text() -> str:
    """Content of ``conf/schema.yaml``: every key with its default and meaning."""
    lines = ["# Every key with its default and its meaning, written by hemlearn.config.schema.schema_text()."]

    def write(section: Section, indent: str) -> None:
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, Section):
                about = (type(value).__doc__ or "").partition("\n")[0]
                lines.append(f"{indent}{name}: # {about}")
                write(value, indent + "  ")
            elif name != "target_":
                lines.append(f"{indent}{name}: {json.dumps(value)} # {field.description}")

    write(Config(), "")
    return "\n".join(lines) + "\n"
