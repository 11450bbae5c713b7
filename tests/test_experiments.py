"""Every experiment of conf/experiment trains on its phantom, and sweeps over as many runs as its header promises."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.zhou2022.from_ct_ich import one_class, write
from hemlearn.__main__ import main
from hemlearn.compare.reference import read_studies
from hemlearn.config.compose import compose
from hemlearn.config.schema import DataConfig, is_volume3d
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid
from hemlearn.util.errors import ConfigError
from tests.conftest import PROJECT
from tests.end_to_end.conftest import check_complete, run_folders

CONF = PROJECT / "conf"
NAMES = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
STUDIES = {
    "demyanchuk2019": 5,
    "desai2017": 8,
    "zhou2022": 4,
    "viritaromero": 5,
    "altuve2022": 100,
    "hemlearn_ct": 100,
    "hemlearn_mri": 5,
    "hemlearn_mri_fluid": 5,
    "burduja2020": 15,
    "transfer": 3,
    "transfer_tissue": 3,
}
PRESETS = {
    "adapters": 12,
    "desai_proxy": 40,
    "feature_ablation": 120,
    "pretrained_vs_scratch": 20,
    "pretraining": 30,
    "sequence_models": 60,
}
FLAT = Grid(rows=72, cols=72, pixel_mm=3.2, samples=1)
COARSE = Grid(rows=64, cols=64, pixel_mm=3.6, slices=6, thickness_mm=22, samples=1)
PATIENTS = {"head_ct": 60, "six_class": 30, "basal_ganglia": 24, "hydrocephalus_mri": 20}  # else 16
STAGES = ["burduja2020_slices", "rsna_slices"]  # trained on the way to the experiment that builds on them
TRAINED = ["burduja2020", "rsna"]  # in end_to_end/test_volumes.py, with their stages
PRETRAINING = ["phantom_pretraining", "pretrain"]  # on the way to any run of slices: conf/stage
# Two steps of a real but tiny network. The rest of each experiment stays as it is.
TINY = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "data.image_size=64",
    "data.batch_size=8",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "optimizer.schedule.warmup_epochs=0",
    "logger=none",
    "trainer.threads=1",
]
STAGE = [
    "stage.set.trainer.max_epochs=1",
    "stage.set.trainer.limit_train_batches=2",
    "stage.set.optimizer.schedule.warmup_epochs=0",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the phantoms and of the cache that all cases share."""
    return tmp_path_factory.mktemp("experiments")


def phantom(shared: Path, layout: str, seed: int = 0) -> Path:
    out = shared / (f"{layout}_{seed}" if seed else layout)
    if not out.is_dir():
        grid = FLAT if layout == "head_ct" else COARSE
        write_phantom(layout, out, patients=PATIENTS.get(layout, 16), seed=seed, grid=grid)
    return out


def roots(shared: Path, data: DataConfig) -> list[str]:
    """Where the data set, or each part of several, lies; two parts of one layout are of different heads."""
    if not data.parts:
        return [f"data.root={phantom(shared, data.name)}"]
    layouts = {part: (spec or {}).get("data", part) for part, spec in data.parts.items()}
    seeds = [list(layouts.values())[:k].count(layout) for k, layout in enumerate(layouts.values())]
    return [
        f"data.parts.{part}.root={phantom(shared, layout, seed)}"
        for (part, layout), seed in zip(layouts.items(), seeds, strict=True)
    ]


def embeddings(shared: Path) -> list[Path]:
    return sorted((shared / "cache" / "embeddings").glob("*"))


def header(file: Path) -> str:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return " ".join(line.lstrip("# ") for line in lines)


