"""The image encoder: any timm model without its classifier, its weights and its input normalisation."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.models._manipulate import group_parameters
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import hemlearn.models.classic  # noqa: F401 - registers AlexNet and GoogLeNet; loading imports foundation's two
from hemlearn.config.compose import conf_dir
from hemlearn.config.schema import BackboneConfig
from hemlearn.models.loading import adapt_statistics, load_weights, read_state
from hemlearn.models.weights import (
    RANDOM,
    WeightsFile,
    architecture,
    is_address,
    read_address,
    resolve_weights,
    weights_licence,
)
from hemlearn.plugins import REGISTRY, supplied, target_of
from hemlearn.util.errors import ConfigError, HemlearnError, count, nearest

# --- The ordered layer groups of any timm model, stem first.


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Parameter names of a timm model in ordered groups, stem first; every parameter is in exactly one.

    Parameters that timm's matcher does not name, such as a final norm, form or join the last group. A module without
    ``group_matcher`` has one group per child with parameters.
    """
    names = [name for name, _ in model.named_parameters()]
    if hasattr(model, "group_matcher"):
        matcher = cast(Any, model).group_matcher
        try:
            found = group_parameters(model, matcher(coarse=True), reverse=True)
        except (AssertionError, NotImplementedError):  # a few architectures have only the fine grouping
            found = group_parameters(model, matcher(coarse=False), reverse=True)
        place = {str(name): int(group) for name, group in found.items()}
    else:
        children = list(dict.fromkeys(name.partition(".")[0] for name in names))
        place = {name: children.index(name.partition(".")[0]) for name in names}
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(place[name], []).append(name)
    return [groups[key] for key in sorted(groups)]


def module_groups(model: nn.Module, groups: Sequence[Sequence[str]]) -> dict[str, int]:
    """Group of every module, also of those without parameters (dropout, BatchNorm without affine weights).

    A module with parameters below it belongs to the last group among them. One without belongs to its nearest parent
    if all of that is in one group, else to the group of the parameter registered before it.
    """
    place = {name: index for index, group in enumerate(groups) for name in group}
    spans: dict[str, tuple[int, int]] = {}
    for name, index in place.items():
        parts = name.split(".")
        for depth in range(len(parts)):
            prefix = ".".join(parts[:depth])
            low, high = spans.get(prefix, (index, index))
            spans[prefix] = (min(low, index), max(high, index))
    result: dict[str, int] = {}
    last = 0
    for name, module in model.named_modules():
        if name in spans:
            result[name] = spans[name][1]
        else:
            parent = name
            while parent and parent not in spans:
                parent = parent.rpartition(".")[0]
            low, high = spans.get(parent, (0, 0))
            result[name] = high if low == high else last
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)]
        last = max((place[key] for key in own if key in place), default=last)
    return result


_SET_ELSEWHERE = {
    "pretrained": "backbone.pretrained",
    "checkpoint_path": "backbone.weights",
    "drop_rate": "backbone.drop_rate",
    "drop_path_rate": "backbone.drop_path_rate",
    "in_chans": "channels",
    "img_size": "data.image_size",
    "num_classes": "task.labels",
    "features_only": "nothing: an embedding is one vector per image",
}


