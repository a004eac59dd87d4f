"""Blocks left out of a network: which there are, what they cost, and that nothing else is changed."""

import copy

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein.tuning import AutoDiffusion, Skipping, residual_blocks, teach
from worlds import F64, normal, ring, shaken

PROCESS = orn.VP()
LEVELS = PROCESS.level(torch.tensor([1.0, 0.6, 0.3], dtype=F64))


def mlp(**options):
    return shaken(orn.nets.MLP(2, width=8, depth=3, **options)).double()


def rebuilt(model, *gone):
    """The model with a network that never had these blocks: an independent way to leave them out."""
    other = copy.deepcopy(model)
    other.net.blocks = nn.ModuleList(block for k, block in enumerate(model.net.blocks) if k not in gone)
    return other


@pytest.mark.parametrize(
    ("net", "event", "names"),
    [
        (lambda: orn.nets.MLP(2, width=8, depth=3), (2,), [f"blocks.{k}" for k in range(3)]),
        (lambda: orn.nets.DiT(1, 4, width=8, depth=2, heads=2), (1, 4, 4), ["blocks.0", "blocks.1"]),
        (
            lambda: orn.nets.UNet(1, width=8, levels=(1, 2), blocks=2),
            (1, 4, 4),
            # not the first blocks of the lower stage and of the way up, which change the channels
            ["down.0.blocks.0", "down.0.blocks.1", "down.1.blocks.1", "down.1.attention", "up.0.blocks.1"],
        ),
    ],
)
def test_which_blocks_there_are(net, event, names):
    """Those that are written x + f(x), found without looking at the code; the network is as it was."""
    model = orn.Denoiser(shaken(net()), PROCESS, "noise")
    before = copy.deepcopy(model.state_dict())
    assert list(residual_blocks(model, torch.zeros(2, *event))) == [f"net.{name}" for name in names]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())


def test_shares_are_those_of_a_count_by_hand():
    """Of an MLP of width w: 64 w + w^2 for the time, 2 w in and out, 2 w^2 + w^2 + w^2 a block."""
    w = 8
    model = orn.Denoiser(mlp(), PROCESS, "noise")
    blocks = residual_blocks(model, normal(2, 2))
    whole = 64 * w + w**2 + 2 * w + 2 * w + 3 * 4 * w**2
    assert blocks == pytest.approx({f"net.blocks.{k}": 4 * w**2 / whole for k in range(3)})
    thin = Skipping(model, blocks, {1.0: {"net.blocks.0"}, 0.6: set(), 0.3: {"net.blocks.1", "net.blocks.2"}})
    one = 4 * w**2 / whole
    assert thin.shares(LEVELS) == pytest.approx([1 - one, 1, 1 - 2 * one])
    assert thin.cost(LEVELS) == [1, 1, 1]


@pytest.mark.parametrize("net", [mlp, lambda: shaken(orn.nets.DiT(1, 4, width=8, depth=3, heads=2)).double()])
def test_a_block_left_out_is_a_network_without_it(net):
    """At each level the blocks of the plan and no others, to the last bit; nothing left out is the model itself."""
    model = orn.Denoiser(net(), PROCESS, "noise")
    x = normal(5, 2) if isinstance(model.net, orn.nets.MLP) else normal(5, 1, 4, 4)
    blocks = residual_blocks(model, x)
    gone = {1.0: [0], 0.6: [], 0.3: [1, 2]}
    thin = Skipping(model, blocks, {t: {f"net.blocks.{k}" for k in ks} for t, ks in gone.items()})
    calls = thin.bind(LEVELS, x, None)
    for call, ks, level in reversed(list(zip(calls, gone.values(), LEVELS, strict=True))):
        assert torch.equal(call(x), rebuilt(model, *ks)(x, level).noise)
        assert bool(ks) != torch.equal(call(x), model(x, level).noise)
    # from a time of the plan down to the next
    for t, ks in ((0.61, [0]), (0.59, []), (0.31, []), (0.29, [1, 2]), (0.01, [1, 2])):
        assert torch.equal(thin(x, t).noise, rebuilt(model, *ks)(x, t).noise)


def test_samples_are_those_of_the_networks_without_the_blocks():
    """DDIM's two steps, each with its own network, and the cost in calls."""
    model = orn.Denoiser(mlp(), PROCESS, "noise")
    x = normal(4, 2)
    thin = Skipping(model, residual_blocks(model, x), {1.0: {"net.blocks.2"}, 0.5: {"net.blocks.0"}})
    out = orn.sample(thin, x_init=x, solver=orn.DDIM(), grid=[1.0, 0.5, 0.1])
    for other, grid in ((rebuilt(model, 2), [1.0, 0.5]), (rebuilt(model, 0), [0.5, 0.1])):
        x = orn.sample(other, x_init=x, solver=orn.DDIM(), grid=grid).x
    torch.testing.assert_close(out.x, x, rtol=1e-12, atol=1e-12)
    assert out.nfe == 2


