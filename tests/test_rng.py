"""Laws of the stateless randomness, against SplitMix64's finalizer in plain Python integers."""

import hashlib
import itertools

import pytest
import torch
from scipy import stats

from lookalike import rng

WORD = 2**64 - 1
DRAWS = 10_000
# Each statistical law is tried in a few directions with fixed coordinates: a sound generator fails
# one in 100,000.
CHANCE = 1e-5


def absorbed(*coordinates):
    """The documented mixing on unbounded integers: for each coordinate x ← mix((x xor c) + γ)."""
    x = 0
    for c in coordinates:
        if isinstance(c, str):
            c = int.from_bytes(hashlib.sha256(c.encode()).digest()[:8], "big")
        z = ((x ^ (c & WORD)) + 0x9E3779B97F4A7C15) & WORD
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        x = z ^ (z >> 31)
    return x


POINTS = [
    (0,),
    (1,),
    (-1,),
    (2**63 - 1,),
    (-(2**63),),
    (0, 0, 0),
    (3, 1, 4, "crop", 159265),
    (2**40 + 7, "täglich", -12, 2**62),
]


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_bits_are_the_documented_mixing_of_unbounded_integers(point):
    assert int(rng.bits(*point)) & WORD == absorbed(*point)


def test_one_coordinate_of_zero_is_the_published_first_word_of_splitmix64():
    assert int(rng.bits(0)) & WORD == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_ints_and_tensors_are_the_same_coordinates(point):
    numbers = [rng.tag(c) if isinstance(c, str) else c for c in point]
    expected = rng.bits(*point)
    for as_tensor in itertools.product((False, True), repeat=len(point)):
        mixed = [
            torch.tensor(c, dtype=torch.int64) if t else c
            for c, t in zip(numbers, as_tensor, strict=True)
        ]
        assert rng.bits(*mixed).equal(expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_narrow_integer_coordinates_draw_what_int64_ones_do(dtype):
    ids_N = torch.arange(100)
    assert rng.bits(5, ids_N.to(dtype), "flip").equal(rng.bits(5, ids_N, "flip"))


def test_coordinates_broadcast_like_a_loop_over_their_points():
    a_31, b_14 = torch.tensor([[0], [7], [-2]]), torch.tensor([[1, 2, 3, 2**50]])
    drawn_34 = rng.bits(9, a_31, "name", b_14)
    expected = [[absorbed(9, a, "name", b) for b in b_14[0].tolist()] for a in a_31[:, 0].tolist()]
    assert [[x & WORD for x in row] for row in drawn_34.tolist()] == expected


def test_a_sample_draws_the_same_in_any_batch_and_order():
    ids_N = torch.arange(1000) * 7919
    drawn_N = rng.uniform(1, 2, "x", ids_N)
    order_N = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert rng.uniform(1, 2, "x", ids_N[order_N]).equal(drawn_N[order_N])
    for part in (slice(0, 500), slice(500, 1000), slice(3, 1000, 17), slice(42, 43)):
        assert rng.uniform(1, 2, "x", ids_N[part]).equal(drawn_N[part])


def test_torch_s_own_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    first, state = rng.uniform(4, torch.arange(9)), torch.get_rng_state()
    torch.manual_seed(2)
    assert rng.uniform(4, torch.arange(9)).equal(first)
    torch.manual_seed(1)
    assert torch.get_rng_state().equal(state)


def test_order_and_number_of_coordinates_matter():
    points = [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1,), (2,), ("1", "2"), ("12",), (3,)]
    assert len({int(rng.bits(*p)) for p in points}) == len(points)


def test_uniform_is_the_top_24_bits_of_the_word():
    ids_N = torch.arange(500)
    expected = [(absorbed(1, "u", i) >> 40) / 2**24 for i in range(500)]
    assert rng.uniform(1, "u", ids_N).tolist() == expected


def test_uniform_stays_below_one_at_the_largest_word(monkeypatch):
    monkeypatch.setattr(rng, "bits", lambda *_: torch.tensor([-1, 0]))
    assert rng.uniform(0).tolist() == [1 - 2**-24, 0.0]


N = torch.arange(DRAWS)
DIRECTIONS = {
    "sample": lambda: rng.uniform(0, 0, 0, "flip", N),
    "view": lambda: rng.uniform(0, 0, N, "flip", 17),
    "epoch": lambda: rng.uniform(0, N, 1, "flip", 17),
    "seed": lambda: rng.uniform(N, 0, 1, "flip", 17),
    "draw name": lambda: torch.stack([rng.uniform(0, 0, 1, f"name {i}", 17) for i in range(DRAWS)]),
    "far samples": lambda: rng.uniform(0, 0, 0, "flip", N * 2**40),
}


@pytest.fixture(scope="module")
def rows():
    return {name: make().double() for name, make in DIRECTIONS.items()}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_uniform_is_uniform_along_every_coordinate(rows, direction):
    u_N = rows[direction]
    assert u_N.shape == (DRAWS,)
    assert u_N.min() >= 0
    assert u_N.max() < 1
    assert stats.kstest(u_N.numpy(), "uniform").pvalue > CHANCE


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("lag", [1, 2, 64])
def test_neighbours_along_every_coordinate_are_uncorrelated(rows, direction, lag):
    u_N = rows[direction].numpy()
    assert stats.pearsonr(u_N[:-lag], u_N[lag:]).pvalue > CHANCE


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(list(DIRECTIONS)[:5], 2)))
def test_rows_along_different_coordinates_are_uncorrelated(rows, one, other):
    assert stats.pearsonr(rows[one].numpy(), rows[other].numpy()).pvalue > CHANCE


def test_every_bit_is_set_half_of_the_time():
    words_N = rng.bits(0, 0, 0, "bits", N)
    for bit in range(64):
        ones = int(((words_N >> bit) & 1).sum())
        assert stats.binomtest(ones, DRAWS).pvalue > CHANCE, bit


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_holds_every_index_once(n):
    assert sorted(rng.permutation(n, 0, "order", 3).tolist()) == list(range(n))


def test_permutation_sorts_the_words_of_its_places():
    words = [absorbed(5, "order", i) for i in range(300)]
    signed = [w - 2**64 if w >= 2**63 else w for w in words]
    assert rng.permutation(300, 5, "order").tolist() == sorted(range(300), key=signed.__getitem__)


def test_permutations_differ_by_epoch_and_seed_and_repeat_when_asked_again():
    made = {
        (s, e): tuple(rng.permutation(200, s, "order", e).tolist())
        for s in range(3)
        for e in range(5)
    }
    assert len(set(made.values())) == len(made)
    assert tuple(rng.permutation(200, 2, "order", 4).tolist()) == made[2, 4]


def test_each_index_lands_on_each_place_equally_often():
    places = torch.stack([rng.permutation(5, 0, "order", e) for e in range(2000)])
    for place in range(5):
        counts = torch.bincount(places[:, place], minlength=5).tolist()
        assert stats.chisquare(counts).pvalue > CHANCE


def test_seed_is_a_non_negative_63_bit_number():
    seeds = [rng.seed(i, "loader") for i in range(200)]
    assert seeds == [absorbed(i, "loader") >> 1 for i in range(200)]
    assert all(0 <= s < 2**63 for s in seeds)
