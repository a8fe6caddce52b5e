"""Segmentation scored: the confusion of pixels, and the intersection over union of each class.

mIoU as in Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010, section 4.4
and Zhou et al., "Scene Parsing through ADE20K", CVPR 2017: of one confusion matrix over all pixels
of all images, averaged over classes. A class that no mask of the set has does not count.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.data.images.masked import IGNORED
from lookalike.errors import Error
from lookalike.scoring import classification


class Overlap(NamedTuple):
    """IoU of each class, float64 (C,), NaN for one that does not occur; their mean, and the share
    of pixels that are right.
    """

    iou_C: Tensor
    miou: float
    accuracy: float


def confusion(predicted_BHW: Tensor, class_BHW: Tensor, classes: int) -> Tensor:
    """How many pixels of each class (rows) were taken for which (columns), int64 (C, C); ignored
    ones do not count. Exact for any number of pixels and in any order.
    """
    known = class_BHW != IGNORED
    predicted_N, class_N = predicted_BHW[known].long(), class_BHW[known].long()
    return classification.confusion(predicted_N, class_N, classes)


def overlap(confusion_CC: Tensor) -> Overlap:
    """IoU = right / (of the class, or taken for it) of each class that occurs. Raises Error where
    no pixel has a class.
    """
    counts_CC = confusion_CC.cpu()
    right_C, of_C, taken_C = counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0)
    total = int(of_C.sum())
    if not total:
        raise Error("segmentation: no pixel has a class, so there is no mIoU: check the masks")
    iou_C = right_C.double() / (of_C + taken_C - right_C).clamp(min=1).double()
    iou_C[of_C == 0] = torch.nan
    return Overlap(iou_C, float(iou_C[of_C > 0].mean()), int(right_C.sum()) / total)


def pixel_logits(x_BDhw: Tensor, weight_CD: Tensor, bias_C: Tensor, sides: Any) -> Tensor:
    """Logits of each pixel (B, C, *sides): a linear classifier of each patch, brought bilinearly to
    the pixels.
    """
    low_BChw = F.conv2d(x_BDhw, weight_CD[:, :, None, None], bias_C)
    return F.interpolate(low_BChw, tuple(sides), mode="bilinear", align_corners=False)


def pixel_loss(logits_BCHW: Tensor, class_BHW: Tensor) -> Tensor:
    """The sum of the cross-entropy over all pixels that have a class."""
    return F.cross_entropy(logits_BCHW, class_BHW, ignore_index=IGNORED, reduction="sum")
