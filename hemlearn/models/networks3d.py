"""3D networks over whole series: MONAI's, as encoders, and weights of theirs from a file; measures in place of one."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, cast

from torch import Tensor, nn

from hemlearn.config.schema import MEASURED, NETWORKS_3D, BackboneConfig
from hemlearn.models.backbone import Backbone
from hemlearn.models.loading import read_state
from hemlearn.models.tissue import FluidMeasures
from hemlearn.models.weights import NO_WEIGHTS, RANDOM, WeightsFile, resolve_weights, weights_licence
from hemlearn.util.errors import ConfigError, WeightsError

# MedicalNet's files (Chen et al. 2019, arXiv 1904.00625; resnet_18_23dataset.pth, ...) have shortcuts without weights
# (type A) in the networks of basic blocks, and convolutions without bias in those of bottlenecks.
_BLOCKS = {18: ("basic", [2, 2, 2, 2], "A"), 50: ("bottleneck", [3, 4, 6, 3], "B")}


def _densenet(in_chans: int, drop_rate: float, **options: Any) -> nn.Module:
    from monai.networks.nets.densenet import DenseNet121

    net = DenseNet121(spatial_dims=3, in_channels=in_chans, out_channels=1, dropout_prob=drop_rate, **options)
    layers = OrderedDict(cast(Any, net.features).named_children())
    layers |= {"relu": nn.ReLU(inplace=True), "pool": nn.AdaptiveAvgPool3d(1), "flatten": nn.Flatten()}
    return nn.Sequential(layers)


def _resnet(depth: int) -> Callable[..., nn.Module]:
    def make(in_chans: int, **options: Any) -> nn.Module:
        from monai.networks.nets.resnet import ResNet

        block, layers, shortcut = _BLOCKS[depth]
        usual: dict[str, Any] = {"block": block, "layers": layers, "block_inplanes": [64, 128, 256, 512]}
        usual |= {"shortcut_type": shortcut, "bias_downsample": False, "conv1_t_stride": 2}
        net: nn.Module = ResNet(n_input_channels=in_chans, feed_forward=False, **usual | options)
        return net

    return make


def _swin(in_chans: int, drop_rate: float, drop_path_rate: float, **options: Any) -> nn.Module:
    if find_spec("einops") is None:
        raise ConfigError(
            "backbone.name=swin_unetr_3d: MONAI needs the package einops for it", remedy="pip install 'hemlearn[swin]'"
        )
    from monai.networks.nets.swin_unetr import SwinTransformer

    class Encoder(SwinTransformer):  # type: ignore[misc]
        """Mean over the deepest of the stages' outputs."""

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, super().forward(x)[-1]).mean((2, 3, 4))

    usual: dict[str, Any] = {"embed_dim": 48, "depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24)}
    usual |= {"window_size": (7, 7, 7), "patch_size": (2, 2, 2), "spatial_dims": 3}
    return Encoder(in_chans=in_chans, drop_rate=drop_rate, drop_path_rate=drop_path_rate, **usual | options)


_MAKE: dict[str, Callable[..., nn.Module]] = {
    "densenet121_3d": _densenet,
    "resnet18_3d": _resnet(18),
    "resnet50_3d": _resnet(50),
    "swin_unetr_3d": _swin,
}
assert {*_MAKE, *MEASURED} == set(NETWORKS_3D)
_TAKES = {"densenet121_3d": ("drop_rate",), "swin_unetr_3d": ("drop_rate", "drop_path_rate")}


def build_network3d(
    cfg: BackboneConfig, *, in_chans: int, size: Sequence[int], spacing: Sequence[float] | None = None
) -> Backbone:
    """The 3D encoder that ``cfg`` names, with its weights: volumes ``(B, C, D, H, W)`` in [0, 1] to ``(B, F)``.

    Args:
        cfg: ``name``: one of :data:`~hemlearn.config.schema.NETWORKS_3D`; ``options``: further arguments of MONAI's
            class; ``weights``: a file or a finished run, read with ``pretrained=true``.
        in_chans: Input channels C.
        size: Depth D, height H and width W of its input, voxels.
        spacing: Depth, height and width of a voxel, mm, for what measures; None: not known.

    Raises:
        ConfigError: A size that the network cannot take, or arguments that it does not know; measures and no spacing.
        WeightsError: No weights are named, or they do not fit.
    """
    rates = {"drop_rate": cfg.drop_rate, "drop_path_rate": cfg.drop_path_rate}
    takes = _TAKES.get(cfg.name, ())
    for key, value in rates.items():
        if value and key not in takes:
            raise ConfigError(
                f"backbone.{key}={value}: {cfg.name} has no such regularisation", remedy=f"set backbone.{key}=0"
            )
    if cfg.name in MEASURED:
        return _measures(cfg, in_chans, size, spacing)
    weights = resolve_weights(cfg)
    try:
        model = _MAKE[cfg.name](in_chans, **{key: rates[key] for key in takes}, **cfg.options)
    except (TypeError, ValueError, AssertionError, IndexError) as error:
        raise ConfigError(
            f"backbone.options={cfg.options}: {cfg.name} cannot be built ({error})",
            remedy="see the arguments of MONAI's class",
        ) from error
    if weights is not None:
        _load(model, weights, cfg.name)
    try:
        return Backbone(
            model,
            mean=(0.0,) * in_chans,
            std=(1.0,) * in_chans,
            image_size=int(size[-1]),
            volume=tuple(size),
            weights_source=weights.source if weights else RANDOM,
            weights_checksum=weights.checksum() if weights else None,
            weights_licence=weights_licence(weights, cfg.name) if weights else None,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"volume.size={list(size)}: {cfg.name} cannot take it ({str(error).partition(chr(10))[0]})",
            remedy="give at least 32 voxels a side, multiples of 32",
        ) from error


def _measures(cfg: BackboneConfig, in_chans: int, size: Sequence[int], spacing: Sequence[float] | None) -> Backbone:
    if cfg.pretrained:
        raise WeightsError(
            f"backbone.pretrained=true: {cfg.name} measures and has no weights",
            remedy="set backbone.pretrained=false backbone.weights=null",
        )
    if spacing is None:
        raise ConfigError(
            f"volume.spacing=null: {cfg.name} measures in mm", remedy="give the size of a voxel: volume.spacing=[4,2,2]"
        )
    try:
        model = FluidMeasures(in_chans, spacing=spacing, **cfg.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"backbone.options={cfg.options}: {cfg.name} cannot be built ({error})",
            remedy=f"it has one option: channel, below {in_chans}",
        ) from error
    none, one = (0.0,) * in_chans, (1.0,) * in_chans
    return Backbone(model, mean=none, std=one, image_size=size[-1], volume=tuple(size), weights_source=NO_WEIGHTS)


def _load(model: nn.Module, weights: WeightsFile, name: str) -> None:
    """Load a file by the names of MONAI, MedicalNet (``module.layer1...``) or Swin UNETR (``swinViT.``, ``mlp.fc1``).

    Heads of other tasks in the file are left out; a stem of other channels is given as many of equal sum.
    """
    tensors = read_state(weights).tensors
    if any(key.startswith("swinViT.") for key in tensors):
        tensors = {key: value for key, value in tensors.items() if key.startswith("swinViT.")}
    tensors = {
        re.sub(r"\bmlp\.fc([12])\.", r"mlp.linear\1.", re.sub(r"^(module\.|swinViT\.|features\.)+", "", key)): value
        for key, value in tensors.items()
    }
    target = model.state_dict()
    stem = next(key for key, value in target.items() if value.ndim == 5)
    if stem in tensors and tensors[stem].ndim == 5 and tensors[stem].shape[1] != target[stem].shape[1]:
        chans = target[stem].shape[1]
        tensors[stem] = (tensors[stem].sum(1, keepdim=True) / chans).expand(-1, chans, -1, -1, -1).clone()
    lacks = [key for key in target if key not in tensors and not key.endswith("num_batches_tracked")]
    other = [key for key, value in target.items() if key in tensors and tensors[key].shape != value.shape]
    if lacks or other:
        shown = f"the first missing: {lacks[0]}" if lacks else f"{other[0]} is {tuple(tensors[other[0]].shape)}"
        raise WeightsError(
            f"{weights.source} does not fit backbone.name={name}: of {len(target)} tensors {len(lacks)} are missing "
            f"and {len(other)} of another shape ({shown})",
            remedy="name the network these weights were trained with, or other weights",
        )
    model.load_state_dict({key: tensors[key] for key in target if key in tensors}, strict=False)
