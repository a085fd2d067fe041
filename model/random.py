"""Random numbers as a pure function of (seed, stream, index): the same draw on any rank, batch split or restart.

Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", written in torch integer arithmetic,
so that it runs on every device and yields the same words there. A generator with hidden state would tie image `i` to
whatever was drawn before it; here each image has its own counter.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers of Philox4x32
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # Weyl increments of the key
_MASK = 0xFFFFFFFF


class Stream(IntEnum):
    """What a draw is for. Streams are independent; their numbers are part of every result, so they never change."""

    FLIP = 1
    TIME = 2
    NOISE = 3
    INITIAL_NOISE = 4
    STEP_NOISE = 5
    ORDER = 6
    LABEL = 7
    AUGMENTATION = 8
    BOUND_NOISE = 9
    DEQUANTISATION = 10
    PROBE = 11
    KNOWN_NOISE = 12
    RENOISING = 13


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b. The int64 product may wrap; its bits are the right ones all the same."""
    product = a * b
    return (product >> 32) & _MASK, product & _MASK


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10. counter: four broadcastable int64 tensors of 32-bit words; key: 64 bits -> four words, int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(10):
        high0, low0 = _multiply(c0, _M0)
        high1, low1 = _multiply(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def words(seed: int, stream: Stream, index: Tensor, n: int, step: int = 0) -> Tensor:
    """`n` words of 32 bits for each index. index: int64 [B] >= 0 -> int64 [B, n].

    step: in [0, 2^24), a second index that all images share, such as a sampler's step or the epoch.
    """
    block = torch.arange(-(-n // 4), device=index.device)
    low, high = (index & _MASK)[:, None], (index >> 32)[:, None]
    stream_word = torch.full_like(block, (step << 8) | int(stream))
    drawn = torch.stack(torch.broadcast_tensors(*philox((low, high, block, stream_word), seed)), dim=-1)
    return drawn.flatten(1)[:, :n]


def uniforms(seed: int, stream: Stream, index: Tensor, n: int) -> Tensor:
    """Uniform numbers in (0, 1), multiples of 2^-32 plus a half of that. index: int64 [B] -> float64 [B, n]."""
    return (words(seed, stream, index, n).double() + 0.5) * 2.0**-32


def uniform(seed: int, stream: Stream, index: Tensor) -> Tensor:
    """One such number for each index. int64 [B] -> float64 [B]."""
    return uniforms(seed, stream, index, 1)[:, 0]


def normal(seed: int, stream: Stream, index: Tensor, shape: tuple[int, ...], step: int = 0) -> Tensor:
    """Standard normal draws by Box and Muller's transform. index: int64 [B] -> float32 [B, *shape]."""
    n = math.prod(shape)
    uniform = (words(seed, stream, index, n + n % 2, step).float() + 0.5) * 2.0**-32  # in (0, 1]
    radius = (-2 * uniform[:, 0::2].log()).sqrt()
    angle = 2 * math.pi * uniform[:, 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.flatten(1)[:, :n].reshape(-1, *shape)


def signs(seed: int, stream: Stream, index: Tensor, shape: tuple[int, ...], step: int = 0) -> Tensor:
    """-1 or 1, as likely. index: int64 [B] -> float32 [B, *shape]."""
    top_bit = words(seed, stream, index, math.prod(shape), step) >> 31
    return (2 * top_bit - 1).float().reshape(-1, *shape)
