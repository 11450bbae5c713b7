"""What each command asks for: its options with their meaning, defaults and rules. Help texts are written from them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from hemlearn.config.base import Flag, Folder, Found, Request, Words, Wrong, key, one_of, rule
from hemlearn.config.schema import schema_keys
from hemlearn.util.errors import hint
from hemlearn.util.files import VARIABLE
from hemlearn.util.prune import KINDS
from hemlearn.util.shards import Shard

POOLED = ("split.fold", "split.seed", "seed")  # keys that are repetitions of one experiment
RUN = "folder of a finished run, or DIR/best or DIR/latest of several"
FIGURES = "pdf, svg: the figures in these formats too, beside the PNG, such as figures=pdf,svg"
TRUST = "import code outside hemlearn that a run made elsewhere names"
Device = Annotated[str, one_of("auto", "cpu", "cuda")]


def run_folders(given: Any) -> Any:
    """The folders of ``run=DIR,DIR``; a folder whose own name holds a comma is taken as it is."""
    if not isinstance(given, str):
        return [given] if isinstance(given, Path) else given
    return [given] if Path(given).expanduser().is_dir() else [part for part in given.split(",") if part]


def _shard(given: Any) -> Any:
    """The shard that ``K/N`` names."""
    try:
        return Shard.parse(str(given)) if not isinstance(given, Shard) else given
    except ValueError as error:
        raise PydanticCustomError("rule", "{text}", {"text": str(error)}) from error


@dataclass(frozen=True)
class Subgrouping:
    """A covariate whose groups are judged, and where its numbers are cut.

    >>> Subgrouping.parse("age=18|65")
    Subgrouping(name='age', cuts=(18.0, 65.0))
    """

    name: str
    cuts: tuple[float, ...] | None = None  # lower ends of all bands but the first; None: chosen from the values

    @classmethod
    def parse(cls, text: str) -> Subgrouping:
        """What ``NAME`` or ``NAME=CUT|CUT`` asks for.

        Raises:
            ValueError: No name, or cut points that are no rising numbers.
        """
        name, equals, given = (part.strip() for part in text.partition("="))
        try:
            cuts = tuple(float(part) for part in given.split("|")) if equals else None
        except ValueError:
            cuts = (math.nan,)
        if not name or (cuts and not (all(map(math.isfinite, cuts)) and all(a < b for a, b in pairwise(cuts)))):
            raise ValueError(f"{text!r}: give NAME, or NAME=CUT|CUT with numbers that rise, such as age=18|40|65")
        return cls(name, cuts)

    @property
    def text(self) -> str:
        """As it is written."""
        return self.name if self.cuts is None else f"{self.name}={'|'.join(f'{cut:g}' for cut in self.cuts)}"


def _subgroupings(given: Any) -> Any:
    parts = given.strip("[] ").split(",") if isinstance(given, str) else given
    try:
        return [Subgrouping.parse(part) if isinstance(part, str) else part for part in parts if part != ""]
    except ValueError as error:
        raise PydanticCustomError("rule", "{text}", {"text": str(error)}) from error


Subgroupings = Annotated[tuple[Subgrouping, ...], BeforeValidator(_subgroupings)]  # a,b=1|2
_SUBGROUPS = (
    "covariates whose groups are judged apart, each NAME or NAME=CUT|CUT, such as '[sex,age=18|40|65]'; numbers "
    "without cut points are cut at the tertiles of patients; all: every covariate known"
)
_COVARIATES = (
    "CSV file of further covariates: patient_id, study_id, series_id or slice_id, and a column each (without subgroups "
    "all of them)"
)


def _is_file(key: str, path: Path | None, what: str) -> Found:
    if path is not None and not path.is_file():
        yield Wrong(key, str(path), f"no such file; give a CSV file of {what}")


def _are_formats(figures: Sequence[str]) -> Found:
    for name in figures:
        if name not in ("pdf", "svg"):
            yield Wrong("figures", ",".join(figures), f"expected pdf or svg, beside the PNG; not '{name}'")


def _own(out: Path | None, taken: Sequence[tuple[str, Path]]) -> Found:
    """``out`` is no folder that is read: what is written would lie among what was given, and be read the next time."""
    for what, folder in taken:
        if out is not None and folder.is_dir() and out.resolve() == folder.resolve():
            yield Wrong("out", out, f"is {what}; give a folder of its own, such as out={out / 'out'}")


class PredictRequest(Request):
    """``hemlearn predict``."""

    command: ClassVar[str] = "predict"
    runs: Annotated[tuple[Folder, ...], BeforeValidator(run_folders)] = Field(
        alias="run", description=f"{RUN}; several, separated by commas, are averaged"
    )
    input: Folder = Field(description="DICOM, NIfTI, PNG or JPG file, folder, zip archive, or table of files")
    out: Folder = Field(description="folder to write")
    calibrated: Flag = key(
        False,
        "slices, and series that a sequence model reads, through the run's calibration.json; means over slices always "
        "are, where the run can",
    )
    format: Annotated[str, one_of("csv", "parquet", "rsna")] = key(
        "csv", "csv, parquet, or rsna: also submission.csv (ID,Label) of the RSNA 2019 challenge"
    )
    page: Flag = key(
        False,
        "also one HTML page per series, to look at in a browser: slices, probabilities, and where the run "
        "looked (Grad-CAM of every label; which slices drove the score of a series)",
    )
    labels: Folder | None = key(
        None,
        "CSV or .xlsx file of the truth: a column slice_id, path, series_id, study_id, accession_number or patient_id, "
        "and one of 0, 1 or nothing per label; the predictions are then scored: metrics.json, with 95 % intervals",
    )
    show_patient: Flag = key(
        False, "name patients and files on the pages and in predict.json; false: pseudonyms (pseudonyms.key beside out)"
    )
    series: Annotated[str, one_of("one", "all")] = key(
        "one", "one: of each study the best axial head series; all: every axial series"
    )
    device: Device = key("auto", "auto, cpu, cuda")
    batch_size: int | None = key(None, "most slices at once (default and limit: 8 on a CPU, 128 on a GPU)", ge=1)
    trust: Flag = key(False, TRUST)

    @rule
    def _apart(out: Path, input: Path, runs: tuple[Path, ...]) -> Found:
        yield from _own(out, [("the folder that is predicted", input), *(("the run", folder) for folder in runs)])


class EvaluateRequest(Request):
    """``hemlearn evaluate``."""

    command: ClassVar[str] = "evaluate"
    passed: ClassVar[tuple[str, ...]] = ("data",)
    run: Folder = Field(description=RUN)
    overrides: tuple[str, ...] = key((), "data=NAME, data.root=DIR and further keys of the data group")
    out: Folder | None = key(None, "folder to write (default: beside the run, NAME_on_DATA/HASH)")
    labels: str | None = key(None, "RUN_LABEL:DATA_LABEL,... where the names differ")
    overlap: Annotated[str, one_of("refuse", "exclude", "allow")] = key(
        "refuse", "patients that the run has seen: refuse (an error), exclude, allow (and say so)"
    )
    duplicates: Annotated[str, one_of("near", "exact", "none")] = key(
        "near", "which pictures count as the same: near, exact, none (not looked at)"
    )
    device: Device = key("auto", "auto, cpu, cuda")
    subgroups: Subgroupings = key((), _SUBGROUPS)
    covariates: Folder | None = key(None, _COVARIATES)
    trust: Flag = key(False, TRUST)

    @rule
    def _table(covariates: Path | None) -> Found:
        yield from _is_file("covariates", covariates, "patient_id and covariates")

    @rule
    def _data(overrides: tuple[str, ...]) -> Found:
        if not any(text.startswith(("data=", "data._target_=")) for text in overrides):
            yield Wrong("data", None, "name the data set, such as data=ct_ich data.root=DIR")

    @rule
    def _apart(out: Path | None, run: Path) -> Found:
        yield from _own(out, [("the run", run)])


class ExplainRequest(Request):
    """``hemlearn explain``."""

    command: ClassVar[str] = "explain"
    run: Folder = Field(description=RUN)
    out: Folder = Field(description="folder to write: overlays/*.png and explain.json")
    data: str | None = key(None, "another data set to explain it on (default: the run's own)")
    root: str | None = key(None, "where that data set, or the run's own, lies", alias="data.root")
    label: str | None = key(None, "label to explain (default: any, else the first of the task)")
    slices: int = key(12, "how many slices", ge=1)
    method: Annotated[str, one_of("gradcam", "gradcam++", "occlusion")] = key(
        "gradcam", "gradcam, gradcam++, or occlusion (slow: about 120 passes per slice)"
    )
    cells: int | None = key(
        None,
        "places along a side of the maps: the deepest layer with as many is taken (default: 6, the deepest "
        "layer of most networks at 192 to 224 pixels; a finer map is not always a truer one: compare with check=true)",
        ge=2,
    )
    attribution: Annotated[str, one_of("gradient", "attention", "removal")] = key(
        "gradient", "what drove the series: gradient, attention, removal"
    )
    part: Annotated[str, one_of("test", "val")] = key("test", "split of the run's own data: test, val")
    show_patient: Flag = key(
        False, "name slices and series by their ids; false: pseudonyms (pseudonyms.key beside out)"
    )
    check: Flag = key(
        False,
        "randomise the weights from the output down and see the maps change (Adebayo 2018); where the data "
        "set has lesion masks, play the pointing game beside the centre and the mean lesion",
    )
    trust: Flag = key(False, TRUST)

    @rule
    def _apart(out: Path, run: Path) -> Found:
        yield from _own(out, [("the run", run)])


class ErrorsRequest(Request):
    """``hemlearn errors``."""

    command: ClassVar[str] = "errors"
    run: Folder = Field(description=RUN)
    out: Folder | None = key(None, "folder to write (default: beside the run, NAME_errors/HASH)")
    data: str | None = key(None, "another data set to judge it on (default: the run's own)")
    root: str | None = key(None, "where that data set, or the run's own, lies", alias="data.root")
    label: str | None = key(None, "label to judge (default: any, else the first of the task)")
    part: Annotated[str, one_of("test", "val")] = key("test", "split of the run's own data: test, val")
    level: Annotated[str, one_of("slice", "series")] | None = key(
        None, "slice or series (default: series where they have several slices)"
    )
    each: int = key(6, "cases of each kind: missed, false alarm, borderline", ge=1, le=100)
    pages: Flag = key(True, "also a page per case, to leaf through its series, with a link from the table")
    figures: Words = key((), FIGURES)
    show_patient: Flag = key(False, "name cases by their ids; false: pseudonyms (pseudonyms.key beside out)")
    trust: Flag = key(False, TRUST)

    @rule
    def _formats(figures: Sequence[str]) -> Found:
        yield from _are_formats(figures)

    @rule
    def _apart(out: Path | None, run: Path) -> Found:
        yield from _own(out, [("the run", run)])


class ExportRequest(Request):
    """``hemlearn export``."""

    command: ClassVar[str] = "export"
    run: Folder = Field(description=RUN)
    out: Folder = Field(description="file to write; its description goes to OUT.json, its model card to OUT.md")
    form: Annotated[str, one_of("onnx", "torch")] = key(
        "onnx", "onnx (onnxruntime and others), or torch (torch.export, .pt2)", alias="format"
    )
    calibrated: Flag | None = key(None, "put the run's calibration inside (default: where it has one)")
    check: int = key(100, "test slices compared with the run, whole series for a sequence run; 0: none", ge=0)
    dtype: Annotated[str, one_of("float32", "int16")] = key("float32", "type of the input")
    root: str | None = key(None, "where the run's data set lies now, if it has moved", alias="data.root")
    overwrite: Flag = key(False, "replace FILE")
    trust: Flag = key(False, TRUST)

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """Model, description, model card."""
        return self.out, self.out.with_name(f"{self.out.name}.json"), self.out.with_name(f"{self.out.name}.md")


class CompareRequest(Request):
    """``hemlearn compare``."""

    command: ClassVar[str] = "compare"
    free: ClassVar[str | None] = "folders"
    folders: tuple[Path, ...] = Field(description="folders of the runs, such as runs/default")
    out: Folder | None = key(None, "where the files go (default: folder `compare` in the first DIR)")
    level: Annotated[str, one_of("slice", "series", "patient")] | None = key(
        None,
        "slice, series or patient (default: slices, and series and patients too where a patient has several slices)",
    )
    pool: Words = key(POOLED, "keys that are repetitions, not differences; pool= none")
    baseline: str | None = key(
        None, "KEY=VALUE,...: the group that the others are held against; settings that name one group"
    )
    margin: float | None = key(
        None,
        "non-inferiority: the largest loss of AUROC that does not matter, such as 0.02, against the "
        "baseline (without one: against the group of highest AUROC)",
        gt=0,
        lt=1,
    )
    prevalence: float | None = key(
        None, "share of patients with the finding at which predictive values are given (default: as tested)", gt=0, lt=1
    )
    labels: Words = key((), "labels with tests of their own, beside the mean over labels and `any`; all: every label")
    cases: Annotated[str, one_of("same", "common")] = key(
        "same",
        "common: test groups that were tested on different cases on those they share, and readers who missed cases "
        "on those they read",
    )
    show_patient: Flag = key(
        False, "name the cases of failures, and readers; false: pseudonyms (pseudonyms.key beside out), reader 1, 2 ..."
    )
    reference: Words = key((), "YAML files of published figures to stand beside ours (see below)")
    readers: Folder | None = key(
        None, "CSV file of readers' decisions or scores of the same cases: columns case, reader, score (see below)"
    )
    report: Words = key(
        (), "claim: also claim.md, the study's facts with the items of CLAIM 2024 and TRIPOD+AI that the runs answer"
    )
    subgroups: Subgroupings = key((), _SUBGROUPS)
    covariates: Folder | None = key(None, _COVARIATES)
    figures: Words = key((), FIGURES)
    pictures: Flag = key(
        False,
        "show the most confident errors and the borderline cases of the best group as pictures, with Grad-CAM and "
        "links to pages of the cases; needs the runs' weights and data",
    )
    trust: Flag = key(False, f"with pictures=true: {TRUST}")
    wandb: Flag = key(
        False,
        "log the page and files to Weights & Biases as an artifact (offline unless logged in; WANDB_MODE "
        "decides when set)",
    )
    wandb_project: str = key("hemlearn", "its project")
    wandb_entity: str | None = key(None, "its user or team")

    @rule
    def _keys(pool: Sequence[str]) -> Found:
        for name in pool:
            if name not in schema_keys():
                yield Wrong("pool", ",".join(pool), f"unknown key '{name}'{hint(name, schema_keys())}")

    @rule
    def _files(reference: Sequence[str]) -> Found:
        for name in reference:
            if not Path(name).is_file():
                yield Wrong("reference", name, "no such file; give a YAML file of published figures")

    @rule
    def _formats(figures: Sequence[str]) -> Found:
        yield from _are_formats(figures)

    @rule
    def _report(report: Sequence[str]) -> Found:
        for name in report:
            if name != "claim":
                yield Wrong("report", name, f"expected claim{hint(name, ('claim',))}")

    @rule
    def _readers(readers: Path | None) -> Found:
        yield from _is_file("readers", readers, "case, reader, score")

    @rule
    def _table(covariates: Path | None) -> Found:
        yield from _is_file("covariates", covariates, "patient_id and covariates")


class PlanRequest(Request):
    """``hemlearn plan``."""

    command: ClassVar[str] = "plan"
    auroc: float | None = key(None, "expected AUROC of the first model")
    prevalence: float | None = key(None, "share of positive cases, between 0 and 1")
    half_width: float | None = key(None, "half-width of the interval wanted, such as 0.03")
    difference: float | None = key(
        None, "second AUROC minus first, such as 0.03; several of half_width, difference, patients may be given"
    )
    patients: float | None = key(None, "patients at hand")
    correlation: float = key(
        0.5, "of the two models' scores within a class; 0: two samples of patients, each of the size printed"
    )
    power: float = key(0.8, "of the two-sided test")
    alpha: float = key(0.05, "of the two-sided test")
    confidence: float = key(0.95, "of the interval", gt=0, lt=1)
    slices_per_patient: float = key(1.0, "cases that a patient gives, where AUROC and prevalence are of slices")
    icc: float | None = key(
        None,
        "intraclass correlation of the slices of a patient: widens the variance by "
        "1 + (slices_per_patient - 1) x icc (needed with slices_per_patient), such as 0.5",
    )
    run: str | None = key(None, f"{RUN}: what its test set can resolve")

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers that are given or have a default."""
        return {key: value for key, value in self if key != "run" and value is not None}


