"""Golden runs: what a change of the code's structure must leave as it is, to the last byte.

    python tests/golden.py make OUT             # tiny runs on the phantom; what they left, in OUT/CASE/
    python tests/golden.py compare OLD NEW      # byte by byte; exit status 1 when anything differs

``make`` works through the real command line of the ``hemlearn`` that the interpreter finds: ``PYTHONPATH=TREE`` decides
which tree is looked at. Every command is a process of its own; they are forked from one that has the third-party
packages loaded, which saves the start (``--fresh`` starts ``python -m hemlearn`` anew for each, several times slower).
The script imports nothing of hemlearn: names of modules and functions are free to change.

Kept are: phantom files as checksums; help texts and refusals; composed configurations of every group and experiment;
``index`` and ``prepare``; of each run its hash, configuration, predictions (every digit), metrics, calibration, split,
curves, provenance, log and figures (as checksums); the tables, JSON, Markdown, LaTeX and pages of ``compare``; what
``predict``, ``evaluate``, ``explain``, ``export``, ``submit`` and ``plan`` write and print.

Left out or replaced, since two makes of the same code differ in it: times, speeds and progress lines, process ids, the
folder of the make, of the code and of the interpreter; versions and the git commit; hashes of runs (replaced by the
run's name and number; each stands in its ``hash.txt``) and, of runs on the weights of another run, the hash itself,
because a checkpoint holds times; names of the pages of ``predict``, which depend on times of files; checkpoints and
exported models themselves. ``OUT/.work`` and ``OUT/.cache`` hold all that; they are not compared, and removed when
every case has come to its end.
"""

from __future__ import annotations

import os

# Before numpy is loaded: sums over several threads differ in their last digits.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import argparse
import difflib
import fnmatch
import gc
import hashlib
import hmac
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from forked import hemlearn, preload, spawn

ENVIRONMENT = {
    "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "TERM": "dumb",
    "NO_COLOR": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
}  # fmt: skip
CARD = ("model_card.training.commit", "model_card.training.packages")
# Keys of JSON files, by file name, that hold times, versions or digests of files that hold them.
IGNORED = {
    "status.json": ("version", "pid", "started", "finished", "provenance", "signature", "checkpoints"),
    "provenance.json": ("signature", "git_commit", "python", "packages", "cost.fit_seconds", "cost.slices_per_second",
                        "cost.predict_seconds", "files"),
    "predict.json": ("version", "finished"),
    "compare.json": ("version",),
    "*.json": ("parity.largest_difference", "parity.to_predictions_file", "parity.speed", "file.bytes", "file.sha256"),
    "*.onnx.json": ("hemlearn", "made", "versions", *CARD),
    "*.pt2.json": ("hemlearn", "made", "versions", *CARD),
}  # fmt: skip
TEXTS = (".csv", ".md", ".tex", ".html", ".yaml", ".txt", ".log", ".json", ".jsonl")
SUBSTITUTES = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.,]\d+)?(\+00:00|Z)?"), "<time>"),
    (re.compile(r"\d+\.\d slices/s"), "<speed> slices/s"),
    (re.compile(r"forwards, \d+\.\d s$", re.M), "forwards, <time>"),
    (re.compile(r"^(<time> \w+) [\w.]+: ", re.M), r"\1 "),  # names of loggers are names of modules
    (re.compile(r"\bhemlearn \d+\.\d+\.\d+\w*"), "hemlearn <version>"),
    (re.compile(r"\b(patient|study|series|slice|file|folder|input)-[0-9a-f]{12}\b"), r"\1-<pseudonym>"),
)
PROGRESS = re.compile(r"^\[?<time>\]? INFO [A-Z][\w -]*: \d+(/\d+)?( done in \d+\.\d s| after \d+ s)?\n", re.M)
FIXED_COST = {"fit_seconds": 12.0, "slices_per_second": 34.0}
FIXED_STATUS = {"started": "2020-01-01T00:00:00+00:00", "finished": "2020-01-01T00:00:56+00:00"}

TINY = ("data.image_size=64 data.batch_size=8 trainer.max_epochs=2 trainer.threads=1 logger=csv "
        "optimizer.schedule.warmup_epochs=0")  # fmt: skip
HALVES = "split.val_fraction=0.3 split.test_fraction=0.3"
PARTS = "split.val_fraction=0.4 split.test_fraction=0.3"
FROZEN = "stage.experiment=null sequence.probabilities=none sequence.hidden=8"


KEY = bytes(32)  # of the user who makes them


def signed(what: str, text: str) -> str:
    """As hemlearn signs."""
    return hmac.new(KEY, f"{what}\0{text}".encode(), "sha256").hexdigest()


class CommandError(Exception):
    """A command ended otherwise than it should."""


# --- making -------------------------------------------------------------------------------------------------------


