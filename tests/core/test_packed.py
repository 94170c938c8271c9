"""Encoded messages as files of safetensors, and models that lie in one piece of memory.

A model of one dtype takes a way of its own through the arithmetic; it must come to the same bits as
tensor by tensor.
"""

import copy
import json
import math
import pickle
from typing import Any, Final, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import wire
from core.exceptions import ModelError, ProtocolError
from core.messages import ClientUpdate, Message, Parameters, TrainRequest
from core.packing import content_hash
from core.parameters import (
    Laid,
    add,
    add_scaled,
    as_float64,
    cast_like,
    difference,
    digest,
    distance,
    laid,
    largest_difference,
    require_same_layout,
    runs,
    scale,
    zeros_like,
)
from core.wire import Packed, Parcel
from orchestrator.aggregation import Contribution, SimpleAverage, WeightedAverage

FLOATING: Final = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DTYPES: Final = [*FLOATING, torch.int64, torch.int32, torch.uint8, torch.bool]
COUNTERS: Final = [torch.int64, torch.uint8, torch.bool]

UPDATE: Final[dict[str, Any]] = {
    "kind": "update",
    "datasite_id": "factory-1",
    "round_num": 0,
    "num_samples": 1,
    "num_steps": 1,
    "metrics": {},
}

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
seeds = st.integers(0, 2**32 - 1)
deterministic = settings(max_examples=60, derandomize=True, deadline=None, database=None)

Layout = list[tuple[str, list[int], torch.dtype]]


def shapes(largest: int = 7) -> st.SearchStrategy[list[int]]:
    """Shapes of up to three dimensions, of which some may be empty."""
    return st.lists(st.integers(0, largest), max_size=3)


@st.composite
def layouts(draw: st.DrawFn, *, several: bool | None = None) -> Layout:
    """Names, shapes and dtypes of a model: of one dtype, or of several; sorted or not."""
    found = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    if several is None:
        several = draw(st.booleans())
    one = draw(st.sampled_from(DTYPES))
    return [
        (name, draw(shapes()), draw(st.sampled_from(DTYPES)) if several else one) for name in found
    ]


def filled(layout: Layout, seed: int) -> Parameters:
    """Give a model with numbers of all magnitudes, which sums round."""
    generator = torch.Generator().manual_seed(seed)
    found: Parameters = {}
    for name, shape, dtype in layout:
        if dtype.is_floating_point:
            sizes = torch.randn(shape, generator=generator, dtype=torch.float64)
            found[name] = (sizes * 10 ** torch.rand(shape, generator=generator)).to(dtype)
        else:
            found[name] = torch.randint(0, 100, shape, generator=generator).to(dtype)
    return found


def told(parameters: Parameters, **fields: object) -> ClientUpdate:
    """Give an update with these parameters."""
    said = {
        "kind": "update",
        "datasite_id": "factory-1",
        "round_num": 0,
        "num_samples": 3,
        "num_steps": 2,
        "metrics": {"train_loss": 0.5},
        "parameters": parameters,
        **fields,
    }
    return cast("ClientUpdate", said)


def arrived(parameters: Parameters) -> Parameters:
    """Give a model as it comes from the wire."""
    return cast("ClientUpdate", wire.decode(wire.encode(told(parameters))))["parameters"]


def plain(parameters: Parameters) -> Parameters:
    """Give the same as a dictionary of tensors that know nothing of each other."""
    return {name: tensor.clone() for name, tensor in parameters.items()}


