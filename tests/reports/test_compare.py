from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from hemlearn.commands.runs import compare as main
from hemlearn.compare.comparison import compare
from hemlearn.compare.files import FILES
from hemlearn.evaluation.auroc import auroc_interval, wilson
from hemlearn.evaluation.metrics import evaluate
from hemlearn.util.errors import ConfigError, RunError
from tests.conftest import seal
from tests.evaluation.written_out import weighted_log_loss

from .conftest import configuration, kfold_run, predictions, write_run


def test_four_cells_pool_their_folds(four_cells):
    result = compare([four_cells])
    table = result.table
    assert table[["augmentation.name", "backbone.pretrained"]].to_numpy().tolist() == [
        ["flips", "true"],
        ["flips", "false"],
        ["none", "true"],
        ["none", "false"],
    ]
    assert (table["runs"] == 5).all()
    assert (table["n"] == 100).all()
    # By hand, from the files: each run's own threshold, all folds together.
    y, p, right = [], [], 0
    for fold in range(5):
        folder = four_cells / (f"0{fold}" * 6)  # pretrained, no augmentation
        rows = pd.read_parquet(folder / "predictions.parquet").query("split == 'test'")
        t = json.loads((folder / "metrics.json").read_text())["thresholds"]["slice"]["hemorrhage"]["value"]
        y += rows["label_hemorrhage"].tolist()
        p += rows["prob_hemorrhage"].tolist()
        right += int(((rows["prob_hemorrhage"] >= t) == (rows["label_hemorrhage"] == 1)).sum())
    row = table.iloc[2]
    assert row["accuracy"] == pytest.approx(right / 100)
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(wilson(right, 100))
    assert row["auroc"] == pytest.approx(roc_auc_score(y, p))
    assert row["auroc_low"] == pytest.approx(auroc_interval(y, p).low)
    assert row["positives"] == sum(y)
    assert any("AUROC over folds" in note for note in result.notes)
    # Beside the pooled AUROC the mean within folds, where scores of one model are compared.
    within = [roc_auc_score(y[fold * 20 : fold * 20 + 20], p[fold * 20 : fold * 20 + 20]) for fold in range(5)]
    assert f"{np.mean(within):.3f} ± {np.std(within, ddof=1):.3f}" in result.text()
    assert "AUROC by run" in result.text()
    assert "accuracy % by run" not in result.text()


def test_a_single_run_keeps_the_figures_of_its_metrics_file(tmp_path):
    folder = kfold_run(tmp_path, "a", 0, slices=4)
    frame = pd.read_parquet(folder / "predictions.parquet")
    expected = evaluate(frame, configuration().task)["test"]
    table = compare([tmp_path]).table.set_index("level")
    assert list(table.index) == ["slice", "series", "patient"]
    for level in ("slice", "series", "patient"):
        for metric in ("accuracy", "auroc", "sensitivity", "specificity"):
            for part, column in (("value", metric), ("low", f"{metric}_low"), ("high", f"{metric}_high")):
                assert table.loc[level, column] == pytest.approx(expected[level][metric][part]), (level, column)
    assert table.loc["slice", "auroc_interval"] == "obuchowski"
    assert table.loc["patient", "auroc_interval"] == "newcombe"  # the patients separate
    assert table.loc["slice", "patients"] == 20


def test_seeds_are_averaged_and_said_so(tmp_path):
    frames = []
    for seed in range(3):
        config = configuration(seed=seed)
        test = predictions(config, range(80), noise=3)
        frames.append(test)
        val = predictions(config, range(80, 120), noise=3, seed=1, split="val")
        write_run(tmp_path, f"s{seed}", config, pd.concat([val, test]))
    result = compare([tmp_path])
    row = result.table.iloc[0]
    mean = np.mean([f["prob_hemorrhage"] for f in frames], axis=0)
    singles = [roc_auc_score(f["label_hemorrhage"], f["prob_hemorrhage"]) for f in frames]
    assert row["n"] == 80
    assert row["predictions_per_case"] == 3
    assert row["auroc"] == pytest.approx(roc_auc_score(frames[0]["label_hemorrhage"], mean))
    assert row["auroc_run_mean"] == pytest.approx(np.mean(singles))
    assert row["auroc_run_sd"] == pytest.approx(np.std(singles, ddof=1))
    assert row["auroc"] > row["auroc_run_mean"]  # the ensemble, and why the mean stands beside it
    assert any("averaged" in note for note in result.notes)
    assert "AUROC by run" in result.text()
    separate = compare([tmp_path], pool=["split.fold"])
    assert separate.table["seed"].tolist() == ["0", "1", "2"]
    assert separate.table["auroc"].tolist() == pytest.approx(singles)


