"""A tuned table's file: exact, and refused or warned of where it does not belong."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ornstein as orn
from ornstein.io import save_tensors
from ornstein.tuning import Distribution, Lessons, TunedTable, teach, tune
from ornstein.tuning.fingerprint import covered, describe, fingerprint
from worlds import F64, ring

VP = orn.VP()


def model(seed: int = 0, process: orn.GaussianProcess = VP) -> orn.Denoiser:
    torch.manual_seed(seed)
    net = orn.nets.MLP(2, labels=2, width=8, depth=1).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return orn.Denoiser(net, process, predicts="noise", null={"label": orn.nets.NULL})


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return teach(model(), (48, 2), cond={"label": torch.arange(48) % 2}, steps=40)


@pytest.fixture(scope="module")
def tuned(lessons: Lessons) -> TunedTable:
    return tune(lessons.denoiser, nfe=3, lessons=lessons, iterations=3)


def test_a_file_returns_the_same_table_and_figures(tuned: TunedTable, lessons: Lessons, tmp_path: Path) -> None:
    tuned.save(tmp_path / "tuned.safetensors")
    again = TunedTable.load(tmp_path / "tuned.safetensors")
    assert again.table.to_json() == tuned.table.to_json()
    assert torch.equal(again.errors, tuned.errors)
    assert torch.equal(again.named_errors, tuned.named_errors)
    assert dict(again.tuned_on) == dict(tuned.tuned_on)
    assert torch.equal(lessons.run(again.table), lessons.run(tuned.table))  # to the last bit
    assert str(again) == str(tuned)
    assert f"{tuned.tuned_on['evaluations']['tuning']} for tuning" in str(tuned)


def test_a_stochastic_table_returns_with_its_noise(tmp_path: Path) -> None:
    own = ring().denoiser(VP)
    taught = teach(own, (64, 2), steps=20, dtype=F64)
    start = orn.SDEDPMSolverPP().compile(VP, orn.LogSNR()(VP, 3))
    made = tune(own, nfe=3, lessons=taught, start=start, objective=Distribution(8), iterations=2)
    made.save(tmp_path / "noisy.safetensors")
    again = TunedTable.load(tmp_path / "noisy.safetensors").table
    assert len(again.noises) > 0
    assert torch.equal(taught.run(again, seed=5), taught.run(made.table, seed=5))


def test_the_table_is_an_ordinary_one(tuned: TunedTable, lessons: Lessons) -> None:
    out = orn.sample(lessons.denoiser, x_init=lessons.starts, cond=lessons.cond, table=tuned.table)
    assert out.nfe == tuned.nfe == 3
    assert float((out.x - lessons.run(tuned.table)).abs().max()) == 0.0


def test_one_line_samples_by_it(tuned: TunedTable, lessons: Lessons) -> None:
    """`sample` takes the tuned table itself, and checks it on the way."""
    x_init, cond = lessons.starts, lessons.cond
    out = orn.sample(lessons.denoiser, x_init=x_init, cond=cond, table=tuned)
    assert torch.equal(out.x, orn.sample(lessons.denoiser, x_init=x_init, cond=cond, table=tuned.table).x)
    assert out.table is tuned.table
    with pytest.raises(orn.TableError, match="compiled for another process"):
        orn.sample(model(process=orn.VP(beta_max=12.0)), (4, 2), table=tuned)
    with pytest.warns(UserWarning, match="tuned for another model"):
        orn.sample(model(seed=1), (4, 2), cond={"label": torch.zeros(4, dtype=torch.long)}, table=tuned)


def test_scales_between_those_tuned_on_are_no_other_guidance(tuned: TunedTable) -> None:
    """Tuned on guidance 1 (none) and 3: 2 is within, 3.5 is not, nor is another interval or kind of guidance."""
    own = model()
    known = [describe(own), describe(orn.CFG(own, 3.0))]
    within = replace(tuned, tuned_on={**tuned.tuned_on, "guidance": known})
    for scale in (1.0, 2.0, 3.0, torch.tensor([1.5, 2.5])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            within.check(orn.CFG(own, scale))
    part = orn.CFG(own, 2.0, interval=(0.1, 0.9))
    for other in (orn.CFG(own, 3.5), orn.CFG(own, torch.tensor([2.0, 4.0])), orn.CFG(own, 0.5), part):
        with pytest.warns(UserWarning, match="tuned with guidance"):
            within.check(other)
    assert covered({}, [describe(orn.CFG(own, 0.0)), describe(orn.CFG(own, 3.0))])  # none is a scale of 1
    assert not covered({}, [describe(orn.CFG(own, 2.0)), describe(orn.CFG(own, 3.0))])
    assert not covered({}, [describe(orn.CFG(own, 0.0)), describe(part)])
    assert covered(describe(orn.CFG(own, 1.0)), [{}])


def test_errors_of_a_table_that_diverges_are_infinite(tuned: TunedTable) -> None:
    """Not nan, which would be neither better nor worse than anything."""
    wild = torch.full_like(tuned.errors, torch.nan)
    found = replace(tuned, errors=wild)
    assert (found.error, found.gain) == (math.inf, math.inf)
    found = replace(tuned, named_errors=wild)
    assert (found.named_error, found.gain) == (math.inf, 0.0)
    assert replace(tuned, errors=wild, named_errors=wild).gain == 1.0


def test_another_process_is_refused_and_another_model_warned_of(tuned: TunedTable) -> None:
    own = model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned.check(own) is tuned.table
    with pytest.raises(orn.TableError, match="compiled for another process"):
        tuned.check(model(process=orn.VP(beta_max=12.0)))
    with pytest.warns(UserWarning, match="tuned for another model"):
        tuned.check(model(seed=1))
    with pytest.warns(UserWarning, match="tuned with guidance"):
        tuned.check(orn.CFG(own, 2.0))


def test_a_fingerprint_is_of_the_weights_to_the_last_bit() -> None:
    one, two = model(), model()
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint(orn.CFG(one, 3.0)) == fingerprint(one)
    with torch.no_grad():
        two.net.first.bias[0].nextafter_(torch.tensor(9.0, dtype=F64))
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(orn.Denoiser(one.net, orn.Cosine(), "noise")) != fingerprint(one)
    assert describe(orn.CFG(one, 3.0, interval=(0.1, 0.9))) == {"class": "CFG", "scale": 3.0, "interval": [0.1, 0.9]}
    assert describe(one) == {}
    assert describe(orn.CFG(one, torch.tensor([2.0, 1.0, 2.0])))["scale"] == [1.0, 2.0]


def test_a_compiled_network_is_the_same_model() -> None:
    """So is one in a wrapper of data-parallel training: what they hold is the same network."""
    one, two = model(), model(seed=3)

    class Wrapped(torch.nn.Module):
        """What such wrappers look like: torch.compile itself takes seconds to import."""

        def __init__(self, net: torch.nn.Module, name: str = "_orig_mod") -> None:
            super().__init__()
            self.add_module(name, net)

    def around(net: torch.nn.Module) -> str:
        return fingerprint(orn.Denoiser(net, VP, predicts="noise"))

    for wrap in (Wrapped, lambda net: Wrapped(Wrapped(net), "module")):
        assert around(wrap(one.net)) == around(one.net) == fingerprint(one) != around(wrap(two.net))


def test_a_fingerprint_is_of_the_settings_around_the_weights() -> None:
    """The same weights told of other times, scaled otherwise or wrapped are another model; so is another exact world,
    and guidance by another weak model is other guidance. Use of a model does not change it."""
    net = model().net
    scaled = [orn.Denoiser(net, VP, precondition=orn.EDMPrecondition(s)) for s in (0.5, 1.0)]
    told = [orn.Denoiser(net, VP, "x0", timestep=f) for f in (None, lambda level: 999 * level.t)]
    wrapped = [orn.guidance.EpsilonScaling(told[0], b) for b in (1.0, 1.1)]
    guided = [orn.guidance.StaticThresholding(orn.CFG(model(), w)) for w in (1.0, 3.0)]
    worlds = [ring(std=std).denoiser(VP) for std in (0.15, 0.2)]
    prints = [fingerprint(one) for one in (*scaled, *told, *wrapped, *guided, *worlds)]
    assert len(set(prints)) == len(prints)
    worlds[0](torch.zeros(1, 2), 0.5)
    assert fingerprint(worlds[0]) == prints[-2] == fingerprint(ring(std=0.15).denoiser(VP))
    one, two = (orn.guidance.Autoguidance(model(), model(seed), 2.0) for seed in (1, 2))
    assert fingerprint(one) == fingerprint(two)
    assert describe(one) != describe(two)


def test_a_damaged_file_is_refused(tuned: TunedTable, tmp_path: Path) -> None:
    path = tmp_path / "tuned.safetensors"
    tuned.save(path)
    blob = bytearray(path.read_bytes())
    blob[-3] ^= 1
    path.write_bytes(bytes(blob))
    with pytest.raises(orn.CheckpointError, match="checksum"):
        TunedTable.load(path)
    save_tensors(path, {"errors": tuned.errors}, {"table": {"format": "ornstein-table"}}, kind="tuned-table")
    with pytest.raises(orn.CheckpointError, match="damaged tuned table"):
        TunedTable.load(path)
    save_tensors(path, {}, {}, kind="model")
    with pytest.raises(orn.CheckpointError, match="not a 'tuned-table'"):
        TunedTable.load(path)


def test_a_model_in_float32_is_tuned_too() -> None:
    """Differences in float32, of a step of 3e-3: half the named error still goes."""
    single, world = torch.float32, ring(std=0.5)
    own = world.denoiser(VP)
    taught = teach(own, (192, 2), steps=60, dtype=single)
    assert taught.ends.dtype == single
    made = tune(own, nfe=4, lessons=taught, iterations=8)
    assert made.gain < 0.5