def test_the_network_is_whole_again_whatever_happens():
    """After an exception inside, and where a module had a `forward` of its own already."""

    class Fails(nn.Module):
        def forward(self, h):
            if self.armed:
                raise RuntimeError("no memory")
            return h

    net = mlp()
    net.last.append(failing := Fails())
    failing.armed = False
    model = orn.Denoiser(net, PROCESS, "noise")
    x = normal(3, 2)
    before = model(x, 0.5).noise
    own = net.blocks[1].forward = net.blocks[1].forward  # as a library that wraps it does
    thin = Skipping(model, residual_blocks(model, x), {1.0: {"net.blocks.0", "net.blocks.1"}})
    apart = thin(x, 0.5).noise
    failing.armed = True
    with pytest.raises(RuntimeError, match="no memory"):
        thin(x, 0.5)
    with pytest.raises(RuntimeError, match="no memory"):
        residual_blocks(model, x)
    failing.armed = False
    assert "forward" not in vars(net.blocks[0])
    assert vars(net.blocks[1])["forward"] is own
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(x, 0.5).noise, before)
    assert not torch.equal(apart, before)


def test_guidance_of_a_thinned_model_is_the_guided_model_thinned():
    """The blocks of a guided model are those of the model inside, under its name."""
    model = orn.Denoiser(mlp(labels=2), PROCESS, "noise", null={"label": orn.nets.NULL})
    x, cond = normal(3, 2), {"label": torch.tensor([0, 1, 1])}
    guided = orn.CFG(model, scale=2.0)
    blocks = residual_blocks(guided, x, cond=cond)
    assert list(blocks) == [f"model.net.blocks.{k}" for k in range(3)]
    assert blocks == pytest.approx({f"model.{k}": v for k, v in residual_blocks(model, x, cond=cond).items()})
    inside = orn.CFG(Skipping(model, residual_blocks(model, x, cond=cond), {1.0: {"net.blocks.1"}}), scale=2.0)
    outside = Skipping(guided, blocks, {1.0: {"model.net.blocks.1"}})
    assert torch.equal(inside(x, 0.4, cond).x0, outside(x, 0.4, cond).x0)
    assert outside.cost(LEVELS) == [2, 2, 2]


def test_refusals():
    model = orn.Denoiser(mlp(), PROCESS, "noise")
    x = normal(2, 2)
    blocks = residual_blocks(model, x)
    for name in ("net.blocks.3", "net.first", "net.blocks"):  # unknown; changes the shape; no block
        with pytest.raises(ValueError, match=f"'{name}' at t = 1, which is no residual block .* net.blocks.2"):
            Skipping(model, blocks, {1.0: {name}})
    with pytest.raises(ValueError, match="a set of names"):
        Skipping(model, blocks, {1.0: "net.blocks.0"})
    with pytest.raises(ValueError, match="an empty plan"):
        Skipping(model, blocks, {})
    with pytest.raises(ValueError, match="another model's"):
        Skipping(ring().denoiser(PROCESS), blocks, {1.0: set()})
    late = Skipping(model, blocks, {0.5: {"net.blocks.0"}})
    with pytest.raises(ValueError, match=r"the plan begins at t = 0.5, this level is at t = 0.6"):
        late(x, 0.6)
    with pytest.raises(ValueError, match="times for each sample"):
        late(x, torch.tensor([0.1, 0.2], dtype=F64))
    with pytest.raises(ValueError, match="no residual blocks"):
        residual_blocks(ring().denoiser(PROCESS), x)
    with pytest.raises(ValueError, match="no residual blocks"):
        residual_blocks(orn.Denoiser(lambda x, t: x, PROCESS, "noise"), x)
    lessons = teach(model, x_init=x, steps=10)
    with pytest.raises(ValueError, match=r"budget=1.5: 2 steps with the whole network take 2"):
        AutoDiffusion().joint(lessons, 4, blocks, 1.5)
    with pytest.raises(ValueError, match=r"budget=2.5: 20 steps without .* take"):
        AutoDiffusion().joint(lessons, 20, blocks, 2.5)
    with pytest.raises(ValueError, match="2 to 100 steps"):
        AutoDiffusion().joint(lessons, 101, blocks, 4.0)


def test_compiled_networks_are_refused():
    """Their code would go on computing what is left out."""
    net = mlp()
    model = orn.Denoiser(net, PROCESS, "noise")
    blocks = residual_blocks(model, normal(2, 2))
    net.compile(backend="eager")
    with pytest.raises(ValueError, match="net is compiled"):
        Skipping(model, blocks, {1.0: set()})