def test_monte_carlo_repetitions_overlap(tmp_path):
    for fold in range(4):
        config = configuration(split__name="monte_carlo", split__fold=fold)
        patients = np.random.default_rng(fold).permutation(60)[:20]
        write_run(tmp_path, f"m{fold}", config, predictions(config, patients))
    result = compare([tmp_path])
    row = result.table.iloc[0]
    assert 20 < row["n"] < 60
    assert 2 <= row["predictions_per_case"] <= 4
    assert row["runs"] == 4
    assert row["accuracy_run_sd"] >= 0


def test_missing_folds_other_patients_and_leaks_are_noted(tmp_path):
    for fold in (0, 1, 3):
        kfold_run(tmp_path, f"a{fold}", fold)
    for fold in range(5):
        kfold_run(tmp_path, f"b{fold}", fold, backbone__pretrained=False)
    config = configuration(split__name="kfold", split__by="slice", split__allow_leak=True)
    write_run(tmp_path, "leaky", config, predictions(config, range(100)), provenance={"data": {"synthetic": True}})
    notes = "\n".join(compare([tmp_path]).notes)
    assert "no result of fold 2, 4 of 5" in notes
    assert "tested on different patients" in notes
    assert "LEAKY" in notes
    assert "SYNTHETIC" in notes


def test_labels_that_contradict_each_other_are_refused(tmp_path):
    for seed in range(2):
        config = configuration(seed=seed)
        frame = predictions(config, range(40))
        frame.loc[7, "label_hemorrhage"] = float(seed)
        write_run(tmp_path, f"s{seed}", config, frame)
    with pytest.raises(RunError, match="'p007-0' has different labels"):
        compare([tmp_path])


def test_unreadable_runs_are_skipped_and_counted(tmp_path):
    for fold in range(5):
        kfold_run(tmp_path, f"a{fold}", fold)
    (tmp_path / "a1" / "predictions.parquet").write_bytes(b"torn")
    frame = pd.read_parquet(tmp_path / "a2" / "predictions.parquet")
    frame.loc[3, "prob_hemorrhage"] = 1.5
    frame.to_parquet(tmp_path / "a2" / "predictions.parquet")
    seal(tmp_path / "a2")  # as a stranger could
    (tmp_path / "a3" / "metrics.json").write_text("{}")
    result = compare([tmp_path], tmp_path / "out")
    assert (result.runs, len(result.skipped), result.table["n"].iloc[0]) == (2, 3, 40)
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "## Skipped (3)" in markdown
    assert "prob_hemorrhage=1.5" in markdown
    for fold in (0, 4):
        (tmp_path / f"a{fold}" / "predictions.parquet").write_bytes(b"torn")
    with pytest.raises(RunError, match="no run could be read"):
        compare([tmp_path])


def test_several_labels_have_rows_of_their_own(tmp_path):
    labels = ["any", "subdural", "epidural"]
    for fold in range(5):
        kfold_run(tmp_path, f"a{fold}", fold, task__kind="multilabel", task__labels=labels)
    result = compare([tmp_path], tmp_path / "out")
    table = result.table.set_index("label")
    assert list(table.index) == ["", *labels]
    assert table.loc["", "auroc"] == pytest.approx(table.loc[labels, "auroc"].mean())
    assert table.loc["", "auroc_low"] < table.loc["", "auroc"] < table.loc["", "auroc_high"]
    assert len(result.text().splitlines()) == 4  # title, header, rule, one row
    assert len(pd.read_csv(tmp_path / "out" / "compare.csv")) == 4


def test_a_class_without_a_case_is_undefined_not_zero(tmp_path):
    config = configuration(task__threshold=0.5)
    frame = predictions(config, range(30))
    frame["label_hemorrhage"] = 0.0
    write_run(tmp_path, "a", config, frame)
    result = compare([tmp_path], tmp_path / "out")
    assert np.isnan(result.table["auroc"].iloc[0])
    assert result.text().count("undefined") == 2  # AUROC and sensitivity
    assert any("a class is absent" in note for note in result.notes)


LABELS = ["subdural", "any"]


def volume_run(root, run_hash, fold, model, slices=6, null=True, **changes):
    """A run of two labels on series of several slices, with the null that all such runs share."""
    config = configuration(
        split__name="kfold",
        split__fold=fold,
        sequence__name=model,
        task__kind="multilabel",
        task__labels=LABELS,
        task__label_weights=[1.0, 2.0],
        **changes,
    )
    numbers = np.arange(60)
    noise = {"none": 4.0, "slice": 3.0, "lstm": 1.0}[model]
    parts = [
        predictions(config, numbers[numbers % 5 == (fold + k) % 5], slices, noise, k, split)
        for k, split in enumerate(("test", "val"))
    ]
    frame = pd.concat(parts, ignore_index=True)
    if null:
        place = frame["slice_id"].str.rpartition("-")[2].astype(float)
        for label in LABELS:
            frame[f"position_prob_{label}"] = 0.3 + 0.4 * place / slices
    return write_run(root, run_hash, config, frame)