class SubmitRequest(Request):
    """``hemlearn submit``."""

    command: ClassVar[str] = "submit"
    run: Folder = Field(description=RUN)
    root: str = Field(alias="data.root", description="folder of the RSNA 2019 data set, with stage_2_test/*.dcm")
    out: Folder = Field(description="CSV file to write")
    sample: Folder | None = key(
        None, "the challenge's sample submission (default: stage_2_sample_submission.csv of the data set)"
    )
    fill: Annotated[str, one_of("neighbours", "mean")] | None = key(
        None,
        "what slices that cannot be read are given: neighbours (mean of the slices beside, else of all) or mean (of "
        "all predictions); without it such a test folder is refused",
    )
    trust: Flag = key(False, TRUST)


class PhantomRequest(Request):
    """``hemlearn phantom``."""

    command: ClassVar[str] = "phantom"
    layout: str = key("head_ct", "layout of a real data set")
    out: Folder = Field(description="folder to write")
    patients: int = key(24, "how many heads", ge=2)
    seed: int = key(0, "the same seed gives the same files", ge=0)
    jobs: int = key(os.cpu_count() or 1, "processes (default: one per core)", ge=1)


class IndexRequest(Request):
    """``hemlearn index``."""

    command: ClassVar[str] = "index"
    passed: ClassVar[tuple[str, ...]] = ("*",)
    overrides: tuple[str, ...] = key((), "words of the configuration")
    out: Folder | None = key(
        None,
        "folder for the manifest, series, skipped files, audits.json and duplicates.csv (with page=true: indexed/NAME)",
    )
    page: Flag = key(
        False,
        "also data.html, one page to look at in a browser: pictures of each class and split, series, distributions, "
        "copies, what was left out; it shows patients and stays on this disk",
    )


