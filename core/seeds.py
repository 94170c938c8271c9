"""Every random draw comes from named facts, so that any of them can be made again."""

import hashlib


def derive_seed(*facts: int | str) -> int:
    """Give a 63-bit seed from `facts`, such as the run's seed, the round and the site.

    Equal facts give equal seeds; different facts give unrelated ones (SHA-256).
    """
    text = "\x1f".join(f"{type(fact).__name__}:{fact}" for fact in facts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