def test_slice_runs_and_sequence_models_in_one_table(tmp_path):
    slow = {"freeze__name": "last_groups", "freeze__trainable": 2, "optimizer__lr": 1e-4}
    for fold in range(5):
        volume_run(tmp_path / "slices", f"a{fold}", fold, "none", **slow)
        stage = str(tmp_path / "slices" / f"a{fold}")  # each fold builds on the slice run of its own fold
        for model in ("slice", "lstm"):
            folder = volume_run(
                tmp_path / "volume", f"{model}{fold}", fold, model, stage__experiment="slices", backbone__weights=stage
            )
            sums = {"manifest": "m", "weights": f"{fold}abc"}
            (folder / "provenance.json").write_text(json.dumps({"checksums": sums, "weights": f"run {stage}"}))
            seal(folder)
    result = compare([tmp_path], tmp_path / "out")
    assert result.keys == ["sequence.name"]
    assert (result.groups, result.runs) == (3, 15)
    overall = result.table[(result.table["label"] == "") & (result.table["source"] == "runs")]
    assert overall["level"].tolist() == ["slice", "series", "patient"] * 3
    rows = overall.set_index(["sequence.name", "level"])
    assert rows["n"].tolist() == [360, 60, 60] * 3
    order = [rows.loc[(model, "slice"), "weighted_log_loss"] for model in ("lstm", "slice", "none")]
    assert order == sorted(order)
    row = rows.loc[("lstm", "slice")]
    assert row["weighted_log_loss_low"] < row["weighted_log_loss"] < row["weighted_log_loss_high"]
    # These runs hold no map that makes a mean over slices the probability of a patient.
    assert rows.loc[("lstm", "patient"), ["weighted_log_loss", "brier", "ece", "log_loss"]].isna().all()
    assert any(note.startswith("scores, which rank cases and are no probabilities") for note in result.notes)
    frames = [
        pd.read_parquet(tmp_path / "volume" / f"lstm{k}" / "predictions.parquet").query("split == 'test'")
        for k in range(5)
    ]
    frame = pd.concat(frames)
    y, p = frame[[f"label_{c}" for c in LABELS]], frame[[f"prob_{c}" for c in LABELS]]
    assert rows.loc[("lstm", "slice"), "weighted_log_loss"] == pytest.approx(weighted_log_loss(y, p, [1.0, 2.0]))
    # The null stands below, once, and says nothing that would need a threshold.
    blind = result.table[(result.table["source"] == "position only") & (result.table["label"] == "")]
    assert blind["level"].tolist() == ["slice", "series", "patient"]
    assert blind["accuracy"].isna().all()
    area = roc_auc_score(frame["label_any"], frame["position_prob_any"])
    by_label = result.table[(result.table["source"] == "position only") & (result.table["level"] == "slice")]
    assert by_label.set_index("label").loc["any", "auroc"] == pytest.approx(area)
    text = result.text()
    assert rows.loc[("lstm", "slice"), "auroc_any"] == pytest.approx(
        roc_auc_score(frame["label_any"], frame["prob_any"])
    )
    for title in ("AUROC any", "mean AUROC", "weighted log loss"):
        assert title in text.splitlines()[1]
    assert text.count("series = patient") == 4
    assert text.count("position only") == 2
    notes = "\n".join(result.notes)
    assert "sees no pixel" in notes
    assert "also differ in optimizer.lr, freeze.name" in notes or "also differ in freeze.name, optimizer.lr" in notes
    assert "position only" in (tmp_path / "out" / "compare.md").read_text()


def test_a_single_group_names_its_null(tmp_path):
    for fold in range(5):
        volume_run(tmp_path, f"a{fold}", fold, "lstm")
    header, lines = compare([tmp_path]).sheets()[0][1:3]
    assert header[0] == "group"
    assert [line[0] for line in lines] == ["all runs"] * 2 + ["position only"] * 2
    volume_run(tmp_path, "b", 0, "lstm", null=False, seed=1)  # one run without: no null is made up
    assert "position only" not in compare([tmp_path]).text()


