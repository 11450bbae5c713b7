"""Audits of a data set: made-up pictures with a shortcut, copies on two sides, and the real Head-CT."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hemlearn.audits.audit import audit_manifest
from hemlearn.commands import take_config_dir
from hemlearn.commands.data import index, prepare
from hemlearn.config.schema import SplitConfig
from hemlearn.data.manifest import Manifest
from hemlearn.datamodules import HeadCTDataModule, ManifestDataModule
from hemlearn.util.errors import ConfigError
from tests.data.heads import build, folder_of_heads, head, save


def audit(manifest: Manifest, **split: Any) -> dict[str, Any]:
    config = SplitConfig(**({"duplicates": "exact"} | split))
    return audit_manifest(ManifestDataModule(manifest, split=config, image_size=64))


@pytest.fixture(scope="module")
def shortcut(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """60 heads; the positive ones are taller and, for half of them, RGB; borders say nothing."""
    root = tmp_path_factory.mktemp("shortcut")
    rows = folder_of_heads(root, 60)
    for item in range(60):
        pixels = head(item, 100 + item % 7 + 15 * (item % 2), 90)
        save(root / f"img/{item:03d}.png", np.stack([pixels] * 3, axis=2) if item % 4 == 1 else pixels)
    return build(root, rows)


def test_a_shortcut_is_measured_and_told(shortcut: Manifest) -> None:
    audits = audit(shortcut)
    size = audits["size"]["cv"]["slice"]["auroc"]
    assert size["value"] > 0.9
    assert size["low"] > 0.8
    assert size["p_adjusted"] == 0.01
    assert audits["size"]["features"] == ["height", "aspect"]  # the width is always the same
    assert set(audits["metadata"]["features"]) == {"height", "aspect", "bytes", "bytes_per_pixel", "encoding"}
    assert audits["metadata"]["cv"]["slice"]["auroc"]["value"] > 0.9
    assert "position" not in audits  # single slices have no place in a series
    assert audits["duplicates"]["straddling"] == 0
    assert audits["split"]["parts"]["test"]["patients"] == 12
    counts = audits["labels"]
    assert sum(counts[part]["bleed"]["positive"] for part in counts) == 30
    (told,) = (text for text in audits["verdict"] if text.startswith("image size"))
    assert "read every result beside it" in told


def test_where_images_count_as_patients_the_keys_stay(shortcut: Manifest) -> None:
    audits = audit(replace(shortcut, patients_known=False))
    split = audits["split"]
    assert split["patients_known"] is False
    assert (split["patients"], split["patients_on_two_sides"]) == (12, 0)
    assert [set(sizes) for sizes in split["parts"].values()] == [{"slices", "patients"}] * 3


def test_copies_that_the_split_does_not_mind_are_found_on_two_sides(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 40)
    for item in range(20, 40):  # every head a second time, under another name
        shutil.copyfile(tmp_path / f"img/{item - 20:03d}.png", tmp_path / f"img/{item:03d}.png")
    manifest = build(tmp_path, rows)
    careless = audit(manifest, duplicates="none")
    assert careless["duplicates"]["straddling"] > 0
    one, other, *sides = careless["duplicates"]["pairs"][0]
    assert (int(other) - int(one)) % 20 == 0
    assert len(set(sides)) == 2
    assert any("on two sides of the split" in text for text in careless["verdict"])
    careful = audit(manifest)
    assert careful["duplicates"]["exact"] == careless["duplicates"]["exact"] == 20
    assert careful["duplicates"]["straddling"] == 0


def test_a_split_that_cannot_be_made_is_told_and_the_baselines_stand(shortcut: Manifest) -> None:
    audits = audit(shortcut, name="kfold", folds=99)
    assert "split.folds=99" in audits["split"]["note"]
    assert audits["duplicates"]["straddling"] is None
    assert audits["size"]["cv"]["slice"]["auroc"]["value"] > 0.9


def test_one_patient_and_no_labels(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 6).assign(patient_id="p")
    audits = audit(build(tmp_path, rows))
    assert "one patient" in audits["note"]
    unlabelled = audit(build(tmp_path, rows, labels=[]))
    assert "size" not in unlabelled
    assert len(unlabelled["verdict"]) == 1


def test_index_prints_the_audits_and_takes_own_groups(
    shortcut: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = shortcut.table[["path", "patient_id", "bleed"]]
    table.to_csv(tmp_path / "heads.csv", index=False)
    (tmp_path / "conf" / "split").mkdir(parents=True)
    (tmp_path / "conf/split/mine.yaml").write_text("name: kfold\nfolds: 3\nfold: 1\nduplicates: exact\n")
    arguments = [
        "data=table",
        f"data.manifest={tmp_path / 'heads.csv'}",
        f"data.root={shortcut.root}",
        "split=mine",
        "task.labels=[bleed]",
        "data.image_size=64",
    ]
    assert index([*arguments, "--config-dir", str(tmp_path / "conf"), f"out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert "split kfold, slices with each label" in out
    assert "AUROC without seeing the brain, per slice (n=60)" in out
    assert "size only" in out
    assert "read every result beside it" in out
    assert {"manifest.parquet", "audits.json", "duplicates.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert prepare([*arguments, f"--config-dir={tmp_path / 'conf'}"]) == 0
    assert "60 slices of 64 x 64" in capsys.readouterr().out


def test_config_dir_flags() -> None:
    assert take_config_dir(["a=1", "--config-dir", "d", "b=2"]) == (["a=1", "b=2"], "d")
    assert take_config_dir(["-cd=d"]) == ([], "d")
    assert take_config_dir(["a=1"]) == (["a=1"], None)
    for wrong in (["--config-dir"], ["--config-dir="], ["--jobs=3"]):
        with pytest.raises(ConfigError):
            take_config_dir(wrong)


def test_head_ct_has_the_known_shortcuts(head_ct_root: Path) -> None:
    """Image size alone about 0.80, with all file facts and by the border alone more."""
    audits = audit_manifest(HeadCTDataModule(head_ct_root, image_size=96))
    size, metadata, border = (audits[name]["cv"]["slice"]["auroc"] for name in ("size", "metadata", "border"))
    assert 0.76 < size["value"] < 0.83
    assert size["low"] > 0.7
    assert 0.8 < metadata["value"] < 0.9
    assert 0.72 < border["value"] < 0.88
    assert audits["duplicates"]["exact"] == 1
    assert audits["duplicates"]["straddling"] == 0
