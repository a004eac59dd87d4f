"""FID, KID, precision and recall: arithmetic against closed forms, files of other programs, and Inception's wiring."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import pickle
import sys
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ornstein.io.atomic as atomic
from ornstein.errors import CheckpointError
from ornstein.interop import inception
from ornstein.interop.inception import Inception, adm_images, fid, inception_features
from ornstein.metrics import (
    KID,
    Statistics,
    _samples,
    cubic_mmd,
    density_coverage,
    expected_coverage,
    frechet_distance,
    frechet_extrapolated,
    kid,
    precision_recall,
)

F64 = torch.float64


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def random_cov(d: int, seed: int) -> Tensor:
    a = normal(d, d, seed=seed)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=F64)


def z_score(estimates: list[float], truth: float) -> float:
    """How many of its own standard errors the mean is off; beyond 4 with P = 6e-5 if it is unbiased."""
    return float((np.mean(estimates) - truth) / (np.std(estimates, ddof=1) / math.sqrt(len(estimates))))


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("sizes", [(60,), (1, 7, 0, 30, 22), (22, 30, 1, 7), (1,) * 60])
def test_statistics_stream_in_any_batches_and_keep_their_digits(sizes: tuple[int, ...]) -> None:
    # mean 1e6 beside deviation 1: the raw second moment (1e12) rounds at 1e-4, the centred updates at 1e-10
    x = normal(60, 2, 2, seed=0) @ random_cov(2, 1) + 1e6
    flat = x.reshape(60, 4)
    centred = flat - flat.mean(0)
    truth = centred.T @ centred / 59
    got = Statistics.of(torch.split(x, list(sizes)))
    assert got.count == 60
    torch.testing.assert_close(got.mean, flat.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(got.cov, truth, rtol=0, atol=1e-8)
    assert torch.equal(got.cov, got.cov.T)
    raw = (flat.T @ flat - 60 * torch.outer(flat.mean(0), flat.mean(0))) / 59  # the simpler relative
    assert float((raw - truth).abs().max()) > 1e-6
    torch.testing.assert_close(Statistics.of(x).cov, truth, rtol=0, atol=1e-8)
    merged = Statistics.of(x[:11]).merge(Statistics.of(x[11:]))
    assert merged.count == 60
    torch.testing.assert_close(merged.mean, got.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.cov, truth, rtol=0, atol=1e-8)


def test_statistics_of_batches_may_be_a_stream_of_one_pass() -> None:
    x = normal(30, 3, seed=0)

    def stream() -> Iterator[Tensor]:
        yield from x.float().split(7)

    torch.testing.assert_close(Statistics.of(stream()).cov, torch.cov(x.float().double().T), rtol=1e-12, atol=1e-14)


def test_statistics_refuse_what_is_no_sample_and_no_covariance() -> None:
    eye, zero = torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64)
    for action, message in [
        (lambda: Statistics.of([]), "got 0 samples in all"),
        (lambda: Statistics.of(normal(1, 3, seed=0)), "got 1 samples in all"),
        (lambda: Statistics.of([normal(4, 3, seed=0), normal(4, 2, seed=0)]), "batch 1 has 2 features a sample, those"),
        (lambda: Statistics.of([normal(4, 3, seed=0), normal(4, 3, seed=0) / 0]), "batch 1 has 12 non-finite"),
        (lambda: Statistics(zero, torch.eye(3)), r"cov must have shape \(2, 2\)"),
        (lambda: Statistics(zero, eye * math.nan), "cov has complex or non-finite"),
        (lambda: Statistics(zero, eye + torch.tensor([[0.0, 0.1], [0, 0]])), "symmetric.*differ by up to 0.1"),
        (lambda: Statistics(zero, torch.diag(torch.tensor([1.0, -0.01]))), "positive semi-definite"),
        (lambda: Statistics(zero, eye, 1), "count is 1"),
        (lambda: Statistics(zero, eye).merge(Statistics(zero, eye, 5)), "counts are None and 5"),
        (lambda: Statistics(zero, eye, 5).merge(Statistics(zero[:1], eye[:1, :1], 5)), "2 and 1 features"),
    ]:
        with pytest.raises(ValueError, match=message):
            action()
    Statistics(zero, torch.zeros(2, 2))  # constant features
    u = normal(300, seed=0)
    Statistics(torch.zeros(300), torch.outer(u, u).float())  # of rank one, rounded to single precision


def test_statistics_files_are_those_of_pytorch_fid_and_edm(tmp_path: Path) -> None:
    x = normal(20, 3, seed=0)
    ours, path = Statistics.of(x), tmp_path / "made" / "ours.npz"
    ours.save(path)
    with np.load(path) as file:  # as pytorch-fid and EDM read it
        np.testing.assert_array_equal(file["mu"], ours.mean.numpy())
        np.testing.assert_allclose(file["sigma"], np.cov(x.numpy(), rowvar=False), rtol=1e-12)
    back = Statistics.load(path)
    assert (back.count, back.features) == (20, 3)
    assert torch.equal(back.mean, ours.mean)
    assert torch.equal(back.cov, ours.cov)
    # theirs: float32 or float64, no count; ADM's with images and spatial features beside
    mu, sigma = np.array([1.0, 2.0, 3.0], np.float32), np.diag([1.0, 4.0, 9.0])
    images = np.arange(2 * 2 * 4 * 3, dtype=np.uint8).reshape(2, 2, 4, 3)
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=mu, sigma=sigma, mu_s=mu[:2], sigma_s=2 * np.eye(2))
    pool, spatial = Statistics.load(str(tmp_path / "adm.npz")), Statistics.load(tmp_path / "adm.npz", spatial=True)
    assert pool.count is None
    assert pool.cov.diagonal().tolist() == [1, 4, 9]
    assert spatial.mean.tolist() == [1, 2]
    assert spatial.cov.tolist() == [[2, 0], [0, 2]]
    read = adm_images(tmp_path / "adm.npz")
    assert read.shape == (2, 3, 2, 4)
    assert torch.equal(read[1, 2], torch.from_numpy(images[1, :, :, 2]))


def test_a_killed_save_leaves_the_old_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = tmp_path / "s.npz", normal(9, 2, seed=0)
    Statistics.of(x).save(path)

    def stop(name: str) -> None:
        if name == "rename":
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "failpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        Statistics.of(x + 1).save(path)
    assert torch.equal(Statistics.load(path).mean, x.mean(0))
    assert os.listdir(tmp_path) == ["s.npz"]


def test_statistics_files_that_cannot_be_trusted_are_refused(tmp_path: Path) -> None:
    path, eye, touched = tmp_path / "s.npz", np.eye(2), tmp_path / "touched"

    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(touched),)

    def refused(message: str, **arrays: Any) -> None:
        if arrays:
            np.savez(path, **arrays)
        with pytest.raises(CheckpointError, match=message):
            Statistics.load(path)

    path.write_bytes(pickle.dumps({"fid": Trap()}))
    refused(r"s\.npz is a pickle, which can run code.*numpy\.savez")
    path.write_bytes(b"not at all")
    refused("no .npz file, or a truncated one")
    refused("cannot be read.*allow_pickle=False", mu=np.array([Trap(), None]), sigma=eye)
    refused("lacks sigma; it has mu", mu=np.zeros(2))
    refused(r"lacks mu, sigma; it has arr_0; arr_0 are images.*adm_images", arr_0=np.zeros((1, 2, 2, 3), np.uint8))
    refused(r"sigma the covariance\): cov must have shape \(2, 2\)", mu=np.zeros(2), sigma=np.eye(3))
    refused("positive semi-definite", mu=np.zeros(2), sigma=-eye)
    refused("must be symmetric", mu=np.zeros(2), sigma=np.triu(np.ones((2, 2))))
    refused("mean has complex or non-finite", mu=np.full(2, np.nan), sigma=eye)
    refused("count must be one whole number", mu=np.zeros(2), sigma=eye, count=np.zeros(2))
    refused("s.npz", mu=np.array(["a", "b"]), sigma=eye)
    np.savez(path, mu=np.zeros(2), sigma=eye)
    content = bytearray(path.read_bytes())
    content[content.find(b"NUMPY") + 130] ^= 0xFF  # inside an array: the archive's checksum no longer holds
    path.write_bytes(content)
    refused("cannot be read")
    torch.save({"mu": torch.zeros(2)}, path)  # torch-fidelity's cache is such an archive of a pickle
    refused("lacks mu, sigma; it has .*pkl")
    assert not touched.exists()
    with pytest.raises(FileNotFoundError):
        Statistics.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"statistics are written as \.npz"):
        Statistics.of(normal(9, 2, seed=0)).save(tmp_path / "s.pkl")
    np.savez(path, arr_0=np.zeros((1, 3, 2, 2), np.uint8))
    with pytest.raises(CheckpointError, match=r"arr_0 must be \(n, h, w, 3\) uint8, got torch.uint8 of shape"):
        adm_images(path)


# ---------------------------------------------------------------- Fréchet distance


def test_fid_of_noncommuting_gaussians_in_the_plane_is_the_closed_form() -> None:
    # Cayley-Hamilton for the root R of a 2 x 2 matrix: (tr R)^2 = tr R^2 + 2 det R, so with R^2 = C1 C2
    # tr R = sqrt(tr C1 C2 + 2 sqrt(det C1 det C2))
    m1, m2 = normal(2, seed=0), normal(2, seed=1)
    c1 = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=F64)
    c2 = torch.tensor([[1.0, -0.5], [-0.5, 3.0]], dtype=F64)
    root = math.sqrt(float((c1 @ c2).trace()) + 2 * math.sqrt(float(c1.det() * c2.det())))
    truth = float(((m1 - m2) ** 2).sum() + c1.trace() + c2.trace()) - 2 * root
    assert frechet_distance(Statistics(m1, c1), Statistics(m2, c2)) == pytest.approx(truth, rel=1e-12)
    assert fid(Statistics(m1, c1), Statistics(m2, c2)) == pytest.approx(truth, rel=1e-12)


def test_fid_of_rank_one_covariances_is_the_closed_form() -> None:
    # (u u^T v v^T)^{1/2} has the one eigenvalue |u.v|: FD = |u|^2 + |v|^2 - 2 |u.v|
    u, v, zero = normal(30, seed=0), normal(30, seed=1), torch.zeros(30, dtype=F64)
    truth = float(u @ u + v @ v - 2 * (u @ v).abs())
    got = frechet_distance(Statistics(zero, torch.outer(u, u)), Statistics(zero, torch.outer(v, v)))
    assert got == pytest.approx(truth, rel=1e-12)


def test_frechet_distance_takes_samples_beside_statistics() -> None:
    x, y = normal(50, 4, seed=0), 1 + 2 * normal(40, 4, seed=1)
    truth = frechet_distance(x, y)
    for first, second in [(x, Statistics.of(y)), (Statistics.of(x), y), (Statistics.of(x), Statistics.of(y))]:
        assert frechet_distance(first, second) == pytest.approx(truth, rel=1e-12)
    half = frechet_distance(x[:, :2], y[:, :2])
    assert frechet_distance(x, Statistics.of(y[:, :2]), features=lambda z: z[:, :2]) == pytest.approx(half, rel=1e-12)
    with pytest.raises(ValueError, match=r"mean2 must have shape \(4,\)"):
        frechet_distance(x, Statistics.of(y[:, :2]))


def test_frechet_extrapolated_takes_the_1_over_n_bias_away() -> None:
    # x ~ N(0, I_d) against N(0, I_d) itself: E FD_n = c / n + O(1/n^2), c = d + d (d + 1) / 4 = 9 (as documented in
    # `frechet_distance`). Next order is relatively O(d / n) <= 4 / 100 at the smallest size.
    d, n, repeats = 4, 1000, 60
    exact = Statistics(torch.zeros(d, dtype=F64), torch.eye(d, dtype=F64))
    runs = [frechet_extrapolated(normal(n, d, seed=r), exact, seed=r) for r in range(repeats)]
    assert runs[0].sizes[0] == 100
    assert runs[0].sizes[-1] == n
    assert len(runs[0].sizes) == 15
    plain = [run.figures[-1] for run in runs]
    assert plain[3] == pytest.approx(frechet_distance(normal(n, d, seed=3), exact), rel=1e-9)
    assert z_score(plain, 0) > 10
    assert abs(z_score(plain, 9 / n)) < 4
    assert abs(z_score([run.value for run in runs], 0)) < 4
    assert abs(z_score([run.slope for run in runs], 9)) < 4
    slope, value = np.polyfit(1 / np.array(runs[0].sizes), runs[0].figures, 1)
    assert (runs[0].slope, runs[0].value) == (pytest.approx(slope, rel=1e-9), pytest.approx(value, rel=1e-9))
    assert abs(np.polyfit(np.array(runs[0].sizes), runs[0].figures, 1)[1] - value) > 1e-3  # linear in n, the rival
    y = normal(300, d, seed=99)
    chosen = frechet_extrapolated(normal(n, d, seed=0), y, seed=0, sizes=(100, 200))
    assert chosen == frechet_extrapolated(normal(n, d, seed=0), Statistics.of(y), seed=0, sizes=(100, 200))
    assert chosen.value == pytest.approx(2 * chosen.figures[1] - chosen.figures[0], rel=1e-9)  # two points, one line
    for sizes in [(50,), (50, 50), (1, 50), (50, 101)]:
        with pytest.raises(ValueError, match="two different numbers from 2 to 100"):
            frechet_extrapolated(normal(100, d, seed=0), exact, seed=0, sizes=sizes)


# ---------------------------------------------------------------- KID


def gaussian_kernel_mean(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> float:
    """E (x.y/d + 1)^3 of independent x ~ N(m1, c1), y ~ N(m2, c2), from their moments of order 1 to 3.

    (x.y)^q = <x^(q), y^(q)> of tensor powers; E x_i x_j x_k = m_i m_j m_k + C_ij m_k + C_ik m_j + C_jk m_i.
    """

    def moments(m: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed = torch.einsum("ij,k->ijk", c, m)
        third = torch.einsum("i,j,k->ijk", m, m, m) + mixed + mixed.permute(0, 2, 1) + mixed.permute(2, 0, 1)
        return m, c + torch.outer(m, m), third

    d = len(m1)
    first, second, third = (
        float((a * b).sum()) / d**q for q, (a, b) in enumerate(zip(moments(m1, c1), moments(m2, c2), strict=True), 1)
    )
    return 1 + 3 * first + 3 * second + third


def two_gaussians(d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return 0.5 * normal(d, seed=1), random_cov(d, 2), 0.3 * normal(d, seed=3), 0.5 * random_cov(d, 4)


def draw(mean: Tensor, cov: Tensor, n: int, seed: int) -> Tensor:
    return mean + normal(n, len(mean), seed=seed) @ torch.linalg.cholesky(cov).T


def gaussian_kid(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> float:
    same = gaussian_kernel_mean(m1, c1, m1, c1) + gaussian_kernel_mean(m2, c2, m2, c2)
    return same - 2 * gaussian_kernel_mean(m1, c1, m2, c2)


def biased_kid(x: Tensor, y: Tensor) -> float:
    """The simpler relative: averages that count each sample's pair with itself."""
    xx, yy, xy = ((a @ b.T / a.shape[1] + 1).pow(3).mean() for a, b in ((x, x), (y, y), (x, y)))
    return float(xx + yy - 2 * xy)


