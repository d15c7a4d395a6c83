"""Counter-based random numbers: pure functions of (seed, split, index, position), whoever draws them and after what.

They are splitmix64 outputs at counters made of the sample's index and a position in the sample:

    bits(key, index, position) = mix(mix(key + γ index) + γ (position + 1)),    γ = 0x9E3779B97F4A7C15

Steele et al. 2014, Fast splittable pseudorandom number generators. Integers only, so equal on every platform.

Shapes: B rows (samples), M numbers drawn a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bits = NDArray[np.uint64]

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


def stream_key(*parts: int | str) -> int:
    """The 64-bit key of the stream that `parts` (seed, task, split, ...) name."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def mix(bits: Bits) -> Bits:
    """The splitmix64 finalizer, in place: a bijection whose output bits all depend on all input bits."""
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits


def random_bits(key: int, indices_B: Ints, num: int) -> Bits:
    """Uniform 64-bit numbers (B, num); row b depends on the key and indices_B[b] alone, a larger `num` extends it."""
    rows_B = mix(indices_B.astype(np.uint64) * GAMMA + np.uint64(key))
    return mix(rows_B[:, None] + np.arange(1, num + 1, dtype=np.uint64) * GAMMA)


def random_integers(bits: Bits, high: int) -> Ints:
    """Map bits to 0 ... high - 1, uniform up to a bias of high / 2^32."""
    return (((bits >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32)).astype(np.int64)


def random_floats(bits: Bits) -> NDArray[np.float64]:
    """Map bits to the open interval (0, 1)."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def random_mask(bits_BM: Bits, num: int) -> NDArray[np.bool_]:
    """Mark `num` of each row's M places, every choice equally likely: those with the smallest bits."""
    mask_BM = np.zeros(bits_BM.shape, dtype=np.bool_)
    if num:
        places = np.argpartition(bits_BM, num - 1, axis=1)[:, :num]
        np.put_along_axis(mask_BM, places, True, axis=1)
    return mask_BM


def first_distinct(draw: Callable[[int], Ints], num: int) -> Ints:
    """The first `num` distinct numbers of each row of `draw(M)`, (B, M), in order: drawing without replacement.

    `draw` extends its rows with M, so that the result does not depend on how many numbers this looks at.
    """
    tries = 2 * num + 8
    while True:
        drawn_BM = draw(tries)
        order_BM = drawn_BM.argsort(1, kind="stable")
        sorted_BM = np.take_along_axis(drawn_BM, order_BM, 1)
        repeats_BM = np.zeros(drawn_BM.shape, dtype=np.bool_)
        np.put_along_axis(repeats_BM, order_BM[:, 1:], sorted_BM[:, 1:] == sorted_BM[:, :-1], axis=1)
        rank_BM = (~repeats_BM).cumsum(1)
        if (rank_BM[:, -1] >= num).all():
            return drawn_BM[~repeats_BM & (rank_BM <= num)].reshape(-1, num)
        tries *= 2
