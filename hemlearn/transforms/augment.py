"""Batched augmentation on the device, with labels that follow the anatomy.

Which side is left
------------------
A label such as ``left`` means the patient's left. What a network sees of it is the image, and an image of a head
fixes both sides as long as it is not mirrored: turned by any angle, the nose still tells front from back, and with
that left from right. A mirror image alone shows the other patient. So labels that form a pair in ``task.sides`` are
exchanged exactly for the samples whose overall transform has a negative determinant:

* horizontal flip: exchanged;
* vertical flip: exchanged too. Each finding stays in its half of the image, but front and back changed places, and a
  head lying face down with the finding in the same half carries it on the other side;
* both flips, or a rotation by 180 degrees: not exchanged, it is the same head turned round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import kornia.augmentation as K
import torch
import torchvision.transforms as T
from kornia.augmentation.container.base import SequentialBase
from torch import Tensor, nn

from hemlearn.plugins import call, resolve, target_of
from hemlearn.transforms.geometry import draw_matrices, flip, is_affine, is_flip, mirrored, warp
from hemlearn.util.errors import ConfigError


class Augment(nn.Module):
    """Augmentation steps in their order, then mixup.

    Neighbouring affine kornia steps are joined into one resampling; pixels from outside the image are 0 (air).
    Transforms of single images, such as MONAI's, are applied sample by sample (:class:`PerSample`).
    Parameters are drawn per sample from torch's global generators, so ``torch.manual_seed`` fixes them. In evaluation
    mode (``augment.eval()``), and with no steps and no mixup, a batch passes through untouched.

    Args:
        steps: Modules that map (B, C, H, W) images in [0, 1] to images, transforms of one image, or nodes
            ``{_target_: dotted.name, argument: value}`` of either.
        mixup: Alpha of the Beta distribution; 0 turns it off.
        labels: Names of the labels, for ``sides``.
        sides: Pairs of labels that are the two sides of one finding.

    Raises:
        ConfigError: A step that cannot be built or is no image -> image module, a step whose effect on sides is
            unknown while ``sides`` is set, a bad mixup value or bad side pairs.

    Examples:
        >>> flip = Augment([{"_target_": "kornia.augmentation.RandomHorizontalFlip", "p": 1.0}], labels=["left",
        ...     "right"], sides=[["left", "right"]])
        >>> images, labels = flip(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[1.0, 0.0]]))
        >>> images.flatten().tolist(), labels.tolist()
        ([1.0, 0.0], [[0.0, 1.0]])
    """

    def __init__(
        self,
        steps: Sequence[Any] = (),
        mixup: float = 0.0,
        *,
        labels: Sequence[str] = (),
        sides: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__()
        if mixup < 0:
            raise ConfigError(f"augmentation.mixup={mixup}: below 0", remedy="give 0 to turn mixup off")
        self.mixup = mixup
        self.permutation = side_permutation(labels, sides) if sides else None
        self.names = [target_of(step) or type(step).__name__ for step in steps]
        self.recipe = [step if isinstance(step, dict) else repr(step) for step in steps]
        built = [self._build(index, step) for index, step in enumerate(steps)]
        self.steps = nn.ModuleList(built)
        self._groups = _group(built)
        # kornia keeps some ranges as buffers. They come from the configuration, and in a checkpoint they would stop
        # it from loading under another augmentation.
        for module in self.steps.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)

    def _build(self, index: int, step: Any) -> nn.Module:
        where = f"augmentation.steps[{index}]"
        target = self.names[index]
        module = step if isinstance(step, nn.Module) or target_of(step) is None else resolve(step, where)
        if not isinstance(module, nn.Module) and callable(module) and not isinstance(module, type):
            module = PerSample(module)
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{where} ({target}) is a {type(module).__name__}, not a torch module or a transform",
                remedy="write {_target_: package.Class, argument: value} of kornia.augmentation, monai.transforms, "
                "hemlearn.transforms or a module of your own",
            )
        if isinstance(module, K.MixAugmentationBaseV2):
            raise ConfigError(
                f"{where} ({target}) mixes samples without mixing their labels",
                remedy="use augmentation.mixup=ALPHA, which mixes both",
            )
        if self.permutation is not None and not _sides_known(module):
            raise ConfigError(
                f"{where} ({target}): cannot tell whether it mirrors a sample, and task.sides must follow mirroring",
                remedy="use single kornia steps, or give your class the attribute keeps_sides = True if it never "
                "mirrors",
            )
        return module

    def _apply(self, fn: Any, recurse: bool = True) -> Augment:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # kornia moves its generators along with the module. The few numbers an affine step needs are drawn on the
        # CPU, so that training never waits for a GPU to learn which samples are flipped.
        for steps in self._groups:
            if is_affine(steps[0][1]):
                for _, step in steps:
                    step.set_rng_device_and_dtype(torch.device("cpu"), torch.float32)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch; the given tensors are not changed.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B, L), NaN where unknown.

        Returns:
            Images (B, C, H, W) float32 in [0, 1], and labels (B, L): with mixup they may be soft.

        Raises:
            ConfigError: A step fails on such a batch or changes its shape.
        """
        if not self.training or (not len(self.steps) and not self.mixup):
            return images, labels
        # Under mixed precision the small matrix products would be rounded to about a pixel.
        with torch.autocast(images.device.type, enabled=False):
            images, flipped = self._steps(images, None)
            labels = self._exchange(labels, flipped)
            if self.mixup:
                images, labels = mix(images, labels, self.mixup)
        return images, labels

    @torch.no_grad()
    def series(
        self, images: Tensor, labels: Tensor, series_labels: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Augment whole series: all slices of one are moved and mirrored alike, as one head would be.

        Args:
            images: (T, C, H, W) in [0, 1], series after series.
            labels: (T, L) of the slices.
            series_labels: (B, L).
            lengths: (B,) slices per series; they sum to T.

        Returns:
            Images, labels of the slices and labels of the series; the latter two follow the mirroring.

        Raises:
            ConfigError: As :meth:`forward`; or a step mirrors some slices of a series and not others.
        """
        if not self.training or not len(self.steps):
            return images, labels, series_labels
        with torch.autocast(images.device.type, enabled=False):
            images, flipped = self._steps(images, lengths)
        counts = lengths.cpu()
        first = flipped[counts.cumsum(0) - counts]
        if self.permutation is not None and bool((first.repeat_interleave(counts) != flipped).any()):
            raise ConfigError(
                "augmentation: a step mirrors some slices of a series and not others; task.sides must follow mirroring",
                remedy="mirror with kornia's flips and affine steps",
            )
        return images, self._exchange(labels, flipped), self._exchange(series_labels, first)

    def _steps(self, images: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """All steps on a batch: the images, and which of them were mirrored ((B,) on the CPU)."""
        images = images.float()
        flipped = torch.zeros(images.shape[0], dtype=torch.bool)
        for group in self._groups:
            images, turned = self._run(group, images, lengths)
            if turned is not None:
                flipped = flipped ^ turned
        return (images.clamp(0.0, 1.0) if len(self.steps) else images), flipped

    def _exchange(self, labels: Tensor, flipped: Tensor) -> Tensor:
        """Labels (B, L) with the sides of mirrored samples (B,) exchanged."""
        if self.permutation is None:
            return labels
        rows = flipped.to(labels.device, non_blocking=True).unsqueeze(1)
        return torch.where(rows, labels[:, self.permutation], labels)

    def _run(
        self, group: Sequence[tuple[int, Any]], images: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """One group on a batch: the images, and which samples it mirrored where that is needed and possible.

        With ``lengths`` affine steps are drawn once per series; others, which change grey values, per slice.
        """
        index, step = group[0]
        shape = images.shape
        if is_affine(step):
            for number, member in group:
                self._same_shape(number, shape, member.flags.get("size", shape[-2:]))
            steps = [member for _, member in group]
            drawn_for = shape if lengths is None else torch.Size((len(lengths), *shape[1:]))
            matrix = torch.eye(3).expand(drawn_for[0], 3, 3)
            for drawn in self._guard(index, shape, draw_matrices, steps, drawn_for):
                matrix = drawn.float() @ matrix
            if lengths is not None:
                matrix = matrix.repeat_interleave(lengths.cpu(), dim=0)
            apply = flip if all(is_flip(member) for member in steps) else warp
            return apply(images, matrix), mirrored(matrix)
        result = self._guard(index, shape, step, images)
        if not isinstance(result, Tensor):
            raise ConfigError(
                f"augmentation.steps[{index}] ({self.names[index]}) gives a {type(result).__name__}, not images",
                remedy="use a step that maps an image batch to an image batch",
            )
        self._same_shape(index, shape, result.shape[-2:])
        own = getattr(step, "transform_matrix", None) if self.permutation is not None else None
        turned = mirrored(own).cpu() if isinstance(own, Tensor) else None
        return result.float(), turned

    def _guard(self, index: int, shape: torch.Size, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
            raise ConfigError(
                f"augmentation.steps[{index}] ({self.names[index]}) fails on a batch of shape {tuple(shape)}: {error}",
                remedy="check its arguments; steps for colour photographs need three channels",
            ) from error

    def _same_shape(self, index: int, shape: torch.Size, size: Sequence[int]) -> None:
        if tuple(size) != tuple(shape[-2:]):
            raise ConfigError(
                f"augmentation.steps[{index}] ({self.names[index]}) makes {tuple(size)} pixels of {tuple(shape[-2:])}",
                remedy="training and validation images must agree: write size: ['${data.image_size}', "
                "'${data.image_size}'] in the step",
            )


def build_augment(spec: Any, labels: Sequence[str], sides: Sequence[Sequence[str]]) -> Augment:
    """The augmentation of group ``augmentation``; a module, transform, class or node of one's own is its only step.

    Raises:
        ConfigError: As :class:`Augment`.
    """
    if isinstance(spec, Augment):
        return spec
    if target_of(spec) is not None and not isinstance(spec, dict):
        return Augment([{"_target_": target_of(spec), **(spec.model_extra or {})}], labels=labels, sides=sides)
    if not hasattr(spec, "steps"):
        step = call(spec, "augmentation", {}) if isinstance(spec, type) else spec
        return Augment([step], labels=labels, sides=sides)
    return Augment(spec.steps, spec.mixup, labels=labels, sides=sides)


class PerSample(nn.Module):
    """A transform of single images as an augmentation step of batches, such as MONAI's MR artefacts.

    A transform with ``set_random_state`` (MONAI's way) is seeded for every batch from torch's generator, so that
    ``torch.manual_seed`` fixes it too.

    Args:
        transform: Maps one image (C, H, W) in [0, 1] to an image of the same shape.
        volumes: Hand over (C, H, W, 1), which transforms of volumes such as TorchIO's expect.
        keeps_sides: Whether it never mirrors an image; None: true of MONAI's intensity transforms, else unknown.

    Examples:
        >>> from monai.transforms import RandRicianNoise
        >>> step = PerSample(RandRicianNoise(prob=1.0, std=0.1))
        >>> step(torch.full((2, 1, 8, 8), 0.5)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self, transform: Callable[[Tensor], Any], *, volumes: bool = False, keeps_sides: bool | None = None
    ) -> None:
        super().__init__()
        self.transform = transform
        self.volumes = volumes
        own = getattr(transform, "keeps_sides", type(transform).__module__.startswith("monai.transforms.intensity"))
        self.keeps_sides = bool(own) if keeps_sides is None else keeps_sides

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to the same shape."""
        seed = getattr(self.transform, "set_random_state", None)
        if seed is not None:
            seed(seed=int(torch.randint(2**31 - 1, ())))
        found = []
        for image in images:
            changed = self.transform(image.unsqueeze(-1) if self.volumes else image)
            changed = torch.as_tensor(getattr(changed, "array", changed), dtype=torch.float32, device=images.device)
            found.append(changed.squeeze(-1) if self.volumes else changed)
        return torch.stack(found)

    def extra_repr(self) -> str:
        """The transform, as shown by ``print``."""
        return repr(self.transform)


def _group(steps: Sequence[nn.Module]) -> list[list[tuple[int, Any]]]:
    """Runs of neighbouring affine steps; every other step alone. Each entry carries its place in the list."""
    groups: list[list[tuple[int, Any]]] = []
    for index, step in enumerate(steps):
        if groups and is_affine(step) and is_affine(groups[-1][-1][1]):
            groups[-1].append((index, step))
        else:
            groups.append([(index, step)])
    return groups


def _sides_known(step: nn.Module) -> bool:
    if isinstance(step, SequentialBase):
        return False
    known = (K.IntensityAugmentationBase2D, K.GeometricAugmentationBase2D, T.ColorJitter)
    return isinstance(step, known) or bool(getattr(step, "keeps_sides", False))


def side_permutation(labels: Sequence[str], sides: Sequence[Sequence[str]]) -> list[int]:
    """Order of the label columns of a mirrored head, for ``values[:, order]``.

    It also serves flip averaging at evaluation, where the probabilities of a flipped image change places.

    Raises:
        ConfigError: A pair that is not two labels of the task, or a label in two pairs.
    """
    order = list(range(len(labels)))
    seen: set[str] = set()
    for pair in sides:
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(labels) or seen & set(pair):
            raise ConfigError(
                f"task.sides: {list(pair)} is not a pair of two labels of {list(labels)}, each used once",
                remedy="e.g. task.sides=[[left,right]]",
            )
        seen |= set(pair)
        first, second = labels.index(pair[0]), labels.index(pair[1])
        order[first], order[second] = second, first
    return order


def mix(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412) with a weight per sample.

    Each sample is blended with another one of the batch, weight drawn from Beta(alpha, alpha); labels are blended
    alike. A label that is unknown (NaN) in either sample is unknown in the blend.
    """
    count = images.shape[0]
    weight = torch.distributions.Beta(alpha, alpha).sample((count,))
    partner = torch.randperm(count).to(images.device, non_blocking=True)
    weight = weight.to(images.device, non_blocking=True)
    images = images.lerp(images.index_select(0, partner), 1 - weight.view(-1, 1, 1, 1))
    share = weight.to(labels.device, torch.float32).view(-1, 1)
    other = labels.float()[partner.to(labels.device)]
    return images, share * labels.float() + (1 - share) * other
