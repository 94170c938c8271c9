"""How large a message may be, at either side."""

from typing import Final

MAX_HEADER_BYTES: Final = 16 * 2**20
MAX_MESSAGE_BYTES: Final = 2**31
"""A model of half a billion float32 parameters; more is refused on either side."""
