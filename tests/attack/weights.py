"""Files given as ``backbone.weights``: refused before any data are read."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.attack.case import Case, Judge, Trained, accepted, both, refused, told
from tests.attack.runs import BEST, DAMAGES, copied, damage
from tests.attack.splits import TRAIN
from tests.attack.tables import manifest

KIND = "weights"


def state() -> dict[str, Any]:
    """Of ``test_efficientnet``."""
    import timm

    return dict(timm.create_model("test_efficientnet", num_classes=0).state_dict())


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        tensors = state()
        torch.save(change(tensors) or tensors, path)

    return make


def first(kind: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    """Change of the first convolution."""

    def change(tensors: dict[str, Any]) -> None:
        tensors["conv_stem.weight"] = kind(tensors["conv_stem.weight"])

    return change


def variances(tensors: dict[str, Any]) -> None:
    tensors["bn1.running_var"] -= 2


def of_a_run(tensors: dict[str, Any]) -> dict[str, Any]:
    """As in a checkpoint of hemlearn."""
    statistics = {"backbone.mean": torch.zeros(1, 3, 1, 1), "backbone.std": torch.zeros(1, 3, 1, 1)}
    return {"state_dict": {f"backbone.model.{name}": value for name, value in tensors.items()} | statistics}


def flipped(share: float, save: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        save(path)
        raw = bytearray(path.read_bytes())
        raw[int(len(raw) * share)] ^= 0x7F
        path.write_bytes(bytes(raw))

    return make


def safe(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state().items()}, path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil()))


def nothing_ran(got: Any) -> str:
    return "code in the file ran" if (got.folder / "evil").exists() else ""


FILES: dict[str, tuple[str, Callable[[Path], object], Judge]] = {
    "right": ("w.pth", changed(lambda t: None), accepted()),
    "right, safetensors": ("w.safetensors", safe, accepted()),
    "under state_dict": ("w.pth", changed(lambda t: {"state_dict": t}), accepted()),
    "half precision": (
        "w.pth",
        changed(lambda t: {k: v.half() if v.is_floating_point() else v for k, v in t.items()}),
        told("half|float16|test|metric"),
    ),
    "text": ("w.pth", lambda p: p.write_text("<html>404</html>"), refused("w.pth")),
    "empty": ("w.pth", lambda p: p.write_bytes(b""), refused("w.pth")),
    "a pickle that runs code": ("w.pth", _pickle, both(refused("w.pth"), nothing_ran)),
    "a pickle in a checkpoint": (
        "w.pth",
        changed(lambda t: {"state_dict": Evil()}),
        both(refused("w.pth"), nothing_ran),
    ),
    "a list": ("w.pth", changed(lambda t: [1, 2]), refused("w.pth")),
    "a number": ("w.pth", changed(lambda t: {"epoch": 3}), refused("w.pth")),
    "tensors on meta": ("w.pth", changed(first(lambda t: t.to("meta"))), refused("w.pth", "conv_stem")),
    "complex": ("w.pth", changed(first(lambda t: t.to(torch.complex64))), refused("conv_stem", "complex")),
    "float8": ("w.pth", changed(first(lambda t: t.to(torch.float8_e4m3fn))), refused("conv_stem", "float8")),
    "nested": ("w.pth", changed(first(lambda t: torch.nested.nested_tensor([*t]))), refused("conv_stem|w.pth")),
    "integers": ("w.pth", changed(first(lambda t: (t * 100).long())), refused("conv_stem", "int")),
    "NaN": ("w.pth", changed(first(lambda t: t * float("nan"))), refused("conv_stem", "NaN|finite")),
    "infinite": ("w.pth", changed(first(lambda t: t / 0)), refused("conv_stem", "inf|finite|NaN")),
    "variances below 0": ("w.pth", changed(variances), refused("bn1.running_var", "below 0")),
    "of a run, with a deviation of 0": ("w.ckpt", changed(of_a_run), refused("backbone.std", "divided")),
    "another shape": ("w.pth", changed(first(lambda t: t[:, :, :1])), refused("conv_stem")),
    "a layer missing": ("w.pth", changed(lambda t: t.pop("conv_stem.weight").numel() and None), refused("conv_stem")),
    "another network's": ("w.pth", changed(lambda t: {f"resnet.{k}": v for k, v in t.items()}), refused("w.pth")),
    "sparse": ("w.pth", changed(first(lambda t: t.to_sparse())), told("conv_stem|sparse|test|metric")),
    "quantized": (
        "w.pth",
        changed(first(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8))),
        refused("conv_stem|w.pth"),
    ),
    **{
        f"a flipped byte at {share:.0%}": ("w.pth", flipped(share, changed(lambda t: None)), refused("w.pth"))
        for share in (0.3, 0.5, 0.7)
    },
    "cut": ("w.pth", lambda p: changed(lambda t: None)(p) or p.write_bytes(p.read_bytes()[:-5000]), refused("w.pth")),
    "safetensors cut": (
        "w.safetensors",
        lambda p: safe(p) or p.write_bytes(p.read_bytes()[:-5000]),
        refused("w.safetensors"),
    ),
    "safetensors with a header of 2 GB": (
        "w.safetensors",
        lambda p: p.write_bytes(struct.pack("<Q", 2 << 30) + b"{}"),
        refused("w.safetensors"),
    ),
    "a folder": ("w.pth", lambda p: p.mkdir(), refused("w.pth")),
    "missing": ("w.pth", lambda p: None, refused("w.pth")),
    "a picture": ("w.png", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), refused("w.png")),
}

# What is done to a file of a run whose folder, or checkpoint, is given as weights.
OF_RUNS: dict[str, tuple[str, str]] = {
    f"{file} {damage}": (file, damage)
    for file, damages in {
        BEST: ("cut", "emptied", "one bit flipped", "deleted", "another run's", "a pipe"),
        "config.yaml": ("one bit flipped", "deleted", "another run's"),
        "provenance.json": ("deleted", "emptied", "another run's"),
        "status.json": ("emptied", "another run's"),
    }.items()
    for damage in damages
}


def _of_runs() -> list[Case]:
    found = []
    for name, (file, kind) in {"as it was": ("", ""), **OF_RUNS}.items():
        for given in ("", BEST):

            def build(
                folder: Path, trained: Trained, file: str = file, kind: str = kind, given: str = given
            ) -> list[str]:
                run = copied(folder, trained, ours=False)
                if file:
                    damage(run, trained, file, DAMAGES[kind])
                words = [word for word in TRAIN if "pretrained" not in word]
                return ["train", "data=table", f"data.manifest={manifest(folder / 'in')}", *words,
                        "backbone.pretrained=true", f"backbone.weights={run / given}"]  # fmt: skip

            judge = refused(re.escape(Path(file).name)) if file else accepted()
            if file and given and file != BEST:  # a file of weights may lie in any folder
                judge = told("")
            found.append(Case(KIND, f"a run{', its checkpoint' if given else ''}: {name}", build, judge))
    return found


def cases() -> list[Case]:
    """``train`` with them."""
    found = _of_runs()
    for name, (file, make, judge) in FILES.items():

        def trained_with(
            folder: Path, trained: Trained, file: str = file, make: Callable[[Path], object] = make
        ) -> list[str]:
            make(folder / file)
            words = [word for word in TRAIN if "pretrained" not in word]
            return ["train", "data=table", f"data.manifest={manifest(folder / 'in')}", *words,
                    "backbone.pretrained=true", f"backbone.weights={folder / file}"]  # fmt: skip

        found.append(Case(KIND, name, trained_with, judge))
    return found
