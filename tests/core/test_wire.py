"""The codec: what goes in comes out, bit by bit, and bytes from strangers are refused as such."""

import json
import math
import tracemalloc
from typing import Any, cast, get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import wire
from core.exceptions import CommunicationError, ModelError, ProtocolError
from core.messages import ClientUpdate, Message, PlanQuery, TrainRequest
from core.wire import Parcel

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
]

text = st.text(max_size=12)
counts = st.integers(0, 2**53)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
fractions = st.floats(0, 1, exclude_max=True)
one_up = st.integers(1, 10**6)


def few(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Lists of up to three."""
    return st.lists(values, max_size=3)


def names_to(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Dictionaries of up to three."""
    return st.dictionaries(text, values, max_size=3)


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Dictionaries with exactly these keys."""
    return st.fixed_dictionaries(fields)


def as_stored(raw: bytes, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    """Give the tensor whose memory is `raw`: every bit pattern occurs, NaN payloads too."""
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Small tensors of any dtype and bits: contiguous or not, 0-d, empty, part of larger memory."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    byte = st.integers(0, 1) if dtype is torch.bool else st.integers(0, 255)
    tensor = as_stored(bytes(draw(st.lists(byte, min_size=size, max_size=size))), dtype, shape)
    layout = draw(st.sampled_from(["plain", "turned", "part"]))
    if layout == "turned" and tensor.ndim > 1:
        return tensor.transpose(0, -1)
    if layout == "part" and tensor.ndim > 0:
        return torch.cat([tensor, tensor])[: shape[0]]
    return tensor


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Up to four tensors by name, some of which share memory."""
    found: dict[str, torch.Tensor] = draw(st.dictionaries(text, tensors(), max_size=3))
    if found and draw(st.booleans()):
        first = next(iter(found.values()))
        found["tied"], found["view"] = first, first.reshape(-1)[:1]
    return found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | text,
    lambda inner: few(inner) | names_to(inner),
    max_leaves=5,
)
model_specs = record(type=text, options=names_to(st.integers()))
algorithm_specs = record(name=text, hyperparameters=names_to(finite))
training = record(
    local_epochs=one_up,
    batch_size=one_up,
    learning_rate=positive,
    optimizer=text,
    momentum=fractions,
    weight_decay=st.floats(min_value=0, allow_infinity=False),
    gradient_clip=st.none() | positive,
    focal_gamma=st.floats(min_value=0, allow_infinity=False),
)
preprocessing = record(mean=few(finite), scale=few(positive), positive_weight=positive)
score_counts = record(count=counts, loss_total=finite, negatives=few(counts), positives=few(counts))
audit_entry = record(
    seq=counts,
    at=text,
    who=text,
    action=text,
    plan_id=st.none() | text,
    outcome=text,
    detail=names_to(json_values),
    previous_sha256=text,
    sha256=text,
)
plan_record = record(
    plan_id=text,
    researcher=text,
    status=text,
    reason=text,
    decided_by=text,
    proposed_at=text,
    decided_at=st.none() | text,
    expires_at=text,
    proposal=names_to(json_values),
)
dataset = record(name=text, version=one_up, rows=counts, schema=names_to(json_values))


