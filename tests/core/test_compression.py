"""What travels smaller comes as it was sent, and nothing else comes out of it."""

import math
import tracemalloc

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from core.compression import BLOCK, SCALES, VALUES, compress, decompress, receive, send
from core.enums import Compression
from core.exceptions import ModelError, ProtocolError
from core.messages import Parameters
from core.parameters import digest

LOSSY = [Compression.FP16, Compression.INT8]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@st.composite
def bit_patterns(draw: st.DrawFn) -> Parameters:
    """Give tensors of any dtype and shape, whose bytes may be anything: NaN, infinite, tiny."""
    parameters: Parameters = {}
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from([*FLOATS, *OTHERS]))
        shape = draw(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
        size_bytes = math.prod(shape) * dtype.itemsize
        content = draw(st.binary(min_size=size_bytes, max_size=size_bytes))
        flat = torch.tensor(list(content), dtype=torch.uint8).view(dtype)
        parameters[f"layer-{number % 2}.{number}"] = flat.reshape(shape)
    return parameters


@st.composite
def moves(draw: st.DrawFn) -> tuple[Parameters, Parameters]:
    """Give parameters and what they started from, in one layout, of any size of numbers."""
    start: Parameters = {"steps": torch.tensor(3)}
    values: Parameters = {"steps": torch.tensor(4)}
    for number in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from([torch.float32, torch.float64]))
        size = draw(st.integers(0, 2 * BLOCK + 3))
        seed = draw(st.integers(0, 2**31))
        exponent = draw(st.integers(-30, 30))
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(2, size, generator=generator, dtype=torch.float64) * 10.0**exponent
        start[str(number)], values[str(number)] = drawn[0].to(dtype), drawn.sum(dim=0).to(dtype)
    return start, values


def largest_step(delta: torch.Tensor, how: Compression) -> torch.Tensor:
    """Give how far the rounded delta may be from it, number by number."""
    steps = torch.empty_like(delta)
    for block in range(0, len(delta), BLOCK):
        largest = delta[block : block + BLOCK].abs().max()
        # int8: half of 1/127 of the largest; fp16: half of its last bit just below 1, times the
        # power of two above the largest, which is at most twice as large.
        steps[block : block + BLOCK] = largest * (0.5 / 127 if how is Compression.INT8 else 2**-11)
    return steps


@given(bit_patterns())
def test_zstd_gives_back_every_bit(parameters: Parameters) -> None:
    """Of all dtypes and shapes, in the order of the model; a NaN keeps its payload."""
    found = decompress(compress(parameters), parameters)
    assert digest(found) == digest(parameters)
    assert list(found) == list(parameters)


@given(bit_patterns())
def test_equal_parameters_are_compressed_to_equal_bytes(parameters: Parameters) -> None:
    """A site that has a body is not sent it again; it is known by its bytes."""
    again = {name: tensor.clone() for name, tensor in reversed(parameters.items())}
    first, second = compress(parameters), compress(again)
    assert torch.equal(first[VALUES], second[VALUES])


@pytest.mark.parametrize("how", Compression, ids=lambda how: how.value)
@given(move=moves())
def test_what_arrives_is_what_the_sender_says(
    how: Compression, move: tuple[Parameters, Parameters]
) -> None:
    """To the bit: both sides sum up the same numbers."""
    start, values = move
    sent = send(values, start, how)
    found = receive(sent.travels, start, how)
    assert digest(found) == digest(sent.arrives)
    assert list(found) == list(values)
    assert torch.equal(found["steps"], values["steps"])  # a counter is never rounded


@pytest.mark.parametrize("how", LOSSY, ids=lambda how: how.value)
@given(move=moves())
def test_a_rounded_delta_is_within_half_a_step(
    how: Compression, move: tuple[Parameters, Parameters]
) -> None:
    """int8: half of 1/127 of the block's largest number; fp16: 2⁻¹¹ of it."""
    start, values = move
    sent = send(values, start, how)
    for name, arrived in sent.arrives.items():
        if name != "steps" and len(arrived):
            delta = values[name].double() - start[name].double()
            last_bit = torch.finfo(arrived.dtype).eps * arrived.double().abs()  # of the sum itself
            bound = 1.001 * largest_step(delta, how) + last_bit + 1e-44
            assert bool(((arrived.double() - values[name].double()).abs() <= bound).all())


