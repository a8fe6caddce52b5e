"""Laws of the retrieval measures, against brute force and hand-made cases."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from lookalike.errors import Error
from lookalike.geometry import DISTANCES
from lookalike.scoring import ranks, retrieval, similarity
from lookalike.scoring.retrieval import each, scores
from lookalike.scoring.similarity import nearness, points


def made(rows=60, width=8, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(classes, (rows,), generator=generator)
    centre_CD = torch.randn(classes, width, generator=generator)
    return centre_CD[labels_N] + torch.randn(rows, width, generator=generator), labels_N


def with_ties(seed=0):
    """Small whole numbers: many equal rows and equal similarities, within and across classes."""
    generator = torch.Generator().manual_seed(seed)
    embeddings_ND = torch.randint(-1, 2, (50, 3), generator=generator).float() + 0.25
    return embeddings_ND, torch.randint(6, (50,), generator=generator)


def steps(points, i, j, distance):
    a, b = points[i], points[j]
    if distance == "cosine":
        return round(
            sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b)) / 1e-6
        )
    mean = [sum(column) / len(points) for column in zip(*points, strict=True)]
    spread = math.sqrt(sum(math.dist(p, mean) ** 2 for p in points) / len(points))
    return -round(math.dist(a, b) / spread / 1e-6)


def brute_force(embeddings_ND, labels_N, distance="cosine"):
    points, labels = embeddings_ND.double().tolist(), labels_N.tolist()
    found = []
    for i, own in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        near = {j: steps(points, i, j, distance) for j in others}
        others.sort(key=lambda j: (-near[j], labels[j] == own))
        right = [labels[j] == own for j in others]
        total = sum(right)
        if not total:
            continue
        precision = [sum(right[: n + 1]) / (n + 1) if right[n] else 0.0 for n in range(len(right))]
        found.append(
            {
                "recall@1": float(any(right[:1])),
                "recall@5": float(any(right[:5])),
                "p@1": float(right[0]),
                "r_precision": sum(right[:total]) / total,
                "map@r": sum(precision[:total]) / total,
                "map": sum(precision) / total,
            }
        )
    means = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
    return means | {"queries": len(found), "dropped": len(labels) - len(found)}


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("data", [made(), made(seed=1), with_ties(), with_ties(seed=1)])
def test_scores_equal_brute_force_with_the_same_tie_rule(data, distance):
    assert scores(*data, distance=distance) == pytest.approx(
        brute_force(*data, distance), abs=1e-12
    )


def test_the_tied_data_has_ties_between_right_and_wrong():
    embeddings_ND, labels_N = with_ties()
    equal_NN = (embeddings_ND[:, None] == embeddings_ND).all(2)
    assert (equal_NN & (labels_N[:, None] != labels_N)).sum() > 100


def test_full_map_equals_scikit_learn_without_ties():
    embeddings_ND, labels_N = made()
    unit_ND = torch.nn.functional.normalize(embeddings_ND.double())
    similarity_NN = (unit_ND @ unit_ND.T).numpy()
    each = []
    for i in range(len(labels_N)):
        others = np.arange(len(labels_N)) != i
        right = (labels_N == labels_N[i]).numpy()[others]
        each.append(average_precision_score(right, similarity_NN[i, others]))
    assert scores(embeddings_ND, labels_N)["map"] == pytest.approx(np.mean(each), abs=1e-12)


def test_map_at_r_of_a_list_made_by_hand():
    degrees = torch.tensor([0.0, 10.0, 20.0, 30.0, 90.0]).deg2rad()
    embeddings_ND = torch.stack([degrees.cos(), degrees.sin()], 1)
    # ranked from row 0: right, wrong, right, wrong → (1/1 + 0) / 2; from row 1 a tie of rows 0 and
    # 2, …
    found = scores(embeddings_ND, torch.tensor([0, 0, 1, 0, 2]))
    row_0, row_1, row_3 = (1 + 0) / 2, (0 + 1 / 2) / 2, (0 + 1 / 2) / 2
    assert found["map@r"] == pytest.approx((row_0 + row_1 + row_3) / 3, abs=1e-12)
    assert found["recall@1"] == pytest.approx(1 / 3)
    assert (found["queries"], found["dropped"]) == (3, 2)


@pytest.mark.parametrize(
    ("distance", "noise"), [("cosine", 0.0), ("euclidean", 0.0), ("cosine", 1e-8)]
)
def test_collapse_scores_zero(distance, noise):
    labels_N = torch.arange(40) % 4
    generator = torch.Generator().manual_seed(0)
    embeddings_ND = torch.full((40, 8), 0.3) + noise * torch.randn(40, 8, generator=generator)
    found = scores(embeddings_ND, labels_N, distance=distance)
    assert [found[name] for name in ("recall@1", "recall@5", "r_precision", "map@r")] == [
        0,
        0,
        0,
        0,
    ]
    worst = sum(hit / (30 + hit) for hit in range(1, 10)) / 9
    assert found["map"] == pytest.approx(worst, abs=1e-12)


def test_zero_vectors_are_a_collapse():
    assert scores(torch.zeros(8, 4), torch.arange(8) % 2)["recall@1"] == 0


def test_collapse_within_one_class_is_perfect():
    assert scores(torch.ones(6, 3), torch.zeros(6, dtype=torch.int64))["map"] == 1


def test_a_copy_of_the_query_stays_in_the_gallery():
    embeddings_ND = torch.eye(4).repeat_interleave(2, 0)
    assert scores(embeddings_ND, torch.arange(8) // 2)["map@r"] == 1
    assert scores(embeddings_ND, torch.arange(8) % 4)["recall@1"] == 0


def test_copies_under_another_label_precede_the_right_one():
    embeddings_ND = torch.eye(3)[torch.tensor([0, 0, 0, 1])]
    assert scores(embeddings_ND, torch.tensor([5, 5, 9, 9]), ks=(1, 2))["recall@1"] == 0
    assert scores(embeddings_ND, torch.tensor([5, 5, 9, 9]), ks=(1, 2))["recall@2"] == 0.5


def test_rows_alone_in_their_class_are_dropped_but_stay_in_the_gallery():
    embeddings_ND, labels_N = made()
    alone_ND = torch.cat([embeddings_ND, embeddings_ND[:5]])
    alone_N = torch.cat([labels_N, torch.arange(100, 105)])
    found = scores(alone_ND, alone_N)
    assert (found["queries"], found["dropped"]) == (60, 5)
    assert found == pytest.approx(brute_force(alone_ND, alone_N), abs=1e-12)
    assert found["map"] < scores(embeddings_ND, labels_N)["map"]


def test_labels_beyond_float_precision_stay_apart():
    embeddings_ND = torch.eye(4).repeat_interleave(2, 0)
    labels_N = torch.arange(8) % 2 + 2**24
    assert scores(embeddings_ND, labels_N)["recall@1"] == 0
    assert scores(embeddings_ND, labels_N + 2**53)["recall@1"] == 0
    assert scores(embeddings_ND, torch.arange(8) // 2 + 2**53)["recall@1"] == 1


@pytest.mark.parametrize("data", [made(), with_ties()])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_order_of_the_rows_does_not_matter(data, distance):
    embeddings_ND, labels_N = data
    order_N = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(3))
    moved = scores(embeddings_ND[order_N], labels_N[order_N], distance=distance)
    assert moved == pytest.approx(scores(*data, distance=distance), abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
@pytest.mark.parametrize("data", [made(), with_ties()])
def test_the_chunk_does_not_matter(data, chunk):
    assert scores(*data, chunk=chunk) == scores(*data)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("data", [made(rows=200, classes=3), with_ties()])
def test_counting_and_sorting_find_the_same_places(data, distance, monkeypatch):
    found = []
    for most in (0, 10**9):
        monkeypatch.setattr(ranks, "COUNTED", most)
        found.append(scores(*data, distance=distance))
    assert found[0] == found[1]


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_gallery_that_holds_the_queries_is_the_same_task(distance):
    embeddings_ND, labels_N = with_ties()
    order_N = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(3))
    apart = scores(
        embeddings_ND,
        labels_N,
        embeddings_ND[order_N],
        labels_N[order_N],
        own_N=order_N.argsort(),
        distance=distance,
    )
    assert apart == pytest.approx(scores(embeddings_ND, labels_N, distance=distance), abs=1e-12)


def test_a_gallery_apart_equals_the_loop():
    embeddings_ND, labels_N = with_ties()
    unit = embeddings_ND.double() / embeddings_ND.double().norm(dim=1, keepdim=True)
    near = ((unit[:20] @ unit[20:].T) / 1e-6).round().tolist()
    each_map = []
    for i in range(20):
        order = sorted(range(30), key=lambda j: (-near[i][j], labels_N[20 + j] == labels_N[i]))
        right = [bool(labels_N[20 + j] == labels_N[i]) for j in order]
        if any(right):
            hits = [place for place, good in enumerate(right, 1) if good]
            each_map.append(sum(m / place for m, place in enumerate(hits, 1)) / len(hits))
    found = scores(embeddings_ND[:20], labels_N[:20], embeddings_ND[20:], labels_N[20:])
    assert found["map"] == pytest.approx(np.mean(each_map), abs=1e-12)
    assert found["queries"] == len(each_map)


def test_a_query_without_a_match_is_dropped_and_not_scored_as_zero():
    found = scores(torch.eye(3), torch.tensor([0, 1, 7]), torch.eye(3), torch.tensor([0, 1, 2]))
    assert (found["map"], found["queries"], found["dropped"]) == (1, 2, 1)


def test_the_own_row_is_left_out_by_number_not_by_place():
    # Rows 0, 1 and 2 are copies, and whichever comes first in the list, dropping that column would
    # keep one's own.
    embeddings_ND, labels_N = (
        torch.eye(2)[torch.tensor([0, 0, 0, 1, 1])],
        torch.tensor([0, 1, 1, 2, 2]),
    )
    place = {
        row: each(embeddings_ND, labels_N).values["map"][n] for n, row in enumerate([1, 2, 3, 4])
    }
    assert {row: float(ap) for row, ap in place.items()} == {1: 1 / 2, 2: 1 / 2, 3: 1, 4: 1}


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_rotation_changes_nothing(distance):
    embeddings_ND, labels_N = made()
    turn_DD = torch.linalg.qr(
        torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )[0]
    turned = scores(embeddings_ND.double() @ turn_DD, labels_N, distance=distance)
    assert turned == scores(embeddings_ND, labels_N, distance=distance)


def test_map_at_r_divides_by_all_that_could_be_found():
    # Place 1 is right, place 2 wrong, the other match beyond R = 2: (1/1) / 2, not (1/1) / 1.
    degrees = torch.tensor([0.0, 1.0, 2.0, 80.0]).deg2rad()
    rows_ND = torch.stack([degrees.cos(), degrees.sin()], 1)
    found = scores(rows_ND[:1], torch.tensor([0]), rows_ND[1:], torch.tensor([0, 1, 0]))
    assert (found["map@r"], found["map"]) == (1 / 2, pytest.approx((1 + 2 / 3) / 2))


def test_each_gives_what_scores_averages():
    embeddings_ND, labels_N = with_ties()
    labels_N[::9] = torch.arange(100, 106)
    found = each(embeddings_ND, labels_N)
    assert found.dropped == 6
    assert len(found.row_Q) == 44
    assert scores(embeddings_ND, labels_N)["map"] == float(found.values["map"].mean())
    assert set(labels_N[found.row_Q].tolist()) <= set(range(6))


def test_the_embeddings_are_left_as_they_were():
    for distance in DISTANCES:
        embeddings_ND, labels_N = made()
        rows_ND = embeddings_ND.double()
        before_ND = rows_ND.clone()
        scores(rows_ND, labels_N, distance=distance)
        scores(rows_ND, labels_N, rows_ND, labels_N, distance=distance)
        assert rows_ND.equal(before_ND)


def test_cosine_ignores_length_and_euclidean_ignores_shift_and_scale():
    embeddings_ND, labels_N = made()
    longer_ND = embeddings_ND * torch.arange(1, 61)[:, None]
    assert scores(longer_ND, labels_N) == scores(embeddings_ND, labels_N)
    assert scores(longer_ND, labels_N, distance="euclidean") != scores(
        embeddings_ND, labels_N, distance="euclidean"
    )
    moved = scores(embeddings_ND.double() * 1000 + 7, labels_N, distance="euclidean")
    assert moved == scores(embeddings_ND, labels_N, distance="euclidean")


def test_a_k_beyond_the_gallery_is_the_whole_gallery():
    assert scores(*made(rows=20, classes=3), ks=(500,))["recall@500"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"embeddings_ND": torch.tensor([[1.0], [float("nan")]])},
            "retrieval features: NaN or Inf in 1 rows",
        ),
        (
            {"embeddings_ND": torch.tensor([[1.0], [float("inf")]])},
            "retrieval features: NaN or Inf in 1 rows",
        ),
        ({"embeddings_ND": torch.ones(3, 1)}, "retrieval labels: shape .* for 3 rows"),
        ({"embeddings_ND": torch.ones(2)}, "retrieval features: shape"),
        ({"embeddings_ND": torch.ones(0, 2)}, "retrieval features: shape"),
        ({"labels_N": torch.tensor([0, 1])}, "no class has two rows"),
        ({"labels_N": torch.tensor([0.0, 0.0])}, "retrieval labels: dtype torch.float32"),
        ({"ks": ()}, "at least one k"),
        ({"ks": (0,)}, "above 0"),
        ({"chunk": 0}, "above 0"),
        ({"gallery_MD": torch.ones(2, 1)}, "both or neither"),
        (
            {"gallery_MD": torch.ones(0, 1), "gallery_labels_M": torch.ones(0).long()},
            "gallery features: shape",
        ),
        (
            {"gallery_MD": torch.ones(2, 3), "gallery_labels_M": torch.zeros(2).long()},
            "width 1 of the queries, 3 of the gallery",
        ),
        (
            {"gallery_MD": torch.ones(2, 1), "gallery_labels_M": torch.ones(2).long()},
            "no query has a match",
        ),
        ({"own_N": torch.tensor([0, 1])}, "names rows of a gallery"),
        (
            {
                "gallery_MD": torch.ones(2, 1),
                "gallery_labels_M": torch.zeros(2).long(),
                "own_N": torch.tensor([0, 2]),
            },
            "own_N: 0 to 2; the gallery has rows 0 to 1",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(change, message):
    good = {"embeddings_ND": torch.ones(2, 1), "labels_N": torch.tensor([0, 0])}
    assert scores(**good)["recall@1"] == 1
    with pytest.raises(Error, match=message):
        scores(**(good | change))


def in_float64(embeddings_ND, labels_N, ks, distance):
    """Every list whole, from one float64 product: how version 0.1.0 did it."""
    from_ND, to_ND = points(embeddings_ND, embeddings_ND, distance)
    own_N = torch.arange(len(labels_N))
    relevant_N = retrieval.relevant(labels_N, labels_N, own_N)
    row_Q = relevant_N.nonzero()[:, 0]
    right_QN = (labels_N[row_Q][:, None] == labels_N) & (row_Q[:, None] != own_N)
    absent_QN = row_Q[:, None] == own_N
    near_QN = nearness(from_ND[row_Q], to_ND, distance)
    place_QR = ranks.rank_positions(near_QN, right_QN, absent_QN, int(relevant_N.max()))
    relevant_Q = relevant_N[row_Q]
    return {f"recall@{k}": ranks.found_within(place_QR, k) for k in ks} | {
        "p@1": ranks.found_within(place_QR, 1),
        "r_precision": ranks.r_precision(place_QR, relevant_Q),
        "map@r": ranks.map_at_r(place_QR, relevant_Q),
        "map": ranks.average_precision(place_QR, relevant_Q),
    }


def clustered(rows=1500, width=16, per_class=5):
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.arange(rows) // per_class
    labels_N[::50] = torch.arange(10_000, 10_000 + len(labels_N[::50]))
    centre_CD = torch.randn(rows, width, generator=generator)
    return centre_CD[labels_N.clamp_max(rows - 1)] + torch.randn(
        rows, width, generator=generator
    ), labels_N


def hard(name):
    x_ND, labels_N = clustered()
    if name == "copies":
        x_ND = x_ND[torch.arange(1500) % 300]
    elif name == "near ties":
        x_ND = x_ND[torch.arange(1500) % 300] + 1e-7 * x_ND
    elif name == "collapse":
        x_ND = torch.full_like(x_ND, 0.3)
    elif name == "zero rows":
        x_ND[::4] = 0
    elif name == "float16":
        x_ND = x_ND.half()
    elif name == "a large class":
        labels_N[:40] = -3
    return x_ND, labels_N


HARD = ("plain", "copies", "near ties", "collapse", "zero rows", "float16", "a large class")


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", HARD)
def test_the_top_alone_gives_the_bits_of_whole_lists_in_float64(name, distance, monkeypatch):
    sets, real, asked = hard(name), retrieval._short, []
    monkeypatch.setattr(retrieval, "_short", lambda *how: (asked.append(how[1]), real(*how))[1])
    wanted = in_float64(*sets, (1, 10), distance)
    whole = each(*sets, ks=(1, 10), distance=distance)
    assert asked == []
    short = each(*sets, ks=(1, 10), distance=distance, whole=False)
    assert asked == [39 if name == "a large class" else 10]
    assert set(wanted) - set(short.values) == {"map"}
    assert torch.equal(short.row_Q, whole.row_Q)
    assert short.dropped == whole.dropped
    for found in (whole, short):
        for measure, value_Q in found.values.items():
            assert torch.equal(value_Q, wanted[measure])


def test_a_top_that_is_most_of_the_list_is_the_whole_list():
    found = scores(*made(), whole=False)
    wanted = scores(*made())
    assert found == {name: value for name, value in wanted.items() if name != "map"}


def test_a_gallery_of_another_set_gives_the_same_top():
    x_ND, labels_N = hard("copies")
    sets = (x_ND[:400], labels_N[:400], x_ND[200:], labels_N[200:])
    own_N = torch.arange(-200, 200).clamp_min(-1)
    whole, short = (scores(*sets, own_N=own_N, whole=w) for w in (True, False))
    assert short == {name: value for name, value in whole.items() if name != "map"}


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_gallery_too_large_to_be_held_in_float64_is_taken_in_blocks(distance, monkeypatch):
    wanted = scores(*with_ties(), distance=distance)
    monkeypatch.setattr(similarity, "KEPT", 0)
    monkeypatch.setattr(similarity, "WIDE", 21)
    assert scores(*with_ties(), distance=distance) == wanted


def both(sets):
    return [
        scores(*sets, whole=whole, chunk=chunk) for whole in (True, False) for chunk in (None, 99)
    ]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_queries_and_get_the_same_bits(ranks, world):
    sets = hard("copies")
    assert ranks.run(both, sets, world=world) == world * [both(sets)]
    few = (torch.eye(4).repeat_interleave(2, 0), torch.arange(8) // 2)  # one block for all
    assert ranks.run(both, few, world=world) == world * [both(few)]