def hexadecimal(digits: int) -> st.SearchStrategy[str]:
    """Give texts of so many hexadecimal digits."""
    return st.binary(min_size=digits // 2, max_size=digits // 2).map(bytes.hex)


step = {"plan_id": text, "round_num": counts, "session_id": hexadecimal(32)}
session_keys = record(
    sharing=hexadecimal(64),
    masking=hexadecimal(64),
    commitment=hexadecimal(64),
    signature=hexadecimal(128),
)

FIELDS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "describe": record(),
    "site": record(
        datasite_id=text,
        status=text,
        version=text,
        code_hash=text,
        models=few(text),
        algorithms=few(text),
        datasets=few(dataset),
    ),
    "propose": record(
        run_id=text,
        dataset=text,
        dataset_version=one_up,
        model=model_specs,
        algorithm=algorithm_specs,
        training=training,
        split=record(test=fractions, validation=fractions, seed=counts),
        privacy_level=text,
        rounds=one_up,
        code_hash=text,
    ),
    "plan_status": record(plan_id=text),
    "cancel": record(plan_id=text, round_num=counts),
    "plan": record(plan_id=text, status=text, reason=text),
    "statistics": record(plan_id=text),
    "sensor_statistics": record(
        datasite_id=text,
        count=counts,
        total=few(finite),
        total_of_squares=few(finite),
        label_counts=few(counts),
    ),
    "privacy_account": record(plan_id=text, deadline_s=positive),
    "privacy_units": record(datasite_id=text, units=counts),
    "privacy_spent": record(
        datasite_id=text,
        unit=st.sampled_from(["window", "machine"]),
        units=counts,
        windows_per_reading=one_up,
        noise_multiplier=positive,
        sample_rate=st.floats(min_value=0, max_value=1, exclude_min=True),
        steps=one_up,
        epsilon=positive,
        delta=positive,
        rounds_trained=counts,
        rounds_left=counts,
        budget=record(epsilon=positive, delta=positive, spent=st.floats(0, 1e300)),
    ),
    "train": record(
        plan_id=text,
        round_num=counts,
        seed=counts,
        model=model_specs,
        algorithm=algorithm_specs,
        training=training,
        preprocessing=preprocessing,
        deadline_s=positive,
        parameters=parameters(),
    ),
    "update": record(
        datasite_id=text,
        round_num=counts,
        num_samples=counts,
        num_steps=counts,
        metrics=names_to(finite),
        parameters=parameters(),
    ),
    "evaluate": record(
        plan_id=text,
        round_num=counts,
        model=model_specs,
        preprocessing=preprocessing,
        deadline_s=positive,
        parameters=parameters(),
    ),
    "evaluation": record(
        datasite_id=text, round_num=counts, validation=score_counts, test=score_counts
    ),
    "trained": record(datasite_id=text, round_num=counts, metrics=names_to(finite)),
    "secure_keys": record(**step),
    "public_keys": record(datasite_id=text, round_num=counts, keys=session_keys),
    "secure_shares": record(**step, keys=names_to(session_keys)),
    "sealed_shares": record(datasite_id=text, round_num=counts, sealed=names_to(hexadecimal(96))),
    "secure_mask": record(**step, sealed=names_to(hexadecimal(96))),
    "masked_update": record(datasite_id=text, round_num=counts, parameters=parameters()),
    "secure_confirm": record(**step, survivors=few(text)),
    "confirmation": record(datasite_id=text, round_num=counts, signature=hexadecimal(128)),
    "secure_unmask": record(**step, confirmations=names_to(hexadecimal(128))),
    "unmasking": record(datasite_id=text, round_num=counts, shares=names_to(hexadecimal(32))),
    "audit": record(after=counts),
    "audit_page": record(datasite_id=text, rows=few(audit_entry), newest=counts),
    "plans": record(after=counts),
    "plans_page": record(datasite_id=text, plans=few(plan_record), total=counts),
    "failure": st.fixed_dictionaries(
        {"error": text, "message": text, "datasite_id": text}, optional={"round_num": counts}
    ),
}


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Give what makes two tensors the same: NaN is equal to itself here."""
    stored = tensor.contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), stored.numpy().tobytes()


def comparable(message: Message) -> dict[str, Any]:
    """Give the message with its tensors as bits."""
    fields: dict[str, Any] = {**message}
    if "parameters" in fields:
        fields["parameters"] = {name: bits(t) for name, t in fields["parameters"].items()}
    return fields


def update(**changes: Any) -> Message:
    """Give a small client update."""
    fields = {
        "kind": "update",
        "datasite_id": "factory-1",
        "round_num": 0,
        "num_samples": 3,
        "num_steps": 2,
        "metrics": {"train_loss": 0.5},
        "parameters": {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(7)},
        **changes,
    }
    return cast("Message", fields)


def blob_of(header: object, data: bytes = b"") -> bytes:
    """Give a blob with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def blob_saying(message: object, **tensors: dict[str, Any]) -> bytes:
    """Give a blob with any message (a text stands as it is) and any description of tensors."""
    said = message if isinstance(message, str) else json.dumps(message)
    envelope = f'{{"version": "{wire.VERSION}", "fields": {said}}}'
    return blob_of({"__metadata__": {"message": envelope}, **tensors})


def decoded_or_refused(blob: bytes) -> Message | None:
    """Give the message, or None for a `ProtocolError`; anything else fails the test."""
    try:
        message = wire.decode(Parcel.of(blob))
    except ProtocolError:
        return None
    wire.encode(message)  # what came through can be passed on
    return message