@pytest.mark.parametrize("how", LOSSY, ids=lambda how: how.value)
@given(seed=st.integers(0, 2**31), rounds=st.integers(1, 12))
def test_over_rounds_nothing_is_lost_but_what_the_last_one_left(
    how: Compression, seed: int, rounds: int
) -> None:
    """Σ of what came differs from Σ of what was meant by no more than one round's rounding."""
    generator = torch.Generator().manual_seed(seed)
    model = {"w": torch.randn(300, generator=generator, dtype=torch.float64)}
    left: Parameters = {}
    meant = came = torch.zeros(300, dtype=torch.float64)
    for _ in range(rounds):
        delta = torch.randn(300, generator=generator, dtype=torch.float64)
        sent = send({"w": model["w"] + delta}, model, how, left)
        meant, came = meant + delta, came + (sent.arrives["w"] - model["w"])
        carried = delta + left.get("w", torch.zeros(300))
        step = 2 * largest_step(carried, how)
        model, left = sent.arrives, sent.left
    assert bool(((meant - came).abs() <= 1.001 * step + 1e-6).all())
    assert torch.allclose(meant - came, left["w"], atol=1e-12)


@pytest.mark.parametrize("how", LOSSY, ids=lambda how: how.value)
def test_what_is_too_small_to_be_sent_is_sent_in_the_end(how: Compression) -> None:
    """Beside a number of 1, one of 2⁻³⁰ rounds to 0 each time: without memory it would never go."""
    model = {"w": torch.zeros(2, dtype=torch.float64)}
    delta = torch.tensor([1.0, 2.0**-12 if how is Compression.INT8 else 2.0**-28])
    left: Parameters = {}
    firsts = []
    for _ in range(64):
        sent = send({"w": model["w"] + delta}, model, how, left)
        model, left = sent.arrives, sent.left
        firsts.append(float(model["w"][1]))
    assert firsts[0] == 0.0
    # within one step: 1/127 for int8, 2⁻²⁴ (the smallest number of fp16) times 2 for fp16
    step = 1 / 127 if how is Compression.INT8 else 2.0**-23
    assert firsts[-1] > 0.0
    assert firsts[-1] == pytest.approx(64 * float(delta[1]), abs=step)


def test_halves_are_rounded_to_even_and_the_largest_is_exact() -> None:
    """Scale 1: 127 is exact; 0.5 and 1.5 become 0 and 2, as 2.5 does."""
    values = {"w": torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5])}
    sent = send(values, {"w": torch.zeros(6)}, Compression.INT8)
    assert sent.travels[SCALES].tolist() == [1.0]
    assert sent.arrives["w"].tolist() == [127.0, 0.0, 2.0, 2.0, 0.0, -2.0]
    assert sent.left["w"].tolist() == [0.0, 0.5, -0.5, 0.5, -0.5, 0.5]


def test_each_block_has_a_scale_of_its_own() -> None:
    """A small number in another block than a large one is not rounded to nothing."""
    values = {"w": torch.cat([torch.full((BLOCK,), 1000.0), torch.full((3,), 0.001)])}
    sent = send(values, {"w": torch.zeros(BLOCK + 3)}, Compression.INT8)
    assert len(sent.travels[SCALES]) == 2
    assert torch.allclose(sent.arrives["w"], values["w"])


@pytest.mark.parametrize("how", LOSSY, ids=lambda how: how.value)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_what_has_no_scale_is_not_sent(how: Compression, value: float) -> None:
    """A NaN would spoil its whole block; the error names the tensor."""
    values = {"fc.weight": torch.tensor([1.0, value], dtype=torch.float64)}
    with pytest.raises(ModelError, match=r"'fc\.weight' holds values that are not finite"):
        send(values, {"fc.weight": torch.zeros(2, dtype=torch.float64)}, how)


def test_a_name_that_could_collide_is_refused() -> None:
    """No module has an empty name, so no name in a state starts with a dot."""
    with pytest.raises(ModelError, match=r"'\.values' starts with a dot"):
        compress({VALUES: torch.zeros(2)})


MODEL: Parameters = {"w": torch.arange(1000.0), "steps": torch.tensor(3)}


def travelling(how: Compression) -> Parameters:
    """Give MODEL on its way."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in MODEL.items()}
    return send(MODEL, zeros, how).travels


def frame(content: bytes, **options: object) -> torch.Tensor:
    """Give a frame of zstd, perhaps an unusual one."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, **options)
    blob = zstandard.ZstdCompressor(compression_params=parameters).compress(content)
    return torch.frombuffer(bytearray(blob), dtype=torch.uint8)


def bytes_of(content: bytes) -> torch.Tensor:
    """Give these bytes as a tensor."""
    return torch.tensor(list(content), dtype=torch.uint8)


