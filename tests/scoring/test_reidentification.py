"""Laws of re-identification: the protocol in loops, the official AP, and the ways to get it
wrong.
"""

import math

import pytest
import torch

from lookalike.errors import Error
from lookalike.scoring import reidentification as reid
from lookalike.scoring import rerank, retrieval


def crowd(seed=0, queries=25, gallery=120, people=9, cameras=4, ties=False):
    """Queries and a gallery: features, identities (also -1 and 0 in the gallery), cameras."""
    generator = torch.Generator().manual_seed(seed)
    centre_PD = torch.randn(people + 1, 6, generator=generator)

    def shots(count, least):
        ids = torch.randint(least, people + 1, (count,), generator=generator)
        noise = torch.randn(count, 6, generator=generator)
        rows = (
            torch.randint(-1, 2, (count, 6), generator=generator) + 0.25
            if ties
            else centre_PD[ids] + noise
        )
        return rows.float(), ids, torch.randint(cameras, (count,), generator=generator)

    return (*shots(queries, 1), *shots(gallery, -1))


def official_ap(right, junk):
    """compute_AP of the Market-1501 code: trapezoids, junk passed over."""
    good, ap, old_recall, old_precision, intersection, j = sum(right), 0.0, 0.0, 1.0, 0, 0
    for is_right, is_junk in zip(right, junk, strict=True):
        if is_junk:
            continue
        intersection += is_right
        recall, precision = intersection / good, intersection / (j + 1)
        ap += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
        j += 1
    return ap


def by_loops(query, ids_q, cams_q, gallery, ids_n, cams_n, junk_is_wrong=False):
    """The protocol, an image at a time; ties: wrong first."""
    means = {"cmc@1": [], "cmc@5": [], "cmc@10": [], "step": [], "trapezoid": [], "minp": []}
    dropped = 0
    for i, (identity, camera) in enumerate(zip(ids_q.tolist(), cams_q.tolist(), strict=True)):
        near = torch.nn.functional.cosine_similarity(query[i].double(), gallery.double(), dim=1)
        near = (near / 1e-6).round().tolist()
        kept = [j for j, other in enumerate(ids_n.tolist()) if other != -1]
        kept.sort(key=lambda j: (-near[j], int(ids_n[j]) == identity))
        same = [int(ids_n[j]) == identity for j in kept]
        seen = [int(cams_n[j]) == camera for j in kept]
        junk = [s and c and not junk_is_wrong for s, c in zip(same, seen, strict=True)]
        right = [s and not c for s, c in zip(same, seen, strict=True)]
        if not any(right):
            dropped += 1
            continue
        places = [r for r, j in zip(right, junk, strict=True) if not j]
        hits = [n for n, good in enumerate(places, 1) if good]
        for k in (1, 5, 10):
            means[f"cmc@{k}"].append(float(any(places[:k])))
        means["step"].append(sum(m / n for m, n in enumerate(hits, 1)) / len(hits))
        means["trapezoid"].append(official_ap(right, junk))
        means["minp"].append(len(hits) / hits[-1])
    found = {name: sum(each) / len(each) for name, each in means.items()}
    return found | {"queries": len(means["step"]), "dropped": dropped}


@pytest.mark.parametrize(
    "people", [crowd(), crowd(1), crowd(2, ties=True), crowd(3, people=40, cameras=2)]
)
@pytest.mark.parametrize("ap", ["step", "trapezoid"])
def test_scores_equal_the_protocol_in_loops(people, ap):
    wanted = by_loops(*people)
    wanted["map"] = wanted[ap]
    del wanted["step"], wanted["trapezoid"]
    assert reid.scores(*people, ap=ap) == pytest.approx(wanted, abs=1e-12)