def jobs(file: Path) -> list[list[str]]:
    """The override lists of the runs that a file sweeps over, as Hydra's own sweeper makes them."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    params = content.get("hydra", {}).get("sweeper", {}).get("params", {})
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return [list(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]


def promised(file: Path) -> int | None:
    found = re.search(r"\((\d+) runs[;,)]", header(file))
    return int(found.group(1)) if found else None


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*STAGES, *TRAINED, *PRETRAINING)])
def test_trains_for_two_steps_on_its_phantom(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEMLEARN_CACHE", str(shared / "cache"))
    monkeypatch.chdir(tmp_path)
    config = compose([f"experiment={name}"])
    small = [*TINY, *(STAGE if config.stage.experiment else [])]
    if is_volume3d(config.backbone):  # it measures
        small.remove("backbone.name=test_efficientnet")
    if config.sequence.name != "none":
        small.append("sequence.hidden=8")
    if config.features.name != "none":
        small.append("features.k=4")
    if isinstance(config.freeze.trainable, int):  # the tiny network has fewer groups
        small.append("freeze.trainable=1")
    if config.freeze.cached_draws:
        small.append("freeze.cached_draws=2")
    before = embeddings(shared)
    assert main(["train", f"experiment={name}", *roots(shared, config.data), *small]) == 0
    assert config.name == name
    names = [name, *([config.stage.experiment] if config.stage.experiment else [])]
    folders = run_folders(tmp_path / "runs")
    assert sorted(folder.parent.name for folder in folders) == sorted(names)
    for folder in folders:
        check_complete(folder, config.task.labels)
    if name == "rsna_end_to_end":  # it learns through the slices: no embeddings
        assert (shared / "cache").is_dir()
        assert embeddings(shared) == before


def test_stages_are_trained_by_the_experiments_that_name_them() -> None:
    trees = [yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")) for name in NAMES]
    assert {tree.get("stage", {}).get("experiment") for tree in trees} - {None} == set(STAGES)


@pytest.mark.parametrize("file", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda file: file.stem)
def test_sweeps_over_as_many_runs_as_the_header_says(file: Path) -> None:
    made = jobs(file)
    if file.stem not in STUDIES:
        assert made == [[]], "an experiment with sweep parameters belongs into STUDIES"
        return
    assert promised(file) == len(made) == STUDIES[file.stem]
    assert f"hemlearn train -m experiment={file.stem}" in header(file)
    for job in (made[0], made[-1]):  # first and last values of every key
        config = compose([f"experiment={file.stem}", *job])
        assert config.name == file.stem
    reference = re.search(r"reference=(\S+)", header(file))
    if reference:
        assert read_studies(PROJECT / reference.group(1))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_sweep_presets_hold_as_many_runs_as_they_say(name: str) -> None:
    file = CONF / "sweep" / f"{name}.yaml"
    made = jobs(file)
    assert promised(file) == len(made) == PRESETS[name]


def test_the_grid_of_desai_is_complete_and_its_rates_follow_the_weights() -> None:
    made = [compose(["experiment=desai2017", *job]) for job in jobs(CONF / "experiment" / "desai2017.yaml")]
    cells = {(c.backbone.name, c.backbone.pretrained, c.augmentation.name) for c in made}
    assert cells == {
        (net, weights, steps)
        for net in ("alexnet.tv_in1k", "googlenet.tv_in1k")
        for weights in (True, False)
        for steps in ("none", "desai2017")
    }
    assert {(c.backbone.pretrained, c.optimizer.lr) for c in made} == {(True, 1e-3), (False, 1e-2)}


def test_zhou_leaks_only_where_it_says_so() -> None:
    made = [compose(["experiment=zhou2022", *job]) for job in jobs(CONF / "experiment" / "zhou2022.yaml")]
    assert sorted({c.split.by for c in made}) == ["patient", "slice"]
    assert all(c.split.allow_leak for c in made if c.split.by == "slice")


def test_every_study_has_its_page_and_the_index_names_it() -> None:
    index = (PROJECT / "experiments" / "README.md").read_text(encoding="utf-8")
    folders = sorted(file.parent for file in (PROJECT / "experiments").glob("*/reference.yaml"))
    assert folders
    for folder in folders:
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert f"experiment={folder.name}" in text
        assert f"({folder.name}/README.md)" in index
        read_studies(folder / "reference.yaml")


def test_six_classes_of_ct_ich_are_those_of_single_subtypes(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEMLEARN_CACHE", str(shared / "cache"))
    root, out = phantom(shared, "ct_ich"), tmp_path / "six"
    made = write(root, out)
    truth = pd.read_csv(root / "hemorrhage_diagnosis.csv", encoding="utf-8-sig")
    there = [
        (root / f"Patients_CT/{patient:03d}/brain/{number}.jpg").is_file()
        for patient, number in zip(truth["PatientNumber"], truth["SliceNumber"], strict=True)
    ]
    truth = truth[there]  # the set has rows without a picture, as the real one
    subtypes = ["Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural"]
    number = truth[subtypes].sum(axis=1)
    assert (made["class"] == "normal").sum() == (number == 0).sum() > 0
    for name in subtypes:
        assert (made["class"] == name.lower()).sum() == ((number == 1) & (truth[name] == 1)).sum()
    assert all((out / name).is_symlink() and (out / name).resolve().is_file() for name in made["path"])
    read = pd.read_csv(out / "labels.csv", dtype=str)
    assert read.equals(made.astype(str).reset_index(drop=True))
    with pytest.raises(ConfigError, match="is there already"):
        write(root, out)
    inside = PROJECT / "experiments" / "zhou2022" / "six"
    with pytest.raises(ConfigError, match="inside the repository"):
        write(root, inside)
    assert not inside.exists()


def test_slices_without_one_class_are_left_out_and_counted() -> None:
    columns = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
    rows = [
        [1, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 0, 0],
        [None, 0, 0, 0, 0, 0],
    ]
    word, left = one_class(pd.DataFrame(rows, columns=columns, dtype=float))
    assert word.tolist() == ["epidural", "normal", "", "", "", ""]
    assert sorted(left.values()) == [1, 1, 2]