LIES = {
    "a bomb": lambda size: frame(bytes(10**8 + size)),
    "a byte too many": lambda size: frame(bytes(size + 1)),
    "a byte too few": lambda size: frame(bytes(size - 1)),
    "a frame that does not say its size": lambda size: frame(bytes(size), write_content_size=0),
    "something behind the frame": lambda size: torch.cat([frame(bytes(size)), bytes_of(b"more")]),
    "two frames": lambda size: frame(bytes(size)).repeat(2),
    "half a frame": lambda size: frame(bytes(range(250)) * (size // 250))[:-5],
    "no frame": lambda size: bytes_of(bytes(size)),
    "nothing": lambda size: bytes_of(bytes(0 * size)),
    "numbers": torch.zeros,
    "a table": lambda size: frame(bytes(size)).reshape(1, -1),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize(
    ("how", "size"), [(Compression.ZSTD, 4000), (Compression.FP16, 2000), (Compression.INT8, 1000)]
)
def test_what_does_not_become_the_model_is_refused(
    how: Compression, size: int, lie: object
) -> None:
    """And no memory is taken for what it claims to become."""
    found = {**travelling(how), VALUES: lie(size)}  # type: ignore[operator]
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            receive(found, MODEL, how)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_claim_is_judged_before_memory_is_taken() -> None:
    """A frame that says 2^60 is refused for what it says, and not for lack of memory."""
    blob = bytearray(frame(bytes(4000)).numpy().tobytes())
    claim = bytes([0x28, 0xB5, 0x2F, 0xFD, 0xE0]) + (2**60).to_bytes(8, "little") + bytes(blob[7:])
    with pytest.raises(ProtocolError, match=rf"become {2**60} bytes, expected 4000"):
        decompress({**travelling(Compression.ZSTD), VALUES: bytes_of(claim)}, MODEL)


def test_a_frame_may_not_ask_for_a_larger_window() -> None:
    """The window is memory too: with a level's own it is never larger than the content."""
    found = {**travelling(Compression.ZSTD), VALUES: streamed(bytes(4000), window_log=27)}
    with pytest.raises(ProtocolError, match=f"ask for {2**27} bytes at once"):
        decompress(found, MODEL)


def streamed(content: bytes, *, window_log: int) -> torch.Tensor:
    """Give a frame that says its size, and a window larger than that."""
    header = bytes([0x28, 0xB5, 0x2F, 0xFD, 0b01000000, (window_log - 10) << 3])
    size = (len(content) - 256).to_bytes(2, "little")
    block = (len(content) << 3 | 0b001).to_bytes(3, "little")  # the last one, and raw
    return bytes_of(header + size + block + content)


@pytest.mark.parametrize("how", [*LOSSY, Compression.ZSTD], ids=lambda how: how.value)
@pytest.mark.parametrize(
    "change",
    [
        {"steps": torch.tensor(3, dtype=torch.int32)},
        {"steps": torch.tensor([3])},
        {"more": torch.tensor(3)},
        {"w": torch.arange(1000.0)},
    ],
    ids=["another dtype", "another shape", "one more", "not compressed"],
)
def test_tensors_that_the_model_has_not_are_refused(how: Compression, change: Parameters) -> None:
    """Integer tensors travel as they are, and are compared as they are."""
    with pytest.raises(ProtocolError, match="compressed parameters"):
        receive({**travelling(how), **change}, MODEL, how)


@pytest.mark.parametrize("how", [*LOSSY, Compression.ZSTD], ids=lambda how: how.value)
def test_what_is_not_compressed_at_all_is_refused(how: Compression) -> None:
    """A site that ignores what was agreed sends its parameters as they are."""
    with pytest.raises(ProtocolError, match=r"lack \.(scales, \.)?values"):
        receive(MODEL, MODEL, how)


@pytest.mark.parametrize("how", LOSSY, ids=lambda how: how.value)
@pytest.mark.parametrize(
    "scales",
    [torch.ones(3), torch.ones(5), torch.ones(4, dtype=torch.float64), torch.ones(4, 1)],
    ids=["too few", "too many", "of another dtype", "of another shape"],
)
def test_scales_that_do_not_belong_to_the_model_are_refused(
    how: Compression, scales: torch.Tensor
) -> None:
    """1000 numbers have four blocks."""
    with pytest.raises(ProtocolError, match="expected float32 of 4"):
        receive({**travelling(how), SCALES: scales}, MODEL, how)
