"""Run folders with values that no run has, made to be taken for good: their checksums fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tests.attack.case import Case, Judge, Outcome, Trained, both, refused
from tests.attack.runs import (
    BEST,
    COMMANDS,
    Damage,
    as_before,
    checkpoint,
    content,
    copied,
    damage,
    first_weight,
    no_canary,
    seal,
    text,
    thresholds,
)

KIND = "runs: sealed"


def deep(file: Path, other: Path) -> None:
    file.write_text('{"thresholds": ' + "[" * 100_000 + "]" * 100_000 + "}")


def laughs(file: Path, other: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    file.write_text("\n".join(lines) + "\n" + file.read_text())


def twice(file: Path, other: Path) -> None:
    """A key twice: a reader sees the first, a parser takes the last."""
    if file.suffix == ".yaml":
        file.write_text(file.read_text() + "seed: 5\n")
    else:
        file.write_text(file.read_text().rstrip().removesuffix("}") + ', "thresholds": {}}')


NAN = float("nan")
ODD: dict[str, tuple[str, Damage, str]] = {
    # config.yaml
    "config.yaml: a billion laughs": ("config.yaml", laughs, "config.yaml"),
    "config.yaml: an alias of itself": (
        "config.yaml", lambda f, o: f.write_text("a: &a [*a]\n" + f.read_text()), "config.yaml"),
    "config.yaml: 1000 levels": (
        "config.yaml", lambda f, o: f.write_text(f"a: {'[' * 1000}{']' * 1000}\n{f.read_text()}"), "config.yaml"),
    "config.yaml: a key twice": ("config.yaml", twice, "config.yaml"),
    "config.yaml: a list": ("config.yaml", lambda f, o: f.write_text("- a\n- b\n"), "config.yaml"),
    "config.yaml: a tag of Python's": (
        "config.yaml", text("seed: 0", "seed: !!python/object/apply:os.mkdir [canary]"), "config.yaml"),
    "config.yaml: image_size 0": ("config.yaml", text("image_size: 64", "image_size: 0"), "image_size"),
    "config.yaml: image_size 10^5": ("config.yaml", text("image_size: 64", "image_size: 100000"), "image_size|memory"),
    "config.yaml: image_size a list": ("config.yaml", text("image_size: 64", "image_size: [64]"), "image_size"),
    "config.yaml: no labels": ("config.yaml", text("  - hemorrhage\n", "  - ''\n"), "labels|config.yaml"),
    "config.yaml: a label too many": (
        "config.yaml", text("  - hemorrhage\n", "  - hemorrhage\n  - more\n"), "best.ckpt|config.yaml|labels"),
    "config.yaml: another network": (
        "config.yaml", text("name: test_efficientnet", "name: test_resnet"), "best.ckpt|config.yaml"),
    "config.yaml: a network at an address": (
        "config.yaml", text("name: test_efficientnet", "name: hf-hub:nobody/nothing"), "nobody|config.yaml"),
    "config.yaml: drop_rate in words": ("config.yaml", text("drop_rate: 0.0", "drop_rate: much"), "drop_rate"),
    "config.yaml: an unknown key": ("config.yaml", text("seed: 0", "seed: 0\nseeed: 0"), "seeed|config.yaml"),
    # best.ckpt
    "best.ckpt: NaN": (BEST, checkpoint(lambda t: first_weight(t, lambda w: w * NAN)), "best.ckpt"),
    "best.ckpt: infinite": (BEST, checkpoint(lambda t: first_weight(t, lambda w: w / 0)), "best.ckpt"),
    "best.ckpt: another shape": (BEST, checkpoint(lambda t: first_weight(t, lambda w: w[:, :, :1])), "best.ckpt"),
    "best.ckpt: complex": (BEST, checkpoint(lambda t: first_weight(t, lambda w: w.to(torch.complex64))), "best.ckpt"),
    "best.ckpt: float8": (
        BEST, checkpoint(lambda t: first_weight(t, lambda w: w.to(torch.float8_e4m3fn))), "conv_stem.*float8"),
    "best.ckpt: float8 of another layout": (
        BEST, checkpoint(lambda t: first_weight(t, lambda w: w.to(torch.float8_e5m2fnuz))), "conv_stem.*float8"),
    "best.ckpt: quantised": (
        BEST, checkpoint(lambda t: first_weight(t, lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8))),
        "conv_stem.*quantized"),
    "best.ckpt: nested": (
        BEST, checkpoint(lambda t: first_weight(t, lambda w: torch.nested.nested_tensor([*w]))), "conv_stem|best.ckpt"),
    "best.ckpt: statistics in whole numbers": (
        BEST, checkpoint(lambda t: t["state_dict"].update({"backbone.mean": t["state_dict"]["backbone.mean"].long()})),
        "backbone.mean"),
    "best.ckpt: integers": (BEST, checkpoint(lambda t: first_weight(t, lambda w: (w * 99).long())), "best.ckpt"),
    "best.ckpt: on meta": (BEST, checkpoint(lambda t: first_weight(t, lambda w: w.to("meta"))), "best.ckpt"),
    "best.ckpt: sparse": (BEST, checkpoint(lambda t: first_weight(t, lambda w: w.to_sparse())), "best.ckpt"),
    "best.ckpt: a tensor missing": (
        BEST, checkpoint(lambda t: t["state_dict"].popitem() and None), "best.ckpt"),
    "best.ckpt: a tensor too many": (
        BEST, checkpoint(lambda t: t["state_dict"].update(more=torch.zeros(3))), "best.ckpt"),
    "best.ckpt: a list": (BEST, checkpoint(lambda t: [1, 2]), "best.ckpt"),
    "best.ckpt: no weights": (BEST, checkpoint(lambda t: t.pop("state_dict") and None), "best.ckpt"),
    "best.ckpt: weights a list": (BEST, checkpoint(lambda t: t.update(state_dict=[1])), "best.ckpt"),
    "best.ckpt: no hyper-parameters": (BEST, checkpoint(lambda t: t.pop("hyper_parameters") and None), "best.ckpt"),
    "best.ckpt: hyper-parameters a text": (BEST, checkpoint(lambda t: t.update(hyper_parameters="x")), "best.ckpt"),
    "best.ckpt: unit unknown": (BEST, checkpoint(lambda t: t["hyper_parameters"].update(unit="mm")), "unit|best.ckpt"),
    "best.ckpt: unit a list": (BEST, checkpoint(lambda t: t["hyper_parameters"].update(unit=[1])), "unit|best.ckpt"),
    # metrics.json and calibration.json
    "metrics.json: thresholds NaN": ("metrics.json", thresholds(NAN), "metrics.json"),
    "metrics.json: thresholds infinite": ("metrics.json", thresholds(float("inf")), "metrics.json"),
    "metrics.json: thresholds of 5": ("metrics.json", thresholds(5), "metrics.json"),
    "metrics.json: thresholds in words": ("metrics.json", thresholds("half"), "metrics.json"),
    "metrics.json: thresholds a list": ("metrics.json", thresholds([0.5]), "metrics.json"),
    "metrics.json: no thresholds": ("metrics.json", content(lambda t: t.pop("thresholds") and None), "metrics.json"),
    "metrics.json: thresholds of a text": ("metrics.json", content(lambda t: t.update(thresholds="x")), "metrics.json"),
    "metrics.json: no label's threshold": (
        "metrics.json", content(lambda t: t.update(thresholds={key: {} for key in t["thresholds"]})), "metrics.json"),
    "metrics.json: deep": ("metrics.json", deep, "metrics.json"),
    "metrics.json: a list": ("metrics.json", content(lambda t: [t]), "metrics.json"),
    "metrics.json: a key twice": ("metrics.json", twice, "metrics.json"),
    "calibration.json: NaN": ("calibration.json", text(r"\d\.\d+", "NaN"), "calibration.json"),
    "calibration.json: infinite": ("calibration.json", text(r"\d\.\d+", "1e999"), "calibration.json"),
    "calibration.json: a word": ("calibration.json", text(r"\d\.\d+", '"warm"'), "calibration.json"),
    "calibration.json: a list": ("calibration.json", content(lambda t: [t]), "calibration.json"),
    "calibration.json: empty object": ("calibration.json", content(lambda t: {}), "calibration.json"),
    "calibration.json: another method": ("calibration.json", text("temperature", "magic"), "calibration.json"),
    "calibration.json: another label": ("calibration.json", text("hemorrhage", "stroke"), "calibration.json"),
    # split.csv, provenance.json and status.json
    "split.csv: a part that is none": ("split.csv", text("(?m)train$", "holdout"), "split.csv"),
    "split.csv: other columns": ("split.csv", text("patient_id", "who"), "split.csv"),
    "provenance.json: data a text": ("provenance.json", content(lambda t: t.update(data="x")), "provenance.json"),
    "provenance.json: checksums a list": (
        "provenance.json", content(lambda t: t.update(checksums=[])), "provenance.json"),
    "provenance.json: files a list": ("provenance.json", content(lambda t: t.update(files=["a"])), "provenance.json"),
    "provenance.json: code a list": ("provenance.json", content(lambda t: t.update(code=["a"])), "provenance.json"),
    "provenance.json: modality a number": (
        "provenance.json", content(lambda t: t["data"].update(modality=5)), "provenance.json"),
    "status.json: a list": ("status.json", content(lambda t: [t]), "status.json"),
    "status.json: hash a path": ("status.json", content(lambda t: t.update(hash="../../../canary")), ""),
    "status.json: version a list": ("status.json", content(lambda t: t.update(version=[1])), ""),
}  # fmt: skip
READ_BY = {  # commands that make something of the file, which take turns
    "config.yaml": ("predict", "explain", "export"),
    BEST: ("predict", "evaluate", "explain", "export"),
    "metrics.json": ("predict", "compare", "evaluate", "export"),
    "calibration.json": ("predict", "export"),
    "split.csv": ("evaluate", "export"),
    "provenance.json": ("doctor", "predict", "compare", "explain", "plan", "evaluate", "runs", "export"),
    "status.json": ("evaluate", "compare", "runs", "doctor"),
}


def _sealed() -> Iterator[Case]:
    turn: dict[str, int] = {}
    for name, (file, change, word) in ODD.items():
        commands = READ_BY[file]
        for _ in range(2 if file in ("metrics.json", "provenance.json", "calibration.json") else 1):
            command = commands[turn.setdefault(file, 0) % len(commands)]
            turn[file] += 1

            def build(
                folder: Path, trained: Trained, file: str = file, change: Damage = change, command: str = command
            ) -> Sequence[str]:
                run = copied(folder, trained, ours=False)
                damage(run, trained, file, change)
                seal(run, files=file != "provenance.json")
                words = [*COMMANDS[command][0](folder, trained, run)]
                return [*words, "calibrated=true"] if file == "calibration.json" and command == "predict" else words

            yield Case(KIND, f"{command}: {name}", build, both(_told_or_same(word), no_canary))


def _told_or_same(word: str) -> Judge:
    """Told of; or what is written is what the run as it was writes."""

    def judge(got: Outcome) -> str:
        if got.status:
            return refused(word)(got) if word else ""
        file = got.folder / "out/slices.csv"
        if word and re.search(word, got.told):
            return ""
        if word and not file.is_file():
            return f"accepted without a word of {word!r}"
        return as_before(got) if file.is_file() else ""

    return judge


def cases() -> list[Case]:
    """Each in one or two of the commands that read the file."""
    return list(_sealed())
