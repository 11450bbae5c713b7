"""Weights files into models: read without running code, fitted name by name and shape by shape.

The stem of a network for colour photographs is adapted to any number of input channels so that an image which is
equal in all channels gives the activations that it gives replicated over three.
"""

from __future__ import annotations

import inspect
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import safetensors
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hemlearn.config.schema import BackboneConfig, TaskConfig
from hemlearn.models.adapters import merged
from hemlearn.models.foundation import from_transformers
from hemlearn.models.weights import WeightsFile, architecture, resolve_weights
from hemlearn.util.documents import read_document
from hemlearn.util.errors import WeightsError
from hemlearn.util.files import special_file
from hemlearn.util.run_files import parse_yaml

KEY = "left_out"  # entry of a checkpoint that does not hold all of its run's tensors, see hemlearn.models.lean
_FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
_LEARNT = ("weight", "bias", "running_mean", "running_var")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # float8 and below are packed, with scales
_CLASSIFIERS = ("fc", "head", "classifier", "heads", "last_linear")


@dataclass(frozen=True)
class State:
    """Tensors of a weights file, with the input statistics that belong to them where the file holds them.

    Attributes:
        tensors: Parameter or buffer name -> tensor.
        mean: Per input channel, of inputs in [0, 1]; None where the file does not say.
        std: As ``mean``.
    """

    tensors: dict[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


# --- reading ---
def read_state(weights: WeightsFile) -> State:
    """Tensors of a weights file, by the names they have below the timm model.

    Containers (``state_dict``, ``model``, an exponential average before the plain weights) and prefixes of
    wrappers are taken off. A checkpoint of hemlearn gives its ``backbone.model`` part with its input statistics.

    Raises:
        WeightsError: The file is damaged, holds pickled code (refused), holds no tensors, or weights that are no finite
            real numbers.
    """
    tree = read_checkpoint(weights.path)
    if isinstance(tree, dict) and KEY in tree:
        from hemlearn.models.lean import make_whole  # which needs a backbone, and that needs this module

        make_whole(tree, weights.path)
    for key in ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model"):
        inner = tree.get(key) if isinstance(tree, Mapping) else None
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            tree = inner
            break
    items = tree.items() if isinstance(tree, Mapping) else ()
    tensors = {str(key).replace("_orig_mod.", ""): value for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{weights.path} holds no tensors", remedy="give a file with a model's state_dict")
    tensors = merged(tensors, weights.path)
    ours, teachers = "backbone.model.", "teacher.backbone.model."  # of pretraining with a teacher its weights count
    ours = teachers if any(key.startswith(teachers) for key in tensors) else ours
    own = {key.removeprefix(ours): value for key, value in tensors.items() if key.startswith(ours)}
    if own:
        mean, std = (tensors.get(f"backbone.{key}") for key in ("mean", "std"))
        if mean is None or std is None:
            return State(check_tensors(own, weights.path))
        check_tensors({"backbone.mean": mean, "backbone.std": std}, weights.path)
        if mean.numel() != std.numel():
            raise _unfit(weights.path, f"backbone.mean has {mean.numel()} values, backbone.std {std.numel()}")
        return State(check_tensors(own, weights.path), tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()))
    if weights.kind == "run":
        raise WeightsError(f"{weights.path} holds no backbone weights", remedy="name a run made by hemlearn train")
    for prefix in ("module.", "model.", "backbone."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return State(check_tensors(tensors, weights.path))


def check_tensors(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, all of them usable as weights, or as what an optimiser remembers of them.

    Parameters and statistics of normalisation must be real and finite; counters and indices are whole numbers. A mask
    may be infinite, and so may the deviation by which a feature that carries nothing is divided.
    """
    for name, tensor in tensors.items():
        last = name.rpartition(".")[2]
        learnt, divides = last in _LEARNT, last in ("std", "running_var", "exp_avg_sq", "max_exp_avg_sq")
        if tensor.is_nested or type(tensor) not in (Tensor, nn.Parameter):
            fault = f"is a {'nested tensor' if tensor.is_nested else type(tensor).__name__}"
        elif tensor.is_meta:
            fault = "is on the device meta: it has no values"
        elif tensor.layout != torch.strided or tensor.is_quantized:
            fault = f"is {'quantized' if tensor.is_quantized else 'sparse'}"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            fault = f"shows {tensor.numel()} values and holds fewer"  # it would need more memory than its file is large
        elif tensor.dtype not in _FLOATS if learnt or tensor.is_floating_point() else tensor.is_complex():
            fault = f"holds {tensor.dtype} instead of real numbers".replace("torch.", "")
        elif tensor.is_floating_point() and (bad := _not_finite(name, tensor)):
            fault = f"holds NaN or infinity ({bad} of {tensor.numel()} values: not finite)"
        elif divides and bool((tensor < 0).any() or (last == "std" and (tensor == 0).any())):
            fault = "holds values below 0, or 0, by which nothing can be divided"
        else:
            continue
        raise _unfit(path, f"{name} {fault}")
    return tensors


def _not_finite(name: str, tensor: Tensor) -> int:
    wrong = torch.isnan if name.endswith(("mask", ".std")) else lambda values: ~torch.isfinite(values)
    return int(wrong(tensor).sum())


def _unfit(path: Path, fault: str) -> WeightsError:
    return WeightsError(f"{path}: {fault}", remedy="give the plain state_dict of the trained network")


def check_state(module: nn.Module, tensors: Any, path: Path) -> dict[str, Any]:
    """The state dict of a checkpoint, where it is sound and fits ``module`` name by name and shape by shape.

    Raises:
        WeightsError: It does not: names the file, how many tensors are missing, unexpected, or of another shape or
            type, and the first of each.
    """
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise _unfit(path, f"holds {type(tensors).__name__} instead of a state_dict")
    target = module.state_dict()
    plain = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    wanted = {name: value for name, value in target.items() if isinstance(value, Tensor)}
    if problem := _differences(check_tensors(plain, path), wanted):
        raise _unfit(path, f"does not fit the network of this run: {problem}")
    return dict(tensors)


def fit_state(module: nn.Module, tensors: Any, path: Path) -> None:
    """Load the state dict of a checkpoint.

    Raises:
        WeightsError: As :func:`check_state`.
    """
    module.load_state_dict(check_state(module, tensors, path))


def read_slice_head(cfg: BackboneConfig, task: TaskConfig) -> tuple[dict[str, Tensor], list[int] | None]:
    """The head of the slice run that ``cfg.weights`` names, as its ``config.yaml`` describes it.

    Args:
        cfg: Group ``backbone``.
        task: Labels, in their order, and kind that the head must have.

    Returns:
        Its tensors by name and the widths of its hidden layers; nothing and None where the weights are no slice run
        or that run has other labels.
    """
    weights = resolve_weights(cfg)
    if weights is None or weights.kind != "run":
        return {}, None
    tree, file = read_checkpoint(weights.path), weights.path.parents[1] / "config.yaml"
    try:
        config = parse_yaml(read_document(file))
        state = {key: value for key, value in tree["state_dict"].items() if key.startswith("head.")}
        own = config["task"]
        same = (own["labels"], own["kind"]) == (list(task.labels), task.kind)
        hidden = [int(width) for width in own["hidden"]]
        alone = config.get("sequence", {}).get("name", "none") == "none"
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{file} describes no slice run: {error!r}", remedy="copy that run again") from error
    if not (same and alone):
        return {}, None
    return {key.removeprefix("head."): value for key, value in check_tensors(state, weights.path).items()}, hidden


def read_checkpoint(path: Path) -> Any:
    """What a file of torch.save or safetensors holds; no code in it is run.

    A file of torch.save is a zip archive whose members have checksums, which torch does not compare.

    Raises:
        WeightsError: No such file, a damaged one, one of another format or with pickled code.
    """
    try:
        if what := special_file(path.stat().st_mode):
            raise ValueError(what)
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device="cpu")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(item.file_size for item in archive.infolist()) > 2 * path.stat().st_size:
                    raise ValueError("a packed archive: torch.save packs nothing")
                if altered := archive.testzip():
                    raise ValueError(f"{altered} is altered: its checksum differs")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:
            raise _unreadable(path, error) from error
        raise WeightsError(
            f"{path} is refused: loading it would run pickled code ({code.group(1)})",
            remedy="if you trust its origin, save its tensors alone: torch.save(model.state_dict(), FILE)",
        ) from error
    except Exception as error:  # unpickling a stranger's bytes raises errors of any kind
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return WeightsError(
        f"{path} cannot be read as weights: {reason}", remedy="it is damaged or of another format: replace it"
    )


# --- input channels ---
def channel_map(source: int, target: int) -> NDArray[np.float64]:
    """How ``source`` pretrained input channels spread over ``target`` new ones.

    Returns:
        ``(source, target)`` shares; each row sums to 1, so that an image equal in all channels is seen with the full
        weight of each source channel. With at least as many new channels, each takes one source channel in turn
        (for nine: R G B R G B R G B); with fewer, each takes an equal share of all.
    """
    if target < source:
        return np.full((source, target), 1.0 / target)
    shares = np.zeros((source, target))
    shares[np.arange(target) % source, np.arange(target)] = 1.0
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def adapt_statistics(values: Sequence[float], target: int) -> tuple[float, ...]:
    """Means or standard deviations of ``target`` channels: the average of the source channels each one takes."""
    if len(values) == target:
        return tuple(values)
    shares = channel_map(len(values), target)
    return tuple((np.asarray(values) @ shares / shares.sum(axis=0)).tolist())


def adapt_stem(
    weight: Tensor, bias: Tensor | None, mean: Sequence[float], std: Sequence[float], target: int
) -> tuple[Tensor, Tensor | None]:
    """First-layer weights for ``target`` channels normalised by :func:`adapt_statistics`.

    For an image equal in all channels the result is that of the source stem on the replicated image, exactly where
    the layer has a bias, or where the new channels keep their source's statistics (three or more), and away from
    zero padding. A stem without bias that sums colours of different mean (one channel, ImageNet statistics) sees a
    tint of at most 0.043 of the intensity range.

    Args:
        weight: ``(out, k, h, w)`` for k source channels.
        bias: ``(out,)`` or None.
        mean: Of the k source channels, for inputs in [0, 1].
        std: As ``mean``.
        target: New number of channels.

    Returns:
        ``(out, target, h, w)`` and the bias, both in the dtype of ``weight``.
    """
    shares = channel_map(weight.shape[1], target)
    new_mean, new_std = (np.asarray(adapt_statistics(values, target)) for values in (mean, std))
    scale = torch.from_numpy(shares * new_std[None, :] / np.asarray(std)[:, None])
    adapted = torch.einsum("okhw,kn->onhw", weight.double(), scale).to(weight.dtype)
    if bias is None:
        return adapted, None
    tint = (new_mean[None, :] - np.asarray(mean)[:, None]) / np.asarray(std)[:, None]
    shift = torch.from_numpy((shares * tint).sum(axis=1))
    return adapted, (bias.double() + torch.einsum("okhw,k->o", weight.double(), shift)).to(bias.dtype)


def _record(model: nn.Module) -> dict[str, Any]:
    """Timm's record of a model's weights; empty for other modules."""
    return cast(Any, getattr(model, "pretrained_cfg", None)) or {}


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _with_stems(tensors: dict[str, Tensor], model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Adapt the first layers in place where only their number of input channels differs."""
    for stem in _names(_record(model).get("first_conv")):
        name, bias_name = f"{stem}.weight", f"{stem}.bias"
        weight = tensors.get(name)
        wanted = model.state_dict().get(name)
        if weight is None or wanted is None or weight.shape == wanted.shape or weight.ndim != 4 or wanted.ndim != 4:
            continue
        if weight.shape[1] != len(mean) or len(mean) not in (1, 3):
            continue  # channels with a meaning of their own cannot be mixed: reported as a mismatch
        tensors[name], bias = adapt_stem(weight, tensors.get(bias_name), mean, std, wanted.shape[1])
        if bias is not None:
            tensors[bias_name] = bias


# --- fitting ---
class Loaded(NamedTuple):
    """What came with weights.

    Attributes:
        mean: Of each input channel, for intensities in [0, 1].
        std: As ``mean``.
        as_filed: Names of the tensors whose numbers are the file's own; others were computed from them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    as_filed: frozenset[str]


def load_weights(model: nn.Module, weights: WeightsFile, name: str, in_chans: int) -> Loaded:
    """Load a weights file into a timm model; its classifier is dropped where the model has none.

    Args:
        model: Of ``timm.create_model``, on the CPU.
        weights: The file.
        name: timm name of the model, for errors and timm's own conversions of foreign formats.
        in_chans: Input channels of the model.

    Raises:
        WeightsError: As :func:`read_state`; or the file is of another architecture: how many names are missing,
            unexpected or of another shape, and the first of each.
    """
    state = read_state(weights)
    record = _record(model)
    mean, std = (
        known or tuple(record.get(key, (plain,) * in_chans))
        for known, key, plain in ((state.mean, "mean", 0.0), (state.std, "std", 1.0))
    )
    target = model.state_dict()
    tensors = dict(state.tensors)
    filed = {value.untyped_storage().data_ptr() for value in tensors.values()}
    if weights.kind == "package" and _missing(target, tensors):
        tensors = _by_order(tensors, target, weights)
    complaint = ""
    for convert in (None, *_converters(model, name)):
        try:
            candidate = dict(tensors) if convert is None else _converted(convert, tensors, model)
        except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError, AssertionError):
            continue  # a conversion meant for another layout; the plain comparison names what differs
        _with_stems(candidate, model, mean, std)
        problem = _differences(candidate, target, {*_CLASSIFIERS, *_names(_record(model).get("classifier"))})
        if not problem:
            used = {key: candidate[key] for key in target if key in candidate}
            model.load_state_dict(used, strict=False)
            as_filed = frozenset(key for key, value in used.items() if value.untyped_storage().data_ptr() in filed)
            return Loaded(adapt_statistics(mean, in_chans), adapt_statistics(std, in_chans), as_filed)
        complaint = complaint or problem
    raise WeightsError(
        f"{weights.source} does not fit backbone.name={name} with {in_chans} input channels: {complaint}",
        remedy="name the architecture and channels these weights were trained with, or other weights",
    )


def _missing(target: Iterable[str], tensors: Mapping[str, Tensor]) -> list[str]:
    return [key for key in target if key not in tensors and not key.endswith("num_batches_tracked")]


def _differences(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], spared: Iterable[str] = ()) -> str:
    """What keeps ``tensors`` from fitting, with counts and the first of each kind; empty where they fit.

    ``spared``: layers that may be there and are not used.
    """
    missing = _missing(target, tensors)
    spare = [key for key in tensors if key not in target and key.rpartition(".")[0] not in spared]
    shapes = [
        f"{key} {tuple(tensors[key].shape)} for {tuple(target[key].shape)}"
        for key in target
        if key in tensors and tensors[key].shape != target[key].shape
    ]
    types = [
        f"{key} {tensors[key].dtype} for {target[key].dtype}".replace("torch.", "")
        for key in target
        if key in tensors and tensors[key].is_floating_point() != target[key].is_floating_point()
    ]
    kinds = (("missing", missing), ("unexpected", spare), ("of another shape", shapes), ("of another type", types))
    return "; ".join(f"{len(found)} {kind} (first: {found[0]})" for kind, found in kinds if found)


def _converted(convert: Callable[..., Mapping[str, Tensor]], tensors: dict[str, Tensor], model: nn.Module) -> Any:
    takes_model = len(inspect.signature(convert).parameters) > 1
    return dict(convert(dict(tensors), model) if takes_model else convert(dict(tensors)))


def _converters(model: nn.Module, name: str) -> list[Callable[..., Mapping[str, Tensor]]]:
    """Conversions by timm of foreign or differently sized weights of this architecture, found by their usual names."""
    owners: list[Any] = [type(model)]
    if timm.is_model(architecture(name)):
        owners.insert(0, timm.models.model_entrypoint(architecture(name)))
    modules = {id(sys.modules[owner.__module__]): sys.modules[owner.__module__] for owner in owners}
    found = [getattr(module, key) for module in modules.values() for key in _FILTERS if hasattr(module, key)]
    return [*found, *([from_transformers] if isinstance(model, VisionTransformer) else [])]


def _by_order(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], weights: WeightsFile) -> dict[str, Tensor]:
    """Rename tensors that stand in the order of the model's own, each checked by kind and shape.

    The first layer may differ in its number of input channels. A classifier at the end is dropped where the model
    has none.
    """
    source, wanted = list(tensors), list(target)
    if len(source) == len(wanted) + 2 and [key.rpartition(".")[2] for key in source[-2:]] == ["weight", "bias"]:
        source = source[:-2]
    if len(source) != len(wanted):
        raise WeightsError(
            f"{weights.source} holds {len(source)} tensors, the model has {len(wanted)}",
            remedy="name the architecture these weights were trained with",
        )
    for position, (old, new) in enumerate(zip(source, wanted, strict=True)):
        have, need = tuple(tensors[old].shape), tuple(target[new].shape)
        same_kind = old.rpartition(".")[2] == new.rpartition(".")[2]
        stem = position == 0 and len(have) == len(need) == 4 and (have[0], *have[2:]) == (need[0], *need[2:])
        if not same_kind or (have != need and not stem):
            raise WeightsError(
                f"{weights.source}: tensor {position} {old} {have} does not fit {new} {need}",
                remedy="name the architecture these weights were trained with",
            )
    return {new: tensors[old] for old, new in zip(source, wanted, strict=True)}