class Session:
    """One make: the folder where commands work, and what is kept of it.

    Args:
        out: The folder of the make.
        fresh: Start an interpreter per command.
    """

    def __init__(self, out: Path, fresh: bool) -> None:
        self.out = out
        self.work = out / ".work"
        self.cache = out / ".cache"
        self.fresh = fresh
        self.case = ""
        self.cpu = 0.0
        self.calls = 0
        self.names: dict[str, str] = {}  # hash of a run -> what stands for it
        self.folders: dict[str, Path] = {}  # run, such as binary-0 -> its folder
        self.pages: dict[str, str] = {}
        self.work.mkdir(parents=True)
        self.cache.mkdir(parents=True)
        (self.cache / "run.key").write_bytes(KEY)
        salt = "0" * 64
        own = json.dumps({"salt": salt, "signature": signed("pseudonyms", salt)})
        for place in ("compare", "explained", "predicted"):  # pictures show pseudonyms: with one key they are the same
            (self.work / place).mkdir()
            (self.work / place / "pseudonyms.key").write_text(own + "\n")
        code = Path(str(importlib.util.find_spec("hemlearn").origin)).parent  # type: ignore[union-attr]
        # The longer path first: the code may lie inside the make or the other way round.
        places = {str(self.cache): "<CACHE>", str(self.work): "<WORK>", str(out): "<OUT>", str(code.parent): "<CODE>",
                  sys.prefix: "<PYTHON>"}  # fmt: skip
        self.places = sorted(places.items(), key=lambda item: -len(item[0]))
        print(f"hemlearn of {code}", flush=True)

    # --- commands ---
    def run(self, name: str, command: str, status: int = 0) -> str:
        """Run a command of hemlearn; keep what it prints as ``CASE/NAME.txt`` and return it.

        Raises:
            CommandError: It ended with another status.
        """
        self.calls += 1
        argv = shlex.split(command)
        log = self.work / "logs" / f"{self.calls:03d}-{self.case}-{name}"
        log.parent.mkdir(exist_ok=True)
        began = time.perf_counter()
        got = self._spawn(argv, log.with_suffix(".out"), log.with_suffix(".err"))
        printed, errors = (log.with_suffix(end).read_text("utf-8") for end in (".out", ".err"))
        print(f"  {time.perf_counter() - began:6.1f} s  {self.case}/{name}", flush=True)
        self._runs()
        if got != status:
            tail = "\n".join((printed + errors).splitlines()[-30:])
            raise CommandError(f"hemlearn {command}\nended with {got}, not {status}:\n{tail}")
        text = f"$ hemlearn {command}\n{printed}" + (f"[status {got}]\n{errors}" if got else "")
        self.keep(f"{name}.txt", self.normal(text))
        return printed

    def _spawn(self, argv: Sequence[str], out: Path, err: Path) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        with out.open("wb") as told, err.open("wb") as wrong:
            if self.fresh:
                pid = subprocess.Popen([sys.executable, "-m", "hemlearn", *argv], cwd=self.work, stdout=told,
                                       stdin=subprocess.DEVNULL, stderr=wrong).pid  # fmt: skip
            else:
                pid = spawn(hemlearn(argv), self.work, told, wrong)
            _, code, usage = os.wait4(pid, 0)
        self.cpu += usage.ru_utime + usage.ru_stime
        return os.waitstatus_to_exitcode(code)

    # --- what is kept ---
    def normal(self, text: str) -> str:
        """The text without what differs between two makes of the same code."""
        for place, name in self.places:
            text = text.replace(place, name)
        for pattern, substitute in SUBSTITUTES:
            text = pattern.sub(substitute, text)
        text = PROGRESS.sub("", text)
        names = self.names | self.pages
        return re.sub(r"(?<![0-9a-f])[0-9a-f]{12}(?![0-9a-f])", lambda found: names.get(found[0], found[0]), text)

    def keep(self, name: str, text: str) -> None:
        """Write a file of the present case."""
        file = self.out / self.case / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def tree(self, folder: str | Path, name: str, skip: Sequence[str] = ()) -> None:
        """Keep the files below a folder of the work: texts and tables as such, pictures as checksums."""
        root = self.work / folder
        sums = []
        for file in sorted(root.rglob("*")):
            relative = file.relative_to(root).as_posix()
            hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
            if not file.is_file() or hidden or any(fnmatch.fnmatch(relative, pattern) for pattern in skip):
                continue
            kept = f"{name}/{self.normal(relative)}"
            if file.suffix == ".parquet":
                table, told = exact(file)
                self.keep(f"{kept.removesuffix('.parquet')}.csv", self.normal(table))
                self.keep(f"{kept.removesuffix('.parquet')}.schema.txt", self.normal(told))
            elif file.suffix == ".json":
                self.keep(kept, self.normal(canonical(file)))
            elif file.suffix in TEXTS:
                self.keep(kept, self.normal(file.read_text("utf-8")))
            elif file.suffix == ".png":
                sums.append(f"{digest(file)}  {self.normal(relative)}\n")
        if sums:
            self.keep(f"{name}/pictures.sha256", "".join(sums))

    def _runs(self) -> None:
        """Keep the run folders that are new, in the order in which they were made."""
        made = [file.parent for file in self.work.glob("runs/*/*/status.json")]
        made = [folder for folder in made if folder not in self.folders.values()]
        made.sort(key=lambda folder: (folder / "config.yaml").stat().st_mtime_ns)
        for folder in made:
            count = sum(other.parent == folder.parent for other in self.folders.values())
            run = f"{folder.parent.name}-{count}"
            self.folders[run] = folder
            self.names[folder.name] = f"<{run}>"
        for folder in made:
            run = self.names[folder.name].strip("<>")
            file = folder / "provenance.json"  # a run that failed early has none
            told = json.loads(file.read_text("utf-8")) if file.is_file() else {}
            own = not str(told.get("weights")).startswith("run ")
            self.tree(folder, f"runs/{run}", skip=("checkpoints/*", "wandb/*", "journal.jsonl"))
            self.keep(f"runs/{run}/hash.txt", f"{folder.name if own else 'of a checkpoint, which holds times'}\n")
            self._fix_cost(folder)

    def _fix_cost(self, folder: Path) -> None:
        """Give a run one and the same cost, so that a comparison can be kept with its section on costs."""
        for name, key, fixed in (("provenance.json", "cost", FIXED_COST), ("status.json", None, FIXED_STATUS)):
            file = folder / name
            if not file.is_file():
                continue
            content = json.loads(file.read_text("utf-8"))
            part = content if key is None else content.get(key)
            if isinstance(part, dict):
                part |= {key: value for key, value in fixed.items() if key in part}
            if "provenance" in content and name == "status.json":  # sealed and signed again
                told = (folder / "provenance.json").read_bytes()
                content |= {"provenance": hashlib.sha256(told).hexdigest()}
                text = json.dumps({k: v for k, v in content.items() if k != "signature"}, sort_keys=True)
                content |= {"signature": signed("run", text)}
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    # --- names of places, relative to where the commands work ---
    def of(self, run: str) -> str:
        """Folder of a run as a command names it."""
        if run not in self.folders:
            raise CommandError(f"there is no run {run}")
        return self.folders[run].relative_to(self.work).as_posix()

    def compare(self, name: str, command: str) -> None:
        """Run ``hemlearn compare`` and keep its files."""
        self.run(name, f"compare {command} out=compare/{self.case}-{name}")
        self.tree(f"compare/{self.case}-{name}", name)

    def predict(self, name: str, command: str, status: int = 0) -> None:
        """Run ``hemlearn predict`` and keep its files, pages by their place in ``pages.csv``."""
        out = f"predicted/{self.case}-{name}"
        self.run(name, f"predict {command} out={out}", status)
        table = self.work / out / "pages.csv"
        if table.is_file():
            names = [Path(page).stem for page in pd.read_csv(table)["page"]]
            self.pages |= {page: f"page-{index}" for index, page in enumerate(names)}
        self.tree(out, name, skip=("journal.jsonl",))
        file = self.out / self.case / f"{name}.txt"  # the names of the pages are known only now
        file.write_text(self.normal(file.read_text("utf-8")), encoding="utf-8")


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def exact(file: Path) -> tuple[str, str]:
    """A Parquet file as CSV with every digit of its numbers, and its schema with what else its metadata say."""
    table = pq.read_table(file, use_threads=False)
    columns = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    lines = [",".join(table.column_names), *(",".join(row) for row in zip(*columns, strict=True))]
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    told = [f"{field.name}: {field.type}" for field in table.schema]
    told += [f"{key} = {value}" for key, value in sorted(metadata.items()) if key not in ("pandas", "ARROW:schema")]
    return "\n".join(lines) + "\n", "\n".join(told) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = repr(value) if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[",\n]', text) else text


def canonical(file: Path) -> str:
    """A JSON file with sorted keys, without those of ``IGNORED``."""
    content = json.loads(file.read_text("utf-8"))
    paths = [path for pattern, paths in IGNORED.items() if fnmatch.fnmatch(file.name, pattern) for path in paths]
    if file.name == "provenance.json" and str(content.get("weights")).startswith("run "):
        paths.append("checksums.weights")  # of a checkpoint, which holds times
    for path in paths:
        *parents, key = path.split(".")
        node = content
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(key, None)
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


# --- the cases ----------------------------------------------------------------------------------------------------


def phantoms(session: Session) -> None:
    """Every layout; the runs below learn from them."""
    for name, layout, patients, seed in (
        ("heads", "head_ct", 24, 0), ("others", "head_ct", 12, 5), ("six", "six_class", 9, 0), ("rsna", "rsna", 8, 0),
        ("ich", "ct_ich", 5, 1), ("nifti", "ct_ich_nifti", 6, 2), ("cq500", "cq500", 2, 0),
        ("ganglia", "basal_ganglia", 9, 0), ("mri", "hydrocephalus_mri", 12, 0),
    ):  # fmt: skip
        session.run(name, f"phantom layout={layout} out=phantom/{name} patients={patients} seed={seed} jobs=1")
        root = session.work / "phantom" / name
        files = [file for file in sorted(root.rglob("*")) if file.is_file()]
        session.keep(f"{name}.sha256", "".join(f"{digest(file)}  {file.relative_to(root)}\n" for file in files))

    _table(session)


def _table(session: Session) -> None:
    """The first set as a table of files."""
    table = pd.read_csv(session.work / "phantom/heads/labels.csv", skipinitialspace=True)
    rows = [(f"head_ct/head_ct/{row.id:03d}.png", f"p{row.id:03d}", row.hemorrhage) for row in table.itertuples()]
    mine = pd.DataFrame(rows, columns=["path", "patient_id", "hemorrhage"])
    mine.to_csv(session.work / "phantom/heads.csv", index=False)


def commands(session: Session) -> None:
    """Help texts, and calls that are refused."""
    printed = session.run("help", "--help")
    session.run("version", "--version")
    session.run("nothing", "", 2)
    for name in re.findall(r"^  (\w+) +\S", printed.partition("commands:")[2], re.M):
        session.run(f"help-{name}", f"{name} --help")
    for index, (command, status) in enumerate((
        ("trian", 2), ("train backbone.nmae=x data.image_sise=3 seed=a", 1), ("train backbone=resnet19", 1),
        ("train experiment=rnsa", 1), ("train seed=0,1", 1), ("train data.root=nowhere", 1),
        ("train split.by=slice", 1), ("train sequence=gruu", 1), ("train features=pca", 1),
        ("train freeze.cached_draws=4 data.root=phantom/heads", 1),
        ("train task.threshold=often optimizer.lr=-1 split.folds=1", 1),
        ("train loss.label_weights=[1,2] task.tta=[diagonal]", 1), ("compare", 1), ("compare nowhere", 1),
        ("compare . levle=slice", 1), ("predict run=nowhere input=. out=x", 1), ("predict run=.", 1),
        ("evaluate run=nowhere data=head_ct", 1), ("evaluate run=. data.root=.", 1),
        ("explain run=. out=x part=all", 1), ("export run=nowhere out=x.onnx", 1),
        ("export run=. out=x.onnx format=tflite", 1), ("index data=heads", 1), ("index data=head_ct data.root=.", 1),
        ("prepare data.fit=round data.root=phantom/heads", 1), ("phantom layout=head", 1),
        ("phantom layout=head out=x", 1), ("plan auroc=0.9", 1), ("plan auroc=1.2 prevalence=0.3 patients=9", 1),
        ("submit run=nowhere", 1), ("doctor x=1", 1),
    )):  # fmt: skip
        session.run(f"refused-{index:02d}-{command.split()[0]}", command, status)


def configurations(session: Session) -> None:
    """The default, every experiment and every option of every group, composed."""
    groups = session.run("groups", "train --help").partition("groups and their options:\n")[2].partition("\n\n")[0]
    session.run("default", "train --cfg job")
    options = {}
    for line in groups.splitlines():
        group, _, names = line.strip().partition(" ")
        options[group] = names.replace(",", " ").split()
    for group in ("experiment", "sweep"):
        for name in options[group]:
            printed = session.run(f"{group}/{name}", f"train --cfg all {group}={name}")
            session.keep(f"{group}/{name}.txt", session.normal(_without_hydra(printed)))
    for index, chosen in enumerate(_combined(options)):
        session.run(f"options/{index:02d}", f"train --cfg job {chosen}")


def _without_hydra(text: str) -> str:
    """A composed configuration with only those of Hydra's own keys that say how jobs run."""
    kept, top, below = [], "", ""
    for line in text.splitlines():
        top = top if line.startswith(" ") else line
        below = below if line.startswith("   ") else line.strip().partition(":")[0]
        if top != "hydra:" or line == top or below in ("mode", "run", "sweep", "sweeper", "launcher", "output_subdir"):
            kept.append(line)
    return "\n".join(kept) + "\n"


def _combined(options: dict[str, list[str]]) -> list[str]:
    """Overrides that take every option at least once: the k-th of each group together, as far as they go together."""
    found = []
    losses = {"subtypes": "rsna", "six_class": "cross_entropy", "basal_ganglia": "focal",
              "hydrocephalus": "weighted_bce"}  # fmt: skip
    free = [group for group in options if group not in ("experiment", "sweep", "task", "loss", "sequence", "features")]
    for place in range(max(len(options[group]) for group in free)):
        chosen = {group: options[group][place % len(options[group])] for group in free}
        chosen["task"] = options["task"][place % len(options["task"])]
        chosen["loss"] = losses.get(chosen["task"], "bce")
        needed = {"split=file": "split.file=split.csv", "data=table": "data.manifest=rows.csv"}
        texts = [f"{group}={name}" for group, name in chosen.items()]
        found.append(" ".join([*texts, *(more for text, more in needed.items() if text in texts)]))
    base = "freeze=head augmentation=none task=subtypes loss=rsna"
    for place, name in enumerate(name for name in options["sequence"] if name != "none"):
        features = options["features"][place % len(options["features"])]
        stage = {"smoothed": "stage.experiment=rsna_slices", "burduja2020": "stage.experiment=burduja2020_slices"}
        found.append(" ".join([f"{base} sequence={name} features={features}", *filter(None, [stage.get(name)])]))
    return found


def data_sets(session: Session) -> None:
    """What ``index`` and ``prepare`` say."""
    for name, command in {
        "heads": "data=head_ct data.root=phantom/heads split=kfold split.folds=3 split.fold=1",
        "table": "data=table data.manifest=phantom/heads.csv data.root=phantom/heads",
        "rsna": "data=rsna data.root=phantom/rsna task=subtypes",
        "nifti": "data=ct_ich data.root=phantom/nifti task=subtypes split=monte_carlo split.fold=1",
        "cq500": "data=cq500 data.root=phantom/cq500 task.level=series",
        "ganglia": "data=basal_ganglia data.root=phantom/ganglia task=basal_ganglia loss=cross_entropy",
        "mri": "data=hydrocephalus_mri data.root=phantom/mri task=hydrocephalus channels=mr",
        "dicom": "data=dicom data.root=phantom/rsna/stage_2_test data.geometry.min_slices=20",
    }.items():
        session.run(name, f"index {command} out=index/{name}")
        session.tree(f"index/{name}", name)
    for name, command in {
        "heads-crop": "data=head_ct data.root=phantom/heads data.image_size=48 data.fit=crop",
        "heads-squash": "data=head_ct data.root=phantom/heads data.image_size=48 data.fit=squash",
        "nifti-head": "data=ct_ich data.root=phantom/nifti data.image_size=48 data.fit=head",
        "mri-band": "data=hydrocephalus_mri data.root=phantom/mri data.image_size=48 data.band=[0.4,0.6]",
    }.items():
        store = session.run(f"prepare-{name}", f"prepare {command}").partition("store ")[2].partition("\n")[0]
        files = sorted((session.work / store).glob("*.bin"))
        session.keep(f"prepare-{name}.sha256", "".join(f"{digest(file)}  {file.name}\n" for file in files))


def binary(session: Session) -> None:
    """Slices, one label: augmentation, averaged weights, flips, calibration; again; and the default set."""
    once = f"train data.root=phantom/heads {TINY} {HALVES} name=binary task.tta=[horizontal] trainer.ema_decay=0.9"
    session.run("train", f"{once} task.calibration=temperature")
    session.run("again", f"{once} task.calibration=temperature")
    session.run("table", f"train data=table data.manifest=phantom/heads.csv data.root=phantom/heads {TINY} name=table "
                         f"split=file split.file={session.of('binary-0')}/split.csv augmentation=none data.fit=squash "
                         "trainer.max_epochs=1", 1)  # fmt: skip
    split = pd.read_csv(session.work / session.of("binary-0") / "split.csv", dtype=str)
    split.assign(patient_id="p" + split["patient_id"]).to_csv(session.work / "split.csv", index=False)
    session.run("table-split", f"train data=table data.manifest=phantom/heads.csv data.root=phantom/heads {TINY} "
                               "name=table split=file split.file=split.csv augmentation=none data.fit=squash "
                               "trainer.max_epochs=1 task.calibration=isotonic logger=none")  # fmt: skip
    session.run("default", f"train data.phantom_patients=12 {TINY} trainer.max_epochs=1 data.image_size=48 "
                           "logger=wandb name=synthetic split.val_fraction=0.3")  # fmt: skip


def recipes(session: Session) -> None:
    """Other losses, optimisers, schedules and freezing: one run each of what the other cases leave out."""
    base = f"train data.root=phantom/heads {TINY} {HALVES} trainer.max_epochs=3"
    session.run("progressive", f"{base} name=progressive freeze=progressive trainer.max_epochs=5 "
                               "freeze.layer_decay=0.8 backbone.drop_rate=0.2 backbone.drop_path_rate=0.1")  # fmt: skip
    session.run("mixup", f"{base} name=mixup augmentation=altuve2022 augmentation.mixup=0.2 optimizer=sgd "
                         "optimizer.schedule.name=step optimizer.schedule.step_epochs=1 loss=focal task.threshold=f1 "
                         "freeze=last_groups freeze.freeze_batchnorm=true")  # fmt: skip
    session.run("plateau", f"{base} name=plateau optimizer=plateau optimizer.schedule.patience=0 optimizer.lr=0.02 "
                           "task.monitor=auroc trainer.early_stopping_patience=1 loss=weighted_bce data.fit=crop "
                           "data.sampler=balanced task.hidden=[16] task.dropout=0.2 task.calibration=platt "
                           "augmentation=viritaromero trainer.max_epochs=4")  # fmt: skip
    session.run("scratch", f"{base} name=scratch backbone.pretrained=false augmentation=desai2017 optimizer=adam "
                           "task.threshold=sensitivity:0.9 task.tta=[horizontal,vertical] trainer.max_epochs=1 "
                           "trainer.accumulate_grad_batches=2 trainer.channels_last=false split.duplicates=exact "
                           "seed=3")  # fmt: skip


def cached_draws(session: Session) -> None:
    """Frozen layers computed once per view, in a sweep over random splits that an experiment holds."""
    session.run("train", f"train -m experiment=hemlearn_ct data.root=phantom/heads {TINY} split.fold=0,3 "
                         "freeze.cached_draws=4 freeze.trainable=2 split.val_fraction=0.2")  # fmt: skip
    session.compare("compare", "runs/hemlearn_ct")


def multiclass(session: Session) -> None:
    """Exactly one of six classes; one of three sides, which a flip exchanges, per series."""
    session.run(
        "six",
        f"train data=six_class task=six_class loss=cross_entropy data.root=phantom/six {TINY} {HALVES} "
        "channels=brain_subdural_soft augmentation=flip_rotate task.calibration=temperature name=six",
    )
    session.run("ganglia", f"train data=basal_ganglia task=basal_ganglia loss=cross_entropy {TINY} {HALVES} "
                           "data.root=phantom/ganglia task.tta=[horizontal] name=ganglia trainer.max_epochs=1 "
                           "data.band=[0.3,0.7]")  # fmt: skip


def multilabel(session: Session) -> None:
    """Five subtypes and any, nine channels of three slices; pictures of CT; the leak of a split by slice."""
    session.run("slices", f"train data=ct_ich data.root=phantom/nifti task=subtypes channels=adjacent_windows "
                          f"{TINY} {PARTS} loss=rsna task.monitor=weighted_log_loss trainer.max_epochs=1 "
                          "name=multilabel task.aggregate=max")  # fmt: skip
    session.run("leak", f"train -m data=ct_ich data.root=phantom/ich task=subtypes {TINY} split.val_fraction=0.3 "
                        "split.test_fraction=0.4 split.by=patient,slice split.allow_leak=true trainer.max_epochs=1 "
                        "name=leak task.threshold=0.5 augmentation=none")  # fmt: skip
    session.compare("compare", "runs/leak")
    session.compare("compare-patients", "runs/leak level=patient labels=all cases=common")


def volumes(session: Session) -> None:
    """Sequence models on cached embeddings, end to end, and through a slice run that is trained first."""
    small = f"train experiment=rsna_small data.root=phantom/rsna {TINY} {HALVES} split.folds=3 sequence.hidden=8"
    session.run("cached", f"{small} name=cached features=pca features.k=8")
    session.run("sweep", f"{small} name=sequences -m sequence=slice,conv_gru features=anova,l1 "
                         "features.k=12 sequence.differences=true sequence.smoothing=1 sequence.reverse_tta=true "
                         "task.tta=[horizontal]")  # fmt: skip
    session.compare("compare", "runs/sequences baseline=sequence=slice,features=anova labels=any")
    session.run("members", f"train experiment=ct_ich data.root=phantom/nifti {TINY} sequence.hidden=8 split.folds=3 "
                           "sequence.members=2 task.tta=[horizontal] split.val_fraction=0.4 name=members "
                           "features=random_projection features.k=16")  # fmt: skip
    session.run("others", f"{small} name=others -m sequence=gru sequence.name=max+transformer features.k=6 "
                          "features=mutual_info,variance "
                          "sequence.position=true task.level=series task.aggregate=model")  # fmt: skip
    session.run(
        "end-to-end",
        f"train experiment=rsna data.root=phantom/rsna {TINY} {HALVES} {FROZEN} freeze=none "
        "name=end_to_end sequence.series_per_batch=2 trainer.max_epochs=1 sequence.chunk=8 "
        "channels=adjacent sequence.series_weight=0.3 augmentation=geometric_intensity",
    )


def stages(session: Session) -> None:
    """Two stages in one command: the slice run is trained once and shared."""
    stage = "stage.set.trainer.max_epochs=1 stage.set.augmentation.steps=[]"
    small = f"data.root=phantom/rsna {TINY} {HALVES} sequence.hidden=8 {stage}"
    session.run("burduja", f"train -m experiment=burduja2020 features=pca features.k=4,8 sequence.layers=1 {small}")
    session.run("rsna", f"train experiment=rsna {small} task.calibration=platt")
    session.run("again", f"train experiment=rsna {small} task.calibration=platt")


def mri(session: Session) -> None:
    """MR: labels of patients on a band of slices, slice by slice and as series."""
    base = (f"train data=hydrocephalus_mri channels=mr task=hydrocephalus data.root=phantom/mri {TINY} {HALVES} "
            "data.band=[0.4,0.6]")  # fmt: skip
    session.run("slices", f"{base} name=mri_slices augmentation=geometric_intensity trainer.ema_decay=0.9")
    session.run("series", f"{base} name=mri_series sequence=gru freeze=head augmentation=none sequence.hidden=8 "
                          "task.aggregate=model")  # fmt: skip


def folds(session: Session) -> None:
    """Two folds, pretrained and not, then the comparison with every option."""
    sweep = (
        f"train -m data.root=phantom/heads {TINY} trainer.max_epochs=3 split=kfold split.folds=2 split.fold=0,1 "
        "backbone.pretrained=true,false split.val_fraction=0.3 augmentation=none name=folds optimizer.lr=2e-3"
    )
    session.run("train", sweep)
    session.run("again", sweep)
    reference = session.work / "reference.yaml"
    reference.write_text(
        "title: Somebody 2022\ncitation: Journal 99:113\nfigures:\n"
        "  - {metric: accuracy, x: 18, n: 24, group: {backbone.pretrained: true}}\n"
        "  - {metric: auroc, value: 0.84, interval: [0.72, 0.93]}\n", encoding="utf-8",
    )  # fmt: skip
    session.compare("plain", "runs/folds")
    session.compare("baseline", "runs/folds baseline=backbone.pretrained=false margin=0.05 reference=reference.yaml")
    session.compare("unpooled", "runs/folds pool=split.seed level=patient")
    session.compare("several", "runs/folds runs/binary cases=common")


def predictions(session: Session) -> None:
    """``predict`` on every kind of input, alone and as an ensemble, with pages; ``submit``."""
    work = session.work
    series = work / "input/series"
    series.mkdir(parents=True)
    for place, file in enumerate(sorted((work / "phantom/ganglia/P0000").glob("*.dcm"))):
        shutil.copy(file, series / f"{(place * 7) % 100:02d}.dcm")
    (series / "notes.dcm").write_text("no image\n", encoding="utf-8")
    with zipfile.ZipFile(work / "input/study.zip", "w") as archive:
        for file in sorted((work / "phantom/ganglia/P0001").glob("*.dcm")):
            archive.write(file, f"study/{file.name}")
    nifti = min((work / "phantom/nifti/ct_scans").glob("*.nii"))
    pictures = [f"../phantom/others/head_ct/head_ct/{k:03d}.png" for k in (1, 0, 2)]
    rows = pd.DataFrame({"path": pictures, "patient_id": "x", "series_id": ["a", "a", "b"], "z_mm": [5, 0, 0]})
    rows.to_csv(work / "input/rows.csv", index=False)
    rsna, lstms = session.of("rsna-0"), ",".join(session.of(f"burduja2020-{k}") for k in (0, 1))
    heads = ",".join(session.of(f"folds-{k}") for k in (0, 2))
    session.predict("pictures", f"run={session.of('binary-0')} input=phantom/others/head_ct/head_ct calibrated=true")
    session.predict("ensemble", f"run={heads} input=input/rows.csv page=true")
    session.predict("dicom", f"run={rsna} input=input/series page=true calibrated=true", 1)
    session.predict("zip", f"run={lstms} input=input/study.zip batch_size=4")
    session.predict("nifti", f"run={session.of('cached-0')} input={nifti.relative_to(work)} format=parquet")
    session.predict("rsna", f"run={session.of('rsna_slices-0')} input=phantom/rsna/stage_2_test format=rsna series=all")
    session.predict("shown", f"run={session.of('binary-0')} input=input/study.zip")
    session.predict("mri", f"run={session.of('mri_series-0')} input=phantom/mri/P0001 page=true show_patient=true")
    session.run("submit", f"submit run={rsna} data.root=phantom/rsna out=submitted/submission.csv")
    session.tree("submitted", "submit")


def external(session: Session) -> None:
    """Finished runs on data of another origin."""
    binary, leak = session.of("binary-0"), session.of("leak-0")
    session.run("pictures", f"evaluate run={binary} data=ct_ich data.root=phantom/ich labels=hemorrhage:any")
    session.run("excluded", f"evaluate run={binary} data=head_ct data.root=phantom/heads overlap=exclude")
    session.run("refused", f"evaluate run={binary} data=head_ct data.root=phantom/heads", 1)
    session.run("one", f"evaluate run={leak} data=head_ct data.root=phantom/others labels=any:hemorrhage")
    session.run("series", f"evaluate run={session.of('cached-0')} data=cq500 data.root=phantom/cq500")
    session.compare("compare", "runs/binary_on_ct_ich runs/binary_on_head_ct")


def explanations(session: Session) -> None:
    """Maps of a slice run, with their checks where there are masks, and of a sequence run."""
    for name, command in {
        "slices": f"run={session.of('binary-0')} slices=3",
        "masks": f"run={session.of('multilabel-0')} slices=4 cells=4 check=true label=subdural",
        "series": f"run={session.of('members-0')} slices=2 attribution=removal method=gradcam++",
        "other": f"run={session.of('binary-0')} slices=2 data=head_ct data.root=phantom/others part=val",
    }.items():
        session.run(name, f"explain {command} out=explained/{name}")
        session.tree(f"explained/{name}", name)


def exports(session: Session) -> None:
    """A slice run as ONNX, a sequence run for torch: what is printed, the description and the model card."""
    for run, file in (("binary-0", "slices.onnx"), ("cached-0", "series.pt2")):
        form = "onnx" if file.endswith(".onnx") else "torch"
        command = f"export run={session.of(run)} out=exported/{file} format={form} check=8"
        printed = session.run(file, command)
        session.keep(f"{file}.txt", session.normal(_unmeasured(f"$ hemlearn {command}\n{printed}")))
    session.tree("exported", "files")
    for card in (session.out / session.case).glob("files/*.md"):
        card.write_text(_unmeasured(card.read_text("utf-8")), encoding="utf-8")


def _unmeasured(text: str) -> str:
    """The text without differences to the run, speeds, the digest of the model's file, the commit and versions."""
    text = re.sub(r"^- (commit|packages|versions): .*\n", "", text, flags=re.M)
    text = re.sub(r"SHA-256: [0-9a-f]{64}", "SHA-256: <digest>", text)
    text = re.sub(r"\b\d(\.\d+)?e-\d\d\b", "<difference>", text)
    return re.sub(r"(pytorch|onnxruntime|torch\.export) \d[\d.e+]*", r"\1 <speed>", text)


def plans(session: Session) -> None:
    """Sizes of studies, before and after a run."""
    for index, command in enumerate((
        "auroc=0.90 prevalence=0.3 half_width=0.03", "auroc=0.90 prevalence=0.3 difference=0.03 correlation=0.5",
        "auroc=0.90 prevalence=0.13 half_width=0.03 slices_per_patient=30 icc=0.5",
        "auroc=0.85 prevalence=0.44 patients=57",
        "auroc=0.8 prevalence=0.5 half_width=0.05 difference=-0.04 patients=80 power=0.9 alpha=0.01 confidence=0.9",
        f"run={session.of('folds-0')} difference=0.03 half_width=0.05",
        f"run={session.of('multilabel-0')} difference=0.03", f"run={session.of('mri_slices-0')}",
    )):  # fmt: skip
        session.run(f"plan-{index}", f"plan {command}")


CASES: tuple[Callable[[Session], None], ...] = (
    phantoms, commands, configurations, data_sets, binary, recipes, cached_draws, multiclass, multilabel, volumes,
    stages, mri, folds, predictions, external, explanations, exports, plans,
)  # fmt: skip


def make(out: Path, only: Sequence[str], fresh: bool, keep: bool) -> int:
    """Make the runs and keep what they left; 1 when a case failed."""
    if out.exists() and any(out.iterdir()):
        print(f"{out}: is not empty", file=sys.stderr)
        return 2
    out = out.resolve()
    sys.path[0] = str(out)  # the folder of this script holds packages of its own
    paths = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in paths.split(os.pathsep) if path)
    sys.path[1:] = [str(Path(path).resolve()) if path else path for path in sys.path[1:]]
    session = Session(out, fresh)
    os.environ.update(ENVIRONMENT, HEMLEARN_CACHE=str(session.cache))
    time.tzset()
    if not fresh:
        preload()
    began = time.perf_counter()
    failed = []
    times = []
    for case in CASES:
        if only and case.__name__ not in only:
            continue
        session.case = case.__name__
        start, cpu = time.perf_counter(), session.cpu
        try:
            case(session)
        except (CommandError, OSError, ValueError, KeyError) as error:
            print(f"{case.__name__}: {type(error).__name__}: {error}", file=sys.stderr)
            session.keep("failed.txt", "this case did not come to its end\n")
            failed.append(case.__name__)
        times.append((case.__name__, time.perf_counter() - start, session.cpu - cpu))
    gc.unfreeze()
    for name, wall, cpu in [*times, ("all", time.perf_counter() - began, session.cpu)]:
        print(f"{name:15} {wall:7.1f} s, CPU {cpu:7.1f} s")
    files = list(_files(out))
    print(f"{session.calls} commands, {len(session.folders)} runs, {len(files)} files kept in {out}")
    if failed:
        print(f"failed: {', '.join(failed)}; see {session.work / 'logs'}", file=sys.stderr)
    elif not keep:
        shutil.rmtree(session.work)
        shutil.rmtree(session.cache, ignore_errors=True)
    return 1 if failed else 0