class Backbone(nn.Module):
    """Images to embeddings.

    Args:
        model: Maps normalised images (B, C, H, W) to embeddings (B, D), such as a timm model without classifier.
        mean: Per input channel, for intensities in [0, 1].
        std: As ``mean``.
        image_size: Side of the square input in pixels, at which the embedding width is measured.
        volume: Of a 3D network: depth, height and width of its input instead, voxels.
        weights_source: Where the weights come from.
        weights_checksum: SHA-256 of their file; None for random weights.
        weights_licence: Their licence; None where it is not known.
        as_filed: Names below ``model`` of the tensors that hold the numbers of that file.

    Attributes:
        embedding_dim: Width D of an embedding, measured by a dry run.
        groups: Parameter names below ``model`` in ordered layer groups, stem first.

    Raises:
        ConfigError: The model gives something else than one vector per image.

    Examples:
        >>> pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        >>> Backbone(pool, mean=(0.0,), std=(1.0,), image_size=32).embedding_dim
        4
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: int,
        volume: tuple[int, ...] | None = None,
        weights_source: str = "its own",
        weights_checksum: str | None = None,
        weights_licence: str | None = None,
        as_filed: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.model = model
        # Persistent: they belong to the weights and travel with them in a checkpoint.
        self.input_shape = volume or (image_size, image_size)
        for key, values in (("mean", mean), ("std", std)):
            shape = (1, -1, *(1 for _ in self.input_shape))
            self.register_buffer(key, torch.tensor(values, dtype=torch.float32).view(shape))
        self.in_chans = len(mean)
        self.image_size = image_size
        self.weights_source = weights_source
        self.weights_checksum = weights_checksum
        self.weights_licence = weights_licence
        self.as_filed = as_filed
        self.groups = layer_groups(model)
        self.embedding_dim = self.measure()

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, D)`` of images ``(B, C, H, W)`` in [0, 1]; normalisation happens here.

        Raises:
            ValueError: C is not the number of channels the stem was built for.
        """
        if x.shape[1] != self.in_chans:
            # Without this the statistics would broadcast one channel to several.
            raise ValueError(f"got {count(x.shape[1], 'channel')}, the backbone was built for {self.in_chans}")
        return cast(Tensor, self.model((x - self.mean) / self.std))

    @torch.no_grad()
    def measure(self) -> int:
        """Width of an embedding: a dry run on torch's meta device, which computes shapes and no numbers."""
        was_training = self.training
        self.eval()
        shape = (1, self.in_chans, *self.input_shape)
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        shadow = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        try:
            out = torch.func.functional_call(self, shadow, (torch.empty(shape, device="meta"),))
        except (RuntimeError, NotImplementedError):
            # A model may hold constants that are not on the meta device; a size it cannot take fails again here.
            out = self(torch.zeros(shape, device=self.mean.device))
        finally:
            self.train(was_training)
        if not isinstance(out, Tensor) or out.ndim != 2:
            shown = tuple(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise ConfigError(
                f"the backbone ({type(self.model).__name__}) gives {shown} for one image, not one vector (1, D)",
                remedy="remove the backbone.options that change its pooling or output; a module of one's own pools its "
                "feature map: x.mean((2, 3))",
            )
        return int(out.shape[1])


def build_backbone(spec: Any, *, in_chans: int, image_size: int) -> Backbone:
    """Build the encoder that ``spec`` describes, with its weights.

    Inputs are normalised by the statistics of the weights: those in timm's record of the name (to be changed by
    ``options.pretrained_cfg_overlay: {mean: [...], std: [...]}``), or those stored in a run's checkpoint. Random
    weights get the same statistics as the pretrained ones of that name, so that both see equal inputs. A module of
    one's own sees [0, 1], unless it has a ``pretrained_cfg`` with ``mean`` and ``std`` as timm's models do.

    Args:
        spec: Option object of group ``backbone``; a module, a class or a node ``{_target_: ...}``, which are offered
            ``in_chans``, ``image_size`` and ``pretrained``.
        in_chans: Input channels; the stem of pretrained weights is adapted to them.
        image_size: Side of the square input in pixels; handed to models whose weights depend on it.

    Raises:
        ConfigError: Unknown name, unknown option, or an image size the network cannot take.
        WeightsError: The weights are unavailable, refused or of another architecture.
    """
    if isinstance(spec, Backbone):
        return spec
    own = own_module(spec, in_chans, image_size)
    weights: WeightsFile | None = None
    if own is None:
        check_backbone(spec, image_size)
    if hasattr(spec, "weights"):
        weights = resolve_weights(spec)
    name = f"{target_of(spec) or type(own).__name__}" if own is not None else spec.name
    model = _create(spec, in_chans, image_size) if own is None else own
    filed: frozenset[str] = frozenset()  # of a module of one's own nobody knows how its numbers come about
    if weights is None:
        record = getattr(model, "pretrained_cfg", None) or {}
        mean, std = (
            adapt_statistics(record.get(key, (value,)), in_chans) for key, value in (("mean", 0.0), ("std", 1.0))
        )
    else:
        mean, std, filed = load_weights(model, weights, name, in_chans)
    source = "its own" if own is not None and weights is None else RANDOM
    try:
        return Backbone(
            model,
            mean=mean,
            std=std,
            image_size=image_size,
            weights_source=weights.source if weights else source,
            weights_checksum=weights.checksum() if weights else None,
            weights_licence=weights_licence(weights, name) if weights else None,
            as_filed=filed if own is None else frozenset(),
        )
    except HemlearnError:
        raise
    except Exception as error:  # a stranger's forward may raise anything
        if own is None and not isinstance(error, RuntimeError | AssertionError | ValueError):
            raise
        raise _unbuildable(name, in_chans, image_size, error) from error


def check_weights(cfg: BackboneConfig, in_chans: int, image_size: int) -> None:
    """Load the weights that ``cfg`` names, if any, into a network that is thrown away: before data are read.

    A module of the user's is not built for it: its weights are read alone.

    Raises:
        WeightsError: As ``resolve_weights`` and ``load_weights``.
        ConfigError: As :func:`build_backbone`.
    """
    weights = resolve_weights(cfg)
    if weights is not None:
        _loads(weights, weights.checksum(), cfg.model_dump_json(by_alias=True), in_chans, image_size)


@functools.lru_cache(maxsize=64)
def _loads(weights: WeightsFile, _content: str, cfg: str, in_chans: int, image_size: int) -> None:
    """Once per file, network and process: the jobs of a sweep share most of them."""
    spec = BackboneConfig.model_validate_json(cfg)
    if target_of(spec) is not None or spec.name in REGISTRY.parts.get("backbone", {}):
        read_state(weights)
        return
    with torch.random.fork_rng(devices=[]):
        load_weights(_create(spec, in_chans, image_size), weights, spec.name, in_chans)


def own_module(spec: Any, in_chans: int, image_size: int) -> nn.Module | None:
    """The user's module that ``spec`` is or describes; None where it describes a shipped one.

    Raises:
        ConfigError: As :func:`hemlearn.plugins.resolve`, or a lazy layer that has no shape yet.
    """
    offered = {"in_chans": in_chans, "image_size": image_size, "pretrained": getattr(spec, "pretrained", True)}
    own: nn.Module | None = supplied(spec, "backbone", kind=nn.Module, **offered)
    for name, value in own.named_parameters() if own is not None else ():
        if is_lazy(value):
            raise ConfigError(
                f"backbone ({target_of(spec) or type(own).__name__}): its layer {name.rpartition('.')[0] or name!r} "
                "is lazy and has no shape yet",
                remedy="call the module once in its constructor, or use layers with a given number of inputs",
            )
    return own


def _unbuildable(name: str, in_chans: int, image_size: int, error: Exception) -> ConfigError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    record = timm.models.get_pretrained_cfg(name) if timm.is_model(architecture(name)) else None
    if record is None:
        return ConfigError(
            f"backbone ({name}) fails on one image of {count(in_chans, 'channel')} and "
            f"{image_size} x {image_size} pixels: {type(error).__name__}: {reason}",
            remedy="let it take in_chans channels and squares of data.image_size pixels, and return (B, D)",
        )
    least, made_for = record.min_input_size, record.input_size[-1]
    advice = f"at least {least[-1]}" if least else f"{made_for}, the size this network was made for"
    return ConfigError(
        f"backbone.name={name} cannot be built for {count(in_chans, 'channel')} and "
        f"data.image_size={image_size}: {reason}",
        remedy=f"set data.image_size to {advice}, or take another backbone",
    )


def check_backbone(cfg: BackboneConfig, image_size: int) -> None:
    """Refuse a network that nobody knows, or that cannot divide the image into its patches, from its name alone.

    Raises:
        ConfigError: With the nearest names or sizes; or an option that another key sets.
    """
    for key in cfg.options:
        if key in _SET_ELSEWHERE:
            raise ConfigError(f"backbone.options.{key} is not an option", remedy=f"set {_SET_ELSEWHERE[key]} instead")
    if is_address(cfg.name):
        return  # what it names is known once its folder is there
    name, tag = architecture(cfg.name), cfg.name.partition(".")[2]
    if "/" in cfg.name or ":" in cfg.name:
        raise ConfigError(
            f"backbone.name={cfg.name}: neither a timm name nor an address",
            remedy="write local-dir:FOLDER, hf-hub:OWNER/NAME, or a timm name with backbone.weights=FILE",
        )
    if not timm.is_model(name):
        # A file of the group is often what is meant: backbone=efficientnet_lite0 sets the name and more.
        groups = [file.stem for file in (conf_dir() / "backbone").glob("*.yaml")]
        near = nearest(name, timm.list_models(), 5, cutoff=0.5)
        also = nearest(name, groups, 2, cutoff=0.5)
        hints = [f"nearest timm names: {', '.join(near)}"] if near else []
        hints += [f"or a file of conf/backbone: {', '.join(f'backbone={group}' for group in also)}"] if also else []
        raise ConfigError(
            f"backbone.name={cfg.name}: timm knows no such model", remedy="; ".join(["correct the name", *hints])
        )
    tags = [known.partition(".")[2] for known in timm.models.get_arch_pretrained_cfgs(name)]
    if tag and tag not in tags:
        raise ConfigError(
            f"backbone.name={cfg.name}: {name} has no weights tagged {tag}",
            remedy=f"take {', '.join(f'{name}.{known}' for known in tags if known) or name}",
        )
    _check_patches(cfg, name, image_size)


def _check_patches(cfg: BackboneConfig, name: str, image_size: int) -> None:
    """Timm writes the side of a transformer's patches into its name: vit_small_patch14_dinov2."""
    told = re.search(r"patch(\d+)", name)
    side = cfg.options.get("patch_size") or (int(told.group(1)) if told else 1)
    if isinstance(side, int) and image_size % side and not cfg.options.get("dynamic_img_pad"):
        sizes = [size for size in (image_size // side * side, (image_size // side + 1) * side) if size]
        raise ConfigError(
            f"data.image_size={image_size}: backbone.name={cfg.name} divides images into patches of {side} x {side} "
            "pixels, which do not fill this one",
            remedy=f"set data.image_size to {' or '.join(map(str, sizes))}",
        )


def _create(cfg: BackboneConfig, in_chans: int, image_size: int) -> nn.Module:
    """The timm model; arguments that an architecture does not take are left out where they would change nothing."""
    arguments: dict[str, Any] = {**cfg.options, "num_classes": 0, "in_chans": in_chans}
    arguments |= {"drop_rate": cfg.drop_rate, "drop_path_rate": cfg.drop_path_rate}
    name = cfg.name
    if is_address(name):
        record, name, given = read_address(name)
        _check_patches(cfg, name, image_size)
        given = {key: value for key, value in given.items() if key not in _SET_ELSEWHERE}
        arguments = {**given, **arguments, "pretrained_cfg": record}
        fixed = bool(record.get("fixed_input_size"))
    else:
        known = timm.models.get_pretrained_cfg(name)  # None for a model that came without a record
        fixed = bool(known and known.fixed_input_size)
    if fixed:
        arguments["img_size"] = image_size
    while True:
        try:
            return cast(nn.Module, timm.create_model(name, pretrained=False, **arguments))
        except TypeError as error:
            refused = re.search(r"(?:unexpected|multiple values for) keyword argument(?:\(s\))?\W+(\w+)", str(error))
            key = refused.group(1) if refused else ""
            if key not in arguments:
                raise
            if key in cfg.options:
                raise ConfigError(
                    f"backbone.options.{key}={cfg.options[key]}: {cfg.name} takes no such argument",
                    remedy="remove it, or see the arguments of that model in timm",
                ) from error
            if key in ("drop_rate", "drop_path_rate") and arguments[key]:
                raise ConfigError(
                    f"backbone.{key}={arguments[key]}: {cfg.name} has no such regularisation",
                    remedy=f"set backbone.{key}=0 or another backbone",
                ) from error
            del arguments[key]
        except (AssertionError, ValueError, RuntimeError) as error:
            raise _unbuildable(cfg.name, in_chans, image_size, error) from error
