"""A table is divided as asked: nothing lost, no machine cut, and nobody left with too little."""

import numpy as np
import pandas as pd
import pytest

from core.enums import DataDistribution
from core.exceptions import ConfigurationError, DataError
from orchestrator.testbed.deals import Skew
from orchestrator.testbed.partition import partition

IID = DataDistribution.IID
QUANTITY = DataDistribution.NON_IID_QUANTITY
FEATURE = DataDistribution.NON_IID_FEATURE
LABEL = DataDistribution.NON_IID_LABEL

any_distribution = pytest.mark.parametrize(
    "distribution", list(DataDistribution), ids=lambda distribution: distribution.value
)
any_unit = pytest.mark.parametrize("machine", [None, "machine"], ids=["rows", "machines"])


def numbered(rows: int, failures: int) -> pd.DataFrame:
    """Give rows that can be told apart, the first of them failures."""
    number = np.arange(rows)
    return pd.DataFrame({"number": number, "failure": (number < failures).astype(int)})


def pumps(count: int = 24, minutes: int = 100) -> pd.DataFrame:
    """Give pumps of which the m-th fails in m % 12 + 1 of its minutes; `speed` goes down with m."""
    number, minute = np.divmod(np.arange(count * minutes), minutes)
    return pd.DataFrame(
        {
            "number": np.arange(count * minutes),
            "machine": [f"pump-{m:02}" for m in number],
            "speed": 3000.0 - 10.0 * number + minute % 2,
            "oil": np.where(number < count // 3, "mineral", "synthetic"),
            "failure": (minute <= number % 12).astype(int),
        }
    )


def divide(
    table: pd.DataFrame,
    sites: int,
    distribution: DataDistribution = IID,
    *,
    seed: int = 0,
    machine: str | None = None,
    skew: Skew | None = None,
) -> list[pd.DataFrame]:
    """Divide; for a deal by feature, by `number` unless another column is named."""
    if skew is None:
        skew = Skew(by="number") if distribution is FEATURE else Skew()
    return partition(
        table,
        sites=sites,
        distribution=distribution,
        seed=seed,
        label="failure",
        machine=machine,
        skew=skew,
    )


def rates(parts: list[pd.DataFrame]) -> list[float]:
    """Give the failure rate of each site."""
    return [float(part["failure"].mean()) for part in parts]


@any_distribution
@any_unit
def test_every_row_is_at_exactly_one_site(
    distribution: DataDistribution, machine: str | None
) -> None:
    """With all its columns, in the table's order, numbered from 0."""
    table = pumps()
    parts = divide(table, 4, distribution, machine=machine)
    together = pd.concat(parts).sort_values("number", ignore_index=True)

    assert len(parts) == 4
    pd.testing.assert_frame_equal(together, table)
    for part in parts:
        assert part["number"].is_monotonic_increasing
        assert part.index.tolist() == list(range(len(part)))


@any_distribution
def test_a_machine_stays_whole(distribution: DataDistribution) -> None:
    """All 100 minutes of a pump are at one site, so that its windows have no holes."""
    parts = divide(pumps(), 4, distribution, machine="machine")

    for part in parts:
        assert set(part["machine"].value_counts()) == {100}


@any_distribution
@any_unit
def test_a_division_repeats_with_its_arguments(
    distribution: DataDistribution, machine: str | None
) -> None:
    """The same arguments give the same sites."""
    first, second = (divide(pumps(), 3, distribution, seed=1, machine=machine) for _ in range(2))

    assert all(map(pd.DataFrame.equals, first, second))


@pytest.mark.parametrize("distribution", [IID, QUANTITY, LABEL], ids=lambda each: each.value)
def test_another_seed_gives_another_division(distribution: DataDistribution) -> None:
    """Where the deal is a draw; a sorted column leaves nothing to draw."""
    first, second = (divide(pumps(), 2, distribution, seed=seed) for seed in (1, 2))

    assert not first[0].equals(second[0])


@any_distribution
@pytest.mark.parametrize("seed", range(5))
def test_each_site_has_enough_of_both_classes(distribution: DataDistribution, seed: int) -> None:
    """Of 4000 rows with 200 failures, each of five sites gets 50 rows, 10 of each class."""
    table = numbered(4000, 200).assign(number=np.tile(np.arange(200), 20))

    for part in divide(table, 5, distribution, seed=seed):
        assert len(part) >= 50
        assert part["failure"].value_counts().min() >= 10


def test_iid_sites_are_alike() -> None:
    """302 rows with 31 failures for three sites: 100 or 101 rows, 10 or 11 failures each."""
    parts = divide(numbered(302, 31), 3)

    assert sorted(len(part) for part in parts) == [100, 101, 101]
    assert sorted(part["failure"].sum() for part in parts) == [10, 10, 11]


def test_iid_machines_are_alike() -> None:
    """24 pumps, two each of 1 to 12 failures: sites get eight, with 48, 52 and 56 failures."""
    parts = divide(pumps(), 3, machine="machine")

    assert [part["machine"].nunique() for part in parts] == [8, 8, 8]
    # dealt in turn: 1 2 4 5 7 8 10 11, then 1 3 4 6 7 9 10 12, then 2 3 5 6 8 9 11 12
    assert [part["failure"].sum() for part in parts] == [48, 52, 56]


@pytest.mark.parametrize("seed", range(5))
def test_a_quantity_split_keeps_the_failure_rate(seed: int) -> None:
    """Numbers of rows differ by half or more; failures are 4 % of each site's, to within one."""
    parts = divide(numbered(10_000, 400), 4, QUANTITY, seed=seed)
    rows = [len(part) for part in parts]

    assert max(rows) >= 1.5 * min(rows)
    for part in parts:
        assert part["failure"].sum() == pytest.approx(0.04 * len(part), abs=1.0)


@pytest.mark.parametrize("machine", [None, "machine"], ids=["rows", "machines"])
def test_a_small_alpha_makes_sites_less_alike(machine: str | None) -> None:
    """Over ten seeds: in their rates after a label split, in their rows after a quantity split."""

    def spread(distribution: DataDistribution, alpha: float) -> float:
        divisions = [
            divide(pumps(), 3, distribution, seed=s, machine=machine, skew=Skew(alpha=alpha))
            for s in range(10)
        ]
        if distribution is LABEL:
            return float(np.mean([np.std(rates(parts)) for parts in divisions]))
        return float(np.mean([np.std([len(part) for part in parts]) for parts in divisions]))

    assert spread(LABEL, 0.3) > 2 * spread(LABEL, 100.0)
    assert spread(QUANTITY, 0.3) > 2 * spread(QUANTITY, 100.0)


@pytest.mark.parametrize("distribution", [QUANTITY, LABEL], ids=lambda each: each.value)
def test_a_huge_alpha_is_nearly_iid(distribution: DataDistribution) -> None:
    """Shares of a Dirichlet of a million deviate by less than one in a thousand."""
    parts = divide(numbered(3000, 300), 3, distribution, skew=Skew(alpha=1e6))

    assert [len(part) for part in parts] == pytest.approx([1000] * 3, abs=5)
    assert [part["failure"].sum() for part in parts] == pytest.approx([100] * 3, abs=1)


def test_alpha_is_one_half_unless_given() -> None:
    """The default of both papers."""
    default, given = (
        divide(numbered(4000, 400), 3, LABEL, skew=skew) for skew in (Skew(), Skew(alpha=0.5))
    )

    assert all(map(pd.DataFrame.equals, default, given))


def test_a_number_is_divided_into_regimes() -> None:
    """Site 1 has the lowest third of the values, site 3 the highest."""
    table = numbered(301, 150).sample(frac=1.0, random_state=0).assign(failure=[0, 1] * 150 + [0])
    parts = divide(table, 3, FEATURE)

    assert [(part["number"].min(), part["number"].max()) for part in parts] == [
        (0, 100),
        (101, 200),
        (201, 300),
    ]


def test_machines_are_divided_by_their_mean() -> None:
    """Pump 0 is the fastest: the last site has pumps 0 to 7, the first 16 to 23."""
    slow, _, fast = divide(pumps(), 3, FEATURE, machine="machine", skew=Skew(by="speed"))

    assert sorted(fast["machine"].unique()) == [f"pump-{m:02}" for m in range(8)]
    assert sorted(slow["machine"].unique()) == [f"pump-{m:02}" for m in range(16, 24)]


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        (1, [{"L", "M", "H"}]),
        (2, [{"L"}, {"M", "H"}]),
        (3, [{"L"}, {"M"}, {"H"}]),
        (4, [{"L"}, {"L"}, {"M"}, {"H"}]),
        (10, [{"L"}] * 6 + [{"M"}] * 3 + [{"H"}]),
    ],
    ids=lambda value: f"{value} site(s)" if isinstance(value, int) else "",
)
def test_each_site_has_its_own_type(sites: int, expected: list[set[str]]) -> None:
    """600 rows of L, 300 of M, 100 of H, half of them failures: large types take more sites."""
    table = numbered(1000, 0).assign(
        failure=[0, 1] * 500, Type=["L"] * 600 + ["M"] * 300 + ["H"] * 100
    )
    parts = divide(table, sites, FEATURE, skew=Skew(by="Type"))

    assert [set(part["Type"]) for part in parts] == expected
    if sites == 10:
        assert [len(part) for part in parts] == [100] * 10
        assert [part["failure"].sum() for part in parts] == [50] * 10