def test_the_crowds_have_what_the_protocol_is_about():
    query_QD, _, _, gallery_ND, ids_N, _ = crowd(2, ties=True)
    assert {-1, 0} <= set(ids_N.tolist())
    near_QN = torch.nn.functional.cosine_similarity(
        query_QD[:, None].double(), gallery_ND.double(), dim=2
    )
    assert all(len(row.unique()) < len(row) for row in (near_QN / 1e-6).round())
    assert by_loops(*crowd(3, people=40, cameras=2))["dropped"] > 0
    people = crowd()
    assert by_loops(*people)["step"] - by_loops(*people, junk_is_wrong=True)["step"] > 0.01
    assert abs(by_loops(*people)["step"] - by_loops(*people)["trapezoid"]) > 0.005


def corridor(kinds, camera=1):
    """One query of identity 5, camera 1, and a gallery in falling nearness: (identity, camera)
    each.
    """
    degrees = torch.arange(1, len(kinds) + 1).deg2rad()
    gallery_ND = torch.stack([degrees.cos(), degrees.sin()], 1)
    ids_N, cameras_N = torch.tensor(kinds).T
    return (
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([5]),
        torch.tensor([camera]),
        gallery_ND,
        ids_N,
        cameras_N,
    )


def test_junk_takes_no_place():
    found = reid.scores(*corridor([(5, 1), (5, 1), (5, 2), (7, 1), (5, 3)]))
    assert found["cmc@1"] == 1
    assert found["map"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["minp"] == pytest.approx(2 / 3)


def test_identity_minus_one_is_skipped_and_zero_is_in_the_way():
    assert reid.scores(*corridor([(-1, 2), (-1, 3), (5, 2)]))["map"] == 1
    assert reid.scores(*corridor([(0, 2), (0, 3), (5, 2)]))["map"] == pytest.approx(1 / 3)


def test_a_data_set_may_count_its_identities_from_zero():
    query_QD, ids_Q, cameras_Q, gallery_ND, ids_N, cameras_N = corridor([(4, 1), (5, 2), (5, 1)])
    moved = reid.scores(
        query_QD, ids_Q - 5, cameras_Q, gallery_ND, (ids_N - 5).where(ids_N == 5, 9), cameras_N
    )
    assert moved == reid.scores(query_QD, ids_Q, cameras_Q, gallery_ND, ids_N, cameras_N)


def test_the_trapezoid_and_the_step_of_a_list_made_by_hand():
    people = corridor([(9, 2), (5, 2), (9, 2), (5, 3)])
    assert reid.scores(*people)["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    # Precision just before and at each hit: 0/1 and 1/2, then 1/3 and 2/4.
    assert reid.scores(*people, ap="trapezoid")["map"] == pytest.approx(
        ((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2
    )


def test_an_invalid_query_is_dropped_and_counted_not_scored_as_zero():
    query_QD, ids_Q, cameras_Q, *gallery = corridor([(5, 2), (6, 1), (8, 3)])
    ids_Q, cameras_Q = torch.tensor([5, 6, 7, -1]), torch.tensor([1, 1, 1, 1])
    found = reid.scores(query_QD.expand(4, 2), ids_Q, cameras_Q, *gallery)
    assert (found["map"], found["cmc@1"], found["queries"], found["dropped"]) == (1, 1, 1, 3)


def test_the_cmc_keeps_its_last_value_beyond_the_end_of_a_list():
    query_QD, _, _, gallery_ND, *_ = corridor([(5, 1)] * 4)
    ids_N, cameras_N = torch.tensor([5, 5, 6, 5]), torch.tensor([1, 1, 2, 2])
    # Two of four images are junk: the list of this query has two places, its hit is the second.
    found = reid.scores(
        query_QD,
        torch.tensor([5]),
        torch.tensor([1]),
        gallery_ND,
        ids_N,
        cameras_N,
        ks=range(1, 21),
    )
    assert [found[f"cmc@{k}"] for k in range(1, 21)] == [0] + [1] * 19


def test_the_cmc_never_falls():
    found = reid.scores(*crowd(), ks=range(1, 200))
    values = [found[f"cmc@{k}"] for k in range(1, 200)]
    assert values == sorted(values)
    assert values[-1] == 1


def test_collapse_is_the_worst_that_can_be():
    _, ids_Q, cameras_Q, _, ids_N, cameras_N = crowd()
    collapsed = (torch.ones(25, 4), ids_Q, cameras_Q, torch.ones(120, 4), ids_N, cameras_N)
    found = reid.scores(*collapsed)
    assert found["cmc@10"] == 0
    assert found["map"] == pytest.approx(by_loops(*collapsed)["step"], abs=1e-12)
    assert found["map"] < 0.1


@pytest.mark.parametrize("people", [crowd(), crowd(2, ties=True)])
def test_chunk_gallery_order_and_rotation_change_nothing(people):
    wanted = reid.scores(*people)
    assert reid.scores(*people, chunk=1) == reid.scores(*people, chunk=7) == wanted
    query_QD, ids_Q, cameras_Q, gallery_ND, ids_N, cameras_N = people
    order_N = torch.randperm(len(ids_N), generator=torch.Generator().manual_seed(5))
    moved = (gallery_ND[order_N], ids_N[order_N], cameras_N[order_N])
    assert reid.scores(query_QD, ids_Q, cameras_Q, *moved) == wanted
    turn_DD = torch.linalg.qr(
        torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )[0]
    turned = (
        query_QD.double() @ turn_DD,
        ids_Q,
        cameras_Q,
        gallery_ND.double() @ turn_DD,
        ids_N,
        cameras_N,
    )
    assert reid.scores(*turned) == wanted


def test_identities_beyond_float_precision_stay_apart():
    query_QD, ids_Q, cameras_Q, gallery_ND, ids_N, cameras_N = corridor([(6, 2), (5, 2)])
    far = 2**53
    found = reid.scores(query_QD, ids_Q + far, cameras_Q, gallery_ND, ids_N + far, cameras_N)
    assert found["map"] == 1 / 2


def test_without_junk_it_is_retrieval():
    query_QD, ids_Q, _, gallery_ND, ids_N, _ = crowd()
    ids_N = ids_N.where(ids_N >= 0, 0)
    found = reid.scores(
        query_QD,
        ids_Q,
        torch.zeros_like(ids_Q),
        gallery_ND,
        ids_N,
        torch.ones_like(ids_N),
        distance="euclidean",
    )
    same = retrieval.scores(query_QD, ids_Q, gallery_ND, ids_N, distance="euclidean")
    assert (found["map"], found["cmc@1"]) == (same["map"], same["recall@1"])


def test_distances_score_as_their_embeddings_do():
    query_QD, ids_Q, cameras_Q, gallery_ND, ids_N, cameras_N = crowd()
    d_QN = torch.cdist(query_QD.double(), gallery_ND.double())
    found = reid.each_of_distances(d_QN, ids_Q, cameras_Q, ids_N, cameras_N)
    wanted = reid.each(
        query_QD, ids_Q, cameras_Q, gallery_ND, ids_N, cameras_N, distance="euclidean"
    )
    assert found.row_Q.equal(wanted.row_Q)
    for name, value_Q in wanted.values.items():
        assert found.values[name].equal(value_Q), name


def test_re_ranking_helps_a_crowd_of_clusters():
    query_QD, ids_Q, cameras_Q, gallery_ND, ids_N, cameras_N = crowd(people=6, gallery=200)
    distance_QN = rerank.distances(query_QD, gallery_ND)
    after = (
        reid.each_of_distances(distance_QN, ids_Q, cameras_Q, ids_N, cameras_N).values["map"].mean()
    )
    assert (
        float(after) > reid.scores(query_QD, ids_Q, cameras_Q, gallery_ND, ids_N, cameras_N)["map"]
    )


def test_multi_query_is_the_mean_of_a_persons_images_by_a_camera():
    rows_ND = torch.tensor([[2.0, 0], [0, 1], [1, 0], [0, 3]])
    pooled_PD, ids_P, cameras_P = reid.pooled(
        rows_ND, torch.tensor([7, 7, 7, 3]), torch.tensor([1, 1, 2, 1])
    )
    assert list(zip(ids_P.tolist(), cameras_P.tolist(), strict=True)) == [(3, 1), (7, 1), (7, 2)]
    assert pooled_PD.tolist() == [[0, 1], [0.5, 0.5], [1, 0]]
    raw_PD = reid.pooled(
        rows_ND, torch.tensor([7, 7, 7, 3]), torch.tensor([1, 1, 2, 1]), distance="euclidean"
    )[0]
    assert raw_PD.tolist() == [[0, 3], [1, 0.5], [1, 0]]


def test_multi_query_of_noisy_images_scores_better():
    generator = torch.Generator().manual_seed(0)
    centre_PD, ids_Q = torch.randn(20, 16, generator=generator), torch.arange(20).repeat(8)
    shot = [centre_PD[ids_Q] + 1.5 * torch.randn(160, 16, generator=generator) for _ in range(2)]
    gallery = (shot[1], ids_Q, torch.ones_like(ids_Q))
    single = reid.scores(shot[0], ids_Q, torch.zeros_like(ids_Q), *gallery)
    multi = reid.scores(*reid.pooled(shot[0], ids_Q, torch.zeros_like(ids_Q)), *gallery)
    assert multi["queries"] == 20
    assert multi["map"] > single["map"] + 0.1


GOOD = dict(
    zip(
        ("query_QD", "ids_Q", "cameras_Q", "gallery_ND", "ids_N", "cameras_N"),
        corridor([(5, 2), (6, 1)]),
        strict=True,
    )
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras_Q": None}, "query cameras: missing; re-identification needs the camera"),
        ({"cameras_N": None}, "gallery cameras: missing; .* `retrieval` scores images without"),
        ({"cameras_N": torch.tensor([1])}, r"gallery cameras: shape \(1,\) for 2 rows"),
        ({"cameras_N": torch.tensor([1.0, 2.0])}, "gallery cameras: dtype torch.float32"),
        ({"cameras_N": torch.tensor([1, -1])}, "gallery cameras: 1 below 0, so unknown"),
        ({"gallery_ND": torch.ones(0, 2)}, "gallery features: shape"),
        (
            {"gallery_ND": torch.tensor([[1.0, math.nan], [0, 0]])},
            "gallery features: NaN or Inf in 1 rows",
        ),
        ({"query_QD": torch.ones(1, 3)}, "width 3 of the queries, 2 of the gallery"),
        ({"ids_N": torch.tensor([-1, -1])}, "every image has identity -1"),
        ({"ids_N": torch.tensor([8, 9])}, "no query has an image by another camera"),
        ({"cameras_N": torch.tensor([1, 1])}, "no query has an image by another camera"),
        ({"ap": "area"}, "ap step or trapezoid"),
        ({"ks": ()}, "ks and chunk above 0"),
        ({"chunk": 0}, "ks and chunk above 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(change, message):
    assert reid.scores(**GOOD)["map"] == 1
    with pytest.raises(Error, match=message):
        reid.scores(**(GOOD | change))


@pytest.mark.parametrize(
    ("distance_QN", "message"),
    [
        (torch.tensor([[1.0, -0.1]]), "below 0; pass distances, not similarities"),
        (torch.tensor([[1.0, math.nan]]), "NaN"),
        (torch.ones(2, 2), r"shape \(2, 2\) for 1 queries, 2 in the gallery"),
        (torch.ones(2), "distances: shape"),
    ],
)
def test_distances_that_are_none_are_refused(distance_QN, message):
    with pytest.raises(Error, match=message):
        reid.each_of_distances(
            distance_QN, *(GOOD[name] for name in ("ids_Q", "cameras_Q", "ids_N", "cameras_N"))
        )