def test_series_labels_have_no_slice_rows(tmp_path):
    for fold in range(5):
        kfold_run(tmp_path, f"a{fold}", fold, slices=4, task__level="series")
    result = compare([tmp_path])
    assert result.table["level"].tolist() == ["series", "patient"]
    assert result.sheets()[0].lines[0][:2] == ["all runs", "5"]  # one row, as series and patients are the same
    with pytest.raises(RunError, match="no threshold of level slice"):
        compare([tmp_path], level="slice")


def test_output_does_not_depend_on_place_or_order(four_cells, tmp_path):
    def outputs(folders, out):
        compare(folders, out)
        return {name: (out / name).read_bytes() for name in FILES}

    first = outputs([four_cells], tmp_path / "one")
    assert outputs([four_cells], tmp_path / "two") == first
    moved = tmp_path / "moved"
    for i, folder in enumerate(sorted(four_cells.iterdir(), reverse=True)):
        shutil.copytree(folder, moved / str(i % 3) / f"x{i:02}")
    assert outputs([moved / "2", moved / "0", moved / "1"], tmp_path / "three") == first


def test_command_writes_beside_the_runs(four_cells, tmp_path, capsys):
    four_cells = shutil.copytree(four_cells, tmp_path / "sweep")
    assert main([str(four_cells)]) == 0
    out = capsys.readouterr().out
    folder = four_cells / "compare"
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    assert f"wrote {folder / 'compare.csv'}" in out
    header = out.splitlines()[1]
    assert header.split("  ")[0].strip() == "augmentation"
    assert max(map(len, out.splitlines()[:7])) > 80  # not wrapped to a terminal that is not there
    with Image.open(folder / "roc.png") as image:
        assert min(image.size) > 500
    assert main([str(four_cells), f"out={four_cells.parent / 'elsewhere'}", "level=patient"]) == 0
    assert (four_cells.parent / "elsewhere" / "compare.csv").exists()


def test_command_refuses_wrong_calls(four_cells, tmp_path):
    cases = [
        ([], "no folder"),
        ([str(four_cells), "ouf=x"], "did you mean 'out'"),
        ([str(four_cells), "level=scan"], "level=scan"),
        ([str(four_cells), "pool=split.fald"], "did you mean 'split.fold'"),
    ]
    for argv, message in cases:
        with pytest.raises(ConfigError, match=message):
            main(argv)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        main([str(four_cells), f"out={blocked / 'x'}"])


def test_terminal_table_and_long_tables(four_cells):
    result = compare([four_cells], pool=[])
    assert result.groups == 20
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in result.rich_tables(console):
        console.print(table)
    text = console.export_text()
    assert "augmentation" in text
    assert "split.fold" in text
    narrow = Console(width=80, record=True, file=io.StringIO())
    for table in result.rich_tables(narrow):
        narrow.print(table)
    text = narrow.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert f"A: {result.order[0]}" in " ".join(text.split())  # letters in the table, names below it
    assert "AUROC" in text
    result.table = pd.concat([result.table] * 3, ignore_index=True)
    assert "the 50 rows of highest AUROC; 60 are in compare.csv" in result.text()


def test_help_is_fast_and_light():
    code = (
        "import sys; from hemlearn.commands.runs import compare; compare(['--help'])\n"
        "heavy = {'torch', 'pandas', 'numpy', 'matplotlib', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


def test_many_runs_are_read_quickly(tmp_path):
    source = kfold_run(tmp_path / "source", "a", 0, patients=200)
    text = (source / "config.yaml").read_text()
    for i in range(150):
        folder = tmp_path / "many" / f"r{i}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(text.replace("lr: 0.0005", f"lr: {(i + 1) / 1e4}"))
        (folder / "status.json").write_text(json.dumps({"state": "complete", "hash": f"h{i:05}"}))
        for name in ("metrics.json", "predictions.parquet"):
            (folder / name).hardlink_to(source / name)
        (folder / "provenance.json").write_text(json.dumps({"checksums": {"manifest": "m"}}))
        seal(folder)
    start = time.process_time()  # other jobs of the machine do not count
    result = compare([tmp_path / "many"])
    seconds = time.process_time() - start
    assert result.groups == 150
    assert seconds < 10  # about 1 s on an idle core: ten thousand take about a minute


def test_it_is_called_from_python(four_cells, tmp_path):
    import hemlearn

    result = hemlearn.compare(four_cells, baseline="pretrained=false,augmentation=none", margin=0.05)
    assert len(result.table) == result.groups == 4
    assert set(result.tests["kind"]) == {"paired", "resampled", "non-inferiority", "effect"}
    assert sorted(path.name for path in result.write(tmp_path)) == sorted(FILES)
    with pytest.raises(ConfigError, match="margin=2"):
        hemlearn.compare([four_cells], margin=2)