def test_cubic_mmd_matches_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(7, 2, 2, seed=0), 0.5 + normal(9, 2, 2, seed=1)

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float((a * b).sum()) / 4 + 1) ** 3

    xx = np.mean([kernel(a, b) for a, b in itertools.permutations(x, 2)])
    yy = np.mean([kernel(a, b) for a, b in itertools.permutations(y, 2)])
    xy = np.mean([kernel(a, b) for a in x for b in y])
    truth = float(xx + yy - 2 * xy)
    assert cubic_mmd(x, y) == pytest.approx(truth, rel=1e-11)
    monkeypatch.setattr(_samples, "BLOCK", 20)
    assert cubic_mmd(x, y) == pytest.approx(truth, rel=1e-11)


@pytest.mark.parametrize("same", [False, True])
def test_kid_is_unbiased_for_gaussians_and_the_biased_one_is_not(same: bool) -> None:
    d, n, m, repeats = 3, 40, 60, 300
    m1, c1, m2, c2 = two_gaussians(d)
    if same:
        m2, c2 = m1, c1
    truth = gaussian_kid(m1, c1, m2, c2)
    pairs = [(draw(m1, c1, n, 2 * r), draw(m2, c2, m, 2 * r + 1)) for r in range(repeats)]
    assert abs(z_score([cubic_mmd(x, y) for x, y in pairs], truth)) < 4
    assert abs(z_score([kid(x, y, seed=r, size=10).mean for r, (x, y) in enumerate(pairs)], truth)) < 4
    assert abs(z_score([kid(x, y, seed=r, size=20, subsets=5).mean for r, (x, y) in enumerate(pairs)], truth)) < 4
    assert abs(z_score([biased_kid(x, y) for x, y in pairs], truth)) > 6
    if not same:  # the kernel's three ingredients: without 1/d, without + 1, and quadratic, the truth is another
        assert truth > 0
        assert truth == pytest.approx(float(np.mean([cubic_mmd(x, y) for x, y in pairs])), rel=0.2)


