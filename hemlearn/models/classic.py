"""AlexNet and GoogLeNet as timm models.

timm has neither; torchvision has both. Importing this module registers them, so that
``timm.create_model("googlenet", num_classes=0)``, ``reset_classifier`` and ``group_matcher`` work as for any other
timm name. Parameter names are torchvision's, hence its weight files fit without renaming.

Sources: AlexNet in the one-column form of Krizhevsky 2014 (arXiv 1404.5997); GoogLeNet of Szegedy 2015
(arXiv 1409.4842) with batch normalisation. torchvision's third inception branch has 3x3 where the paper has 5x5;
its weights need that, so it is kept.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torchvision.models import AlexNet as TorchvisionAlexNet
from torchvision.models import GoogLeNet as TorchvisionGoogLeNet

_COMMON = {"interpolation": "bilinear", "crop_pct": 0.875, "license": "bsd-3-clause"}

default_cfgs = generate_default_cfgs(
    {
        "alexnet.tv_in1k": dict(
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            first_conv="features.0",
            classifier="classifier.6",
            pool_size=(6, 6),
            min_input_size=(3, 63, 63),
            **_COMMON,
        ),
        # torchvision rescales an ImageNet-normalised input to (x - 0.5) / 0.5 inside the network
        # (transform_input=True); the same follows from normalising by 0.5 in the first place.
        "googlenet.tv_in1k": dict(
            url="https://download.pytorch.org/models/googlenet-1378be20.pth",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            first_conv="conv1.conv",
            classifier="fc",
            pool_size=(7, 7),
            min_input_size=(3, 15, 15),
            **_COMMON,
        ),
    }
)


class _Classic(nn.Module):
    """timm's interface, shared by both."""

    embedding: int  # width before the last layer
    last = ""  # name of the last layer

    def _start(self, num_classes: int, in_chans: int, global_pool: str, features: int, module: str) -> None:
        self._check_pool(global_pool, num_classes)
        self.in_chans, self.num_features, self.head_hidden_size = in_chans, features, self.embedding
        self.feature_info = [{"num_chs": features, "reduction": 32, "module": module}]
        self.num_classes, self.global_pool = num_classes, global_pool

    @staticmethod
    def _check_pool(global_pool: str, num_classes: int) -> None:
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool={global_pool!r}: give 'avg' or ''")
        if not global_pool and num_classes > 0:
            raise ValueError("global_pool='' leaves a feature map, so it needs num_classes=0")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Not supported: too small to gain from it."""
        if enable:
            raise ValueError(f"{type(self).__name__} has no gradient checkpointing")

    def get_classifier(self) -> nn.Module:
        """The last layer, an identity where there is none."""
        return self.get_submodule(self.last)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer with ``num_classes`` outputs; 0 removes it."""
        pool = self.global_pool if global_pool is None else global_pool
        self._check_pool(pool, num_classes)
        self.num_classes, self.global_pool = num_classes, pool
        device = next(self.parameters()).device
        layer = nn.Linear(self.embedding, num_classes, device=device) if num_classes > 0 else nn.Identity()
        owner, _, name = self.last.rpartition(".")
        setattr(self.get_submodule(owner), name, layer)

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> feature map."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map -> ``(B, num_classes)``, or the embedding before the last layer."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> logits, or the embedding where ``num_classes`` is 0."""
        return self.forward_head(self.forward_features(x))


class AlexNet(_Classic):
    """AlexNet with timm's interface.

    The convolutional map is averaged to 6x6 and passes two fully connected layers, so an embedding is 4096 wide.

    Args:
        num_classes: Outputs of the last layer; 0 leaves it out.
        in_chans: Input channels.
        global_pool: ``avg``, or an empty string for the unpooled map ``(B, 256, h, w)``, without the fully
            connected layers.
        drop_rate: Dropout before each of the two fully connected layers (the paper has 0.5).
    """

    embedding, last = 4096, "classifier.6"

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.5
    ) -> None:
        super().__init__()
        self._start(num_classes, in_chans, global_pool, 256, "features.12")
        base = TorchvisionAlexNet(num_classes=max(num_classes, 1), dropout=drop_rate)
        self.features: nn.Sequential = base.features
        if in_chans != 3:
            self.features[0] = nn.Conv2d(in_chans, 64, kernel_size=11, stride=4, padding=2)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier: nn.Sequential = base.classifier
        if num_classes <= 0:
            self.classifier[6] = nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for timm: one per layer with parameters, whatever ``coarse`` says."""
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)", "head": r"^classifier\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, 256, h, w)``; H and W at least 63."""
        return cast(Tensor, self.features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, 256, h, w)`` -> ``(B, num_classes)``, or ``(B, 4096)`` before the last layer."""
        if not self.global_pool:
            return x
        x = self.classifier[:6](torch.flatten(self.avgpool(x), 1))
        return x if pre_logits else cast(Tensor, self.classifier[6](x))


