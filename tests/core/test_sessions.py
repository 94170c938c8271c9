"""The arithmetic of a session: two keys for exactly these parties, one tag for a message."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from core.sessions import (
    PUBLIC_BYTES,
    Parties,
    SessionKeys,
    derive_keys,
    is_tag,
    new_half,
    new_session_id,
    tag,
)


def public(half: X25519PrivateKey) -> bytes:
    """Give what is sent of a half."""
    return half.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


CALLER = X25519PrivateKey.from_private_bytes(bytes(range(32)))
SITE = X25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
STRANGER = X25519PrivateKey.from_private_bytes(bytes(range(64, 96)))
PARTIES = Parties(
    session_id="5e55",
    caller_key="ca11e4",
    site_key="517e",
    caller_public=public(CALLER),
    site_public=public(SITE),
)

small_bytes = st.binary(max_size=64)
counters = st.integers(0, 2**63 - 1)
hashes = st.binary(min_size=32, max_size=32)
keys = st.binary(min_size=32, max_size=32)


def at_the_site(parties: Parties = PARTIES) -> SessionKeys:
    """Derive the keys as the site of the example does."""
    return derive_keys(SITE, public(CALLER), parties)


def pair(keys_: SessionKeys) -> tuple[bytes, bytes]:
    """Give the two keys to compare."""
    return keys_.request, keys_.reply


def test_both_sides_derive_the_same_keys() -> None:
    """Each from its own secret and the other's public half."""
    assert derive_keys(CALLER, public(SITE), PARTIES) == at_the_site()


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_any_two_secrets_come_to_the_same_keys(caller: bytes, site: bytes) -> None:
    """The exchange is symmetric whatever the secrets are."""
    one, other = map(X25519PrivateKey.from_private_bytes, (caller, site))
    parties = replace(PARTIES, caller_public=public(one), site_public=public(other))
    keys_ = derive_keys(one, public(other), parties)
    assert keys_ == derive_keys(other, public(one), parties)
    assert [len(key) for key in pair(keys_)] == [32, 32]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"session_id": "5e56"}, id="session"),
        pytest.param({"caller_key": "ca11e5"}, id="caller's key"),
        pytest.param({"site_key": "517f"}, id="site's key"),
        pytest.param({"caller_public": public(STRANGER)}, id="caller's half"),
        pytest.param({"site_public": public(STRANGER)}, id="site's half"),
        pytest.param({"caller_key": "517e", "site_key": "ca11e4"}, id="keys exchanged"),
        pytest.param({"session_id": "5e5", "caller_key": "5ca11e4"}, id="a digit moved over"),
        pytest.param({"caller_key": "ca11e45", "site_key": "17e"}, id="another moved over"),
    ],
)
def test_who_speaks_with_whom_goes_into_the_keys(changes: dict[str, str | bytes]) -> None:
    """Of the same exchange, any other party gives two other keys, in neither direction the same."""
    other = at_the_site(replace(PARTIES, **changes))  # type: ignore[arg-type]  # by field
    assert set(pair(other)).isdisjoint(pair(at_the_site()))


def test_another_secret_gives_other_keys() -> None:
    """Knowing all that was said is not enough."""
    stranger = derive_keys(STRANGER, public(CALLER), PARTIES)
    assert set(pair(stranger)).isdisjoint(pair(at_the_site()))


def test_the_two_directions_have_different_keys() -> None:
    """A request cannot be sent back as its own reply."""
    keys_ = at_the_site()
    assert keys_.request != keys_.reply
    said = {"counter": 1, "head": b"head", "body_hash": bytes(32)}
    assert not is_tag(tag(keys_.request, **said), keys_.reply, **said)