def test_every_kind_of_message_is_covered_here() -> None:
    """A new kind of message takes a strategy in this file."""
    kinds = {
        get_args(get_type_hints(kind)["kind"])[0]
        for union in get_args(Message)
        for kind in (get_args(union) or (union,))
    }
    assert kinds == set(FIELDS)


@pytest.mark.parametrize("kind", FIELDS)
def test_decode_gives_what_encode_was_given(kind: str) -> None:
    """Every field and every bit of every tensor survives the trip."""

    @settings(max_examples=40, derandomize=True, deadline=None, database=None)
    @given(fields=FIELDS[kind])
    def holds(fields: dict[str, Any]) -> None:
        message = cast("Message", {"kind": kind, **fields})
        before = comparable(message)
        assert comparable(wire.decode(wire.encode(message))) == before
        assert comparable(message) == before

    holds()


def test_a_view_that_stands_for_its_negative_arrives_negated() -> None:
    """PyTorch may mark a view as negated and leave its bytes alone: the values travel."""
    negated = torch._neg_view(torch.ones(2))  # as the imaginary part of a conjugate is
    assert negated.is_neg()
    assert negated.is_contiguous()
    sent = wire.decode(wire.encode(update(parameters={"w": negated})))
    assert cast("ClientUpdate", sent)["parameters"]["w"].tolist() == [-1.0, -1.0]


def test_tensors_of_one_memory_arrive_apart() -> None:
    """Changing one of two tied tensors at the receiver leaves the other alone."""
    shared = torch.tensor([1.0, 2.0])
    sent = wire.decode(wire.encode(update(parameters={"a": shared, "b": shared})))
    received = cast("ClientUpdate", sent)["parameters"]
    received["a"][0] = 9.0
    assert received["b"].tolist() == [1.0, 2.0]


def test_equal_messages_give_equal_bytes() -> None:
    """A site recognises a repeated request by the hash of its bytes, in whatever order it came."""
    backwards = dict(reversed(cast("dict[str, Any]", update()).items()))
    backwards["parameters"] = dict(reversed(backwards["parameters"].items()))
    encoded = {wire.encode(update()).joined() for _ in range(20)}
    assert encoded == {wire.encode(cast("Message", backwards)).joined()}


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"train_loss": math.nan}},
        {"metrics": {"train_loss": math.inf}},
        {"parameters": {"w": torch.eye(2).to_sparse()}},
        {"parameters": {"w": torch.zeros(2, dtype=torch.complex64)}},
        {"parameters": {"w": torch.zeros(2, device="meta")}},
        {"parameters": {"\ud800": torch.zeros(2)}},
        {"datasite_id": "x" * wire.MAX_HEADER_BYTES},
    ],
    ids=["nan", "infinity", "sparse", "complex", "meta", "no text", "too long"],
)
def test_what_cannot_travel_is_a_model_error(changes: dict[str, Any]) -> None:
    """The sender learns it, and which message it was, before the receiver does."""
    with pytest.raises(ModelError, match="'update' message cannot be encoded"):
        wire.encode(update(**changes))


def test_numbers_that_are_not_finite_travel_in_tensors() -> None:
    """A diverged model arrives as it is: the algorithm names the site and the tensor."""
    diverged = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    sent = wire.decode(wire.encode(update(parameters={"w": diverged})))
    assert bits(cast("ClientUpdate", sent)["parameters"]["w"]) == bits(diverged)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(blob=st.binary(max_size=200))
def test_random_bytes_are_refused(blob: bytes) -> None:
    """Noise is no message."""
    assert decoded_or_refused(blob) is None


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(header=json_values | names_to(json_values))
def test_a_random_header_is_refused(header: object) -> None:
    """Any JSON in the header's place is no message."""
    assert decoded_or_refused(blob_of(header)) is None


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(
    fields=st.fixed_dictionaries(
        {"kind": st.sampled_from(sorted(FIELDS)) | json_values},
        optional=dict.fromkeys(["plan_id", "parameters", "round_num", "datasets"], json_values),
    )
)
def test_random_fields_are_refused_or_valid(fields: dict[str, Any]) -> None:
    """Any JSON in the message's place is a valid message or refused."""
    decoded_or_refused(blob_saying(fields))


