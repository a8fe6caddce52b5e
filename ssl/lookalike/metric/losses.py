"""OBJECTIVES, every loss a recipe can name, the library's and our own: imported when it asks for
one.
"""

from collections.abc import Mapping
from typing import Any

from lookalike.metric.barlow_twins import BarlowTwinsLoss
from lookalike.metric.choices import WeightedSum
from lookalike.metric.constellation import ConstellationLoss
from lookalike.metric.cross_entropy import CrossEntropyLoss
from lookalike.metric.csml import CSMLLoss
from lookalike.metric.facenet import FaceNetLoss
from lookalike.metric.n_pair import MultiClassNPairLoss
from lookalike.metric.pml import LOSSES, MINERS
from lookalike.metric.quadruplet import QuadrupletLoss
from lookalike.metric.sentence import (
    SentenceClassificationLoss,
    SentenceRegressionLoss,
    SentenceTripletLoss,
)

__all__ = ["MINERS", "OBJECTIVES", "OWN", "SINGLE"]

OWN = (
    QuadrupletLoss,
    ConstellationLoss,
    MultiClassNPairLoss,
    CSMLLoss,
    SentenceClassificationLoss,
    SentenceRegressionLoss,
    SentenceTripletLoss,
    CrossEntropyLoss,
    FaceNetLoss,
    BarlowTwinsLoss,
)
SINGLE: Mapping[str, Any] = {**LOSSES, **{kind.__name__: kind for kind in OWN}}
OBJECTIVES: Mapping[str, Any] = {**SINGLE, "WeightedSum": WeightedSum}