def test_kid_standard_error_is_that_of_the_mean_and_never_too_small() -> None:
    # Disjoint blocks: E standard_error^2 = Var mean exactly. Both variances are known to sqrt((kurtosis - 1) / repeats)
    # or so, 10 % to 15 %: four of that leave a factor of 1.6, and a missing or doubled root of K = 5 is a factor of 5.
    repeats = 250
    m1, c1, m2, c2 = two_gaussians(3)
    pairs = [(draw(m1, c1, 100, 2 * r), draw(m2, c2, 100, 2 * r + 1)) for r in range(repeats)]

    def ratio(runs: list[KID], error: Callable[[KID], float]) -> float:
        return float(np.mean([error(run) ** 2 for run in runs]) / np.var([run.mean for run in runs], ddof=1))

    blocks = [kid(x, y, seed=r, size=20) for r, (x, y) in enumerate(pairs)]
    assert {(run.size, run.subsets) for run in blocks} == {(20, 5)}
    assert 1 / 1.6 < ratio(blocks, lambda run: run.standard_error) < 1.6
    # random subsets overlap: the error stays honest (it errs to the large side) and the usual one is far too small
    overlapping = [kid(x, y, seed=r, size=20, subsets=20) for r, (x, y) in enumerate(pairs)]
    assert ratio(overlapping, lambda run: run.standard_error) > 1 / 1.6
    assert ratio(overlapping, lambda run: run.standard_error) < 2.5
    assert ratio(overlapping, lambda run: run.spread / math.sqrt(run.subsets)) < 0.5


