"""Secure aggregation without a network: exact sums whoever drops out, and sites that see through.

The threshold t is ⌊2n/3⌋ + 1, and ⌊n/2⌋ + 1 where an orchestrator is trusted: with 3 sites the
first leaves room for no site to drop out, and the second for one.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from secure_sites import STEPS, Table, context_of, identity_of, settings_for

from core.exceptions import AggregationError, SecurityError
from core.secure.masks import add_mask
from core.secure.shares import combine, divide
from datasite.secure.participant import Participant

SITES = (3, 5, 10)


def thresholds(sites: int) -> list[int]:
    """Give the default, and the lower one."""
    return [2 * sites // 3 + 1, sites // 2 + 1]


def patterns(sites: int, threshold: int) -> list[dict[str, str]]:
    """Give every way in which as many sites as can be done without drop out, or fewer."""
    names = [f"factory-{number}" for number in range(1, sites + 1)]
    return [
        dict(zip(who, when, strict=True))
        for how_many in range(sites - threshold + 1)
        for who in itertools.combinations(names, how_many)
        for when in itertools.product(STEPS, repeat=how_many)
    ]


def some_patterns(sites: int, threshold: int, how_many: int) -> list[dict[str, str]]:
    """Give so many at random, the same each time."""
    draw = np.random.default_rng(sites)
    names = [f"factory-{number}" for number in range(1, sites + 1)]
    return [
        {
            str(name): str(draw.choice(STEPS))
            for name in draw.permutation(names)[: draw.integers(0, sites - threshold + 1)]
        }
        for _ in range(how_many)
    ]


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("which", [0, 1], ids=["t > 2n/3", "t > n/2"])
def test_the_sum_is_exact_whoever_drops_out(sites: int, which: int) -> None:
    """Every pattern for 3 and 5 sites, 100 for 10 under each threshold; modulo 2^64, to the bit."""
    threshold = thresholds(sites)[which]
    context = context_of(settings_for(sites, threshold))
    found = patterns(sites, threshold) if sites <= 5 else some_patterns(sites, threshold, 100)
    for number, lost in enumerate(found):
        table = Table(context, seed=number)
        assert np.array_equal(table.run(lost), table.plain()), lost
        assert set(table.names) - set(table.masked) == {
            name for name, step in lost.items() if step in {"shares", "mask"}
        }


@pytest.mark.parametrize("step", STEPS[1:])
def test_one_more_drop_out_opens_nothing(step: str) -> None:
    """Of 5 sites 4 must last; with 3 no honest site goes on, and 3 shares are no seed."""
    table = Table(context_of(settings_for(5, 4)))
    with pytest.raises((SecurityError, AggregationError), match=r"3 sites|do not give the seed"):
        table.run({"factory-4": step, "factory-5": step})
    names = sorted(f"factory-{number}" for number in range(1, 6))
    shares = divide(b"sixteen bytes ok", names, 4)
    few = {name: shares[name] for name in names[:3]}
    assert combine(few, names, 4) != b"sixteen bytes ok"
    assert combine({**few, names[4]: shares[names[4]]}, names, 4) == b"sixteen bytes ok"


def test_a_masked_vector_is_as_random_as_noise() -> None:
    """χ² over the bytes of the addend of nothing at all: 65536 numbers, one session."""
    table = Table(context_of(settings_for(3, 2)), numbers=65536)
    table.addends = {name: np.zeros(65536, dtype=np.uint64) for name in table.names}
    table.advertise()
    table.share(table.names)
    table.mask(table.names)
    for vector in table.masked.values():
        counts = np.bincount(np.frombuffer(vector.tobytes(), dtype=np.uint8), minlength=256)
        assert 1e-6 < stats.chisquare(counts).pvalue < 1 - 1e-6
    again = Table(context_of(settings_for(3, 2)), numbers=65536)
    again.addends = table.addends
    again.run({})
    assert (again.masked["factory-1"] == table.masked["factory-1"]).mean() < 1e-3


def test_a_mask_is_the_keystream_of_its_key_in_every_block() -> None:
    """Taken away again, nothing is left of it; no block of it comes twice."""
    vector = np.zeros(3 * 2**15 + 7, dtype=np.uint64)
    add_mask(vector, bytes(32))
    assert len(set(vector.tolist())) == len(vector)
    add_mask(vector, bytes(32), -1)
    assert not vector.any()


class Lie:
    """One thing that an orchestrator does to a site of a session of four."""

    def __init__(self) -> None:
        self.table = Table(context_of(settings_for(4, 3)))
        self.site = self.table.sites["factory-1"]

    def up_to(self, step: str) -> None:
        """Run the session honestly up to before a step."""
        steps = {
            "shares": self.table.advertise,
            "mask": lambda: self.table.share(self.table.names),
            "confirm": lambda: self.table.mask(self.table.names),
            "unmask": lambda: self.table.confirm(self.table.names),
        }
        for name, take in steps.items():
            take()
            if name == step:
                break

    def other_session(self, **changes: object) -> Table:
        """Give another session of the same sites, with its keys."""
        table = Table(context_of(self.table.context.settings, **changes))
        table.advertise()
        return table

    def swap_a_key(self) -> None:
        """Put a key of one's own in the place of a site's, to read what is shared with it."""
        self.up_to("shares")
        theirs = self.other_session(session_id="b" * 32).keys["factory-2"]
        keys = {**self.table.keys, "factory-2": {**self.table.keys["factory-2"]}}
        keys["factory-2"]["sharing"] = theirs["sharing"]
        self.site.shares(keys)

    def sign_by_another(self) -> None:
        """Sign keys of one's own, by a key that is not the roster's."""
        self.up_to("shares")
        forged = dict(self.table.keys["factory-2"])
        message = self.table.context.advertisement("factory-2", self.table.keys["factory-2"])
        forged["signature"] = identity_of("somebody else").sign(message).hex()
        self.site.shares({**self.table.keys, "factory-2": forged})  # type: ignore[dict-item]

    def replay_keys(self) -> None:
        """Show keys of an earlier session, whose secrets may be known."""
        self.up_to("shares")
        earlier = self.other_session(session_id="b" * 32)
        self.site.shares({**self.table.keys, "factory-2": earlier.keys["factory-2"]})

    def replay_a_round(self) -> None:
        """Show keys of an earlier round."""
        self.up_to("shares")
        earlier = self.other_session(round_num=1)
        self.site.shares({**self.table.keys, "factory-2": earlier.keys["factory-2"]})

    def give_each_another_model(self) -> None:
        """Have a site train on a model of its own, so that its change stands out in the sum."""
        self.up_to("shares")
        other = self.other_session(trained_on="1" * 64)
        self.site.shares({**self.table.keys, "factory-2": other.keys["factory-2"]})

    def tell_another_threshold(self) -> None:
        """Have one site believe that fewer must last."""
        self.up_to("shares")
        other = Table(context_of(settings_for(4, 4)))
        other.advertise()
        self.site.shares({**self.table.keys, "factory-2": other.keys["factory-2"]})

    def add_a_stranger(self) -> None:
        """List a site that the operator has not approved."""
        self.up_to("shares")
        self.site.shares({**self.table.keys, "ghost": self.table.keys["factory-2"]})

    def leave_it_alone(self) -> None:
        """List fewer sites than the threshold."""
        self.up_to("shares")
        self.site.shares({name: self.table.keys[name] for name in ("factory-1", "factory-2")})

    def put_in_its_place(self) -> None:
        """Put other keys where the site's own belong."""
        self.up_to("shares")
        other = self.other_session()
        self.site.shares({**self.table.keys, "factory-1": other.keys["factory-1"]})

    def pass_on_other_shares(self) -> None:
        """Pass on what was shared in another session."""
        self.up_to("mask")
        other = self.other_session(session_id="b" * 32)
        other.share(other.names)
        sealed = {
            **self.table.for_site("factory-1"),
            "factory-2": other.for_site("factory-1")["factory-2"],
        }
        self.site.masked(sealed, self.table.addends["factory-1"])

    def pass_on_somebody_elses_shares(self) -> None:
        """Pass on what was shared with another site."""
        self.up_to("mask")
        sealed = {**self.table.for_site("factory-1")}
        sealed["factory-2"] = self.table.for_site("factory-3")["factory-2"]
        self.site.masked(sealed, self.table.addends["factory-1"])

    def hold_back_shares(self) -> None:
        """Have it mask its update with too few others."""
        self.up_to("mask")
        sealed = {"factory-2": self.table.for_site("factory-1")["factory-2"]}
        self.site.masked(sealed, self.table.addends["factory-1"])

    def claim_too_few(self) -> None:
        """Claim that fewer updates came than the threshold, for a sum over few."""
        self.up_to("confirm")
        self.site.confirmed(["factory-1", "factory-2"])

    def claim_that_it_was_lost(self) -> None:
        """Ask for shares of its own masking key, whose masked update is there."""
        self.up_to("confirm")
        self.site.confirmed(["factory-2", "factory-3", "factory-4"])

    def ask_for_both_shares(self) -> None:
        """After the shares for one list of survivors, ask for those for another."""
        self.up_to("unmask")
        self.site.unmasked(self.table.confirmations)
        self.site.unmasked(self.table.confirmations)

    def have_two_lists_confirmed(self) -> None:
        """Ask for a signature of a second list of survivors."""
        self.up_to("unmask")
        self.site.confirmed(["factory-1", "factory-2", "factory-3"])

    def tell_some_another_list(self) -> None:
        """Tell two sites of one list of survivors, and two of another."""
        self.up_to("confirm")
        lists = (sorted(self.table.names), ["factory-1", "factory-2", "factory-4"])
        signed = {
            name: self.table.sites[name].confirmed(lists[name in {"factory-2", "factory-4"}])
            for name in self.table.names
        }
        self.site.unmasked(signed)

    def unmask_alone(self) -> None:
        """Ask for shares without enough confirmations."""
        self.up_to("unmask")
        few = {name: self.table.confirmations[name] for name in ("factory-1", "factory-2")}
        self.site.unmasked(few)

    def leave_out_the_check(self) -> None:
        """Ask for shares before the list was confirmed."""
        self.up_to("confirm")
        self.site.unmasked({})

    def mask_twice(self) -> None:
        """Ask for the update under other masks, for the difference of the two."""
        self.up_to("confirm")
        self.site.masked(self.table.for_site("factory-1"), self.table.addends["factory-1"])

    def sum_others_later(self) -> None:
        """In a later session of the round, ask for the sum of other sites."""
        self.up_to("shares")
        site = Participant(
            "factory-1",
            self.table.context,
            identity_of("factory-1").sign,
            bound_to=self.table.names[:3],
        )
        self.table.sites["factory-1"] = site
        self.table.advertise = lambda: None  # type: ignore[method-assign]
        self.table.keys["factory-1"] = site.keys()
        self.table.share(self.table.names)
        self.table.mask(self.table.names)
        site.confirmed(self.table.names)