_INCEPTIONS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")


class GoogLeNet(_Classic):
    """GoogLeNet with timm's interface.

    The auxiliary classifiers are left out: they only served the original optimisation, and torchvision's weights
    of them are untrained. Embeddings are 1024 wide.

    Args:
        num_classes: Outputs of the last layer; 0 leaves it out.
        in_chans: Input channels.
        global_pool: ``avg``, or an empty string for the unpooled map ``(B, 1024, h, w)``.
        drop_rate: Dropout of the pooled embedding (torchvision has 0.2).
    """

    embedding, last = 1024, "fc"

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.2
    ) -> None:
        super().__init__()
        self._start(num_classes, in_chans, global_pool, 1024, "inception5b")
        base = TorchvisionGoogLeNet(num_classes=max(num_classes, 1), aux_logits=False, init_weights=True)
        stages = ["conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3"]
        stages += [f"inception{name}" for name in _INCEPTIONS[2:7]] + ["maxpool4", "inception5a", "inception5b"]
        self._stages = stages
        for name in stages:
            self.add_module(name, getattr(base, name))
        if in_chans != 3:
            stem = nn.Conv2d(in_chans, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.trunc_normal_(stem.weight, std=0.01, a=-2, b=2)
            cast(nn.Module, self.conv1).conv = stem
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(drop_rate)
        self.fc: nn.Module = base.fc if num_classes > 0 else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for timm: the convolutional stem, then one per inception block, whatever ``coarse`` says."""
        blocks = [(rf"^inception{name}", (index,)) for index, name in enumerate(_INCEPTIONS)]
        return {"stem": r"^conv[123]\.", "blocks": blocks}

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, 1024, h, w)``; H and W at least 15."""
        for name in self._stages:
            x = self.get_submodule(name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, 1024, h, w)`` -> ``(B, num_classes)``, or ``(B, 1024)`` before the last layer."""
        if not self.global_pool:
            return x
        x = self.dropout(torch.flatten(self.avgpool(x), 1))
        return x if pre_logits else cast(Tensor, self.fc(x))


def checkpoint_filter_fn(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision without GoogLeNet's auxiliary classifiers (timm's name for such a conversion)."""
    return {key: value for key, value in state_dict.items() if not key.startswith(("aux1.", "aux2."))}


def alexnet(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """Entry point of AlexNet (61 million parameters)."""
    return cast(AlexNet, build_model_with_cfg(AlexNet, "alexnet", pretrained, **kwargs))


def googlenet(pretrained: bool = False, **kwargs: Any) -> GoogLeNet:
    """Entry point of GoogLeNet (6.6 million parameters)."""
    kwargs["pretrained_filter_fn"] = checkpoint_filter_fn
    model = build_model_with_cfg(GoogLeNet, "googlenet", pretrained, **kwargs)
    return cast(GoogLeNet, model)


register_model(alexnet)
register_model(googlenet)
