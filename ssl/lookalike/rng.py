"""Randomness without state: every number is a pure function of its coordinates, on any device, in
any order.

The coordinates (seed, epoch, sample, view, draw, …) are absorbed one after the other by the
finalizer of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014, fig. 17). Neither ranks nor workers nor a restart can change what is drawn, because
nothing is remembered.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_WORD = 2**64 - 1


def _signed(tag: int) -> int:
    """The 64-bit word as torch's int64 holds it."""
    tag &= 2**64 - 1
    return tag - 2**64 if tag >= 2**63 else tag


def _shift(x: Tensor, n: int) -> Tensor:
    """Logical right shift; torch's own copies the sign."""
    shifted: Tensor = (x >> n).bitwise_and_(2 ** (64 - n) - 1)
    return shifted


def _mix(x: Tensor) -> Tensor:
    x = _shift(x, 30).bitwise_xor_(x).mul_(_signed(_MULTIPLIER_1))
    x = _shift(x, 27).bitwise_xor_(x).mul_(_signed(_MULTIPLIER_2))
    return _shift(x, 31).bitwise_xor_(x)


def _mix_one(x: int) -> int:
    """`_mix` of a plain number, unsigned 64 bits."""
    x = (x ^ x >> 30) * _MULTIPLIER_1 & _WORD
    x = (x ^ x >> 27) * _MULTIPLIER_2 & _WORD
    return x ^ x >> 31


@lru_cache(maxsize=1024)
def tag(text: str) -> int:
    """A coordinate that names a purpose, so that two uses of one seed never share their numbers."""
    return _signed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def bits(*coordinates: int | str | Tensor) -> Tensor:
    """64 random bits (int64) at each point of the broadcast coordinates; tensors are whole numbers,
    on one device.
    """
    before, x = 0, None
    for c in coordinates:
        c = tag(c) if isinstance(c, str) else c
        # A plain int stays on the host: adding it to a tensor of any device costs no transfer.
        if isinstance(c, Tensor):
            x = _mix(((_signed(before) if x is None else x) ^ c.long()) + _signed(_GAMMA))
        elif x is None:
            before = _mix_one(((before ^ c & _WORD) + _GAMMA) & _WORD)
        else:
            x = _mix((x ^ _signed(c)) + _signed(_GAMMA))
    return torch.tensor(_signed(before)) if x is None else x


def uniform(*coordinates: int | str | Tensor) -> Tensor:
    """float32 in [0, 1), 24 bits each, shape as the broadcast coordinates."""
    return _shift(bits(*coordinates), 40).to(torch.float32) * 2.0**-24


def permutation(n: int, *coordinates: int | str) -> Tensor:
    """A permutation of 0 … n-1 (int64), drawn by sorting random words: exact for any n that fits
    memory.
    """
    return torch.argsort(bits(*coordinates, torch.arange(n)), stable=True)


def permutation_at(places: Tensor, n: int, *coordinates: int | str) -> Tensor:
    """Where a permutation of 0 … n-1 sends `places` (int64 below n), at a cost that n does not
    change.

    Exact for any n up to 2^62: a Feistel network of eight rounds over the next power of two,
    followed until it leads below n (Black & Rogaway, "Ciphers with arbitrary finite domains",
    CT-RSA 2002, section 4). Another permutation than `permutation` makes of the same coordinates;
    for a few places `permutation` is nearer to uniform.
    """
    low = (n - 1).bit_length() // 2
    keys = [int(bits(*coordinates, number)) for number in range(8)]
    x = _feistel(places, keys, low, n)
    while (outside := x >= n).any():
        x = torch.where(outside, _feistel(x, keys, low, n), x)
    return x


def _feistel(x: Tensor, keys: list[int], low: int, n: int) -> Tensor:
    """A permutation of the numbers of as many bits as n - 1 has: each half in turn hides the
    other.
    """
    right_mask, left_mask = (1 << low) - 1, (1 << ((n - 1).bit_length() - low)) - 1
    left, right = x >> low, x & right_mask
    for i, key in enumerate(keys):
        if i % 2:
            right = right ^ (bits(key, left) & right_mask)
        else:
            left = left ^ (bits(key, right) & left_mask)
    return left << low | right


def seed(*coordinates: int | str) -> int:
    """A non-negative 63-bit seed for a library that wants a generator of its own."""
    return int(_shift(bits(*coordinates), 1))