LIES: dict[str, tuple[Callable[[Lie], None], str]] = {
    "swap a key": (Lie.swap_a_key, "not signed by its identity"),
    "sign by another key": (Lie.sign_by_another, "not signed by its identity"),
    "replay keys": (Lie.replay_keys, "not signed by its identity for this session"),
    "replay a round": (Lie.replay_a_round, "not signed by its identity for this session"),
    "another model": (Lie.give_each_another_model, "trained on another model"),
    "another threshold": (Lie.tell_another_threshold, "has another plan"),
    "a stranger": (Lie.add_a_stranger, "names ghost"),
    "alone": (Lie.leave_it_alone, "has 2 sites"),
    "in its place": (Lie.put_in_its_place, "are not its own"),
    "other shares": (Lie.pass_on_other_shares, "of another session"),
    "somebody else's shares": (Lie.pass_on_somebody_elses_shares, "cannot be opened"),
    "shares held back": (Lie.hold_back_shares, "has 2 sites"),
    "too few survivors": (Lie.claim_too_few, "has 2 sites"),
    "lost after all": (Lie.claim_that_it_was_lost, "does not stand in the list"),
    "both shares": (Lie.ask_for_both_shares, "due is 'nothing more'"),
    "two lists": (Lie.have_two_lists_confirmed, "due is 'unmasked'"),
    "two lists for two": (Lie.tell_some_another_list, "has not signed the list"),
    "unmask alone": (Lie.unmask_alone, "confirmations has 2 sites"),
    "no check": (Lie.leave_out_the_check, "due is 'confirmed'"),
    "mask twice": (Lie.mask_twice, "due is 'confirmed'"),
    "another sum": (Lie.sum_others_later, "counted in a sum of this round before"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_site_sees_through_an_orchestrator_that_lies(lie: str) -> None:
    """It refuses, and the session goes no further."""
    scene = Lie()
    tell, said = LIES[lie]
    with pytest.raises(SecurityError, match=said) as refused:
        tell(scene)
    assert refused.value.site_id == "factory-1"
    with pytest.raises(SecurityError, match="due is 'nothing more'"):
        scene.table.sites["factory-1"].unmasked(scene.table.confirmations)