def bits(parameters: Parameters) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    """Give what makes two models the same, whatever the order of their names."""
    return {
        name: (
            tensor.dtype,
            tensor.shape,
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in parameters.items()
    }


def fields_of(parameters: Parameters, control: Parameters) -> Parameters:
    """Give tensors by the names that they have in a file."""
    return {
        **{f"parameters/{name}": tensor for name, tensor in parameters.items()},
        **{f"control/{name}": tensor for name, tensor in control.items()},
    }


@deterministic
@given(layout=layouts(), beside=layouts(), seed=seeds)
def test_a_message_is_a_file_of_safetensors(layout: Layout, beside: Layout, seed: int) -> None:
    """That library reads the same tensors out of it, bit by bit, and what it says."""
    parameters, control = filled(layout, seed), filled(beside, seed + 1)
    file = wire.encode(told(parameters, control=control)).joined()
    assert bits(safetensors.torch.load(file)) == bits(fields_of(parameters, control))


def test_the_library_reads_what_a_message_says(tmp_path: Any) -> None:
    """Its metadata hold the message without its tensors, as JSON."""
    file = tmp_path / "update.safetensors"
    file.write_bytes(wire.encode(told({"w": torch.tensor([1.0])})).joined())
    with safetensors.safe_open(str(file), framework="pt") as opened:
        said = json.loads(opened.metadata()["message"])
        assert opened.keys() == ["parameters/w"]
    expected = {**told({})}
    del expected["parameters"]
    assert said == {"version": wire.VERSION, "fields": expected}


@deterministic
@given(layout=layouts(), beside=layouts(), seed=seeds)
def test_the_librarys_own_file_is_a_message(layout: Layout, beside: Layout, seed: int) -> None:
    """Tensors come out bit by bit, in whatever order its writer puts them."""
    parameters, control = filled(layout, seed), filled(beside, seed + 1)
    fields = {name: value for name, value in told({}).items() if name != "parameters"}
    message = json.dumps({"version": wire.VERSION, "fields": fields})
    file = safetensors.torch.save(fields_of(parameters, control), {"message": message})
    update = cast("ClientUpdate", wire.decode(Parcel.of(file)))
    assert bits(update["parameters"]) == bits(parameters)
    assert bits(update["control"]) == bits(control)
    assert {**update, "parameters": 0, "control": 0} == {**fields, "parameters": 0, "control": 0}


def test_a_parcel_of_what_was_joined_is_the_parcel() -> None:
    """Head and body part where they were joined; the body is not copied."""
    parcel = wire.encode(told({"w": torch.tensor([1.0, 2.0])}))
    joined = bytearray(parcel.joined())
    again = Parcel.of(joined)
    assert (again, again.name, len(again)) == (parcel, parcel.name, len(joined))
    joined[-8:] = bytes(8)
    update = cast("ClientUpdate", wire.decode(again))
    assert update["parameters"]["w"].tolist() == [0.0, 0.0]


def test_a_parcels_name_covers_head_and_body_and_where_they_meet() -> None:
    """Whatever of them differs, the name does; equal ones have one name."""
    parcels = [
        Parcel(b"head", b"body"),
        Parcel(b"heaD", b"body"),
        Parcel(b"head", b"bodY"),
        Parcel(b"head", b""),
        Parcel(b"", b"body"),
        Parcel(b"headb", b"ody"),
        Parcel(b"headbody", b""),
        Parcel(b"", b"headbody"),
        Parcel(b"body", b"head"),
    ]
    assert len({parcel.name for parcel in parcels}) == len(parcels)
    assert len(set(parcels)) == len(parcels)
    assert Parcel(b"head", bytearray(b"body")).name == parcels[0].name
    assert all(len(parcel.name) == 64 for parcel in parcels)


@pytest.mark.parametrize("offset", range(8))
@pytest.mark.parametrize("kind", [bytes, bytearray], ids=["read-only", "writable"])
def test_a_body_may_lie_anywhere(offset: int, kind: type[bytes | bytearray]) -> None:
    """At any address, and in memory that may not be written to, the tensors are the same."""
    sent = {"w": torch.tensor([1.5, -2.0], dtype=torch.float64), "n": torch.tensor(7)}
    parcel = wire.encode(told(sent))
    memory = kind(bytes(offset) + bytes(parcel.body) + bytes(3))
    moved = memoryview(memory)[offset : offset + len(parcel.body)]
    update = cast("ClientUpdate", wire.decode(Parcel(parcel.head, moved)))
    assert bits(update["parameters"]) == bits(sent)
    assert all(
        tensor.data_ptr() % tensor.element_size() == 0 for tensor in update["parameters"].values()
    )
    update["parameters"]["w"].add_(1)  # tensors of any origin can be worked with
    assert bytes(parcel.body) == bytes(wire.encode(told(sent)).body)


@deterministic
@given(layout=layouts(), seed=seeds)
def test_a_body_is_put_where_it_was_told(layout: Layout, seed: int) -> None:
    """In memory of just its size that was asked for once; the same bytes as anywhere else."""
    given_out: list[bytearray] = []

    def allocate(size_bytes: int) -> bytearray:
        given_out.append(bytearray(size_bytes))
        return given_out[-1]

    message = told(filled(layout, seed))
    parcel = wire.encode(message, allocate)
    assert [parcel.body] == given_out
    assert parcel.body is given_out[0]
    assert parcel == wire.encode(message)
    assert parcel.body_hash == content_hash(given_out[0])


@deterministic
@given(layout=layouts(), beside=layouts() | st.just([]), seed=seeds)
def test_what_is_packed_is_what_it_was_made_of(layout: Layout, beside: Layout, seed: int) -> None:
    """Bit by bit, in memory of its own; and a message of it has the bytes of the plain one."""
    parameters, control = filled(layout, seed), filled(beside, seed + 1)
    packed = Packed(parameters, control)
    assert (bits(packed), bits(packed.control)) == (bits(parameters), bits(control))
    fields: dict[str, Any] = {"control": control} if control else {}
    sent: dict[str, Any] = {"control": packed.control} if control else {}
    expected = wire.encode(told(plain(parameters), **fields))
    found = wire.encode(told(packed, **sent))
    assert found.joined() == expected.joined()
    assert (found.name, found.body_hash) == (expected.name, expected.body_hash)
    assert found.body is packed.body
    for tensor in parameters.values():
        tensor.zero_()
    assert wire.encode(told(packed, **sent)).joined() == expected.joined()


def test_a_packed_model_beside_another_control_is_encoded_anew() -> None:
    """What travels is what the message holds, not what was packed with the model."""
    packed = Packed({"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])})
    other = {"w": torch.tensor([3.0])}
    parcel = wire.encode(told(packed, control=other))
    assert parcel.joined() == wire.encode(told(plain(packed), control=other)).joined()
    update = cast("ClientUpdate", wire.decode(parcel))
    assert (update["parameters"]["w"].item(), update["control"]["w"].item()) == (1.0, 3.0)


def in_order(layout: Layout) -> Parameters:
    """Give a model in one piece of memory, in the order of the layout."""
    made = [(name, torch.Size(shape)) for name, shape, _ in layout]
    flat = torch.arange(sum(shape.numel() for _, shape in made))
    return Laid(tuple(made), flat.to(layout[0][2]))


@deterministic
@given(layout=layouts(several=False))
def test_packing_over_a_model_gives_what_packing_a_copy_gives(layout: Layout) -> None:
    """Where the names lie in order it is done in place; else, all the same, in a copy."""
    model = in_order(layout)
    over, copied = Packed.over(model, {}), Packed(plain(model))
    assert bits(over) == bits(copied) == bits(model)
    assert (over.said, bytes(over.body), over.body_hash) == (
        copied.said,
        bytes(copied.body),
        copied.body_hash,
    )
    assert wire.encode(told(over)).joined() == wire.encode(told(plain(model))).joined()


@pytest.mark.parametrize(
    ("order", "control", "copies"),
    [
        (["a", "b"], {}, False),
        (["b", "a"], {}, True),
        (["a", "b"], {"a": torch.tensor([1.0])}, True),
    ],
    ids=["in order", "another order", "with a control"],
)
def test_packing_over_a_model_copies_only_what_does_not_lie_as_it_travels(
    order: list[str], control: Parameters, *, copies: bool
) -> None:
    """The bytes are the model's own, or others; they are the same in a message."""
    model = Laid(tuple((name, torch.Size([2])) for name in order), torch.arange(4.0))
    packed = Packed.over(model, control)
    assert (packed["a"].data_ptr() != model["a"].data_ptr()) == copies
    assert bits(packed) == bits(model)
    assert bits(packed.control) == bits(control)


@pytest.mark.parametrize("several", [False, True], ids=["plain dictionary", "several dtypes"])
def test_packing_over_what_does_not_lie_together_copies_it(*, several: bool) -> None:
    """A dictionary of tensors, with a counter among them or not."""
    model: Parameters = {"w": torch.tensor([1.0, 2.0])}
    if several:
        model["steps"] = torch.tensor(5)
    packed = Packed.over(model, {})
    model["w"].zero_()
    assert packed["w"].tolist() == [1.0, 2.0]
    assert packed.body_hash == Packed(plain(packed)).body_hash


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex64)],
    ids=["sparse", "complex"],
)
def test_what_cannot_travel_is_not_packed(tensor: torch.Tensor) -> None:
    """The error names the tensor, in whichever way it was to be packed."""
    with pytest.raises(ModelError, match="'parameters/w' is torch"):
        Packed({"w": tensor})
    with pytest.raises(ModelError, match="'parameters/w' is torch"):
        Packed.over({"w": tensor}, {})


