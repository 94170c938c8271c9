"""Masks: vectors of numbers in the ring of whole numbers modulo 2^64, as random as their keys.

They are a keystream of AES-256 in counter mode (NIST SP 800-38A), which processors do in hardware:
some 2 GB a second and core, as fast as ChaCha20 or faster.
"""

from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

Vector: TypeAlias = npt.NDArray[np.uint64]
"""Numbers of the ring; what is below 2^63 stands for itself, the rest for itself less 2^64."""

_BLOCK: Final = 1 << 15
_ZEROS: Final = bytes(_BLOCK * 8)
_FROM_ZERO: Final = bytes(16)
"""Where the counter begins: each key makes one mask."""


def add_mask(vector: Vector, key: bytes, sign: Literal[1, -1] = 1) -> None:
    """Add the mask of a key of 32 bytes to `vector`, or take it away; `vector` is changed.

    It goes block by block, within the processor's cache.
    """
    stream = Cipher(AES(key), CTR(_FROM_ZERO)).encryptor()
    combine = np.add if sign == 1 else np.subtract
    for begin in range(0, len(vector), _BLOCK):
        piece = vector[begin : begin + _BLOCK]
        mask = np.frombuffer(stream.update(_ZEROS[: piece.nbytes]), dtype="<u8")
        combine(piece, mask, out=piece)


def sign_of(site_id: str, other: str) -> Literal[1, -1]:
    """Give by which sign a site's vector has the mask that it shares with another one."""
    return 1 if site_id < other else -1
