"""Parameter-efficient fine-tuning: which few parameters of a network train, and LoRA layers put in and merged again.

LoRA (arXiv 2106.09685) adds ``scale * B A`` of a small rank to the weights of a layer, which stay as they are; A and B
train. In a state dict the layer's own tensors are then called ``NAME.base_layer.*``, beside ``NAME.lora_A.default.*``
and ``NAME.lora_B.default.*`` (peft's names), and ``backbone.lora_scale`` holds the scale, so that it can be made that
of the plain network without the configuration of its run. BitFit (arXiv 2106.10199) trains the biases, ``norm`` the
normalisation layers (arXiv 2003.00152).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from hemlearn.util.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from hemlearn.models.backbone import Backbone

SCALE = "backbone.lora_scale"
_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
_LISTED = 20  # most layer names in a message


class LoraLayer(nn.Module):
    """A layer and, beside it, a product of two matrices of rank ``rank`` that learns what to add to its weights.

    ``lora_A`` takes what the layer takes, for a convolution with its kernel, stride and padding, and gives ``rank``
    numbers; ``lora_B`` makes the layer's width of them. A starts as any such layer of torch does, B at zero: the output
    is that of the layer alone until B has moved. Whatever else is asked of it (``weight``, ``stride``) is the layer's.

    Args:
        base_layer: (..., C) to (..., O), or a convolution (N, C, H, W) to (N, O, h, w) that is not grouped.
        rank: Of the change of the weights.
        scale: Factor of the change.
        dropout: Of what ``lora_A`` gets.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> adapted, x = LoraLayer(layer, rank=1, scale=2.0), torch.rand(4, 3)
        >>> torch.equal(adapted(x), layer(x)), adapted.lora_A["default"], adapted.weight is layer.weight
        (True, Linear(in_features=3, out_features=1, bias=False), True)
    """

    def __init__(self, base_layer: nn.Linear | nn.Conv2d, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale = scale
        self.lora_dropout = nn.Dropout(dropout)
        down: Any = copy.deepcopy(base_layer)  # with its stride, padding and dilation
        down.weight, down.bias = nn.Parameter(down.weight.new_empty(rank, *down.weight.shape[1:])), None
        down.reset_parameters()
        up: nn.Linear | nn.Conv2d
        if isinstance(base_layer, nn.Conv2d):
            down.out_channels, up = rank, nn.Conv2d(rank, base_layer.out_channels, 1, bias=False)
        else:
            down.out_features, up = rank, nn.Linear(rank, base_layer.out_features, bias=False)
        nn.init.zeros_(up.weight)
        self.lora_A, self.lora_B = (nn.ModuleDict({"default": part.to(base_layer.weight)}) for part in (down, up))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, and the scaled one of the product."""
        change = self.lora_B["default"](self.lora_A["default"](self.lora_dropout(x)))
        return cast(Tensor, self.base_layer(x) + self.scale * change)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not there yet, as while it is copied
                raise
            return getattr(self.base_layer, name)


def origin(name: str) -> str:
    """Name in the plain network of a tensor of an adapted one; of an adapter's, the weight that it is added to.

    Example:
        >>> origin("blocks.0.attn.qkv.base_layer.bias"), origin("blocks.0.attn.qkv.lora_A.default.weight")
        ('blocks.0.attn.qkv.bias', 'blocks.0.attn.qkv.weight')
    """
    return re.sub(r"\.lora_[AB]\.default\.", ".", name.replace(_BASE, "."))


def parts(backbone: Backbone, method: str) -> dict[str, list[str]]:
    """What a method can train: name of a layer below ``backbone.model`` -> names of its parameters, in their order."""
    model = backbone.model
    if method == "lora":
        return {name: [f"{name}.weight"] for name in _linear_maps(backbone)}

    def trains(module: nn.Module, key: str) -> bool:
        return key.endswith("bias") if method == "bitfit" else "norm" in type(module).__name__.lower()

    found = {
        name: [f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False) if trains(module, key)]
        for name, module in model.named_modules()
    }
    return {name: names for name, names in found.items() if names}


def _linear_maps(backbone: Backbone) -> list[str]:
    """Layers to which a product of two matrices can be added: linear ones, and convolutions that are not grouped.

    Only those that the network calls as modules: where it reads the weight itself, an adapter would have no effect.
    """

    def fits(module: nn.Module) -> bool:
        if type(module) in (nn.Conv2d, Conv2dSame):
            return cast(nn.Conv2d, module).groups == 1
        return type(module) is nn.Linear

    names = {module: name for name, module in backbone.model.named_modules() if fits(module)}
    called: set[nn.Module] = set()
    note: Callable[..., None] = lambda module, *_: called.add(module)  # noqa: E731
    handles = [module.register_forward_hook(note) for module in names]
    try:
        backbone.measure()
    finally:
        for handle in handles:
            handle.remove()
    return [name for module, name in names.items() if module in called]