@deterministic
@given(layout=layouts(several=False), seed=seeds)
def test_a_model_of_one_dtype_arrives_in_one_piece(layout: Layout, seed: int) -> None:
    """All of it at once is its tensors one after the other, in the same memory."""
    model = arrived(filled(layout, seed))
    lying = laid(model)
    assert lying is not None
    assert lying.flat.numel() == sum(tensor.numel() for tensor in model.values())
    lying.flat.zero_()
    assert all(not tensor.any() for tensor in model.values())


def test_a_model_of_several_dtypes_does_not_pass_for_one_piece() -> None:
    """Nor does an empty one; either is an ordinary dictionary to all that asks."""
    mixed: Parameters = {"w": torch.tensor([1.0]), "steps": torch.tensor(5)}
    for model in (arrived(mixed), Packed(mixed), arrived({}), Packed({})):
        assert laid(model) is None
    assert bits(arrived(mixed)) == bits(Packed(mixed)) == bits(mixed)


def several_sites(layout: Layout, seed: int) -> list[Parameters]:
    """Give the models of three sites."""
    return [filled(layout, seed + number) for number in range(3)]


@deterministic
@given(layout=layouts(), seed=seeds)
def test_a_model_in_one_piece_is_computed_with_as_tensor_by_tensor(
    layout: Layout, seed: int
) -> None:
    """Every function of one or two models gives the same bits, whichever of them lie together."""
    left, right = filled(layout, seed), filled(layout, seed + 1)
    alone, wide = bits(as_float64(left)), bits(as_float64(right))
    narrowed = bits(cast_like(as_float64(right), left))
    changed, summed = bits(difference(left, right)), bits(add(left, difference(left, right)))
    for one in (plain(left), arrived(left), Packed(left)):
        for other in (plain(right), arrived(right), Packed(right)):
            require_same_layout(one, other, whose="site")
            assert (bits(as_float64(one)), bits(as_float64(other))) == (alone, wide)
            assert bits(cast_like(as_float64(other), one)) == narrowed
            assert bits(difference(one, other)) == changed
            assert bits(add(one, difference(one, other))) == summed
            assert bits(scale(one, 0.3)) == bits(scale(left, 0.3))
            assert bits(zeros_like(one)) == bits(zeros_like(left))
            assert digest(one) == digest(left)
            assert (bits(one), bits(other)) == (bits(left), bits(right))  # nothing was modified


