"""`hemlearn export`: the file agrees with the run, takes any size, and says what it is; impossible wishes say why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from torch import nn

from hemlearn.__main__ import main
from hemlearn.commands.apply import export
from hemlearn.config.compose import compose
from hemlearn.config.schema import to_dict
from hemlearn.data.preprocess import resize_square
from hemlearn.data.readers import AIR, reader_for
from hemlearn.evaluation.calibration import Calibration, LabelMap
from hemlearn.reading.export.model import SeriesModel, SliceModel, SquareResize, exportable, probability_map
from hemlearn.reading.export.run import module_caller, open_model, write_model
from hemlearn.reports.model_card import card_markdown
from hemlearn.training.build import build_task
from hemlearn.training.run import Run
from hemlearn.util.errors import ConfigError, DataError, HemlearnError, RunError
from tests.conftest import seal
from tests.data.readers.files import ct, slice_hu, write

TINY = ["backbone.name=test_efficientnet", "backbone.pretrained=false", "data.image_size=32", "augmentation=none"]
TRAIN = [
    *TINY,
    "data.batch_size=16",
    "trainer.max_epochs=1",
    "logger=none",
    "optimizer.schedule.warmup_epochs=0",
    "split.val_fraction=0.3",
    "split.test_fraction=0.3",
    "split.duplicates=none",
    "task.labels=[bleed,other]",
    "task.kind=multilabel",
    "data=table",
]


def write_heads(root: Path) -> Path:
    """DICOM series of 12 patients, 3 to 6 slices of patient-wise size; returns the CSV."""
    rows = []
    for patient in range(12):
        side = 40 + 3 * patient
        for index in range(3 + patient % 4):
            stored = slice_hu(100 * patient + index, side)[: side - patient % 3 * 4] + 1024
            data = ct(
                stored.astype(np.int16),
                PatientID=f"p{patient}",
                SeriesInstanceUID=f"1.2.{patient}",
                StudyInstanceUID=f"1.3.{patient}",
                InstanceNumber=index + 1,
                ImagePositionPatient=[0, 0, 5.0 * index],
            )
            write(root / f"{patient}-{index}.dcm", data)
            rows.append(
                {
                    "path": f"{patient}-{index}.dcm",
                    "patient_id": f"p{patient}",
                    "bleed": patient % 2,
                    "other": (patient // 2 + index) % 2,
                }
            )
    pd.DataFrame(rows).to_csv(root / "heads.csv", index=False)
    return root / "heads.csv"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A slice run (neighbours, head cut out, flips, calibrated) and a sequence run on cached embeddings."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data").mkdir()
    table = f"data.manifest={write_heads(folder / 'data')}"
    wanted = {
        "slice": [
            "channels=adjacent_windows",
            "data.fit=head",
            "task.tta=[horizontal,vertical]",
            "task.calibration=platt",
        ],
        "series": [
            "sequence=lstm",
            "sequence.hidden=4",
            "sequence.position=true",
            "sequence.smoothing=1",
            "freeze=head",
            "features=pca",
            "features.k=3",
            "task.tta=[horizontal]",
            "seed=3",
        ],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMLEARN_CACHE", str(folder / "cache"))
        for name, keys in wanted.items():
            assert main(["train", table, *TRAIN, f"output_dir={folder}", f"name={name}", *keys]) == 0
        yield {name: next((folder / name).glob("*")) for name in wanted}


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the user who has made the runs."""
    if "runs" in request.fixturenames:
        monkeypatch.setenv("HEMLEARN_CACHE", str(request.getfixturevalue("runs")["slice"].parents[1] / "cache"))


@pytest.fixture(autouse=True)
def short_speed_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hemlearn.reading.export.parity._SECONDS", 0.05)


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


# --- the parts ---
@pytest.mark.parametrize("fit", ["letterbox", "squash", "crop"])
@pytest.mark.parametrize("unit", ["HU", "display", "signal"])
def test_resizing_gives_the_numbers_of_the_slice_store(fit: str, unit: str) -> None:
    rng = np.random.default_rng(0)
    for height, width, size in (
        (512, 512, 192),
        (650, 650, 224),
        (35, 200, 64),
        (200, 35, 64),
        (97, 130, 128),
        (48, 48, 96),
        (64, 64, 64),
        (8, 8, 33),
        (300, 30, 33),
    ):
        low, high, kind = (0, 256, np.uint8) if unit == "display" else (-1024, 3000, np.int16)
        pixels = rng.integers(low, high, (height, width)).astype(kind)
        got = SquareResize(size, fit, unit)(torch.from_numpy(pixels).float()[None, None])[0, 0]
        np.testing.assert_array_equal(got.numpy(), resize_square(pixels, size, fit, AIR[unit]))