# --- comparing ----------------------------------------------------------------------------------------------------


def _files(root: Path) -> Iterator[str]:
    """Relative names of the kept files."""
    for file in sorted(root.rglob("*")):
        relative = file.relative_to(root)
        if file.is_file() and not relative.parts[0].startswith("."):
            yield relative.as_posix()


def compare(old: Path, new: Path, allow: Sequence[str], only: Sequence[str], lines: int) -> int:
    """Compare two makes file by file; 1 when one differs that is not allowed to."""
    for root in (old, new):
        if not root.is_dir():
            print(f"{root}: no such folder", file=sys.stderr)
            return 2
    first, second = ({name for name in _files(root) if not only or name.split("/")[0] in only} for root in (old, new))
    equal = allowed = differing = 0
    for name in sorted(first | second):
        if name in first and name in second and (old / name).read_bytes() == (new / name).read_bytes():
            equal += 1
            continue
        if any(fnmatch.fnmatch(name, pattern) for pattern in allow):
            allowed += 1
            print(f"{name}: differs, as it may")
            continue
        differing += 1
        if name not in first or name not in second:
            print(f"{name}: only in {old if name in first else new}")
            continue
        print(f"{name}:")
        for text in differences(old / name, new / name, lines):
            print(f"  {text}")
    print(f"{equal} files are equal, {differing} differ, {allowed} differ as they may")
    return 1 if differing else 0


