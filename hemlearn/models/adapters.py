"""Parameter-efficient fine-tuning: which few parameters of a network train, and LoRA layers put in and merged again.

LoRA (arXiv 2106.09685) adds ``scale * B A`` of a small rank to the weights of a layer, which stay as they are; A and B
train. In a state dict the layer's own tensors are then called ``NAME.base_layer.*``, beside ``NAME.lora_A.default.*``
and ``NAME.lora_B.default.*`` (peft's names), and ``backbone.lora_scale`` holds the scale, so that it can be made that
of the plain network without peft and without the configuration of its run. BitFit (arXiv 2106.10199) trains the biases,
``norm`` the normalisation layers (arXiv 2003.00152).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from hemlearn.util.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from hemlearn.models.backbone import Backbone

SCALE = "backbone.lora_scale"
_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
_LISTED = 20  # most layer names in a message


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
        if type(module) in (nn.Conv2d, Conv2dSame):  # peft copies neither dilation nor padding mode
            conv = cast(nn.Conv2d, module)
            return conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
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
    """Put a LoRA layer in place of each of ``layers``; the output of the network stays, since B starts at zero.

    Raises:
        ConfigError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            f"freeze.method=lora needs peft, which cannot be imported ({error})", remedy="pip install 'hemlearn[peft]'"
        ) from error
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        lora_dropout=dropout,
        target_modules="|".join(map(re.escape, layers)),  # in a list each would match ends of names too
    )
    inject_adapter_in_model(config, backbone.model)
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
        if isinstance(getattr(module, "lora_A", None), nn.ModuleDict):
            with torch.no_grad():  # whoever still holds the adapted layer sees the same sum
                cast(Any, module).lora_B.default.weight.zero_()
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