@pytest.mark.parametrize(
    "half",
    [
        pytest.param(bytes(32), id="zero"),
        pytest.param(b"\x01" + bytes(31), id="one"),
        pytest.param(
            bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
            id="order 8",
        ),
        pytest.param(
            bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
            id="another of order 8",
        ),
        pytest.param(b"\xec" + b"\xff" * 30 + b"\x7f", id="p - 1"),
        pytest.param(b"\xed" + b"\xff" * 30 + b"\x7f", id="p"),
        pytest.param(b"\xee" + b"\xff" * 30 + b"\x7f", id="p + 1"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x09" * 31, id="too short"),
        pytest.param(b"\x09" * 33, id="too long"),
    ],
)
def test_a_half_that_gives_the_secret_away_is_refused(half: bytes) -> None:
    """Points of low order come to one secret with everybody; what is no half at all is no better.

    Source: the list of https://cr.yp.to/ecdh.html#validate.
    """
    with pytest.raises(ValueError):  # noqa: PT011 - the text is the cryptography library's
        derive_keys(SITE, half, replace(PARTIES, caller_public=half))


def test_halves_and_names_are_new_each_time() -> None:
    """No two sessions share one; a name is as long as what nobody guesses."""
    names = {new_session_id() for _ in range(100)}
    assert len(names) == 100
    assert {len(bytes.fromhex(name)) for name in names} == {16}
    halves = {public(new_half()) for _ in range(100)}
    assert len(halves) == 100
    assert {len(half) for half in halves} == {PUBLIC_BYTES}


@given(keys, counters, small_bytes, hashes)
def test_a_message_has_its_tag(key: bytes, counter: int, head: bytes, body_hash: bytes) -> None:
    """What was sealed with a key is recognised with it; 64 hexadecimal digits travel."""
    said = {"counter": counter, "head": head, "body_hash": body_hash}
    given_tag = tag(key, **said)  # type: ignore[arg-type]  # by name
    assert len(bytes.fromhex(given_tag)) == 32
    assert is_tag(given_tag, key, **said)  # type: ignore[arg-type]  # likewise


@given(
    st.tuples(keys, counters, small_bytes, hashes), st.tuples(keys, counters, small_bytes, hashes)
)
def test_another_message_or_key_has_another_tag(
    one: tuple[bytes, int, bytes, bytes], other: tuple[bytes, int, bytes, bytes]
) -> None:
    """Two tags are equal only when key, counter, head and hash all are; each is changed alone."""
    mixed = [(*one[:at], other[at], *one[at + 1 :]) for at in range(4)]
    key, counter, head, body_hash = one
    sealed = tag(key, counter=counter, head=head, body_hash=body_hash)
    for changed in [*mixed, other]:
        is_same = is_tag(
            sealed, changed[0], counter=changed[1], head=changed[2], body_hash=changed[3]
        )
        assert is_same == (changed == one)


@given(keys, counters, small_bytes, small_bytes, st.data())
def test_no_byte_moves_between_head_and_body_hash(
    key: bytes, counter: int, head: bytes, rest: bytes, data: st.DataObject
) -> None:
    """Head and hash joined may read the same; the tag knows where one ended."""
    joined = head + rest
    at = data.draw(st.integers(0, len(joined)))
    sealed = tag(key, counter=counter, head=head, body_hash=rest)
    moved = is_tag(sealed, key, counter=counter, head=joined[:at], body_hash=joined[at:])
    assert moved == (at == len(head))


@pytest.mark.parametrize("given_tag", ["", "0", "0" * 64, "not hexadecimal", "ümlaut"])
def test_what_is_no_tag_is_none(given_tag: str) -> None:
    """Anything may stand in a header; it is refused, not an error."""
    assert not is_tag(given_tag, bytes(32), counter=1, head=b"", body_hash=bytes(32))


def test_a_tag_cut_short_is_none() -> None:
    """Nor is one that is right as far as it goes."""
    said = {"counter": 1, "head": b"head", "body_hash": bytes(32)}
    whole = tag(bytes(32), **said)
    assert not is_tag(whole[:-1], bytes(32), **said)
    assert not is_tag(whole + "0", bytes(32), **said)


def test_keys_are_not_shown() -> None:
    """Neither `repr` nor a traceback's locals print one."""
    keys_ = at_the_site()
    assert keys_.request.hex() not in repr(keys_)
    assert repr(keys_.request) not in repr(keys_)