class PrepareRequest(Request):
    """``hemlearn prepare``."""

    command: ClassVar[str] = "prepare"
    passed: ClassVar[tuple[str, ...]] = ("*",)
    overrides: tuple[str, ...] = key((), "words of the configuration")
    verify: Flag = key(False, "read the whole store; damaged parts are made again in any case")
    embeddings: Flag = key(False, "also compute the embeddings that a run of these words reads, and train nothing")
    shard: Annotated[Shard, BeforeValidator(_shard)] | None = key(
        None, "K/N: only the K-th of N parts of the work, for the jobs of an array, which do not wait for each other"
    )


class RunsRequest(Request):
    """``hemlearn runs``."""

    command: ClassVar[str] = "runs"
    free: ClassVar[str | None] = "folders"
    folders: tuple[Path, ...] = Field(description="folders of runs, such as runs/default")
    level: Annotated[str, one_of("slice", "series", "patient")] | None = key(
        None, "level of the metric shown (default: that of the labels)"
    )


class PruneRequest(Request):
    """``hemlearn prune``."""

    command: ClassVar[str] = "prune"
    free: ClassVar[str | None] = "folders"
    folders: tuple[Folder, ...] = Field(description="cache folders or folders of runs")
    only: Words = key(tuple(KINDS), "which kinds, see above")
    apply: Flag = key(False, "remove them; else they are shown")

    @classmethod
    def remedy(cls) -> str:
        """A call that is right, and the help."""
        place = os.environ.get(VARIABLE) or "~/.cache/hemlearn"
        return f"such as `hemlearn prune {place} runs`, the cache and all runs; {super().remedy()}"

    @rule
    def _kinds(only: Sequence[str]) -> Found:
        for name in only:
            if name not in KINDS:
                yield Wrong("only", ",".join(only), f"expected {', '.join(KINDS)}{hint(name, KINDS)}")


class DoctorRequest(Request):
    """``hemlearn doctor``."""

    command: ClassVar[str] = "doctor"
    output_dir: Folder = key(Path("runs"), "folder of runs whose size is shown")
    run: Folder | None = key(None, "a run folder to look at: is each of its files as it was when the run ended?")
    share: Flag = key(
        False,
        "look into each file of DIR, a run folder or what a command wrote: what tells who a patient or the user is, "
        "what may be shared and what not",
    )

    @rule
    def _of(run: Path | None, share: bool) -> Found:
        if share and run is None:
            yield Wrong("run", None, "name the folder to look at: run=DIR share=true")