def chosen(
    known: Mapping[str, Sequence[str]], patterns: Sequence[str], method: str, of: str = "this backbone"
) -> list[str]:
    """The layers among ``known`` that any of the regular expressions finds; all where there are none.

    Raises:
        ConfigError: A pattern finds none, or there are none; with the names that exist.
    """
    lost = [pattern for pattern in patterns if not any(re.search(pattern, name) for name in known)]
    if lost or not known:
        names = list(dict.fromkeys(re.sub(r"\d+", "N", name) for name in known))
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        listed = f"{', '.join(names[:_LISTED])}{more} (N: a number)"
        what = f"freeze.layers={lost}: no layer is called so" if lost else "there is no layer"
        raise ConfigError(
            f"{what} among those that freeze.method={method} can train in {of}",
            remedy=f"name some of {listed}" if known else "take another freeze.method or backbone",
        )
    return [name for name in known if not patterns or any(re.search(pattern, name) for pattern in patterns)]


def add_lora(backbone: Backbone, layers: Sequence[str], *, rank: int, alpha: float, dropout: float) -> None:
    """Put a :class:`LoraLayer` in place of each of ``layers``; the output of the network stays as it is.

    Args:
        backbone: To be changed.
        layers: Names below ``backbone.model``, of those that :func:`parts` lists.
        rank: Of each.
        alpha: The change of the weights is scaled by ``alpha / rank``.
        dropout: Before the first matrix.
    """
    for name in layers:
        parent, _, child = name.rpartition(".")
        layer = cast(Any, backbone.model.get_submodule(name))
        lora = LoraLayer(layer, rank=rank, scale=alpha / rank, dropout=dropout).train(layer.training)
        setattr(backbone.model.get_submodule(parent), child, lora)
    backbone.register_buffer("lora_scale", torch.tensor(alpha / rank, device=backbone.mean.device))
    adapted = set(layers)
    backbone.as_filed = frozenset(
        f"{layer}{_BASE}{key}" if (layer := name.rpartition(".")[0]) in adapted else name
        for name in backbone.as_filed
        for key in (name.rpartition(".")[2],)
    )


def merge(backbone: Backbone) -> None:
    """Make an adapted network plain again, with the adapters in its weights; nothing where it has none."""
    if not hasattr(backbone, "lora_scale"):
        return
    plain = merged({f"backbone.{name}": value for name, value in backbone.state_dict().items()})
    for name, module in list(backbone.model.named_modules()):
        if isinstance(module, LoraLayer):
            with torch.no_grad():  # whoever still holds the adapted layer sees the same sum
                cast(Tensor, module.lora_B["default"].weight).zero_()
            parent, _, child = name.rpartition(".")
            setattr(backbone.model.get_submodule(parent), child, module.base_layer)
    del backbone.lora_scale
    backbone.as_filed = frozenset()
    backbone.load_state_dict({name.removeprefix("backbone."): value for name, value in plain.items()})


def merged(state: Any, where: Path | str = "the state dict") -> Any:
    """The state dict of the plain network; one without adapters, and what is none, as it is.

    Args:
        state: Of a task, that is with ``backbone.model.*`` and ``backbone.lora_scale``.
        where: The file, for messages.

    Raises:
        WeightsError: Adapters that lack a part, or whose shapes do not fit.

    Example:
        >>> state = {"backbone.lora_scale": torch.tensor(2.0), "backbone.model.fc.base_layer.weight": torch.zeros(1, 2),
        ...          "backbone.model.fc.lora_A.default.weight": torch.tensor([[3.0, 4.0]]),
        ...          "backbone.model.fc.lora_B.default.weight": torch.tensor([[1.0]])}
        >>> merged(state)
        {'backbone.model.fc.weight': tensor([[6., 8.]])}
    """
    if not isinstance(state, Mapping) or SCALE not in state:
        return state
    try:
        found = {origin(name): value for name, value in state.items() if ".lora_" not in name and name != SCALE}
        for name in [name for name in state if name.endswith(_A)]:
            layer = name.removesuffix(_A)
            weight, down, up = (state[f"{layer}{part}"] for part in (f"{_BASE}weight", _A, _B))
            if len(up) != len(weight) or down.shape[1:] != weight.shape[1:]:
                raise IndexError(f"{layer}: {tuple(up.shape)} and {tuple(down.shape)} for {tuple(weight.shape)}")
            # In double precision, so that every machine rounds to the same numbers.
            change = up.double().flatten(1) @ down.double().flatten(1) * state[SCALE].double()
            found[origin(name)] = (weight.double() + change.reshape(weight.shape)).to(weight.dtype)
    except (KeyError, RuntimeError, AttributeError, IndexError, TypeError) as error:
        raise WeightsError(
            f"{where}: its adapters do not fit its weights: {error}", remedy="it is damaged: replace it"
        ) from error
    return found