def test_every_truncation_is_refused() -> None:
    """A reply cut short at any byte is never taken for another message."""
    blob = wire.encode(update()).joined()
    assert all(decoded_or_refused(blob[:length]) is None for length in range(len(blob)))


def test_every_flipped_bit_is_refused_or_gives_a_valid_message() -> None:
    """One wrong bit anywhere never ends in another error than `ProtocolError`."""
    blob = wire.encode(update()).joined()
    refused = 0
    for position in range(len(blob)):
        for bit in range(8):
            flipped = bytearray(blob)
            flipped[position] ^= 1 << bit
            refused += decoded_or_refused(bytes(flipped)) is None
    assert refused > len(blob)


DESCRIBE = f'{{"version": "{wire.VERSION}", "fields": {{"kind": "describe"}}}}'
W = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
SITE = {
    "kind": "site",
    "datasite_id": "a",
    "status": "ONLINE",
    "version": "1",
    "code_hash": "",
    "models": [],
    "algorithms": [],
    "datasets": [{"name": "press", "version": 1, "rows": 1, "schema": {"columns": [0.5]}}],
}
UPDATE = {name: value for name, value in update().items() if name != "parameters"}


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\0" * 8,
        blob_of([]),
        blob_of({}),
        blob_of({"__metadata__": {}}),
        blob_of({"__metadata__": {"message": 1}}),
        blob_of({"__metadata__": {"message": "[]"}}),
        blob_saying('1} {"more": 1'),
        blob_saying([]),
        blob_saying({"kind": "unheard of"}),
        blob_saying({"kind": ["describe"]}),
        blob_of({"__metadata__": {"message": DESCRIBE, "note": "a row"}}),
        blob_of({"__metadata__": {"message": DESCRIBE[:-1] + ', "note": "a row"}'}}),
        blob_saying(UPDATE, w={**W, "note": "a row"}) + b"\0" * 4,
        blob_saying({"kind": "describe", "more": 1}),
        blob_saying({"kind": "plan_status"}),
        blob_saying({"kind": "plan_status", "plan_id": 1}),
        blob_saying({**UPDATE, "parameters": {}}),
        blob_saying({**UPDATE, "num_samples": -1}),
        blob_saying({**UPDATE, "num_samples": True}),
        blob_saying({**UPDATE, "num_samples": 10**400}),
        blob_saying({**UPDATE, "metrics": {"train_loss": 10**400}}),
        blob_saying(json.dumps({**UPDATE, "metrics": {"train_loss": math.nan}})),
        blob_saying(json.dumps({**UPDATE, "metrics": {"train_loss": -math.inf}})),
        blob_saying(json.dumps(UPDATE).replace("0.5", "1e999")),
        blob_saying(json.dumps(SITE).replace("0.5", "-1e999")),
        blob_saying({"kind": "plan_status", "plan_id": "\ud800"}),
        blob_saying("[" * 100_000),
        blob_of(b"[" * 100_000),
        blob_saying({"kind": "describe"}, w=W) + b"\0" * 4,
        blob_saying(UPDATE, w={**W, "dtype": "F99"}) + b"\0" * 4,
        blob_saying(UPDATE, w={**W, "dtype": "F8_E8M0", "shape": [4]}) + b"\0" * 4,
        blob_saying(UPDATE, w={**W, "shape": [2]}) + b"\0" * 4,
        blob_saying(UPDATE, w={**W, "shape": [-1]}) + b"\0" * 4,
        blob_saying(UPDATE, w=W),
        blob_saying(UPDATE, w=W) + b"\0" * 5,
        blob_saying(UPDATE, w=W, v=W) + b"\0" * 4,
        blob_saying(UPDATE, w={**W, "data_offsets": [4, 0]}) + b"\0" * 4,
        blob_saying(UPDATE, w={**W, "shape": [0, 2**63], "data_offsets": [0, 0]}),
    ],
    ids=[
        "nothing",
        "no header",
        "header: a list",
        "header: empty",
        "header: no message",
        "envelope: a number",
        "envelope: a list",
        "envelope: two",
        "message: a list",
        "kind: unknown",
        "kind: a list",
        "smuggled: beside the envelope",
        "smuggled: in the envelope",
        "smuggled: beside a tensor",
        "field: extra",
        "field: missing",
        "field: wrong type",
        "field: tensors as JSON",
        "count: negative",
        "count: a bool",
        "count: enormous",
        "float: enormous",
        "float: NaN",
        "float: -Infinity",
        "float: infinite by its exponent",
        "float: the same in a fact",
        "text: half a character",
        "message: deep",
        "header: deep",
        "tensor: where none belongs",
        "tensor: unknown dtype",
        "tensor: dtype that PyTorch lacks",
        "tensor: shape beyond its bytes",
        "tensor: negative shape",
        "tensor: bytes missing",
        "tensor: bytes left over",
        "tensor: same bytes twice",
        "tensor: ends before it begins",
        "tensor: shape beyond 64 bits",
    ],
)
def test_what_is_no_message_is_a_protocol_error(blob: bytes) -> None:
    """Whatever is wrong with the bytes, the error is the one for that: exit code 2, no retry."""
    with pytest.raises(ProtocolError) as caught:
        wire.decode(Parcel.of(blob))
    assert isinstance(caught.value, CommunicationError)
    assert not caught.value.retryable


