"""Checkpoints without what can be had again: tensors of a backbone that are those of a weights file and never train.

Such a checkpoint says under ``left_out`` which tensors these are, and their SHA-256. Whoever reads it puts them back
from the weights that the run started from, and refuses others. Random numbers, what is computed from a file (a stem for
another number of channels, resampled position embeddings), and backbones, policies and tasks of the user's own stay in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hemlearn.config.schema import BackboneConfig
from hemlearn.models.adapters import origin
from hemlearn.models.backbone import Backbone, build_backbone
from hemlearn.models.freeze import FreezePolicy
from hemlearn.models.loading import KEY
from hemlearn.models.weights import PARENT, at_hand, is_address, run_of
from hemlearn.plugins import untrusted_targets
from hemlearn.util.documents import read_document
from hemlearn.util.errors import HemlearnError, WeightsError, count
from hemlearn.util.run_files import PLACE, is_ours, parse_yaml, read_provenance

_PREFIX = "backbone.model."
_STATES = ("state_dict", "current_model_state")  # the second beside averaged weights
_LEAST = 0.1  # share of the backbone's bytes from which leaving out is worth that the file needs another one
_REMEDY = (
    "install or copy the weights that its provenance.json names, or have it made whole where they are: the command "
    "that made it, with checkpoints.whole=true, trains nothing"
)
_reading: ContextVar[tuple[Path, ...]] = ContextVar("runs whose checkpoints are being made whole", default=())


def to_leave_out(backbone: Backbone, policy: FreezePolicy) -> dict[str, Any] | None:
    """What the checkpoints of a run need not hold; to be asked before it trains.

    Returns:
        Names of tensors and their common SHA-256, which is entry ``left_out`` of its checkpoints; None: nothing.
    """
    if type(policy) is not FreezePolicy:
        return None
    state = _state(backbone)
    names = sorted(_PREFIX + name for name in backbone.as_filed & policy.never_trained(backbone))
    if sum(state[name].nbytes for name in names) <= _LEAST * sum(value.nbytes for value in state.values()):
        return None
    return {"names": names, "sha256": _digest(state, names)}


def leave_out(checkpoint: dict[str, Any], left: Mapping[str, Any]) -> None:
    """Take from a checkpoint what :func:`to_leave_out` has named; nothing where any of it has changed since."""
    states = {key: checkpoint[key] for key in _STATES if key in checkpoint}
    names = set(left["names"])
    if all(names <= set(state) and _digest(state, names) == left["sha256"] for state in states.values()):
        for key, state in states.items():
            checkpoint[key] = {name: value for name, value in state.items() if name not in names}
        checkpoint[KEY] = dict(left)


def put_back(checkpoint: Any, backbone: Backbone, where: object = "the checkpoint") -> None:
    """Make a checkpoint whole, in place; nothing where it is.

    Args:
        checkpoint: Content of the file.
        backbone: With the weights that the run started from.
        where: The file, for messages.

    Raises:
        WeightsError: The backbone holds other weights, or ``checkpoint`` does not say what it leaves out.
    """
    left = checkpoint.get(KEY) if isinstance(checkpoint, Mapping) else None
    if left is None:
        return
    names = left.get("names") if isinstance(left, Mapping) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{where}: {KEY} names no tensors", remedy=_REMEDY)
    own = {origin(name): value for name, value in _state(backbone).items() if ".lora_" not in name}
    found = {name: own[origin(name)] for name in names if origin(name) in own}  # they may belong to adapted layers
    if len(found) < len(set(names)) or _digest(found, names) != left.get("sha256"):
        raise WeightsError(
            f"{where}: holds what the run has trained; {count(len(names), 'frozen tensor')} of the weights that it "
            f"started from are others now ({backbone.weights_source})",
            remedy=_REMEDY,
        )
    for key in _STATES:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint[key] = {**checkpoint[key], **{name: value.cpu().clone() for name, value in found.items()}}
    del checkpoint[KEY]


def make_whole(checkpoint: Any, file: Path, *, trust: bool = False) -> None:
    """:func:`put_back` into a checkpoint of a run folder from the weights that its ``config.yaml`` names.

    Args:
        checkpoint: Content of ``file``.
        file: ``RUN/checkpoints/NAME``.
        trust: Read whatever file or address the run names; else, of a run that this user has not made, only weights in
            packages, in the hubs' caches, in its own folder and in runs beside it.

    Raises:
        WeightsError: The weights are not here, have changed, or lie where a stranger's run may not look.
    """
    if not isinstance(checkpoint, Mapping) or checkpoint.get(KEY) is None:
        return
    folder = run_of(str(file))
    if folder is None:
        raise WeightsError(
            f"{file}: holds what its run has trained, and lies in no run folder", remedy="name the run folder itself"
        )
    told = f"{file}: holds what the run has trained; its frozen layers"
    with _once(folder.resolve(), told):
        try:
            config = parse_yaml(read_document(folder / "config.yaml"))
            trust = trust or is_ours(folder)
            if config["backbone"].get("_target_") or (not trust and untrusted_targets(config)):
                raise WeightsError("are not those of a shipped backbone", remedy="")  # which alone leave anything out
            spec = _located(folder, BackboneConfig.check("backbone", **config["backbone"]), trust)
            width, size = checkpoint["state_dict"]["backbone.mean"].numel(), int(config["data"]["image_size"])
            with torch.random.fork_rng(devices=[]):  # what is built here is not missed by the run's own random numbers
                backbone = build_backbone(spec, in_chans=width, image_size=size)
        except HemlearnError as error:
            raise WeightsError(
                f"{told}: {error.problem}", remedy=error.remedy if PARENT in error.remedy else _REMEDY
            ) from error
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"{told} are not described: {error!r:.200}", remedy=_REMEDY) from error
        put_back(checkpoint, backbone, file)


def _located(folder: Path, cfg: BackboneConfig, trust: bool) -> BackboneConfig:
    """Group ``backbone`` of a run, its weights where they lie now."""
    given = cfg.weights
    if not trust and is_address(cfg.name):
        raise WeightsError(f"made elsewhere: backbone.name={cfg.name} is asked with trust=true alone", remedy="")
    if given is None or given.startswith("package:"):
        if not trust and given is None and at_hand(cfg.name) is None:
            raise WeightsError(f"made elsewhere, and the weights of {cfg.name} are not on this machine", remedy="")
        return cfg
    place = read_provenance(folder).get(PLACE)
    found = [path for path in (Path(given).expanduser(), folder / str(place or given)) if path.exists()]
    if not found:
        parent = run_of(given) or run_of(str(folder / str(place or given)))
        remedy = f"{parent}: {PARENT}; then this run's command with checkpoints.whole=true makes it whole"
        raise WeightsError(f"backbone.weights={given}: no such file or folder", remedy=remedy if parent else "")
    near = [path for path in found if trust or _beside(path.resolve(), folder.resolve())]
    if not near:
        raise WeightsError(f"made elsewhere: backbone.weights={given} is read with trust=true alone", remedy="")
    return cfg.model_copy(update={"weights": str(near[0])})


def _beside(path: Path, folder: Path) -> bool:
    """Whether ``path`` lies in the run ``folder``, OUTPUT_DIR/NAME/HASH, or belongs to a run of the same OUTPUT_DIR."""
    run = run_of(str(path))
    return path.is_relative_to(folder) or (run is not None and run.resolve().parent.parent == folder.parent.parent)


@contextmanager
def _once(folder: Path, told: str) -> Iterator[None]:
    """Refuse runs that name each other as their weights."""
    if folder in _reading.get():
        raise WeightsError(f"{told} are those of the run itself", remedy=_REMEDY)
    token = _reading.set((*_reading.get(), folder))
    try:
        yield
    finally:
        _reading.reset(token)


def _state(backbone: Backbone) -> dict[str, Tensor]:
    return {_PREFIX + name: value for name, value in backbone.model.state_dict().items()}


def _digest(state: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """SHA-256 of tensors: their names, types, shapes and numbers, wherever and however they lie in memory."""
    found = hashlib.sha256()
    for name in sorted(names):
        value = state[name].detach().cpu()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
