"""Few labels: which images, how often, and in which lists; scores are scikit-learn's."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

import toy
from lookalike.data.sources import Folder
from lookalike.errors import DataError, RecipeError
from lookalike.evaluation import few
from lookalike.evaluation.features import Features
from lookalike.evaluation.protocols import Numbers, Subject

LABELS = (torch.arange(300) % 7) * 2
GRID = (1e-3, 1e-1)


def wanted(**keys):
    return few.FewLabels(**{"shots": (1, 4), "share": (0.1, 0.5), "draws": 3, **keys})


def test_every_draw_has_so_many_of_each_class():
    found = few.subsets(wanted(), LABELS, seed=0)
    names = ["1-shot", "4-shot", "10 %", "50 %"]
    assert [(s.name, s.draw) for s in found] == [(n, d) for d in range(3) for n in names]
    size = {"1-shot": 1, "4-shot": 4, "10 %": 4, "50 %": 21}
    for subset in found:
        counts = torch.unique(LABELS[subset.rows_K], return_counts=True)[1]
        assert len(counts) == 7
        assert {abs(count - size[subset.name]) for count in counts.tolist()} <= {0, 1}
        assert subset.rows_K.tolist() == sorted(set(subset.rows_K.tolist()))


def test_a_draw_of_more_holds_the_same_draw_of_fewer_and_other_draws_are_others():
    found = {(s.name, s.draw): set(s.rows_K.tolist()) for s in few.subsets(wanted(), LABELS, 0)}
    for draw in range(3):
        assert found["1-shot", draw] < found["4-shot", draw] < found["50 %", draw]
    assert len({frozenset(found["4-shot", draw]) for draw in range(3)}) == 3
    again = {(s.name, s.draw): set(s.rows_K.tolist()) for s in few.subsets(wanted(), LABELS, 1)}
    assert found["4-shot", 0] != again["4-shot", 0]
    alone = few.subsets(few.FewLabels(shots=(4,), draws=1), LABELS, 0)
    assert set(alone[0].rows_K.tolist()) == found["4-shot", 0]


def test_a_class_with_fewer_images_gives_all_and_no_class_none():
    labels_N = torch.tensor([0, 0, 1, -1, -1, 1, 1])
    (subset,) = few.subsets(few.FewLabels(shots=(3,), draws=1), labels_N, 0)
    assert subset.rows_K.tolist() == [0, 1, 2, 5, 6]
    told = few.short(few.FewLabels(shots=(3,)), labels_N)
    assert told == "few.shots: 3, but 1 of 2 classes have fewer train images: all of them"
    assert few.short(few.FewLabels(shots=(2,)), labels_N) == ""


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30])
def test_the_interval_is_student_s(freedom):
    assert few.t_quantile(0.95, freedom) == pytest.approx(
        scipy.stats.t.ppf(0.975, freedom), rel=1e-10
    )
    values = np.random.default_rng(0).normal(size=freedom + 1)
    ends = scipy.stats.t.interval(0.95, freedom, values.mean(), scipy.stats.sem(values))
    assert few.interval(values.tolist()) == pytest.approx(list(ends), rel=1e-9)


@pytest.fixture
def images(tmp_path):
    """Train images of two classes, two of them of one name."""
    path = toy.folder_of_images(tmp_path / "flat", 6) / "train"
    for i, file in enumerate(sorted(path.glob("*.png"))):
        target = tmp_path / "data" / "train" / "ab"[i % 2] / ("same.png" if i < 2 else file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    return Folder(str(tmp_path / "data"), canvas=16, channels=1, test="train").split("train")


def named(tmp_path, text, images):
    (tmp_path / "list.txt").write_bytes(text.encode())
    return few.listed(few.FewLabels(lists={"mine": str(tmp_path / "list.txt")}), images)


def test_a_list_names_images_as_simclr_s_do(tmp_path, images):
    names = [images.name(i).rsplit("/")[-1] for i in range(len(images))]
    free = [i for i, name in enumerate(names) if name != "same.png"]
    (subset,) = named(tmp_path, f"{names[free[2]]}\r\n\n{names[free[0]]}\n", images)
    assert (subset.name, subset.draw) == ("mine", 0)
    assert subset.rows_K.tolist() == [free[0], free[2]]
    (subset,) = named(tmp_path, "b/same.png\n", images)
    assert images.name(int(subset.rows_K[0])).endswith("b/same.png")


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "": "list.txt: names no image: one name a line",
        "03.png\nn01440764_10074.JPEG": "list.txt:2: n01440764_10074.JPEG is not among the train",
        "same.png": "list.txt:1: same.png is the name of several: write names as in the train set",
        "\x1b[2J": r"list.txt:1: \\x1b\[2J is not among",
    }.items(),
)
def test_a_list_that_is_none_is_refused_with_its_line(tmp_path, images, text, said):
    with pytest.raises(DataError, match=said):
        named(tmp_path, text, images)
    with pytest.raises(DataError, match=r"probe.few.lists: .*nowhere: No such file"):
        few.listed(few.FewLabels(lists={"a": str(tmp_path / "nowhere")}), images)


@pytest.mark.parametrize(
    ("value", "said"),
    [("{}", "probe.few: no shots, no share"), ("{lists: {a/b: x}}", "take a name without /")],
)
def test_the_recipe_refuses_what_draws_nothing(value, said):
    with pytest.raises(RecipeError, match=said):
        toy.recipe(f"probe.few={value}")


def subject(dropped: int = 0) -> Subject:
    """Features that overlap; of the first images some could not be read."""
    generator = torch.Generator().manual_seed(4)
    centres_CD = torch.randn(5, 12, generator=generator)
    sets = []
    for count in (200, 150):
        labels_N = torch.arange(count) % 5
        x_ND = centres_CD[labels_N] + 1.2 * torch.randn(count, 12, generator=generator)
        ids_N = torch.arange(count)[dropped:]
        sets.append(Features(x_ND[dropped:], labels_N[dropped:], dropped, ids_N))
    shared = Numbers(GRID, 0.2, 300, 256, None, "fp32", 0)
    return Subject((sets[0], sets[1]), (None, None), None, shared)


def test_scores_with_few_labels_are_scikit_learn_s():
    made = subject()
    train, test = made.features
    drawn = few.subsets(few.FewLabels(shots=(4,), draws=3), train.labels_N, 0)
    found = few.scores(made, drawn, (1,), 0.07)
    mean, std = train.x_ND.double().mean(0), train.x_ND.double().std(0, correction=0)
    expected = {"linear/top1": [], "knn1/top1": [], "prototype_euclidean/top1": []}
    for draw, subset in enumerate(drawn):
        x, y = train.x_ND[subset.rows_K].double().numpy(), train.labels_N[subset.rows_K].numpy()
        l2 = found.draws["linear/l2"][draw]
        z, w = (((part - mean) / std).numpy() for part in (torch.tensor(x), test.x_ND.double()))
        peers = {
            "linear/top1": (LogisticRegression(C=1 / (l2 * 20), tol=1e-10, max_iter=9999), z, w),
            "knn1/top1": (KNeighborsClassifier(1, metric="cosine"), x, test.x_ND.double().numpy()),
            "prototype_euclidean/top1": (NearestCentroid(), x, test.x_ND.double().numpy()),
        }
        for name, (peer, fitted, scored) in peers.items():
            expected[name].append(peer.fit(fitted, y).score(scored, test.labels_N.numpy()))
    for name, values in expected.items():
        assert found.draws[name] == pytest.approx(values, abs=1e-12)
        assert found.means[name] == pytest.approx(np.mean(values), abs=1e-12)
        assert 0.3 < found.means[name] < 1
        assert found.intervals[name][0] < found.means[name] < found.intervals[name][1]


def test_images_that_cannot_be_read_are_left_out_of_their_draws():
    lacking = subject(dropped=9)
    drawn = [few.Subset("mine", 0, torch.tensor([4, 9, 12, 39]))]
    rows_K = few._readable(drawn[0], lacking.features[0].ids_N)
    assert rows_K.tolist() == [0, 3, 30]
    assert few.scores(lacking, drawn, (5,), 0.07).intervals == {}


def _scored():
    made = subject()
    drawn = few.subsets(wanted(shots=(2,), share=()), made.features[0].labels_N, 0)
    return few.scores(made, drawn, (3,), 0.07)


def test_two_ranks_find_what_one_does(ranks):
    alone = _scored()
    for found in ranks.run(_scored, world=2):
        assert found.draws == {n: pytest.approx(v, abs=1e-9) for n, v in alone.draws.items()}
        assert found.intervals.keys() == alone.intervals.keys()