@deterministic
@given(layout=layouts(), seed=seeds)
def test_the_distance_does_not_depend_on_how_models_lie(layout: Layout, seed: int) -> None:
    """Of whole numbers, whose squares add up exactly in any order, it is the same to the bit."""
    left, right = (
        {
            name: tensor.to(torch.float64).mul_(3).round_().clamp_(-90, 90).to(tensor.dtype)
            for name, tensor in filled(layout, seed + number).items()
        }
        for number in range(2)
    )
    squares = sum(
        float((tensor.double() - right[name].double()).square().sum())
        for name, tensor in left.items()
        if tensor.is_floating_point()
    )
    for one in (plain(left), arrived(left), Packed(left)):
        for other in (plain(right), arrived(right), Packed(right)):
            assert distance(one, other) == math.sqrt(squares)


@deterministic
@given(layout=layouts(), seed=seeds, weights=st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_running_means_do_not_depend_on_how_models_lie(
    layout: Layout, seed: int, weights: list[int]
) -> None:
    """Of any mixture of both kinds of models the mean is the same to the bit."""
    sites = several_sites(layout, seed)
    received = filled(layout, seed + 9)
    as_plain, as_arrived = [[form(site) for site in sites] for form in (plain, arrived)]
    mixtures = [
        as_plain,
        as_arrived,
        [as_plain[0], *as_arrived[1:]],
        [as_arrived[0], *as_plain[1:]],
    ]
    for mean in (WeightedAverage(), SimpleAverage()):
        found = [
            mean.combine(
                [
                    Contribution(
                        site_id=f"factory-{number}",
                        parameters=model,
                        weight=float(weights[number]),
                        delta_norm=1.0,
                    )
                    for number, model in enumerate(models)
                ],
                start,
            ).parameters
            for models in mixtures
            for start in (received, arrived(received))
        ]
        assert all(bits(model) == bits(found[0]) for model in found)


@pytest.mark.parametrize("size", [1, 2**14, 2**14 + 1, 3 * 2**18])
def test_models_larger_than_a_block_are_computed_with_alike(size: int) -> None:
    """Also where a copy is put into memory that was used before: twice, and the first one stays."""
    model = {"a": torch.randn(size, generator=torch.Generator().manual_seed(1)), "b": torch.ones(3)}
    wide = as_float64(arrived(model))
    again = as_float64(arrived({name: -tensor for name, tensor in model.items()}))
    assert bits(wide) == bits(as_float64(model))
    for total, tensor in runs(wide, again):
        add_scaled(total, tensor, 0.5)
    expected = {name: tensor.double() + 0.5 * -tensor.double() for name, tensor in model.items()}
    assert bits(wide) == bits(expected)  # halves are exact
    assert bits(cast_like(wide, arrived(model))) == bits(cast_like(expected, model))


@pytest.mark.parametrize("how", [plain, arrived, Packed], ids=["plain", "arrived", "packed"])
def test_another_layout_is_noticed_however_models_lie(how: Any) -> None:
    """Another shape of as many numbers, another name, another dtype of as many bytes."""
    model: Parameters = {"a": torch.zeros(2, 3), "b": torch.zeros(2)}
    for changes in (
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2), "b": torch.zeros(2, 3)},
        {"c": torch.zeros(2)},
        {"b": torch.zeros(2, dtype=torch.int32)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.zeros(2, dtype=torch.int32)},
    ):
        with pytest.raises(ModelError, match="factory-1: "):
            require_same_layout(how({**model, **changes}), how(model), whose="factory-1")
        with pytest.raises(ModelError, match="factory-1: "):
            require_same_layout(how(model), how({**model, **changes}), whose="factory-1")
    with pytest.raises(ModelError, match=r"missing \['b'\]"):
        require_same_layout(how({"a": model["a"]}), how(model), whose="factory-1")


