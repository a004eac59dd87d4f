"""Seeds and streams: repeatable, split-proof, shared between precisions, independent."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein.random import Noise, as_noise, derive, fresh_seed, generator

PINNED = (5083709383294845929, 1212811081072990167)


def test_derive_is_pinned() -> None:
    """The first eight bytes of a SHA-256, shifted: if these move, every published run changes."""
    assert derive(0, "batch", 7) == PINNED[0]
    assert derive(123456789) == PINNED[1]
    assert inspect.unwrap(derive)(np.int64(0), "batch", np.int32(7)) == PINNED[0]  # past the types that tests check
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        inspect.unwrap(derive)(0.5)


def test_derive_tells_paths_apart() -> None:
    seeds = {derive(0), derive(1), derive(0, 0), derive(0, "0"), derive(0, 1, 2), derive(0, 12), derive(0, 2, 1)}
    assert len(seeds) == 7
    many = [derive(s, "batch", k) for s in range(40) for k in range(50)]
    assert len(set(many)) == len(many)
    assert all(0 <= seed < 2**63 for seed in many)
    # 63 bits: each is set in half of 2000 seeds, within 5 deviations of sqrt(n)/2
    counts = torch.tensor([[seed >> bit & 1 for bit in range(63)] for seed in many]).sum(0)
    assert float((counts - len(many) / 2).abs().max()) < 5 * math.sqrt(len(many)) / 2


@pytest.mark.parametrize("seed", [3, [3, 1, 4, 1], torch.tensor([3, 1, 4, 1])])
def test_the_same_seed_gives_the_same_numbers_again(seed: int | list[int] | Tensor) -> None:
    noise = Noise(seed, batch=4)
    first = [noise.normal((4, 2)) for _ in range(19)]
    again = Noise(seed, batch=4)
    noise.rewind()
    for drawn in first:
        assert torch.equal(noise.normal((4, 2)), drawn)
        assert torch.equal(again.normal((4, 2)), drawn)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(Noise(4, batch=4).normal((4, 2)), first[0])


@pytest.mark.parametrize("seed", [3, [3, 4]])
def test_the_default_dtype_of_torch_changes_no_number(seed: int | list[int]) -> None:
    wanted = Noise(seed, batch=2).normal((2, 33))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(Noise(seed, batch=2).normal((2, 33)), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("block", [8, 3])
def test_a_per_sample_stream_is_one_sequence_in_order(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition of the stream: changed, it would change every published run. How much is drawn at once is not."""
    monkeypatch.setattr("ornstein.random._BLOCK", block)
    noise, alone = Noise([5], batch=1), np.random.Generator(np.random.Philox(key=derive(5, 2)))
    wanted = torch.from_numpy(alone.standard_normal((16, 2), dtype=np.float32))
    assert torch.equal(torch.cat([noise.normal((1, 2)) for _ in range(16)]), wanted)


def test_per_sample_streams_use_all_bits_of_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's generator on the CPU reads 32 bits: streams under seeds that agree in them would be one stream."""
    monkeypatch.setattr("ornstein.random.derive", lambda seed, *path: 7 + (seed << 32))
    first, second = Noise([0, 1], batch=2).normal((2, 5))
    assert not torch.equal(first, second)


def test_a_scalar_tensor_is_one_seed() -> None:
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        Noise(torch.tensor(1.5), batch=2)
    assert torch.equal(Noise(torch.tensor(5), batch=3).normal((3, 2)), Noise(5, batch=3).normal((3, 2)))


def test_no_seed_is_fresh_readable_and_ruled_by_torch() -> None:
    torch.manual_seed(0)
    first = Noise(batch=2)
    second = Noise(batch=2)
    assert first.seed != second.seed
    assert isinstance(first.seed, int)
    assert torch.equal(Noise(first.seed, batch=2).normal((2, 3)), first.normal((2, 3)))
    torch.manual_seed(0)
    assert Noise(batch=2).seed == first.seed
    torch.manual_seed(0)
    assert fresh_seed() == first.seed


def test_a_generator_is_used_and_rewound_to_where_it_was() -> None:
    made = torch.Generator().manual_seed(9)
    torch.randn(3, generator=made)
    wanted = torch.randn(2, 2, generator=made.clone_state())
    noise = Noise(made, batch=2)
    assert torch.equal(noise.normal((2, 2)), wanted)
    assert not torch.equal(noise.normal((2, 2)), wanted)
    noise.rewind()
    assert torch.equal(noise.normal((2, 2)), wanted)
    assert generator(made) is made
    assert generator(5).initial_seed() == 5