def test_peeking_finds_tensors_that_belong_to_no_field() -> None:
    """Who passes a message on has looked at all of it but the tensors' values."""
    for fields, tensor in ((UPDATE, "metrics/w"), ({"kind": "describe"}, "control/w")):
        with pytest.raises(ProtocolError, match="not a"):
            wire.peek(Parcel.of(blob_saying(fields, **{tensor: W}) + b"\0" * 4))


def test_a_field_given_twice_does_not_add_up() -> None:
    """JSON's last value counts, as one field."""
    twice = '{"kind": "plan_status", "plan_id": "first", "plan_id": "second"}'
    assert wire.decode(Parcel.of(blob_saying(twice))) == {
        "kind": "plan_status",
        "plan_id": "second",
    }


def test_metadata_given_twice_are_refused() -> None:
    """Two readers of one header could otherwise each see another message."""
    inner = blob_saying({"kind": "describe"})[9:-1]
    with pytest.raises(ProtocolError):
        wire.decode(Parcel.of(blob_of(b"{" + inner + b"," + inner + b"}")))


def test_another_version_is_named_with_what_to_do() -> None:
    """The person at the other end learns that two releases met."""
    blob = blob_of({"__metadata__": {"message": '{"version": "99"}'}})
    with pytest.raises(ProtocolError, match=r"'99', this side speaks '1'; install the same"):
        wire.decode(Parcel.of(blob))


@pytest.mark.parametrize(
    "blob",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (2**40).to_bytes(8, "little") + b"{}",
        wire.MAX_HEADER_BYTES.to_bytes(8, "little") + b"{}",
        blob_saying(UPDATE, w={**W, "shape": [2**38], "data_offsets": [0, 2**40]}),
        blob_saying(UPDATE, w={**W, "shape": [2**38]}) + b"\0" * 4,
        blob_saying(UPDATE, w={**W, "shape": [0, 2**62], "data_offsets": [0, 0]}),
        blob_saying("[" * 50_000),
    ],
    ids=[
        "header of 2^63 bytes",
        "header of 2^40 bytes",
        "header of the limit",
        "tensor of 1 TiB",
        "tensor of 1 TiB in 4 bytes",
        "empty tensor of 2^62 columns",
        "deep",
    ],
)
def test_a_claim_of_size_allocates_nothing(blob: bytes) -> None:
    """Refusing costs a few times the input, whatever the input says of itself."""
    decoded_or_refused(blob)  # what is made once a process is made now
    tracemalloc.start()
    try:
        decoded_or_refused(blob)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(blob) + 64 * 1024


def test_a_header_beyond_its_limit_is_refused_even_when_it_is_there() -> None:
    """A header is parsed into far more memory than it takes, so it has a limit of its own."""
    blob = blob_saying({"kind": "plan_status", "plan_id": "x" * wire.MAX_HEADER_BYTES})
    with pytest.raises(ProtocolError, match="its header claims"):
        wire.decode(Parcel.of(blob))


def test_is_kind_tells_messages_apart() -> None:
    """A reply of the wrong kind is noticed by its `kind` alone."""
    query = PlanQuery(kind="plan_status", plan_id="abc")
    assert wire.is_kind(query, PlanQuery)
    assert not wire.is_kind(query, TrainRequest)