def test_kid_repeats_by_its_seed_and_refuses_what_it_cannot_cut() -> None:
    x, y = normal(30, 2, seed=0), normal(40, 2, seed=1)
    assert kid(x, y, seed=5, size=10) == kid(x, y, seed=5, size=10)
    assert kid(x, y, seed=5, size=10) != kid(x, y, seed=6, size=10)
    for options, message in [
        ({}, "30 samples do not hold two subsets of size 1000: give a size of at most 15"),
        ({"size": 30, "subsets": 3}, "at most 29"),
        ({"size": 1}, "size must be at least 2, got 1"),
        ({"size": 10, "subsets": 1}, "subsets must be at least 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            kid(x, y, 0, **options)
    with pytest.raises(ValueError, match="event shapes differ"):
        kid(x, normal(30, 3, seed=0), 0, size=10)


# ---------------------------------------------------------------- precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 2])
def test_precision_and_recall_of_intervals_are_the_overlaps_less_the_gaps(k: int) -> None:
    # Reference on [0, 1], samples on [1/2, 5/2]: 1/4 of the samples lie in the reference's support, 1/2 of the
    # reference in theirs. Balls of Poisson points on a line miss the share 4^{-k}: seen from a missed place the next
    # point is at a ~ Exp(1), and fewer than k others within a of it would cover the place; beyond it N ~ Poisson(a)
    # is at least k with probability sum_{j >= k} 2^{-j-1} = 2^{-k} (later points ask for less); both sides must miss.
    # Finite n: an edge reaches out by about k spacings of 1/n or 2/n, which hold at most 2 k / n of the other set.
    # The set that has the balls is random, the one that is asked is a grid.
    n, repeats = 2000, 10
    grid = (torch.arange(n, dtype=F64).reshape(n, 1) + 0.5) / n
    runs = [uniform(n, 1, seed=r) for r in range(repeats)]
    precision = [precision_recall(0.5 + 2 * grid, x, k).precision for x in runs]
    recall = [precision_recall(0.5 + 2 * x, grid, k).recall for x in runs]
    for figures, share in ((precision, 1 / 4), (recall, 1 / 2)):
        error = 4 * float(np.std(figures, ddof=1)) / math.sqrt(repeats) + 2 * k / n
        assert abs(np.mean(figures) - share * (1 - 4.0**-k)) < error
        # the nearest rivals: one neighbour fewer (a point counted as its own), or one more
        for rival in (k - 1, k + 1):
            assert abs(np.mean(figures) - share * (1 - 4.0**-rival)) > error


def test_density_and_coverage_of_equal_laws_have_their_exact_means() -> None:
    n, m, k, repeats = 60, 90, 4, 300
    pairs = [(normal(n, 3, seed=2 * r), normal(m, 3, seed=2 * r + 1)) for r in range(repeats)]
    found = [density_coverage(samples, reference, k) for samples, reference in pairs]
    truth = 1 - math.comb(m - 1, k) / math.comb(n + m - 1, k)
    assert found[0].equal_coverage == expected_coverage(n, m, k) == pytest.approx(truth, rel=1e-12)
    coverage = [f.coverage for f in found]
    assert abs(z_score([f.density for f in found], 1)) < 4
    assert abs(z_score(coverage, truth)) < 4
    for rival in (expected_coverage(n, m, k - 1), expected_coverage(n, m, k + 1), expected_coverage(m, n, k)):
        assert abs(z_score(coverage, rival)) > 6
    assert expected_coverage(10**6, 10**6, 5) == pytest.approx(1 - 2**-5, rel=1e-4)
    with pytest.raises(ValueError, match="n 5, m 3, k 3"):
        expected_coverage(5, 3, 3)


def test_copies_lie_on_their_own_spheres(monkeypatch: pytest.MonkeyPatch) -> None:
    # each ball holds its centre and its k neighbours, the last of them on the sphere, whatever rounding says
    for offset in (0.0, 1e5):
        x = normal(50, 6, seed=0) + offset
        for k in (1, 3, 5):
            found = density_coverage(x, x[torch.randperm(50, generator=torch.Generator().manual_seed(1))], k)
            assert found.density == (k + 1) / k
            assert found.coverage == 1
            both = precision_recall(x, x, k)
            assert (both.precision, both.recall) == (1, 1)
    y = 0.5 + normal(40, 6, seed=1)
    whole = density_coverage(y, normal(50, 6, seed=0)), precision_recall(y, normal(50, 6, seed=0))
    monkeypatch.setattr(_samples, "BLOCK", 130)  # pieces of 2 and 3 rows
    assert (density_coverage(y, normal(50, 6, seed=0)), precision_recall(y, normal(50, 6, seed=0))) == whole


def test_an_outlier_buys_precision_but_no_density_or_coverage() -> None:
    # one ball about 100 of radius near 100 holds all samples in [20, 80]
    reference = torch.cat((normal(99, 1, seed=0), torch.full((1, 1), 100.0, dtype=F64)))
    samples = 20 + 60 * uniform(200, 1, seed=1)
    both = precision_recall(samples, reference, k=5)
    assert (both.precision, both.recall) == (1, 0)
    found = density_coverage(samples, reference, k=5)
    assert (found.density, found.coverage) == (pytest.approx(1 / 5), pytest.approx(1 / 100))


def test_precision_and_density_refuse_too_few_samples() -> None:
    x = normal(5, 2, seed=0)
    for judge in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match="samples has 5 samples, at least 6 are needed"):
            judge(x, normal(9, 2, seed=0), 5)
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            judge(x, x, 0)


# ---------------------------------------------------------------- Inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dictionary of torch-fidelity's Inception with random weights that keep the signal's scale."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    base = inception._module().FeatureExtractorInceptionV3

    class Blank(base):
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            pass

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = Blank("blank", ["2048"], folder / "empty.pth").state_dict()
        for value in state.values():
            if value.ndim == 4:
                torch.nn.init.normal_(value, std=math.sqrt(2 / value[0].numel()))
    torch.save(state, folder / inception.WEIGHTS[0])
    return folder / inception.WEIGHTS[0]


@pytest.fixture(scope="module")
def net(weights: Path) -> Inception:
    before = torch.random.get_rng_state()
    net = Inception(weights, batch_size=2)
    assert torch.equal(torch.random.get_rng_state(), before)  # the network's random start is nobody's business
    assert "torch_fidelity" not in sys.modules
    return net


def levels(n: int) -> Tensor:
    """n RGB images of 16 x 16 with every level 0 .. 255 in each channel."""
    orders = [torch.randperm(256, generator=torch.Generator().manual_seed(i)) for i in range(3 * n)]
    return torch.stack(orders).reshape(n, 3, 16, 16).to(torch.uint8)


def test_inception_features_are_the_networks_own_in_any_batches_and_ranges(net: Inception) -> None:
    images = levels(3)
    got = net(images)  # in batches of 2 and 1
    assert (got.shape, got.dtype) == ((3, 2048), F64)
    (whole,) = net.net(images)
    # single precision through about 50 layers; the images differ by far more
    scale = float(whole.std())
    assert float((got - whole.double()).abs().max()) < 1e-3 * scale
    assert float((whole[0] - whole[1]).abs().max()) > 0.1 * scale
    # [-1, 1] <-> 0 .. 255: v = 127.5 (x + 1), each level its own to the last bit, and to nearest within half a level
    floats = images.double() / 127.5 - 1
    nudge = torch.where(images % 2 == 0, 0.49, -0.49) / 127.5
    for value in (floats, floats.float(), (floats + nudge).clamp(-1, 1)):
        assert torch.equal(inception._pixels(value), images)
    assert torch.equal(net(floats[:2]), got[:2])
    assert net(images[:0]).shape == (0, 2048)


def test_inception_features_stream_and_read_weights_by_path(weights: Path, net: Inception) -> None:
    images = levels(2)
    stream = (batch for batch in images.split(1))
    got, whole = inception_features(stream, weights=weights), net(images)
    assert float((got - whole).abs().max()) < 1e-3 * float(whole.std())


def test_fid_takes_images_features_streams_statistics_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[dict[str, Any]] = []

    class Means:  # a network of six features: means and deviations of the channels
        def __init__(self, weights: Any, **options: Any) -> None:
            loaded.append({"weights": weights, **options})

        def __call__(self, images: Tensor) -> Tensor:
            flat = images.double().flatten(2)
            return torch.cat((flat.mean(2), flat.std(2)), 1)

    monkeypatch.setattr(inception, "Inception", Means)
    x = (256 * uniform(20, 3, 5, 5, seed=0)).to(torch.uint8)
    y = (200 * uniform(30, 3, 5, 5, seed=1)).to(torch.uint8)
    fx, fy = Means(None)(x), Means(None)(y)
    loaded.clear()
    truth = frechet_distance(fx, fy)
    path = tmp_path / "y.npz"
    Statistics.of(fy).save(path)
    assert fid(fx, path) == pytest.approx(truth, rel=1e-9)
    assert not loaded  # features and statistics need no network
    options: dict[str, Any] = {"weights": "w.pth", "batch_size": 7, "device": "cpu", "download": True}
    assert fid(x, y, **options) == pytest.approx(truth, rel=1e-9)
    assert loaded == [options]  # once for both sides
    for first, second in [(x.split(6), str(path)), (iter(x.split(6)), fy.split(11)), (Statistics.of(fx), iter([y]))]:
        assert fid(first, second) == pytest.approx(truth, rel=1e-9)
    with pytest.warns(UserWarning, match="reference has 6 samples for 6 features: its covariance is singular"):
        fid(fx, fy[:6])


def test_missing_weights_are_named_with_the_way_out(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    place = tmp_path / "checkpoints" / inception.WEIGHTS[0]
    fetched: list[str] = []

    def offline(url: str, target: str, **_: Any) -> None:
        fetched.append(url)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError, match=rf"https://\S+{inception.WEIGHTS[0]} and put it at {place}, or give"):
        Inception()
    assert not fetched  # nothing is fetched unasked
    with pytest.raises(FileNotFoundError, match=rf"cannot be downloaded.*no route to host.*put it at {place}"):
        Inception(download=True)
    assert fetched == [inception._module().URL_INCEPTION_V3]
    with pytest.raises(FileNotFoundError, match=r"weights='nowhere\.pth' is no file"):
        Inception("nowhere.pth")
    place.parent.mkdir(exist_ok=True)
    for name in reversed(inception.WEIGHTS):  # pytorch-fid's name, then torch-fidelity's
        os.link(weights, place.parent / name)
        assert inception._find(None, "", False).name == name
    place.unlink()
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, target, **_: os.link(weights, target))
    (place.parent / inception.WEIGHTS[1]).unlink()
    assert inception._find(None, "url", True) == place
    assert place.is_file()


