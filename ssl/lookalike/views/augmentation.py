"""One view of an augmentation policy as an augmentation of kornia's, for
`kornia.augmentation.AugmentationSequential`.
"""

from typing import Any

import torch
from kornia.augmentation import GeometricAugmentationBase2D
from torch import Tensor

from lookalike.geometry import sides
from lookalike.recipe import Size
from lookalike.views import Symmetric, fused


class FusedView(GeometricAugmentationBase2D):  # type: ignore[misc]
    """Crop, flip, resize and colours of one view: floats (B, C, H, W) in [0, 1] -> (B, C, *size).

    law: `Symmetric` or a policy like it; view: whose chances are meant, where they differ between
    views. Boxes, masks and keypoints follow the crop. Draws come from torch's global generator, as
    in all of kornia, not from samples.
    """

    def __init__(self, policy: Symmetric, size: Size, view: int = 0) -> None:
        super().__init__(p=1.0, same_on_batch=False, p_batch=1.0)
        if policy.randaugment:
            raise ValueError(
                "randaugment: boxes and masks cannot follow it: set it to 0, or use the policy "
                "itself"
            )
        self.policy, self.sides, self.view = policy, sides(size), view
        self.flags = {"size": self.sides}

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """What is drawn for each image, by names of `Symmetric.draws`."""
        batch, _, height, width = batch_shape
        ids_B = torch.randint(2**62, (batch,))
        drawn = self.policy.draws(ids_B, 0, 0, range(self.view, self.view + 1), height, width)
        # Kornia's containers read from `output_size` what the augmentations after this one will be
        # given.
        size_B2 = torch.tensor(self.sides).expand(batch, 2)
        return {"output_size": size_B2} | {name: value[0] for name, value in drawn.items()}

    def compute_transformation(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]
    ) -> Tensor:
        """(B, 3, 3): from a pixel's place in the image to its place in the view."""
        top, left, height, width = params["box"].to(input).unbind(1)
        x, y = self.sides[1] / width, self.sides[0] / height
        matrix_B33 = torch.zeros(len(top), 3, 3, dtype=input.dtype, device=input.device)
        matrix_B33[:, 0, 0], matrix_B33[:, 0, 2] = x, (0.5 - left) * x - 0.5
        matrix_B33[:, 1, 1], matrix_B33[:, 1, 2] = y, (0.5 - top) * y - 0.5
        matrix_B33[:, 2, 2] = 1
        mirror_33 = torch.tensor([[-1.0, 0, self.sides[1] - 1], [0, 1, 0], [0, 0, 1]]).to(input)
        flip_B11 = params["flip"].to(input.device)[:, None, None]
        matrix_B33 = torch.where(flip_B11, mirror_33 @ matrix_B33, matrix_B33)
        if "shift" in params:
            matrix_B33[:, :2, 2] -= params["shift"].to(input).flip(1)
        return matrix_B33

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """The view, not normalised."""
        draws = {name: value[None].cpu() for name, value in params.items() if name in fused.DRAWN}
        form = self.policy.form(self.sides, (0.0,), (1.0,), input.dtype)
        return fused.make(input, draws, form)[0]
