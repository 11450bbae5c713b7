"""Which files that hemlearn writes tell who a patient is, who the user is, or a password.

    python experiments/privacy/privacy.py [--work DIR]     # the table as Markdown; exit status 1 where one should not

A data set is made whose folders, files, DICOM headers and training table hold marked names, birth dates, record
numbers and an institution, below a marked home folder; passwords stand in the configuration and in the environment.
Every command works on it through its command line. Then each byte of each output is looked at, inside archives
(checkpoints, exported models), compressed chunks of pictures, Parquet columns and encoded pictures of pages too.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

USER, PASSWORD, API_KEY = "obermoser", "geheim4711", "5ecce7" + 34 * "a"
MARKS = {
    "name": rb"meierhuber|huberin",
    "birth date": rb"196102\d\d",
    "record number": rb"77881\d\d",
    "institution": rb"sankt.?hildegard",
    "user": USER.encode(),
    "absolute path": rb"",  # the working folder, known when it is made
    "secret": rb"|".join((PASSWORD.encode(), API_KEY.encode())),
}
# Working tables, which keep the user's ids and places; what else there is can be looked at, sent or published.
WORKING = (
    *("run/config.yaml", "run/provenance.json", "run/split.csv", "run/predictions.parquet", "run/status.json"),
    *("evaluate/config.yaml", "evaluate/provenance.json", "evaluate/predictions.parquet", "evaluate/*.csv"),
    *("predict/*.csv", "predict/journal.jsonl", "index/*", "submit/*", "*.key", "run/.mlflow_run", "run/mlflow/*.yaml"),
    *("run/mlflow/*/meta.yaml", "console *", "failed run/config.yaml", "*/wandb/*debug*.log"),
    "*.wandb",  # what `wandb sync` sends, and where its parts lie on this machine, which it does not send
)
NETWORK = [
    *("backbone.name=test_efficientnet", "backbone.pretrained=false", "data.image_size=64", "data.batch_size=16"),
    *("trainer.max_epochs=1", "augmentation=none", "optimizer.schedule.warmup_epochs=0", "task.threshold=0.5"),
]


def who(number: int) -> str:
    """Name, birth date and record number of a patient, as a folder is called."""
    return f"MEIERHUBER_Hans{number}_196102{number + 1:02}_MRN77881{number:02}"


def write_data(home: Path, patients: int = 14) -> Path:
    """The marked data set; returns its training table."""
    import pydicom

    from hemlearn.phantom.layouts import write_phantom
    from hemlearn.phantom.slab import Grid

    grid = Grid(rows=64, cols=64, pixel_mm=3.6, slices=8, thickness_mm=15, samples=1)
    write_phantom("rsna", home / "plain", patients=patients, seed=0, grid=grid)
    told = pd.read_csv(home / "plain" / "stage_2_train.csv").drop_duplicates("ID").set_index("ID")["Label"]
    people: dict[str, str] = {}
    rows = []
    for file in sorted((home / "plain" / "stage_2_train").glob("*.dcm")):
        data = pydicom.dcmread(file)
        name = people.setdefault(str(data.PatientID), who(len(people)))
        surname, given, born, record = name.split("_")
        data.PatientName, data.PatientBirthDate, data.PatientID = f"{surname}^{given}", born, record
        data.InstitutionName = "Klinikum Sankt Hildegard"
        data.ReferringPhysicianName = "HUBERIN^Eva"
        place = home / "archive" / name / "CT" / f"{given}_{file.stem}.dcm"
        place.parent.mkdir(parents=True, exist_ok=True)
        data.save_as(place)
        path = place.relative_to(home / "archive").as_posix()
        label = int(told[f"{file.stem}_any"])
        rows.append({"path": path, "patient_id": name, "series_id": f"{name}/CT", "hemorrhage": label})
    table = home / "archive" / "labels.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    (home / "archive" / who(1) / "CT" / f"{who(1)}_notes.dcm").write_bytes(b"no slice")
    return table


class Session:
    """Commands in a home folder; what each prints is kept as an output of its own."""

    def __init__(self, work: Path) -> None:
        self.home = work / "home" / USER
        self.home.mkdir(parents=True)
        self.outputs: dict[str, bytes] = {}

    def run(self, words: list[str], *, expect: int = 0) -> None:
        """One command."""
        from hemlearn.__main__ import main

        printed = io.StringIO()
        before, sys.argv = sys.argv, ["hemlearn", *words]
        try:
            with redirect_stdout(printed), redirect_stderr(printed):
                status = main(words)
        finally:
            sys.argv = before
        name = f"console {words[0]}"
        self.outputs[name] = self.outputs.get(name, b"") + printed.getvalue().encode()
        if status != expect:
            print(printed.getvalue(), file=sys.stderr)
            raise SystemExit(f"hemlearn {' '.join(words)}: exit status {status}")

    def add(self, name: str, folder: Path) -> None:
        """Keep every file of a folder under a name."""
        for file in sorted(folder.rglob("*") if folder.is_dir() else folder.parent.glob(f"{folder.name}*")):
            if file.is_file():
                place = file.relative_to(folder) if folder.is_dir() else file.name
                self.outputs[f"{name}/{place}"] = f"{place}\n".encode() + file.read_bytes()


def use(session: Session) -> None:
    """Every command on the marked data."""
    home, archive = session.home, session.home / "archive"
    table = write_data(home)
    data = ["data=table", f"data.manifest={table}", f"data.root={archive}", "data.modality=CT"]
    uri = f"logger.tracking_uri=file://robot:{PASSWORD}@{home}/tracked"
    trackers = [
        "logger.kinds=[csv,tensorboard,wandb]",
        "logger.mode=offline",
        f'logger.tags=[site,"api_key={API_KEY}"]',
    ]
    session.run(["index", "data=dicom", f"data.root={archive}", "out=index"])
    session.run(["prepare", *data, *NETWORK])
    for seed in (0, 1):
        words = [*data, *NETWORK, *(trackers if seed == 0 else ["logger=none"]), f"seed={seed}", "name=study"]
        session.run(["train", *words, uri])
    with suppress(ImportError):
        import mlflow  # noqa: F401 - whether it is there

        session.run(["train", *data, *NETWORK, "logger.kinds=[mlflow]", "seed=2", "name=study", "logger.project=x"])
    runs = sorted(file.parent for file in Path("runs/study").glob("*/status.json"))
    run = next(folder for folder in runs if (folder / "wandb").is_dir())
    session.run(["train", *data, *NETWORK, f"{uri}", "trainer.accelerator=gpu", "name=failed", "logger=none"], expect=1)
    patient = archive / who(0)
    session.run(["predict", f"run={run}", f"input={patient}", "out=predict", "page=true"])
    session.run(["predict", f"run={run}", f"input={archive / who(1)}", "out=predict2", "page=true"], expect=1)
    session.run(["explain", f"run={run}", "out=explain", "slices=4"])
    given = [f"data.manifest={table}", f"data.root={archive}", "overlap=allow", "out=evaluate"]
    session.run(["evaluate", f"run={run}", "data=table", *given])
    for form in ("onnx", "torch"):
        session.run(["export", f"run={run}", f"out=export/model.{form}", f"format={form}", "check=8"])
    session.run(["compare", str(run.parent), "out=compared/all", "pool=", "labels=all", "wandb=true"])
    session.run(["plan", f"run={run}"])
    session.run(["doctor", f"run={run}"])
    for looked in (run, Path("predict"), Path("explain"), Path("compared/all")):
        session.run(["doctor", f"run={looked}", "share=true"])
    session.run(["runs", str(run.parent)])
    session.add("run", run)
    for other in runs:
        if (other / "mlflow").is_dir():
            session.add("run/mlflow", other / "mlflow")
            session.add("run", other / ".mlflow_run")
    for failed in Path("runs/failed").glob("*"):
        session.add("failed run", failed)
    for name in ("index", "predict", "explain", "evaluate"):
        session.add(name, Path(name))
    session.add("predict", Path("predict2"))
    session.add("export", Path("export"))
    session.add("compare", Path("compared/all"))


def pieces(name: str, raw: bytes, depth: int = 0) -> Iterator[bytes]:
    """The bytes of a file, and what is packed in it."""
    yield raw
    at = raw.find(b"PK\x03\x04")
    if depth < 3 and at >= 0:
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(raw[at:])) as packed:
            for item in packed.namelist():
                yield item.encode()
                yield from pieces(item, packed.read(item), depth + 1)
    if name.endswith(".parquet"):
        at = raw.find(b"PAR1")
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(raw[at:]))
        yield str(table.schema.metadata).encode()
        yield table.to_pandas().astype(str).to_csv().encode()
    if name.endswith(".png"):
        for found in re.finditer(rb"(zTXt|iTXt)[^\0]*\0+(x\x9c.*)", raw, re.DOTALL):
            with suppress(zlib.error):
                yield zlib.decompressobj().decompress(found[2])
    for found in re.finditer(rb"base64,([A-Za-z0-9+/=]{64,})", raw):
        yield base64.b64decode(found[1])


def table(outputs: dict[str, bytes], work: Path) -> list[tuple[str, list[str]]]:
    """Output -> what of the marks stands in it; files that differ in a hash or a time alone are one line."""
    marks = {key: re.compile(text or re.escape(str(work).encode()), re.IGNORECASE) for key, text in MARKS.items()}
    found: dict[str, set[str]] = {}
    for name, raw in outputs.items():
        line = re.sub(r"offline-run-\d+_\d+-\w+|run-\d+_\d+-\w+", "RUN", name)
        line = re.sub(r"\b[0-9a-f]{8,}\b|tfevents.*|(?<=overlays/).*(?=\.png)", "*", line)
        line = re.sub(r"(?<=mlflow/)[0-9*]+(?=/)", "*", line)
        own = found.setdefault(line, set())
        for piece in pieces(name, raw):
            own |= {key for key, pattern in marks.items() if pattern.search(piece)}
    return [(name, [key for key in MARKS if key in own]) for name, own in sorted(found.items())]


def main() -> int:
    """Make, look, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, help="a new folder that is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="privacy-") as folder:
        work = (given.work or Path(folder)).resolve()
        session = Session(work)
        os.environ |= {
            "HOME": str(session.home),
            "HEMLEARN_CACHE": str(session.home / "cache"),
            "WANDB_MODE": "offline",
            "WANDB_API_KEY": API_KEY,
            "USER": USER,
            "LOGNAME": USER,
            "LNAME": USER,
            "USERNAME": USER,
            "OMP_NUM_THREADS": "1",
        }
        os.chdir(session.home)
        use(session)
        lines = table(session.outputs, work)
        wrong = 0
        print("| output | what identifies | kind |\n|---|---|---|")
        for name, marks in lines:
            working = any(fnmatch(name, pattern) for pattern in WORKING)
            wrong += bool(marks) and (not working or "secret" in marks or (name.endswith("wandb") and "name" in marks))
            if marks:
                print(f"| {name} | {', '.join(marks)} | {'working' if working else 'shown or sent'} |")
        clean = [name for name, marks in lines if not marks]
        print(f"\n{len(lines)} outputs, {len(clean)} with nothing; shown or sent with something: {wrong}")
        print("nothing in: " + ", ".join(name for name in clean if not name.startswith("run/mlflow/")))
        os.chdir(os.path.sep)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
