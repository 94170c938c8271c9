"""Secret random numbers: for noise, and for who is taken in a step.

Opacus draws from PyTorch's generators, whose state can be told from what they gave; its `secure
mode` needs torchcsprng, which is not made any more. So here is a keystream of AES in counter mode,
under a key of the operating system that nobody sees and that is used for one fit. What is drawn
cannot be guessed by who knows the run's seed, nor repeated.

A sum of floating-point numbers can tell of what was added: not every number can come of a given
value and one Gaussian draw. Therefore a draw here is four normal ones, added and halved, as in
Opacus' secure mode, and all of it is done in float64 and rounded once.

Source: Holohan & Braghin, Secure Random Sampling in Differential Privacy, ESORICS 2021,
https://arxiv.org/abs/2107.10138, section 5.1.
"""

import os
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from datasite.data.features import Floats64

_KEY_BYTES: Final = 32
_BLOCK_BYTES: Final = 16
_DRAWS: Final = 4


class SecretRandom:
    """Random numbers under a fresh key."""

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(_KEY_BYTES)), modes.CTR(os.urandom(_BLOCK_BYTES)))
        self._keystream = cipher.encryptor()

    def uniform(self, count: int) -> Floats64:
        """Give `count` numbers evenly from (0, 1), neither end included."""
        drawn = np.frombuffer(self._keystream.update(bytes(8 * count)), dtype=np.uint64)
        return (np.right_shift(drawn, np.uint64(12)) + 0.5) * 2.0**-52

    def chosen(self, count: int, rate: float) -> torch.Tensor:
        """Give which of `count` units are taken, each for itself with probability `rate`."""
        return torch.from_numpy(np.flatnonzero(self.uniform(count) < rate))

    def some(self, count: int, most: int) -> torch.Tensor:
        """Give at most `most` of `count`, any of them alike."""
        order = np.argsort(self.uniform(count), kind="stable")
        return torch.from_numpy(np.sort(order[:most]))

    def gaussian(self, shape: torch.Size, deviation: float) -> torch.Tensor:
        """Give independent draws of mean 0, float64."""
        count = shape.numel()
        total = self._normal(_DRAWS * count).reshape(_DRAWS, count).sum(axis=0)
        return torch.from_numpy(total * (deviation / np.sqrt(_DRAWS))).reshape(shape)

    def _normal(self, count: int) -> Floats64:
        """Give standard normal numbers, by Box & Muller, Ann. Math. Statist. 29(2), 1958."""
        radius = np.sqrt(-2.0 * np.log(self.uniform(count)))
        normal: Floats64 = radius * np.cos(2.0 * np.pi * self.uniform(count))
        return normal