def test_machines_are_divided_by_their_type() -> None:
    """A third of the pumps run on mineral oil: of three sites, they are one."""
    parts = divide(pumps(), 3, FEATURE, machine="machine", skew=Skew(by="oil"))

    assert [part["oil"].unique().tolist() for part in parts] == [
        ["synthetic"],
        ["synthetic"],
        ["mineral"],
    ]
    assert [len(part) for part in parts] == [800] * 3


def test_empty_cells_do_not_count_in_a_machines_mean() -> None:
    """A sensor that missed a minute does not move its pump to another site."""
    table = pumps()
    holed = table.assign(speed=table["speed"].where(table["number"] % 7 != 0))
    skew = Skew(by="speed")
    first, second = (divide(t, 3, FEATURE, machine="machine", skew=skew) for t in (table, holed))

    assert [part["number"].tolist() for part in first] == [
        part["number"].tolist() for part in second
    ]


@pytest.mark.parametrize(
    ("table", "sites", "distribution", "message"),
    [
        (numbered(149, 40), 3, IID, r"site 3 of 3 would get 49 rows, at least 50 .* more rows$"),
        (numbered(200, 19), 2, IID, "site 1 of 2 would get 9 rows with 'failure' = 1, at least 10"),
        (numbered(200, 190), 1, IID, None),
        (numbered(200, 191), 1, IID, "site 1 of 1 would get 9 rows with 'failure' = 0"),
        (numbered(900, 300), 3, FEATURE, "site 1 of 3 .* 0 rows with 'failure' = 0.*other column"),
        (numbered(500, 29), 3, QUANTITY, r"site \d of 3 would get \d rows .*or a larger alpha"),
        (numbered(500, 29), 3, LABEL, r"site \d of 3 would get \d rows .*or a larger alpha"),
        (numbered(50, 20), 60, LABEL, "50 rows cannot be divided among 60 sites"),
        (numbered(200, 20)[["number"]], 2, IID, "no label column 'failure'"),
        (numbered(200, 20).assign(failure=2), 2, IID, "'failure' must hold 0 and 1 only"),
    ],
)
def test_an_impossible_division_is_refused(
    table: pd.DataFrame, sites: int, distribution: DataDistribution, message: str | None
) -> None:
    """The message says which site would get what, and what to change."""
    if message is None:
        assert len(divide(table, sites, distribution)) == sites
        return
    with pytest.raises(DataError, match=message):
        divide(table, sites, distribution)