@pytest.mark.parametrize("event", [(3,), (), (2, 5), (40,)])
def test_a_sample_keeps_its_noise_whatever_the_batch(event: tuple[int, ...]) -> None:
    """Bit for bit, over more registers than one block holds, with shapes interleaved, alone, halved and reordered."""
    seeds, other = [11, 5, 2**62, 0, -3, 5], (7, *event)

    def draws(chosen: list[int]) -> list[Tensor]:
        noise = Noise(chosen, batch=len(chosen))
        out = []
        for k in range(20):
            out.append(noise.normal((len(chosen), *event)))
            if k % 3 == 0:
                noise.normal((len(chosen), *other))
        return out

    whole = draws(seeds)
    for chosen in ([0], [4], [0, 1, 2], [3, 4, 5], [5, 3, 1]):
        for drawn, everything in zip(draws([seeds[k] for k in chosen]), whole, strict=True):
            assert torch.equal(drawn, everything[chosen])
    for drawn in whole:
        assert torch.equal(drawn[1], drawn[5])  # one seed, one sample
        assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("seed", [3, [3, 1, 4, 1]])
def test_precisions_share_their_noise(seed: int | list[int]) -> None:
    twins = [Noise(seed, batch=4, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    for _ in range(10):
        single, double, half = (noise.normal((4, 3)) for noise in twins)
        assert (single.dtype, double.dtype, half.dtype) == (torch.float32, torch.float64, torch.bfloat16)
        assert torch.equal(single.double(), double)
        assert torch.equal(single.bfloat16(), half)


@pytest.mark.parametrize("seed", [0, "neighbours"])
def test_numbers_are_independent_normals(seed: int | str) -> None:
    """Between samples with neighbouring seeds, registers of one sample, and event shapes.

    A correlation of n independent pairs is N(0, 1/n) and the largest of m of them stays below 5/sqrt(n) for m < 10^5.
    """
    n, samples, registers = 2000, 12, 6
    noise = Noise(list(range(samples)) if seed == "neighbours" else 0, batch=samples, dtype=torch.float64)
    other = (n, 1)  # as many numbers in another shape
    drawn = torch.cat([noise.normal((samples, n)) for _ in range(registers)])
    drawn = torch.cat([drawn, *(noise.normal((samples, *other)).squeeze(-1) for _ in range(registers))])
    correlations = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert float(correlations.abs().max()) < 5 / math.sqrt(n)
    # and neighbours in place: the one before of each row
    lagged = (drawn[:, 1:] * drawn[:, :-1]).mean(1)
    assert float(lagged.abs().max()) < 5 / math.sqrt(n)
    # all moments of N(0, 1): mean 1/sqrt(N), variance sqrt(2/N), fourth moment sqrt(96/N)
    size = drawn.numel()
    assert abs(float(drawn.mean())) < 5 / math.sqrt(size)
    assert abs(float((drawn**2).mean()) - 1) < 5 * math.sqrt(2 / size)
    assert abs(float((drawn**4).mean()) - 3) < 5 * math.sqrt(96 / size)


def test_shapes_of_one_seed_share_no_numbers() -> None:
    """The components of a product state have shapes of their own, and must not be copies of one another."""
    noise = Noise([1, 2], batch=2)
    small, large = noise.normal((2, 2)), noise.normal((2, 3))
    assert not bool(torch.isin(large, small).any())


def test_wrong_numbers_of_seeds_and_shapes() -> None:
    with pytest.raises(ValueError, match="3 per-sample seeds for a batch of 4: give one seed a sample"):
        Noise([1, 2, 3], batch=4)
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        Noise(torch.tensor([0.5, 0.7]), batch=2)
    with pytest.raises(ValueError, match=r"shape \(3, 2\) asked of a stream for a batch of 4"):
        Noise(0, batch=4).normal((3, 2))


def test_a_stream_passes_through() -> None:
    noise = Noise(1, batch=2)
    assert as_noise(noise, batch=2) is noise
    assert torch.equal(as_noise(1, batch=2).normal((2, 2)), noise.normal((2, 2)))