def test_values_beyond_the_store_are_limited_as_there() -> None:
    image = torch.tensor([[-4e4, 10.5], [11.5, 4e4]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    corners = SquareResize(16, "squash", "HU")(image)[::15, ::15]
    assert corners.tolist() == [[-32768, 10], [12, 32767]]


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_calibration_gives_what_the_run_applies(kind: str) -> None:
    steps = ((0.05, 0.0), (0.2, 0.1), (0.2 + 1e-9, 0.4), (0.9, 0.7))
    maps = {
        "a": LabelMap(1.3, -0.4, 0.2),
        "b": LabelMap(0.8, 0.1, -0.3, steps, 0.6),
        "c": LabelMap(),
        "d": LabelMap(0.9, 0.0, 0.0, ((0.3, 0.5),), 0.4),
    }
    if kind == "multiclass":
        maps = {label: LabelMap(1.7) for label in maps}
    calibration = Calibration("temperature" if kind == "multiclass" else "isotonic", kind, tuple(maps), {"slice": maps})
    prob = np.random.default_rng(0).random((200, 4)).astype(np.float32)
    prob[:4] = [[0, 0, 0, 1], [1, 1, 1, 0], [0.2, 0.2, 0.2, 0.4], [1e-9, 1e-9, 1e-9, 1]]
    if kind == "multiclass":
        prob /= prob.sum(1, keepdims=True)
    frame = pd.DataFrame({f"prob_{label}": prob[:, j].astype(float) for j, label in enumerate(maps)})
    wanted = calibration.apply(frame).to_numpy()
    got = probability_map(calibration, "slice")(torch.from_numpy(prob)).numpy()
    np.testing.assert_allclose(got, wanted, atol=2e-7)
    assert np.abs(wanted - prob).max() > 0.05


# --- whole runs ---
@pytest.mark.parametrize(("form", "dtype"), [("onnx", "int16"), ("torch", "float32")])
def test_a_slice_run_agrees_with_its_predictions(
    runs: dict[str, Path], tmp_path: Path, form: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / ("slice.onnx" if form == "onnx" else "slice.pt2")
    assert export([f"run={runs['slice']}", f"out={out}", f"format={form}", f"dtype={dtype}"]) == 0
    told, about = capsys.readouterr().out, read(out.with_name(out.name + ".json"))
    frame = pd.read_parquet(runs["slice"] / "predictions.parquet")
    parity = about["parity"]
    assert parity["slices"] == (frame["split"] == "test").sum()
    assert parity["largest_difference"] < 1e-5
    assert parity["to_predictions_file"] < 1e-5
    assert parity["left_out"] == {}
    rates = parity["speed"]["images_per_second"]
    assert len(rates) == 2
    assert all(rate > 0 for rate in rates.values())
    assert "images per second" in told
    assert f"wrote {out}" in told
    assert b"site-packages" not in out.read_bytes()  # the home folder that packages may lie in
    assert about["inputs"]["image"]["shape"] == ["batch", 3, "height", "width"]
    assert any("cut the square around the head" in step for step in about["caller"])
    assert any("platt" in step for step in about["inside"])
    # Images of any size and batches of any size go in.
    call = open_model(out, form, 1)
    for shape in ((1, 3, 20, 31), (7, 3, 64, 64)):
        image = np.random.default_rng(1).integers(-200, 300, shape).astype(dtype)
        whole = call({"image": image})["probability"]
        assert whole.shape == (shape[0], 2)
        np.testing.assert_allclose(call({"image": image[:1]})["probability"], whole[:1], atol=1e-6)


def test_a_sequence_run_takes_a_series_of_any_length(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "series.onnx"
    assert export([f"run={runs['series']}", f"out={out}", "check=10"]) == 0
    about = read(tmp_path / "series.onnx.json")
    assert about["parity"]["slices"] >= 10
    assert about["parity"]["to_predictions_file"] < 1e-5
    stored = onnx.load(out)
    onnx.checker.check_model(stored)
    inside = {item.key: item.value for item in stored.metadata_props}
    assert json.loads(inside["hemlearn"])["labels"] == ["bleed", "other"]
    # One series by hand, read from its files, against predictions.parquet.
    frame = pd.read_parquet(runs["series"] / "predictions.parquet")
    frame = frame[frame["split"] == "test"]
    own = frame[frame["series_id"] == frame["series_id"].iloc[0]].sort_values("z_mm")
    files = [runs["series"].parent.parent / "data" / name for name in own["slice_id"]]
    image = np.stack([reader_for(file).decode(file, 0, "CT") for file in files])[:, None].astype(np.float32)
    session = onnxruntime.InferenceSession(str(out))
    z_mm = own["z_mm"].to_numpy(np.float32)
    slices, series = session.run(["slice_probability", "series_probability"], {"image": image, "z_mm": z_mm})
    np.testing.assert_allclose(slices, own[["prob_bleed", "prob_other"]], atol=1e-5)
    np.testing.assert_allclose(series, own[["series_prob_bleed", "series_prob_other"]].iloc[0], atol=1e-5)
    for count in (1, 2, 23):
        given = {"image": np.zeros((count, 1, 50, 40), np.float32), "z_mm": np.full(count, np.nan, np.float32)}
        slices, series = session.run(None, given)
        assert (slices.shape, series.shape) == ((count, 2), (2,))
        assert np.isfinite(slices).all()


def tiny(*overrides: str, unit: str = "HU") -> SliceModel | SeriesModel:
    """An untrained model of a composed configuration."""
    torch.manual_seed(0)
    config = compose([*TINY, *overrides])
    n = len(config.task.labels)
    if config.sequence.name == "none":
        return exportable(config, build_task(config, unit=unit, positives=[5.0] * n, negatives=[9.0] * n).eval(), None)
    counts = [[5.0] * n, [9.0] * n]
    task = build_task(config, unit=unit, positives=counts, negatives=counts, slice_head=[])
    task.features.pass_through()
    return exportable(config, task.eval(), None)


@pytest.mark.parametrize(
    ("overrides", "unit", "form"),
    [
        (
            [
                "sequence=gru",
                "sequence.differences=true",
                "sequence.reverse_tta=true",
                "sequence.probabilities=both",
                "stage.experiment=rsna_slices",
            ],
            "HU",
            "torch",
        ),
        (["channels=mr", "data.fit=crop", "task=six_class", "loss=cross_entropy"], "signal", "onnx"),
        (
            [
                "sequence=transformer",
                "sequence.name=attention+transformer+smooth_attention+clam",
                "sequence.heads=1",
                "sequence.hidden=4",
                "task.level=series",
            ],
            "HU",
            "onnx",
        ),
    ],
)
def test_other_models_in_the_other_formats(overrides: list[str], unit: str, form: str, tmp_path: Path) -> None:
    model = tiny(*overrides, unit=unit)
    about = {"outputs": dict.fromkeys(model.outputs)}
    write_model(model, form, tmp_path / "model", "float32", about)
    call, ours = open_model(tmp_path / "model", form, 1), module_caller(model)
    for count, height, width in ((1, 40, 33), (6, 70, 90)):
        image = np.random.default_rng(count).integers(0, 500, (count, 1, height, width)).astype(np.float32)
        z_mm = np.where(np.arange(count) == 2, np.nan, 4.5 * np.arange(count)).astype(np.float32)  # one is unknown
        given = {"image": image, "z_mm": z_mm}
        given = {name: given[name] for name in model.inputs}
        found, wanted = call(given), ours(given)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)
    if "z_mm" in model.inputs:  # it reaches the network and is no leftover of the signature
        moved = call(given | {"z_mm": 3 * z_mm})
        assert np.abs(moved["series_probability"] - found["series_probability"]).max() > 1e-7
    if "task.level=series" in overrides:
        np.testing.assert_array_equal(wanted["slice_probability"], np.tile(wanted["series_probability"], (6, 1)))


# --- what cannot be done ---
class Stubborn(nn.Module):
    """A layer that ONNX does not know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.kthvalue(x, 2)[0][..., None]


def test_a_model_of_ones_own_that_takes_positions_is_given_them() -> None:
    assert tiny("sequence=smoothed", "stage.experiment=rsna_slices").inputs == ("image", "z_mm")
    assert tiny("sequence=gru").inputs == ("image",)


def test_a_network_whose_shape_follows_the_series_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sequence\.name=transmil: not exported"):
        tiny("sequence=transmil", "sequence.hidden=8")


def test_a_layer_that_cannot_be_exported_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    model.task.backbone.model = nn.Sequential(Stubborn(), model.task.backbone.model)
    with pytest.raises(RunError, match=r"operator aten\.kthvalue cannot be exported .*test_efficientnet"):
        write_model(model, "onnx", tmp_path / "model.onnx", "float32", {})
    assert "call_function" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "wanted"),
    [
        (["format=tflite"], ConfigError, "format=tflite"),
        (["format=onxx"], ConfigError, "did you mean 'onnx'"),
        (["dtype=float16"], ConfigError, "dtype=float16"),
        (["check=many"], ConfigError, "check=many"),
        (["calibrated=yes"], ConfigError, "calibrated=yes"),
        (["chekc=3"], ConfigError, "did you mean 'check'"),
        (["data.root=nowhere"], DataError, "nowhere"),
    ],
)
def test_wrong_wishes(
    runs: dict[str, Path], tmp_path: Path, arguments: list[str], error: type[HemlearnError], wanted: str
) -> None:
    with pytest.raises(error, match=wanted.replace(".", r"\.")):
        export([f"run={runs['slice']}", f"out={tmp_path / 'x.onnx'}", *arguments])
    assert list(tmp_path.iterdir()) == []


def test_files_are_not_replaced_unasked(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "m.pt2.md").write_text("mine")
    wish = [f"run={runs['slice']}", f"out={tmp_path / 'm.pt2'}", "format=torch", "check=0", "calibrated=false"]
    with pytest.raises(ConfigError, match=r"m\.pt2\.md: there already"):
        export(wish)
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2.md"]
    assert export([*wish, "overwrite=true"]) == 0
    about = read(tmp_path / "m.pt2.json")
    assert about["parity"] == {"slices": 0, "note": "check=0: not compared with the run"}
    assert about["inside"][-1] == "calibration: none"
    assert about["thresholds"] == {}  # the run's own belong to calibrated probabilities
    assert not any("thresholds" in step for step in about["caller"])
    assert "not compared with the run" in (tmp_path / "m.pt2.md").read_text()
    with pytest.raises(ConfigError, match="a folder"):
        export([f"run={runs['slice']}", f"out={tmp_path}"])


def test_a_model_that_differs_from_its_run_is_not_kept(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = write_model

    def wrong(model: SliceModel, *arguments: Any) -> None:
        with torch.no_grad():
            model.task.backbone.mean.add_(0.3)
        right(model, *arguments)
        model.task.backbone.mean.sub_(0.3)

    monkeypatch.setattr("hemlearn.reading.export.run.write_model", wrong)
    with pytest.raises(RunError, match="differs from the run by"):
        export([f"run={runs['slice']}", f"out={tmp_path / 'm.pt2'}", "format=torch", "check=3"])
    assert list(tmp_path.iterdir()) == []


def test_incomplete_and_uncalibrated_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no calibration"):
        export([f"run={runs['series']}", f"out={tmp_path / 'm.onnx'}", "calibrated=true"])
    with pytest.raises(RunError, match="no run folder"):
        export([f"run={tmp_path}", f"out={tmp_path / 'm.onnx'}"])
    with pytest.raises(ConfigError, match="out is not set"):
        export([f"run={runs['series']}"])


# --- the model card ---
def test_the_card_says_what_the_folder_holds(runs: dict[str, Path]) -> None:
    card = Run(runs["slice"]).card()
    text = card_markdown(card)
    metrics = read(runs["slice"] / "metrics.json")
    area = metrics["test"]["slice"]["labels"]["bleed"]["auroc"]
    assert f"{area['value']:.3f}" in text
    assert "Research use only" in text
    assert card["split"]["patients"] == {
        part: int(n) for part, n in pd.read_csv(runs["slice"] / "split.csv")["split"].value_counts().items()
    }
    assert card["calibration"]["method"] == "platt"
    assert f"Only {card['split']['patients']['test']} patients were tested." in card["limits"]
    assert "random weights" in card["model"]["licence_of_weights"]
    assert str(runs["slice"].parent.parent) not in json.dumps(card) + text  # no local path is handed on


def test_the_card_names_what_is_missing_and_invents_nothing(tmp_path: Path) -> None:
    config = to_dict(compose([*TINY, "task.labels=['<img src=x>']", "task.calibration=platt", "split.allow_leak=true"]))
    config["backbone"]["pretrained"] = True
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    entry = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 9, "method": "delong"}
    scores = {"auroc": entry, "sensitivity": {"value": None, "low": None, "high": None, "n": 0, "method": None}}
    null = {"test": {"slice": {"auroc": entry | {"value": 0.65}, "labels": {}}}}
    content = {
        "test": {"slice": {**scores, "labels": {"<img src=x>": scores}}},
        "leaky": True,
        "audits": {
            "border": null,
            "verdict": ["read beside the border"],
            "duplicates": {"exact": 1, "pairs": [["secret", "id"]]},
        },
    }
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    (tmp_path / "provenance.json").write_text("{}")
    seal(tmp_path)
    card = Run(tmp_path).card()
    text = card_markdown(card)
    for part in ("split.csv", "status.json", "thresholds", "licence", "calibration maps", "weights"):
        assert any(part in line for line in card["missing"]), part
    assert card["split"]["leaky"] is True
    joined = " ".join(card["limits"])
    for part in (
        "one patient stand on two sides",
        "Undefined on the test set: sensitivity",
        "image border",
        "read beside the border",
    ):
        assert part in joined
    assert "<img" not in text
    assert "secret" not in json.dumps(card)
    assert "undefined" in text
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(RunError, match=r"metrics\.json"):
        Run(tmp_path).card()