def test_too_few_machines_are_refused() -> None:
    """Five pumps are no six sites; a pump without a name is none."""
    with pytest.raises(DataError, match="5 machines cannot be divided among 6 sites"):
        divide(pumps(5), 6, machine="machine")
    with pytest.raises(DataError, match="no machine column 'pump'"):
        divide(pumps(), 2, machine="pump")
    nameless = pumps().assign(machine=[None, *pumps()["machine"][1:]])
    with pytest.raises(DataError, match="'machine' has empty cells"):
        divide(nameless, 2, machine="machine")


@pytest.mark.parametrize(
    ("distribution", "skew", "message"),
    [
        (IID, Skew(alpha=1.0), "alpha: is for `non_iid_quantity` and `non_iid_label`, not for `i"),
        (FEATURE, Skew(alpha=1.0, by="number"), "not for `non_iid_feature`"),
        (LABEL, Skew(alpha=0.0), "alpha: 0 given, between 0.01 and 1,000,000 needed"),
        (QUANTITY, Skew(alpha=float("nan")), "alpha: nan given"),
        (QUANTITY, Skew(by="number"), "by: is for `non_iid_feature`, not for `non_iid_quantity`"),
        (FEATURE, Skew(), "by: `non_iid_feature` needs the column"),
        (FEATURE, Skew(by="torque"), "no column 'torque'; it has 'number', 'failure', 'holed'"),
        (FEATURE, Skew(by="holed"), "'holed' has empty cells; choose another"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    distribution: DataDistribution, skew: Skew, message: str
) -> None:
    """An option that does nothing would be worse than none."""
    table = numbered(200, 40).assign(holed=[np.nan] + [1.0] * 199)
    with pytest.raises(ConfigurationError, match=message):
        divide(table, 2, distribution, skew=skew)


def test_a_machine_without_any_value_cannot_be_dealt_by_it() -> None:
    """Neither a mean nor a most frequent value can be had of empty cells."""
    table = pumps()
    first = table["machine"] == "pump-00"
    for column in ("speed", "oil"):
        holed = table.assign(**{column: table[column].mask(first)})
        with pytest.raises(ConfigurationError, match=f"'{column}' has empty cells"):
            divide(holed, 3, FEATURE, machine="machine", skew=Skew(by=column))


@pytest.mark.parametrize("distribution", [QUANTITY, LABEL], ids=lambda each: each.value)
def test_the_smallest_alpha_leaves_a_site_with_next_to_nothing(
    distribution: DataDistribution,
) -> None:
    """One site would have nearly all, and that is refused like any other lack."""
    with pytest.raises(DataError, match=r"site \d of 8 would get \d rows.*a larger alpha"):
        divide(numbered(1000, 300), 8, distribution, skew=Skew(alpha=0.01))


def test_no_site_is_refused() -> None:
    """A division among nobody."""
    with pytest.raises(ConfigurationError, match="sites: 0 given, at least 1 needed"):
        divide(numbered(200, 40), 0)
