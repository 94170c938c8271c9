"""What sites and orchestrator agree on before round 0, on numbers to check by hand."""

import math
from typing import Any, cast

import pytest

from core.exceptions import DataError
from core.messages import SensorStatistics
from orchestrator.agreement import agree_on_preprocessing
from orchestrator.configuration import ClassWeight


def sums(site_id: str, **changes: Any) -> SensorStatistics:
    """Give the sums of the rows 1 and 3 of one sensor, one of them a failure."""
    return cast(
        "SensorStatistics",
        {
            "kind": "sensor_statistics",
            "datasite_id": site_id,
            "count": 2,
            "total": [4.0],
            "total_of_squares": [10.0],
            "label_counts": [1, 1],
            **changes,
        },
    )


def test_one_scaler_is_that_of_all_rows() -> None:
    """Rows 1 and 3 here and 5 and 7 there: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5."""
    sites = [sums("factory-1"), sums("factory-2", total=[12.0], total_of_squares=[74.0])]
    agreed = agree_on_preprocessing(sites, ClassWeight.NONE)
    assert agreed["mean"] == [4.0]
    assert agreed["scale"] == [pytest.approx(math.sqrt(5.0), rel=1e-12)]


def test_the_order_of_the_sites_does_not_matter() -> None:
    """Sums are exact before they are rounded: 0.1 + 0.2 + 0.3 has one result."""
    sites = [sums(f"factory-{i}", total=[i / 10]) for i in (1, 2, 3)]
    forth = agree_on_preprocessing(sites, ClassWeight.NONE)
    assert agree_on_preprocessing(sites[::-1], ClassWeight.NONE) == forth


def test_a_sensor_that_never_varies_is_only_shifted() -> None:
    """Dividing by its deviation, 0, would make it infinite."""
    agreed = agree_on_preprocessing([sums("a", total_of_squares=[8.0])], ClassWeight.NONE)
    assert (agreed["mean"], agreed["scale"]) == ([2.0], [1.0])


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [(ClassWeight.NONE, 1.0), (ClassWeight.SQRT, 3.0), (ClassWeight.BALANCED, 9.0)],
    ids=str,
)
def test_failures_weigh_by_the_pooled_labels(weighting: ClassWeight, expected: float) -> None:
    """18 non-failures for 2 failures: 9 each, or its root."""
    sites = [sums("a", label_counts=[10, 0]), sums("b", label_counts=[8, 2])]
    assert agree_on_preprocessing(sites, weighting)["positive_weight"] == expected


@pytest.mark.parametrize("weighting", [ClassWeight.SQRT, ClassWeight.BALANCED], ids=str)
@pytest.mark.parametrize("labels", [[9, 0], [0, 9]], ids=["no failure", "failures only"])
def test_one_label_alone_gives_no_class_weight(weighting: ClassWeight, labels: list[int]) -> None:
    """The error says which setting to change."""
    with pytest.raises(DataError, match=r"set training\.positive_weight to none"):
        agree_on_preprocessing([sums("a", label_counts=labels)], weighting)


def test_one_label_alone_is_no_matter_when_labels_do_not_weigh() -> None:
    """Without a class weight, a plant where nothing failed can train."""
    agreed = agree_on_preprocessing([sums("a", label_counts=[9, 0])], ClassWeight.NONE)
    assert agreed["positive_weight"] == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"total": [1.0, 2.0]},
        {"total_of_squares": []},
        {"label_counts": [9]},
        {"label_counts": [9, 0, 0]},
        {"count": 0},
    ],
    ids=["totals", "squares", "one label", "three labels", "no rows"],
)
def test_sums_that_do_not_fit_are_refused_by_name(changes: dict[str, Any]) -> None:
    """A site of another release, or a hostile one, ends the run with its name."""
    with pytest.raises(DataError, match="factory-2: its statistics") as caught:
        agree_on_preprocessing(
            [sums("factory-1"), sums("factory-2", **changes)], ClassWeight.BALANCED
        )
    assert caught.value.site_id == "factory-2"
