"""One part of each kind that hemlearn takes."""

from __future__ import annotations

import json
import os
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from hemlearn.data.manifest import Manifest
from hemlearn.data.splits import Split
from hemlearn.datamodules import SliceDataModule
from hemlearn.models.freeze import FreezePolicy
from hemlearn.tasks import SliceClassification


class Pictures(SliceDataModule):  # data
    """Pictures listed in a CSV file of the folder."""

    name = "pictures"

    def __init__(self, root: str | Path | None = None, *, table: str = "mine.csv", **options: Any) -> None:
        super().__init__(root, **options)
        self.table = table

    def read(self, root: Path) -> Manifest:
        return self.build(pd.read_csv(root / self.table, dtype=str), root, labels=["bleed"])


class Alternate:  # split
    """Every n-th patient tests, the one after it validates."""

    def __init__(self, every: int = 4) -> None:
        self.every = every

    def split(self, manifest: Manifest, labels: Any, groups: Any) -> Split:
        names = sorted(manifest.table["patient_id"].unique())
        sides = {0: "test", 1: "val"}
        found = [sides.get(index // 2 % self.every, "train") for index in range(len(names))]
        return Split(pd.DataFrame({"patient_id": names, "split": found}))


class WithEdges(nn.Module):  # channels
    """The grey level and the size of its gradient along a row."""

    out_channels = 2

    def forward(self, raw: Tensor) -> Tensor:
        grey = raw[:, :1].float() / 255
        edge = F.pad((grey[..., 1:] - grey[..., :-1]).abs(), (0, 1))
        return torch.cat([grey, edge], 1).clamp(0, 1)


class Fade(nn.Module):  # augmentation
    """Darkens every sample a little."""

    keeps_sides = True

    def __init__(self, most: float = 0.2) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: Tensor) -> Tensor:
        return images * (1 - torch.rand(len(images), 1, 1, 1) * self.most)


class Net(nn.Module):  # backbone
    """One convolution, one linear layer."""

    def __init__(self, in_chans: int, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 4, 5, stride=4)
        self.lift = nn.Linear(4 * 16, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lift(F.adaptive_avg_pool2d(F.relu(self.stem(x)), 4).flatten(1))


class LowRank(nn.Module):
    """A frozen linear layer with a trained update of low rank (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class LoRA(FreezePolicy):  # freeze
    """Only the updates of low rank train."""

    def __init__(self, rank: int = 2) -> None:
        super().__init__("all")
        self.rank = rank

    def prepare(self, backbone: Any) -> None:
        backbone.model.lift = LowRank(backbone.model.lift, self.rank)

    def apply(self, backbone: Any, epoch: int) -> None:
        super().apply(backbone, epoch)
        for name, parameter in backbone.model.named_parameters():
            parameter.requires_grad_(".down." in name or ".up." in name)


class FirstHalf(nn.Module):  # features
    """Keeps the first half of the features, standardised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.k = width // 2
        self.register_buffer("mean", torch.zeros(self.k))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, x: Any, y: Any, patients: Any, rows: Any) -> list[str]:
        self.mean.copy_(torch.from_numpy(np.asarray(x[rows], np.float32)[:, : self.k].mean(0)))
        self.fitted.fill_(True)
        return [f"the mean of {len(rows)} slices"]

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.k] - self.mean


class Trend(nn.Module):  # sequence
    """Each slice beside the mean of its series."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mean = x.sum(1, keepdim=True) / lengths[:, None, None]
        return self.out(torch.cat([x, mean.expand_as(x)], -1))


class Cooled(SliceClassification):  # task
    """Logits divided by a temperature."""

    def __init__(self, *arguments: Any, cooling: float = 2.0, **options: Any) -> None:
        self.cooling = cooling
        super().__init__(*arguments, **options)

    def forward(self, raw: Tensor) -> Tensor:
        return super().forward(raw) / self.cooling

    def activate(self, logits: Tensor) -> Tensor:
        return super().activate(logits / self.cooling)


class Squared(nn.Module):  # loss
    """Squared difference of probability and label, where it is known."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        known = ~torch.isnan(target)
        gap = (logits.sigmoid() - torch.where(known, target, 0.0)) ** 2
        return self.scale * (gap * known).sum() / known.sum().clamp_min(1)


class Signs(torch.optim.Optimizer):  # optimizer
    """Steps of one size along the sign of the gradient."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        if closure is not None:
            with torch.enable_grad():
                pass
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad.sign())
        return loss


class Halving(LRScheduler):  # optimizer.schedule
    """Half the rate after every epoch."""

    def __init__(self, optimizer: Any, floor: float = 0.0) -> None:
        self.floor = floor
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [max(rate * 0.5**self.last_epoch, self.floor) for rate in self.base_lrs]


class Spread(Metric):  # metrics
    """Mean probability of the positives minus that of the negatives."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros(2), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros(2), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        for side in (0, 1):
            self.total[side] += preds[target == side].sum()
            self.count[side] += (target == side).sum()

    def compute(self) -> Tensor:
        mean = self.total / self.count
        return mean[1] - mean[0]


class Diary(Callback):  # callbacks
    """Counts epochs, also over a resume; HEADLAB_KILL=N kills the process after N of them."""

    def __init__(self, start: int = 0) -> None:
        self.epochs = start

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if str(self.epochs) == os.environ.get("HEADLAB_KILL"):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]


class Lines(Logger):  # logger
    """A line of JSON for whatever is logged."""

    def __init__(self, save_dir: str, name: str, version: str, file: str = "lines.jsonl") -> None:
        super().__init__()
        self._save_dir, self._name, self._version = save_dir, name, version
        self.file = Path(save_dir) / file

    name = property(lambda self: self._name)
    version = property(lambda self: self._version)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps({"step": step, **{k: float(v) for k, v in metrics.items()}}) + "\n")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        content = vars(params) if isinstance(params, Namespace) else dict(params)
        with self.file.open("a") as stream:
            stream.write(json.dumps({"about": content.get("job_type")}) + "\n")


class Wrong:
    """Parts that misbehave."""

    class Map(nn.Module):
        """A backbone without pooling."""

        def __init__(self, in_chans: int) -> None:
            super().__init__()
            self.stem = nn.Conv2d(in_chans, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.stem(x)

    class VectorLoss(nn.Module):
        """No mean."""

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return (logits - target).abs().flatten()

    class NaNLoss(nn.Module):
        """Not a number."""

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return logits.sum() * torch.nan

    class DeadLoss(nn.Module):
        """No gradient."""

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return logits.detach().mean()

    class RaisingMetric(Spread):
        """Raises."""

        def compute(self) -> Tensor:
            raise ZeroDivisionError("no positives")

    class RaisingData(Pictures):
        """Raises while it reads."""

        def read(self, root: Path) -> Manifest:
            raise OSError("the archive is away")

    class Closed(Pictures):
        """Cannot be made."""

        def __init__(self, root: str | None = None, **options: Any) -> None:
            raise PermissionError("no licence")

    class RaisingSplit(Alternate):
        """Raises."""

        def split(self, manifest: Manifest, labels: Any, groups: Any) -> Split:
            raise IndexError("no patient 9")

    class RaisingCallback(Callback):
        """Raises."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            raise LookupError("the diary is lost")