def test_names_in_another_order_are_the_same_layout() -> None:
    """Each tensor meets its namesake, wherever either lies."""
    shapes = (("a", torch.Size([2])), ("b", torch.Size([2])))
    left = Laid(shapes, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    right = Laid(shapes[::-1], torch.tensor([3.0, 4.0, 1.0, 2.0]))
    require_same_layout(left, right, whose="factory-1")
    assert distance(left, right) == 0.0
    assert largest_difference(left, right) == 0.0
    cast_to_other = cast_like(as_float64(left), right)
    assert {name: t.tolist() for name, t in cast_to_other.items()} == {"a": [1, 2], "b": [3, 4]}


@pytest.mark.parametrize("how", [plain, arrived, Packed], ids=["plain", "arrived", "packed"])
def test_a_counter_is_never_made_of_numbers_with_fractions(how: Any) -> None:
    """A model in one piece is refused as any other; the other way round it is widened."""
    floating, whole = {"w": torch.tensor([1.5])}, {"w": torch.tensor([1])}
    with pytest.raises(ModelError, match=r"cannot cast 'w' from torch\.float32 to torch\.int64"):
        cast_like(how(floating), how(whole))
    assert cast_like(how(whole), how(floating))["w"].tolist() == [1.0]


def test_tensors_of_a_foreign_file_that_do_not_lie_on_their_numbers_are_refused() -> None:
    """Four bytes that begin at an odd one are no float32 to PyTorch; the error says so."""
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    other = {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}
    fields = {name: value for name, value in told({}).items() if name != "parameters"}
    message = json.dumps({"version": wire.VERSION, "fields": fields})
    header = json.dumps(
        {"__metadata__": {"message": message}, "parameters/a": entry, "parameters/b": other}
    ).encode()
    blob = len(header).to_bytes(8, "little") + header + bytes(5)
    with pytest.raises(ProtocolError, match="cannot be read"):
        wire.decode(Parcel.of(blob))


def test_a_request_keeps_the_model_that_was_packed_for_all_sites() -> None:
    """Messages that differ in their heads alone have one body, made and hashed once."""
    packed = Packed({"w": torch.arange(8.0)})
    first, second = (
        wire.encode(cast("Message", told(packed, round_num=number))) for number in range(2)
    )
    assert first.body is second.body is packed.body
    assert first.body_hash is second.body_hash
    assert first.name != second.name
    assert isinstance(first.body, memoryview)
    assert np.frombuffer(first.body, dtype=np.float32).tolist() == list(range(8))
    assert not wire.is_kind(wire.decode(first), TrainRequest)


def test_the_tensors_of_a_laid_model_are_there_when_they_are_looked_for() -> None:
    """However it is looked at first; all of them lie in the one memory."""
    shapes = (("a", torch.Size([2])), ("b", torch.Size([1, 2])))
    looks = (
        list,
        lambda model: list(model.items()),
        lambda model: list(model.values()),
        lambda model: {**model},
        dict,
        lambda model: model | {},
        copy.copy,
        lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301 - our own bytes
    )
    for look in looks:
        assert len(look(Laid(shapes, torch.arange(4.0)))) == 2
    model = Laid(shapes, torch.arange(4.0))
    assert model
    assert "b" in model
    model["b"].zero_()
    assert model.flat.tolist() == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.update(b=torch.ones(2)),
        lambda model: model.pop("a"),
        lambda model: model.__setitem__("a", torch.ones(2)),
        lambda model: model.__delitem__("a"),
        lambda model: model.setdefault("c", torch.ones(1)),
        lambda model: model.clear(),
    ],
)
def test_a_laid_model_that_was_changed_is_taken_tensor_by_tensor(change: Any) -> None:
    """What is not in the memory must not be forgotten, and what was taken out must not travel."""
    model = Laid((("a", torch.Size([2])), ("b", torch.Size([2]))), torch.arange(4.0))
    plain = dict(model)
    change(model)
    change(plain)
    assert laid(model) is None
    arrived = wire.decode(wire.encode(cast("Message", {**UPDATE, "parameters": model})))
    expected = wire.decode(wire.encode(cast("Message", {**UPDATE, "parameters": plain})))
    assert digest(cast("Any", arrived)["parameters"]) == digest(cast("Any", expected)["parameters"])
    assert cast("Any", arrived)["parameters"].keys() == plain.keys()
