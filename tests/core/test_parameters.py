"""The algebra of parameters, on numbers that can be checked by hand."""

import math

import pytest
import torch

from core.exceptions import AggregationError, ModelError
from core.messages import Parameters
from core.parameters import (
    as_float64,
    cast_like,
    copied,
    count,
    difference,
    digest,
    l2_norm,
    largest_difference,
    require_finite,
    require_same_layout,
    require_updates,
    weighted_sum,
)


def layer(*values: float, dtype: torch.dtype = torch.float32) -> Parameters:
    """Give parameters of one tensor, `w`."""
    return {"w": torch.tensor(values, dtype=dtype)}


def model(**changes: torch.Tensor) -> Parameters:
    """Give parameters of two tensors, one of them an integer buffer."""
    return {"w": torch.tensor([1.0, 2.0]), "steps": torch.tensor(5), **changes}


def test_a_weighted_sum_is_worked_by_hand() -> None:
    """Each number is the sum of its terms, each times its weight."""
    # 0.25 * [2, 4] + 0.75 * [6, 8] = [0.5 + 4.5, 1 + 6]
    assert weighted_sum([layer(2, 4), layer(6, 8)], [0.25, 0.75])["w"].tolist() == [5.0, 7.0]


def test_a_weighted_sum_adds_in_float64() -> None:
    """float32 alone loses the 1 beside 10^8: its neighbours there are 8 apart."""
    # 1e8 + 1 - 1e8 = 1; in float32, 1e8 + 1 = 1e8 and the sum would be 0.
    terms = [layer(1e8), layer(1.0), layer(-1e8)]
    assert weighted_sum(terms, [1.0, 1.0, 1.0])["w"].tolist() == [1.0]
    naive = terms[0]["w"] + terms[1]["w"] + terms[2]["w"]
    assert naive.tolist() == [0.0]


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_a_weighted_sum_keeps_the_dtype(dtype: torch.dtype) -> None:
    """What comes out fits the model that went in."""
    total = weighted_sum([layer(1, dtype=dtype), layer(3, dtype=dtype)], [0.5, 0.5])
    assert total["w"].dtype is dtype
    assert total["w"].tolist() == [2.0]


def test_integer_tensors_give_their_maximum() -> None:
    """A counter has no mean: 5 and 8 steps are not 6.5, whatever the weights."""
    terms = [
        {"steps": torch.tensor(5), "seen": torch.tensor([True, False])},
        {"steps": torch.tensor(8), "seen": torch.tensor([False, False])},
    ]
    total = weighted_sum(terms, [0.9, 0.1])
    assert (total["steps"].item(), total["steps"].dtype) == (8, torch.int64)
    assert total["seen"].tolist() == [True, False]


def test_a_weighted_sum_of_one_term_is_bit_equal_to_it() -> None:
    """Even the sign of zero stays: one site alone gives its own digest."""
    alone = layer(-0.0, 0.1, -3e38)
    assert digest(weighted_sum([alone], [1.0])) == digest(alone)


def test_a_weighted_sum_leaves_its_terms_alone() -> None:
    """The sum has its own memory."""
    term = layer(1.0)
    weighted_sum([term], [1.0])["w"].add_(1)
    assert term["w"].tolist() == [1.0]


def test_terms_and_weights_are_as_many() -> None:
    """A forgotten weight is a mistake in the program and is not dropped."""
    with pytest.raises(ValueError, match="zip"):
        weighted_sum([layer(1), layer(2)], [1.0])