def differences(old: Path, new: Path, lines: int) -> list[str]:
    """What differs between two text files, in a few lines; for tables of numbers the largest difference first."""
    one, two = (file.read_text("utf-8").splitlines() for file in (old, new))
    told = _numbers(old, new) if old.suffix == ".csv" else []
    for _, start, stop, first, last in _changes(one, two):
        for index in range(max(stop - start, last - first)):
            before = one[start + index] if start + index < stop else None
            after = two[first + index] if first + index < last else None
            at = _common(before or "", after or "")
            told += [
                f"{line}{sign} {_cut(text, at)}"
                for sign, text, line in (("-", before, start + index + 1), ("+", after, first + index + 1))
                if text is not None
            ]
            if len(told) >= 2 * lines:
                return [*told, "..."]
    return told or ["line ends"]


def _changes(one: list[str], two: list[str]) -> list[tuple[str, int, int, int, int]]:
    if len(one) == len(two):  # nearly always: numbers have changed, lines have not
        return [("replace", k, k + 1, k, k + 1) for k, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    matcher = difflib.SequenceMatcher(None, one, two, autojunk=False)
    return [change for change in matcher.get_opcodes() if change[0] != "equal"]


def _common(one: str, two: str) -> int:
    shorter = min(len(one), len(two))
    return next((k for k in range(shorter) if one[k] != two[k]), shorter)


def _cut(text: str, at: int, width: int = 160) -> str:
    start = max(0, at - width // 3) if len(text) > width else 0
    cut = text[start : start + width]
    return ("..." if start else "") + cut + ("..." if start + width < len(text) else "")


def _numbers(old: Path, new: Path) -> list[str]:
    """The largest absolute difference of each numeric column of two tables of equal shape."""
    try:
        one, two = pd.read_csv(old), pd.read_csv(new)
    except (ValueError, pd.errors.ParserError):
        return []
    if list(one) != list(two) or len(one) != len(two):
        return [f"shape or columns: {one.shape} {list(one)[:6]} against {two.shape} {list(two)[:6]}"]
    told = []
    for column in one.select_dtypes("number"):
        if column in two.select_dtypes("number"):
            apart: Any = (one[column] - two[column]).abs()
            unknown = int((one[column].isna() != two[column].isna()).sum())
            if unknown or apart.max() > 0:
                more = f", {unknown} rows known in one alone" if unknown else ""
                told.append(f"{column}: largest difference {apart.max():.3g} in {int((apart > 0).sum())} rows{more}")
    return told


def main(argv: Sequence[str] | None = None) -> int:
    """Make or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    names = [case.__name__ for case in CASES]
    maker = verbs.add_parser("make", help="make the runs")
    maker.add_argument("out", type=Path, help="a new folder")
    maker.add_argument(
        "--only",
        action="append",
        default=[],
        choices=names,
        metavar="CASE",
        help="this case alone; repeat it for more, those it builds on too: " + ", ".join(names),
    )
    maker.add_argument("--keep", action="store_true", help="leave OUT/.work and OUT/.cache (two gigabytes) there")
    maker.add_argument("--fresh", action="store_true", help="a new interpreter for every command")
    comparer = verbs.add_parser("compare", help="compare two makes byte by byte")
    comparer.add_argument("old", type=Path)
    comparer.add_argument("new", type=Path)
    comparer.add_argument("--allow", action="append", default=[], metavar="PATTERN",
                          help="files that may differ, such as 'commands/help*' or '*/config.yaml'")  # fmt: skip
    comparer.add_argument("--only", action="append", default=[], choices=names, metavar="CASE")
    comparer.add_argument("--lines", type=int, default=5, help="differing lines shown of each file (default 5)")
    given = parser.parse_args(argv)
    if given.verb == "make":
        return make(given.out, given.only, given.fresh, given.keep)
    return compare(given.old, given.new, given.allow, given.only, given.lines)


if __name__ == "__main__":
    sys.exit(main())
