"""A sampler as one program: the samples of `orn.sample`, for any batch, without this library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein.interop import export_sampler
from worlds import shaken

TABLE = torch.linspace(0.999, 0.01, 50)


def mlp(**options: Any) -> Any:
    return shaken(orn.nets.MLP(2, width=8, depth=1, **options))


def guided(**options: Any) -> orn.CFG:
    return orn.CFG(orn.Denoiser(mlp(labels=3), orn.Flow(), null={"label": orn.nets.NULL}), 2.0, **options)


def plain(process: Any, predicts: Any = None, **options: Any) -> orn.Denoiser:
    return orn.Denoiser(mlp(), process, predicts, scaling=orn.Scaling(torch.tensor([1.0, -2.0]), 3.0), **options)


EDM = {"precondition": orn.EDMPrecondition(0.7)}
LABELS, MEANS = {"label": torch.tensor([0, 1, 2, -1])}, {"mean": torch.arange(8.0).reshape(4, 2)}
CASES: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "unipc": (lambda: plain(orn.Flow()), None, None),
    "dpmpp": (lambda: plain(orn.EDM(), **EDM), orn.DPMSolverPP(order=3), None),
    "ddim-timesteps": (
        lambda: plain(orn.DiscreteTime(TABLE), "noise", timestep=orn.DiscreteTime(TABLE).timestep),
        orn.DDIM(),
        None,
    ),
    "heun": (lambda: plain(orn.Cosine(), "v"), orn.Heun(), None),
    "ddpm": (lambda: plain(orn.VP(), "noise"), orn.DDPM(), None),
    "cfg-interval": (lambda: guided(interval=(0.2, 0.8)), orn.DDPM(), LABELS),
    "shift": (
        lambda: orn.Denoiser(mlp(conditions={"mean": 2}), orn.MeanReverting(), "noise"),
        orn.DDIM(),
        MEANS,
    ),
}


def arguments(
    model: Any, count: int, cond: dict[str, Tensor] | None, n: int
) -> tuple[Tensor, dict[str, Any], dict[str, Tensor] | None]:
    """A start, what the program takes beside it, and the condition: of n samples, with the noise of seed 7."""
    cond = None if cond is None else {name: value[:n] for name, value in cond.items()}
    x = model.process.prior((n, 2), seed=3, cond=cond)
    noise = orn.Noise(7, batch=n)
    given: dict[str, Any] = {} if cond is None else {"cond": cond}
    if count:
        given["noises"] = torch.stack([noise.normal((n, 2)) for _ in range(count)])
    return x, given, cond


@pytest.mark.parametrize("case", CASES)
def test_the_program_gives_the_samples(case: str) -> None:
    """The graph makes the sums of the loop in its order, so the two differ by the rounding of other kernels at most:
    1e-5 of the samples' size is a hundred float32 roundings. For batches that were not the example's, 1 among them.

    The rival, noises in another order, is told apart; so are samples without the data's units."""
    make, solver, cond = CASES[case]
    model = make()
    training = model.training
    program = export_sampler(model, (4, 2), solver=solver, steps=3, cond=cond)
    assert model.training is training
    run = program.module()
    table = orn.sample(model, (4, 2), solver=solver, steps=3, cond=cond, seed=0).table
    assert isinstance(table, orn.Table)
    for n in (1, 4):
        x, given, own = arguments(model, len(table.noises), cond, n)
        expected = orn.sample(model, x_init=x, solver=solver, steps=3, cond=own, seed=7).x
        found = run(x, **given)
        bound = 1e-5 * float(expected.abs().max())
        assert float((found - expected).abs().max()) <= bound
        if len(table.noises) > 1:
            turned = run(x, **{**given, "noises": given["noises"].flip(0)})
            assert float((turned - expected).abs().max()) > 100 * bound
        if cond is not None and n == 4:
            other = run(x, **{**given, "cond": {name: value.roll(1, 0) for name, value in own.items()}})
            assert float((other - expected).abs().max()) > 100 * bound
    assert program.example_inputs[1].get("noises", torch.empty(0)).shape[0] == len(table.noises)


def test_images_and_a_given_table_in_float64() -> None:
    model = orn.Denoiser(shaken(orn.nets.UNet(1, width=4, levels=(1,), blocks=1, attention=())).double(), orn.Flow())
    table: Any = orn.DDIM().compile(model.process, orn.Uniform()(model.process, steps=2))
    program = export_sampler(model, (1, 1, 4, 6), table=table, dtype=torch.float64)
    x = torch.randn(3, 1, 4, 6, dtype=torch.float64)
    assert torch.allclose(program.module()(x), orn.sample(model, x_init=x, table=table).x, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="not both"):
        export_sampler(model, (1, 1, 4, 6), table=table, steps=3)
    with pytest.raises(orn.TableError, match="another process"):
        export_sampler(orn.Denoiser(model.net, orn.VP(), "noise"), (1, 1, 4, 6), table=table)


def test_the_saved_program_needs_torch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded and run where this library cannot be imported."""
    model = plain(orn.VP(), "noise")
    program = export_sampler(model, (4, 2), solver=orn.DDPM(), steps=2)
    x, given, _ = arguments(model, program.example_inputs[1]["noises"].shape[0], None, 5)
    expected = orn.sample(model, x_init=x, solver=orn.DDPM(), steps=2, seed=7).x
    torch.export.save(program, tmp_path / "sampler.pt2")
    with monkeypatch.context() as absent:
        for name in list(sys.modules):
            if name.partition(".")[0] == "ornstein":
                absent.setitem(sys.modules, name, None)
        found = torch.export.load(tmp_path / "sampler.pt2").module()(x, **given)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


class Looking(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -x if bool(x.max() > 1) else x


def test_what_no_program_can_do_is_refused() -> None:
    pair: Any = orn.Product(__import__("collections").namedtuple("Pair", "a b")(orn.Flow(), orn.VP()))
    with pytest.raises(orn.TableError, match="several components"):
        export_sampler(orn.Denoiser(mlp(), pair), (4, 2), steps=2)
    model = plain(orn.VP(), "noise")
    with pytest.raises(orn.TableError, match="rows that depend on the data"):
        export_sampler(model, (4, 2), solver=orn.solvers.EVODiff(), steps=4)
    with pytest.raises(orn.TableError, match="of each sample's own"):
        export_sampler(model, (2, 2), grid=orn.VP().level(torch.tensor([[0.9, 0.8], [0.5, 0.4], [0.1, 0.1]])))
    with pytest.raises(ValueError, match="first axis must be the batch"):
        export_sampler(guided(), (4, 2), cond={"label": torch.zeros(3, dtype=torch.long)}, steps=2)
    with pytest.raises(ValueError, match=r"torch.export cannot follow this Denoiser with UniPC.*look at values"):
        export_sampler(orn.Denoiser(Looking(), orn.Flow()), (4, 2), steps=2)