def test_the_same_layout_passes() -> None:
    """Values may differ."""
    require_same_layout(model(w=torch.tensor([9.0, 9.0])), model(), whose="factory-1")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"w": torch.zeros(2)}, r"factory-1: .*missing \['steps'\], unknown \[\]"),
        (model(v=torch.zeros(1)), r"factory-1: .*missing \[\], unknown \['v'\]"),
        (model(w=torch.zeros(3)), r"factory-1: 'w' is torch.float32 \(3,\), expected .* \(2,\)"),
        (model(w=torch.zeros(2, 1)), r"factory-1: 'w' is torch.float32 \(2, 1\), expected"),
        (
            model(w=torch.zeros(2, dtype=torch.float64)),
            r"factory-1: 'w' is torch.float64 \(2,\), expected torch.float32 \(2,\)",
        ),
    ],
    ids=["missing", "unknown", "length", "dimensions", "dtype"],
)
def test_another_layout_is_told_with_whose_it_is_and_which_tensor(
    found: Parameters, said: str
) -> None:
    """The message leads to the site and the tensor."""
    with pytest.raises(ModelError, match=said):
        require_same_layout(found, model(), whose="factory-1")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_a_number_that_is_not_finite_is_told_with_whose_it_is_and_which_tensor(
    value: float,
) -> None:
    """One bad number among good ones is enough."""
    with pytest.raises(ModelError, match=r"factory-1: 'w' holds values that are not finite"):
        require_finite(model(w=torch.tensor([1.0, value])), whose="factory-1")


def test_finite_numbers_pass() -> None:
    """The largest float32, and integers, are finite."""
    require_finite(model(w=torch.tensor([torch.finfo(torch.float32).max])), whose="factory-1")


def one_bit_on(tensor: torch.Tensor) -> torch.Tensor:
    """Give the tensor with the last bit of its first number turned."""
    return (tensor.view(torch.int32) ^ torch.tensor([1, 0], dtype=torch.int32)).view(torch.float32)


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.tensor([1.0, 2.0])},
        {"w": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {"w": torch.tensor([[1.0, 2.0]])},
        {"w": one_bit_on(torch.tensor([1.0, 2.0]))},
        {"w": torch.tensor([1.0, 2.0]), "v": torch.zeros(0)},
        {},
    ],
    ids=["name", "dtype", "shape", "one bit", "one more", "none"],
)
def test_the_digest_changes_with_every_difference(other: Parameters) -> None:
    """Equal digests mean equal names, dtypes, shapes and bits."""
    assert digest(other) != digest(layer(1, 2))


def test_the_digest_tells_zero_from_minus_zero() -> None:
    """It is over bits: 0.0 and -0.0 are equal numbers."""
    assert digest(layer(0.0)) != digest(layer(-0.0))


def test_the_digest_depends_on_nothing_else() -> None:
    """Neither the order of names nor the layout in memory counts."""
    square = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    turned_twice = square.T.contiguous().T
    assert not turned_twice.is_contiguous()
    assert digest({"a": square, "b": torch.tensor(1)}) == digest(
        {"b": torch.tensor(1), "a": turned_twice}
    )


def test_the_largest_difference_is_over_all_floating_tensors() -> None:
    """Integers do not count: |2 - 5| = 3 is the largest."""
    left, right = model(), model(w=torch.tensor([1.5, 5.0]), steps=torch.tensor(99))
    assert largest_difference(left, right) == 3.0


def test_the_largest_difference_does_not_hide_a_nan() -> None:
    """NaN is found wherever it stands, also behind a larger number."""
    left = {"a": torch.tensor([1.0]), "b": torch.tensor([math.nan])}
    assert math.isnan(largest_difference(left, {"a": torch.tensor([9.0]), "b": torch.zeros(1)}))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_float64_and_back_is_the_same_bits(dtype: torch.dtype) -> None:
    """Every narrower number is a float64 exactly, -0.0 too; counters are not touched."""
    narrow = {**layer(-0.0, 0.1, 3e4, dtype=dtype), "steps": torch.tensor(2**62 + 1)}
    wide = as_float64(narrow)
    assert [tensor.dtype for tensor in wide.values()] == [torch.float64, torch.int64]
    assert digest(cast_like(wide, narrow)) == digest(narrow)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_casting_gives_memory_of_its_own(dtype: torch.dtype) -> None:
    """Also where no dtype changes: a copy may be changed in place."""
    given = {**layer(1.0, dtype=dtype), "steps": torch.tensor(5)}
    for copy in (as_float64(given), cast_like(given, given)):
        for tensor in copy.values():
            tensor.zero_()
    assert (given["w"].tolist(), given["steps"].item()) == ([1.0], 5)