def test_files_that_are_no_weights_are_refused_and_run_nothing(weights: Path, tmp_path: Path) -> None:
    path, touched = tmp_path / "w.pth", tmp_path / "touched"

    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(touched),)

    torch.save({"fc.bias": Trap()}, path)
    with pytest.raises(CheckpointError, match="does not hold Inception's weights"):
        Inception(path)
    assert not touched.exists()
    for content in (b"", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="does not hold Inception's weights"):
            Inception(path)
    for state in ({"fc.bias": torch.zeros(3)}, torch.zeros(3)):
        torch.save(state, path)
        with pytest.raises(CheckpointError, match="does not hold Inception's weights"):
            Inception(path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install 'ornstein\[fid\]'"):
        Inception()


def test_images_of_other_kinds_are_refused() -> None:
    rgb = torch.zeros(2, 3, 4, 4)
    for images, message in [
        (rgb[0], r"images must be RGB \(n, 3, h, w\), got shape \(3, 4, 4\)"),
        (rgb[:, :1], "repeat the channel of grey images"),
        (rgb.permute(0, 2, 3, 1), "move the channels"),
        (rgb.long(), "uint8 in 0 .. 255 or floating in \\[-1, 1\\], got torch.int64"),
        (rgb + 1.01, "must be in \\[-1, 1\\], got 1.01 .. 1.01: samples that overshoot"),
        (rgb - 1.01, "got -1.01 .. -1.01"),
        (rgb * math.nan, "got nan .. nan"),
        (255 * torch.rand(2, 3, 4, 4), "pixels in 0 .. 255 take"),
    ]:
        with pytest.raises(ValueError, match=message):
            inception._check(images)
    with pytest.warns(UserWarning, match=r"images in \[0, 1\] must be given as 2 x - 1"):
        inception._check(rgb + 0.5)
    inception._check(rgb - 0.5)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Inception(batch_size=0)
