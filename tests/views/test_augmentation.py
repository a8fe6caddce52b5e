"""Laws of a view inside kornia's sequential: the same image, and what lies on it goes with it."""

import kornia.augmentation as K
import torch

from lookalike.views import Asymmetric, Symmetric, fused
from lookalike.views.augmentation import FusedView
from lookalike.views.fused import ViewFormat

PLAIN = Symmetric(jitter=0.0, grey=0.0, blur=0.0)


def images(n=6):
    return torch.rand(n, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def test_a_sequential_of_kornia_s_gives_the_view_that_its_parameters_name():
    x, policy = images(), Asymmetric()
    augment = K.AugmentationSequential(FusedView(policy, 16, view=1), data_keys=["input"])
    torch.manual_seed(1)
    found = augment(x)
    assert found.shape == (6, 3, 16, 16)
    drawn = {
        name: value[None] for name, value in augment._params[0].data.items() if name in fused.DRAWN
    }
    torch.testing.assert_close(
        found, fused.make(x, drawn, ViewFormat((16, 16), "bicubic", 2.0, (0.0,), (1.0,)))[0]
    )
    torch.manual_seed(1)
    assert augment(x).equal(found)
    assert not augment(x).equal(found)


def test_keypoints_go_with_the_pixels_they_mark():
    """A bright block is where the moved point says it is, flipped or not."""
    x, points = torch.zeros(64, 3, 48, 48), torch.tensor([[[20.0, 27.0]]]).expand(64, 1, 2)
    x[:, :, 26:29, 19:22] = 1
    augment = K.AugmentationSequential(
        FusedView(PLAIN, 96), K.RandomHorizontalFlip(), data_keys=["input", "keypoints"]
    )
    torch.manual_seed(0)
    made, moved = augment(x, points)
    inside = ((moved > 8) & (moved < 87)).all(dim=2)[:, 0]
    assert 16 < int(inside.sum()) < 64
    columns, rows = torch.arange(96.0), torch.arange(96.0)[:, None]
    light = made[inside].mean(dim=1)
    total = light.sum(dim=(1, 2))
    centre = torch.stack(
        [(light * columns).sum(dim=(1, 2)) / total, (light * rows).sum(dim=(1, 2)) / total], dim=1
    )
    torch.testing.assert_close(centre, moved[inside][:, 0], rtol=0, atol=0.05)


def test_it_stands_beside_kornia_s_own_augmentations_on_bfloat16_too():
    augment = torch.nn.Sequential(FusedView(PLAIN, 16), K.RandomGaussianNoise(p=1.0))
    assert augment(images()).shape == (6, 3, 16, 16)
    assert FusedView(PLAIN, 16)(images().bfloat16()).dtype == torch.bfloat16