def test_a_copy_is_equal_and_has_memory_of_its_own() -> None:
    """Of one dtype or of several, small or large."""
    large = {"b": torch.arange(400_000.0), "a": torch.ones(2, 3)}
    for given in (large, model()):
        copy = copied(given)
        assert digest(copy) == digest(given)
        for tensor in copy.values():
            tensor.zero_()
        assert digest(given) != digest(copy)


def test_casting_rounds_once() -> None:
    """1 + 2^-25 lies below half a step of float32 and is 1; 1e39 is beyond its largest number."""
    cast = cast_like(layer(1 + 2**-25, 1e39, dtype=torch.float64), layer(0.0, 0.0))
    assert cast["w"].tolist() == [1.0, math.inf]


def test_casting_refuses_a_fractional_counter() -> None:
    """2.5 steps would silently become 2."""
    with pytest.raises(ModelError, match=r"cannot cast 'steps' from torch.float32 to torch.int64"):
        cast_like({"steps": torch.tensor(2.5)}, {"steps": torch.tensor(0)})


def test_casting_refuses_other_names() -> None:
    """A name without a dtype to take is a mistake; both sides are named."""
    with pytest.raises(ModelError, match="only one side has v, w"):
        cast_like(layer(1.0), {"v": torch.tensor(1.0)})


def test_the_difference_is_worked_by_hand() -> None:
    """Left minus right, floating tensors only."""
    # [3, 1] - [1, 2] = [2, -1]
    delta = difference(model(w=torch.tensor([3.0, 1.0]), steps=torch.tensor(9)), model())
    assert delta.keys() == {"w"}
    assert (delta["w"].tolist(), delta["w"].dtype) == ([2.0, -1.0], torch.float64)


def test_the_difference_is_taken_in_float64() -> None:
    """float32 would round 1 + 1e8 to 1e8 first; both operands may have either dtype."""
    # 1 - (-1e8) = 100000001
    assert difference(layer(1.0), layer(-1e8))["w"].tolist() == [100000001.0]
    assert difference(layer(0.5, dtype=torch.float64), layer(1.0))["w"].tolist() == [-0.5]


def test_the_norm_is_over_all_floating_tensors_as_one_vector() -> None:
    """The counter 99 does not count."""
    # sqrt(2^2 + 3^2 + 6^2) = 7
    parameters = {"w": torch.tensor([[2.0], [3.0]]), "b": torch.tensor(6.0)}
    assert l2_norm({**parameters, "steps": torch.tensor(99)}) == 7.0
    assert l2_norm({"steps": torch.tensor(99)}) == l2_norm({}) == l2_norm(layer()) == 0.0


def test_the_norm_neither_overflows_nor_vanishes() -> None:
    """In float32 the squares would be infinity and 0."""
    # 5 = sqrt(3^2 + 4^2), at both ends of float32
    assert l2_norm(layer(3e38, 0.0)) == pytest.approx(3e38)
    assert l2_norm({**layer(3e37), "b": torch.tensor(4e37)}) == pytest.approx(5e37)
    assert l2_norm(layer(3e-30, 4e-30)) == pytest.approx(5e-30)


def test_the_norm_of_a_nan_is_nan() -> None:
    """It is not lost among the others."""
    assert math.isnan(l2_norm({**layer(1.0), "b": torch.tensor(math.nan)}))


def test_count_gives_the_number_of_scalars() -> None:
    """2 x 3 and a scalar: 7."""
    assert count([torch.zeros(2, 3), torch.tensor(1.0)]) == 7


def test_no_updates_are_an_aggregation_error() -> None:
    """A round without answers has nothing to aggregate."""
    with pytest.raises(AggregationError, match="no site answered this round"):
        require_updates(0)
    require_updates(1)
