"""Which objectives read numbers of their device, and where."""

import pytest
import torch
from test_objective_ranks import CASES, build

import pretend
from lookalike.errors import DataError
from lookalike.metric.objectives import OBJECTIVE, OWN
from lookalike.metric.pair_masks import classes, refuse_unknown
from lookalike.nn.hooks import follow

PAIRS = "pytorch-metric-learning lists pairs or triplets by `torch.where`"
MASK = "pytorch-metric-learning indexes by a mask"
HOST = "pytorch-metric-learning holds a tensor on the host, and moves it at each step"
# Each waits for the device once a step or more; a name that is not here may not: none of ours.
READS = {
    "AngularLoss": PAIRS,
    "ArcFaceLoss": MASK,
    "CircleLoss": PAIRS,
    "ContrastiveLoss": PAIRS,
    "CosFaceLoss": MASK,
    "DynamicSoftMarginLoss": PAIRS,
    "FastAPLoss": PAIRS,
    "GeneralizedLiftedStructureLoss": PAIRS,
    "HistogramLoss": PAIRS,
    "InstanceLoss": "pytorch-metric-learning asks for the unique labels",
    "IntraPairVarianceLoss": PAIRS,
    "LargeMarginSoftmaxLoss": HOST,
    "LiftedStructureLoss": PAIRS,
    "MarginLoss": PAIRS,
    "MultiSimilarityLoss": PAIRS,
    "NCALoss": MASK,
    "NPairsLoss": PAIRS,
    "NTXentLoss": PAIRS,
    "P2SGradLoss": "pytorch-metric-learning asserts the lengths of its proxies",
    "PNPLoss": PAIRS,
    "ProxyAnchorLoss": "pytorch-metric-learning lists the proxies with images in the batch",
    "ProxyNCALoss": HOST,
    "RankedListLoss": MASK,
    "SignalToNoiseRatioContrastiveLoss": PAIRS,
    "SmoothAPLoss": "pytorch-metric-learning counts the classes by `bincount`",
    "SphereFaceLoss": HOST,
    "SubCenterArcFaceLoss": MASK,
    "SupConLoss": PAIRS,
    "ThresholdConsistentMarginLoss": PAIRS,
    "TripletMarginLoss": PAIRS,
    "TupletMarginLoss": PAIRS,
    "WeightedSum": "its parts, here of pytorch-metric-learning",
}
OURS = {kind.__name__ for kind in OWN}
PAST = [case for case in CASES if case.endswith("with memory") and CASES[case][0] in OURS]
WITHOUT = [
    *(name for name in OBJECTIVE.makers() if name not in READS),
    *PAST,
    *("quadruplet all", "constellation random", "constellation all", "csml sum"),
]
READ = r"nonzero|_unique|bincount|unique_consecutive|_local_scalar_dense|FakeTensors"
ROWS = 24


def test_the_table_names_objectives():
    assert set(READS) < set(OBJECTIVE.makers())
    assert not OURS & set(READS)
    assert len(PAST) > 3


@pytest.mark.filterwarnings("ignore")  # the library's, known in tests/metric/test_metric.py
@pytest.mark.parametrize("name", [*READS, *WITHOUT])
def test_an_objective_reads_nothing_or_is_known_to(name):
    """On a GPU that is made up: of a loss the value, since torch's generators cannot be set
    aside on it.
    """
    assert name in CASES
    objective = build(name).float()
    with pretend.device("cuda") as device:
        pretend.place(objective, device)
        rows_ND = torch.empty(ROWS, objective.embedding_size, device=device, requires_grad=True)
        labels_N = torch.empty(ROWS, dtype=torch.int64, device=device)
        if name in READS:
            with pytest.raises(Exception, match=READ):
                objective._values(rows_ND, labels_N)
            return
        values = objective._values(rows_ND, labels_N)
        assert {value.device.type for value in values} == {"cuda"}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_whole_step_of_those_that_read_nothing(name):
    objective = build(name).float()
    with pretend.device("meta") as device:
        pretend.place(objective, device)
        z_ND = torch.empty(ROWS, objective.embedding_size, device=device, requires_grad=True)
        objective(z_ND, torch.empty(ROWS, dtype=torch.int64, device=device)).value.backward()
        follow(objective)
    assert z_ND.grad is not None
    assert z_ND.grad.shape == z_ND.shape


def test_classes_are_counted_in_the_order_of_their_labels():
    for seed in range(20):
        torch.manual_seed(seed)
        labels_B = torch.randint(-4, 9, (30,)) * (2**59 if seed % 2 else 1)
        labels_R = torch.randint(-4, 9, (seed,)) * (2**59 if seed % 2 else 1)
        both = torch.unique(torch.cat([labels_B, labels_R]), return_inverse=True)[1]
        y_B, y_R = classes(labels_B, labels_R)
        assert torch.equal(torch.cat([y_B, y_R]), both)
        own = torch.unique(labels_B, return_inverse=True)[1]
        assert torch.equal(classes(labels_B, labels_B)[0], own)


def test_a_label_that_is_no_class_is_refused_on_the_host_and_makes_nan_elsewhere():
    with pytest.raises(DataError, match="7 is none of the 5 classes"):
        refuse_unknown(torch.tensor([0, 7]), 5)
    assert refuse_unknown(torch.tensor([0, 4]), 5) is None
    with pretend.device("meta") as device:
        known = refuse_unknown(torch.empty(2, dtype=torch.int64, device=device), 5)
    assert known is not None
    assert (known.shape, known.dtype) == ((), torch.bool)
