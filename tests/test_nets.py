"""Networks: what forward mode, compilation, batching and conditioning promise, in float64 with every weight random."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ornstein.nets import MLP, NULL, DiT, Net, UNet
from ornstein.nets.blocks import Attention
from ornstein.nets.dit import _positions
from ornstein.nets.embedding import LabelEmbedding, TimeEmbedding


def mlp(**options: Any) -> Net:
    return MLP((2, 3), width=16, depth=2, **options)


def unet(**options: Any) -> Net:
    return UNet(2, width=8, levels=(1, 2), blocks=1, heads=2, **options)


def dit(**options: Any) -> Net:
    return DiT(2, (4, 6), width=8, depth=2, heads=2, **options)


EVENT = {mlp: (2, 3), unet: (2, 5, 7), dit: (2, 4, 6)}
CHANNELS = {mlp: 6, unet: 2, dit: 2}
Build = Callable[..., Net]
every = pytest.mark.parametrize("build", EVENT)
BATCH = 4


def randomised(net: nn.Module, seed: int = 0) -> Any:
    """Every weight random, so that no zero initialisation hides a path; of a size that keeps activations near 1."""
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) / math.sqrt(p[0].numel() if p.ndim > 1 else 4)
    return net.double().eval()


def inputs(build: Build, seed: int = 1) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, *EVENT[build], generator=g, dtype=torch.float64)
    y = torch.randn(BATCH, *EVENT[build], generator=g, dtype=torch.float64)
    return (
        x,
        torch.rand(BATCH, generator=g, dtype=torch.float64),
        {"label": torch.tensor([0, 2, 1, NULL]), "degraded": y},
    )


def full(build: Build, **options: Any) -> Any:
    return randomised(build(labels=3, conditions={"degraded": CHANNELS[build]}, **options))


@every
def test_forward_mode_is_the_derivative(build: Build) -> None:
    """Central differences with h = 1e-5 err by (w h)^2 / 6 = 2e-7 for the fastest frequency w = 100 (a few times that
    through the layers), and by eps / h = 2e-11: 1e-5 of the derivative's size bounds both. Reverse mode to rounding."""
    net, (x, t, cond) = full(build), inputs(build)
    g = torch.Generator().manual_seed(2)
    dx, dt = torch.randn(x.shape, generator=g, dtype=x.dtype), torch.randn(t.shape, generator=g, dtype=t.dtype)
    for ux, ut in ((dx, 0 * dt), (0 * dx, dt)):
        _, derivative = torch.func.jvp(lambda x, t: net(x, t, cond), (x, t), (ux, ut))
        h = 1e-5
        difference = (net(x + h * ux, t + h * ut, cond) - net(x - h * ux, t - h * ut, cond)) / (2 * h)
        assert derivative.norm() > 0.1
        assert (derivative - difference).norm() < 1e-5 * derivative.norm()
        answer, pullback = torch.func.vjp(lambda x, t: net(x, t, cond), x, t)
        covector = torch.randn(answer.shape, generator=g, dtype=x.dtype)
        gx, gt = pullback(covector)
        forward, backward = (covector * derivative).sum(), (gx * ux).sum() + (gt * ut).sum()
        scale = covector.norm() * derivative.norm()
        assert abs(forward - backward) < 1e-11 * scale


@every
def test_each_input_matters_and_only_to_its_own_sample(build: Build) -> None:
    net, (x, t, cond) = full(build), inputs(build)
    answer = net(x, t, cond)
    assert answer.shape == x.shape
    changed = {
        "x": (x + 0.5, t, cond),
        "t": (x, t + 0.05, cond),
        "label": (x, t, cond | {"label": torch.tensor([1, 0, NULL, 2])}),
        "degraded": (x, t, cond | {"degraded": cond["degraded"] + 0.5}),
    }
    for name, arguments in changed.items():
        moved = (net(*arguments) - answer).flatten(1).norm(dim=1) / answer.flatten(1).norm(dim=1)
        assert moved.min() > 1e-3, name
    order = torch.tensor([2, 0, 3, 1])
    permuted = net(x[order], t[order], {name: value[order] for name, value in cond.items()})
    torch.testing.assert_close(permuted, answer[order], rtol=1e-11, atol=1e-11)
    for i in range(BATCH):  # alone, and in company of non-finite samples: a leak would show as NaN
        poisoned = torch.full_like(x, math.nan)
        poisoned[i] = x[i]
        torch.testing.assert_close(net(poisoned, t, cond)[i], answer[i], rtol=1e-11, atol=1e-11)
        alone = net(x[i : i + 1], t[i], {name: value[i : i + 1] for name, value in cond.items()})  # and a scalar time
        torch.testing.assert_close(alone[0], answer[i], rtol=1e-11, atol=1e-11)


def test_per_sample_jacobians_by_vmap() -> None:
    net, (x, t, cond) = full(mlp), inputs(mlp)

    def one(x: Tensor, t: Tensor, label: Tensor, y: Tensor) -> Tensor:
        answer: Tensor = net(x[None], t[None], {"label": label[None], "degraded": y[None]})[0]
        return answer

    jacobian = torch.func.vmap(torch.func.jacfwd(one))(x, t, cond["label"], cond["degraded"])
    whole = torch.func.jacrev(lambda x: net(x, t, cond))(x)
    own = torch.stack([whole[i, ..., i, :, :] for i in range(BATCH)])
    torch.testing.assert_close(jacobian, own, rtol=1e-10, atol=1e-10)
    assert whole.abs().sum().item() == pytest.approx(own.abs().sum().item())


@every
def test_a_new_network_answers_zero_and_learns(build: Build) -> None:
    torch.manual_seed(0)
    net = build(outputs=("main", "variance")).double()
    x, t, _ = inputs(build)
    answer = net(x, t)
    assert list(answer) == ["main", "variance"]
    assert all(not head.any() for head in answer.values())
    bias = (net.last if build is dit else net.last[-1]).bias  # (answers, ...): main's channels first, then variance's
    bias.data = torch.tensor([1.0, 2.0], dtype=torch.float64).repeat_interleave(len(bias) // 2)
    answer = net(x, t)
    assert torch.equal(answer["main"], torch.ones_like(x))
    assert torch.equal(answer["variance"], 2 * torch.ones_like(x))

    net = build(labels=3).double()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    label = torch.arange(BATCH) % 3
    target = label.view(-1, *[1] * (x.ndim - 1)) - 1.0 + 0.5 * x  # needs both the label and x
    losses = []
    for _ in range(60):
        losses.append((net(x, t, {"label": label}) - target).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())  # no weight without a purpose


def test_null_has_a_row_of_its_own() -> None:
    embed = LabelEmbedding(3, 4)
    label = torch.tensor([NULL, 0, 1, 2, NULL])
    assert torch.equal(embed(label), embed.table[[3, 0, 1, 2, 3]])
    assert torch.equal(embed(label.to(torch.uint8)[1:4]), embed.table[:3])
    embed(torch.tensor([NULL])).sum().backward()
    assert embed.table.grad is not None
    assert embed.table.grad.any(dim=1).tolist() == [False, False, False, True]


@pytest.mark.parametrize("bad", [3, 4, -2, -3, 100, -(2**40)])
def test_label_out_of_range(bad: int) -> None:
    """3 = labels is the row of NULL and -2 a row from the end: plain indexing would read both silently."""
    net = MLP(2, labels=3, width=8, depth=1)
    with pytest.raises(ValueError, match=rf"label {bad} is out of range: this network knows 0 to 2, and NULL = -1"):
        net(torch.zeros(2, 2), torch.zeros(2), {"label": torch.tensor([1, bad])})


def test_time_embedding() -> None:
    """[sin(w t), cos(w t)], w geometric from 0.25 to 100. Neighbours 0.01 apart in [0, 1] differ by 2 sin(w / 200) in
    every pair (w): 0.96 for w = 100. The slowest sine alone orders [-5, 5], as 0.25 * 5 < pi / 2."""
    embed = TimeEmbedding(8)
    features = []
    embed.layers.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    t = torch.linspace(0, 1, 101)
    embed(t)
    w = 0.25 * 400 ** (torch.arange(32) / 31)
    torch.testing.assert_close(
        features[0], torch.cat([(t[:, None] * w).sin(), (t[:, None] * w).cos()], 1), rtol=0, atol=2e-5
    )
    assert features[0].diff(dim=0).norm(dim=1).min() > 0.9
    embed(torch.linspace(-5, 5, 101))
    assert (features[1][:, 0].diff() > 0).all()


def test_attention_is_the_fused_one() -> None:
    attention = randomised(Attention(12, 3))
    h = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in attention.qkv(h).chunk(3, dim=-1))
    fused = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(h), attention.out(fused), rtol=1e-12, atol=1e-12)


def test_dit_starts_as_the_identity_on_patches() -> None:
    """adaLN-Zero: the gates are 0, so each block is the identity; a pixel moves the answer in its own patch only."""
    net = randomised(DiT(2, (4, 6), patch=2, width=8, depth=2, heads=2))
    for block in net.blocks:
        nn.init.zeros_(block.modulation.weight)
        nn.init.zeros_(block.modulation.bias)
    x = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: net(x, torch.tensor(0.3, dtype=x.dtype)))(x)[0, :, :, :, 0]
    moved = jacobian.abs().sum(dim=(0, 3)) > 1e-9  # (row, column of the answer, row, column of x)
    patch = (torch.arange(4)[:, None] // 2 * 3 + torch.arange(6) // 2).flatten()
    assert torch.equal(moved.reshape(24, 24), patch[:, None] == patch)
    # each pixel keeps its place within the patch: last = pseudo-inverse of first gives x back if norms are taken away
    net = DiT(2, (4, 6), patch=2, width=8, depth=0, heads=2).double()
    net.norm, net.positions = nn.Identity(), torch.zeros_like(net.positions)
    net.first.bias.data.zero_()
    net.last.weight.data = torch.linalg.inv(net.first.weight.data)
    torch.testing.assert_close(net(x, torch.zeros(1, dtype=x.dtype)), x, rtol=1e-9, atol=1e-9)


def test_residual_branches_add_to_the_identity() -> None:
    """With its branch at 0 a block passes h on unchanged; new DiT blocks and U-Net attentions start there."""
    g = torch.Generator().manual_seed(0)
    tokens, e = torch.randn(2, 6, 8, generator=g), torch.randn(2, 8, generator=g)
    dit_block = DiT(1, 4, width=8, depth=1, heads=2).blocks[0]
    assert torch.equal(dit_block(tokens, e), tokens)
    image = torch.randn(2, 8, 3, 3, generator=g)
    assert torch.equal(UNet(1, width=8, levels=(1,)).down[0].attention(image), image)
    mlp_block = MLP(2, width=8, depth=1).blocks[0]
    for p in mlp_block.branch[-1].parameters():
        p.data.zero_()
    assert torch.equal(mlp_block(tokens[:, 0], e), tokens[:, 0])


def test_unet_skips_carry_the_fine_levels() -> None:
    net, (x, t, _) = randomised(unet()), inputs(unet)
    net.down[-1].register_forward_hook(lambda _, given, out: torch.zeros_like(out))  # cut the coarse path
    assert (net(x + 0.5, t) - net(x, t)).norm() > 0.01 * net(x, t).norm()


def test_dit_knows_where_a_patch_is() -> None:
    """Attention alone commutes with any order of the patches: without positions the two answers would be equal."""
    net, (x, t, _) = randomised(dit()), inputs(dit)
    assert (net(x.roll(2, dims=2), t).roll(-2, dims=2) - net(x, t)).norm() > 0.01 * net(x, t).norm()


def test_dit_positions_differ() -> None:
    positions = _positions(3, 4, 8)
    w = torch.tensor([1.0, 0.01])
    place = torch.cat([torch.sin(2 * w), torch.cos(2 * w), torch.sin(1 * w), torch.cos(1 * w)])  # row 2, column 1
    torch.testing.assert_close(positions[2 * 4 + 1], place)
    assert torch.cdist(positions, positions).add(torch.eye(12)).min() > 0.5


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (8, 8), (9, 4)])
def test_unet_of_any_size(size: tuple[int, int]) -> None:
    """The coarsest level has ceil(size / 4) pixels and is grown to exactly the size of each skip."""
    net = randomised(UNet(1, width=8, levels=(1, 2, 2), blocks=1, heads=2))
    seen = []
    net.down[-1].register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[2:])))
    x = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.rand(2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    answer = net(x, t)
    assert answer.shape == x.shape
    assert answer.isfinite().all()
    assert seen == [(-(-size[0] // 4), -(-size[1] // 4))]


def test_unet_levels_and_attention() -> None:
    """Far pixels meet through attention; without it, on one level of one block, only five 3x3 kernels wide (the norms
    mix everything, so they are taken away)."""

    def reach(attention: tuple[int, ...], levels: tuple[int, ...] = (1,)) -> int:
        net = randomised(UNet(1, width=8, levels=levels, blocks=1, heads=2, attention=attention))
        for module in net.modules():
            for name, child in module.named_children():
                if isinstance(child, nn.GroupNorm):
                    setattr(module, name, nn.Identity())
        x = torch.randn(1, 1, 1, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        gradient = torch.func.grad(lambda x: net(x, torch.zeros(1, dtype=x.dtype))[0, 0, 0, 0])(x)
        return int(gradient.flatten().nonzero().max())

    assert reach(()) == 4  # first, conv1, conv2, last: one pixel each
    assert reach((0,)) == 32
    assert 4 < reach((), (1, 1)) < 32  # the coarser level sees further
    assert reach((-1,), (1, 1)) == 32


def test_mlp_of_any_event_shape() -> None:
    t = torch.rand(BATCH, dtype=torch.float64)
    x = torch.randn(BATCH, 6, dtype=torch.float64)
    net = randomised(MLP(6, width=8, depth=1))
    torch.testing.assert_close(net(x.view(BATCH, 3, 2), t), net(x, t).view(BATCH, 3, 2))
    scalar = randomised(MLP((), width=8, depth=1))
    assert scalar(x[:, 0], t).shape == (BATCH,)
    assert net(x[:0], t[:0]).shape == (0, 6)


def test_a_condition_of_zero_features_is_accepted_and_not_read() -> None:
    net, (x, t, cond) = randomised(mlp(conditions={"mean": 0})), inputs(mlp)
    assert torch.equal(net(x, t, {"mean": cond["degraded"]}), randomised(mlp())(x, t))


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.add(func.overloadpacket.__name__)
        self.dtypes |= {part.dtype for part in torch.utils._pytree.tree_leaves(out) if isinstance(part, Tensor)}
        return out


@every
def test_no_synchronisation_and_no_foreign_dtype(build: Build) -> None:
    net, (x, t, cond) = full(build).float(), inputs(build)
    with torch.no_grad(), _Watch() as watch:
        net(x.float(), t.float(), {"label": cond["label"], "degraded": cond["degraded"].float()})
    assert watch.dtypes <= {torch.float32, torch.int64, torch.bool}
    assert not watch.operations & {"_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal"}


@every
def test_every_dtype(build: Build) -> None:
    """float32 agrees with its float64 twin to 1e-4 of the answer, bfloat16 (8 bits, about 20 layers, embedding angles
    up to 100 rounded by 0.4 at t in [0, 1]: so at t = 0, where they are exact) to 10 %."""
    net, (x, t, cond) = full(build), inputs(build)
    t = 0 * t
    truth = net(x, t, cond)
    for dtype, error in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        twin = net.to(dtype)
        answer = twin(x.to(dtype), t.to(dtype), {"label": cond["label"], "degraded": cond["degraded"].to(dtype)})
        assert answer.dtype == dtype
        assert (answer.double() - truth).norm() < error * truth.norm()
        assert (answer.double() - truth).norm() > 0


COMPILE = """
import torch
from ornstein.nets import MLP, DiT, UNet
torch.set_num_threads(1)
torch.manual_seed(0)
for net, event, extra in (
    (MLP(6, labels=3, width=8, depth=1, conditions={"y": 6}, outputs=("main", "variance")), (6,), {"y": 6}),
    (UNet(1, labels=3, width=8, levels=(1, 1), blocks=1, heads=2), (1, 5, 5), {}),
    (DiT(1, 4, labels=3, width=8, depth=1, heads=2), (1, 4, 4), {}),
):
    for p in net.parameters():
        p.data.normal_().mul_(0.3)
    backend = "aot_eager" if isinstance(net, MLP) else "eager"
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for labels in ([0, 2, -1], [1, 1, 0]):
        x, t = torch.randn(3, *event), torch.rand(3)
        cond = {"label": torch.tensor(labels)} | {name: torch.randn(3, n) for name, n in extra.items()}
        with torch._dynamo.config.patch(error_on_recompile=labels == [1, 1, 0]):  # other values, the same graph
            torch.testing.assert_close(compiled(x, t, cond), net(x, t, cond))
print("whole graphs")
"""


def test_compiles_to_one_graph() -> None:
    """In a process of its own, where no import hook wraps the functions, as a user's is."""
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False)
    assert done.stdout == "whole graphs\n", done.stderr[-3000:]


X, T = torch.zeros(2, 6), torch.zeros(2)
LABEL, Y = torch.zeros(2, dtype=torch.long), torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, T), r"needs cond\['label'\] \(NULL = -1 where there is none\): it was given \[\]"),
        ((X, T, {"label": LABEL}), r"needs cond\['y'\]: it was given \['label'\]"),
        ((X, T, {"label": LABEL, "y": Y, "z": Y}), r"knows no cond\['z'\]: build it with conditions=\{'z'"),
        ((X, T, LABEL), "cond is a Tensor: this network reads a dict"),
        ((X, T, {"label": T, "y": Y}), r"cond\['label'\] is torch.float32 of shape \(2,\): integers of shape \(2,\)"),
        ((X, T, {"label": LABEL[:1], "y": Y}), r"cond\['label'\] is torch.int64 of shape \(1,\)"),
        ((X, T, {"label": LABEL, "y": Y[:, :5]}), r"cond\['y'\] has shape \(2, 5\): 6 features"),
        ((X, T, {"label": LABEL, "y": Y[:1]}), r"cond\['y'\] has shape \(1, 6\), and x \(2, 6\)"),
        ((X[:, :4], T, {"label": LABEL, "y": Y}), r"x has shape \(2, 4\): 6 features"),
        ((X, torch.zeros(3), {"label": LABEL, "y": Y}), r"t has shape \(3,\).*\(2,\)"),
        ((X, torch.zeros(2, 1), {"label": LABEL, "y": Y}), r"t has shape \(2, 1\)"),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(6, labels=3, width=8, depth=1, conditions={"y": 6})(*arguments)


def test_bad_images() -> None:
    with pytest.raises(ValueError, match=r"x has shape \(2, 3, 4, 4\): \(batch, 1, height, width\)"):
        UNet(1, width=8)(torch.zeros(2, 3, 4, 4), T)
    with pytest.raises(ValueError, match=r"cond\['y'\] has shape \(2, 1, 4, 5\), and x \(2, 1, 4, 4\)"):
        UNet(1, width=8, conditions={"y": 1})(torch.zeros(2, 1, 4, 4), T, {"y": torch.zeros(2, 1, 4, 5)})
    with pytest.raises(ValueError, match=r"x has shape \(2, 1, 6, 6\): \('batch', 1, 4, 4\)"):
        DiT(1, 4, width=8, heads=2, depth=1)(torch.zeros(2, 1, 6, 6), T)
    with pytest.raises(ValueError, match=r"knows no cond\['label'\]: build it with labels="):
        UNet(1, width=8)(torch.zeros(2, 1, 4, 4), T, {"label": LABEL})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(2, labels=-1), "labels=-1"),
        (lambda: MLP(2, outputs=("variance", "main")), "the first one 'main'"),
        (lambda: MLP(2, outputs=("main", "main")), "distinct"),
        (lambda: MLP(2, conditions={"label": 3}), "labels are embedded"),
        (lambda: UNet(1, levels=(1, 2), attention=(2,)), "attention at level 2: this network has levels 0 to 1"),
        (lambda: UNet(1, width=5, heads=4), "width=10 is not divisible by heads=4"),
        (lambda: DiT(1, 5, patch=2), r"patch=2 does not divide the image size \(5, 5\)"),
        (lambda: DiT(1, (4, 5), patch=2), r"\(4, 5\)"),
        (lambda: DiT(1, 4, width=6, heads=2), "width=6 is not a multiple of 4"),
    ],
)
def test_bad_construction(build: Callable[[], Net], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("length", [9, 16])
def test_a_unet_of_series_is_one_of_images_of_height_one(length: int) -> None:
    """Of an image of one row a kernel of 3 x 3 meets that row with its middle one; all else is padding."""
    options: dict[str, Any] = {"labels": 3, "width": 8, "levels": (1, 2, 2), "blocks": 1, "heads": 2}
    series = randomised(UNet(2, axes=1, conditions={"observed": 2}, **options))
    images = UNet(2, axes=2, conditions={"observed": 2}, **options).double().eval()
    flat = series.state_dict()
    for name, tensor in images.state_dict().items():
        own = flat[name]
        if tensor.ndim == 4:  # what padding meets may be anything: here it is noise
            wide = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            wide[:, :, tensor.shape[2] // 2] = own
            tensor.copy_(wide)
        else:
            tensor.copy_(own)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(4, 2, length, generator=g, dtype=torch.float64)
    observed = (torch.rand(4, 2, length, generator=g) > 0.3).double()
    t, label = torch.rand(4, generator=g, dtype=torch.float64), torch.tensor([0, 1, 2, NULL])
    here = series(x, t, {"observed": observed, "label": label})
    there = images(x[:, :, None], t, {"observed": observed[:, :, None], "label": label})
    assert here.shape == x.shape
    assert torch.allclose(here, there[:, :, 0], atol=1e-10)
    with pytest.raises(ValueError, match="length"):
        series(x[:, :, None], t, {"observed": observed[:, :, None], "label": label})
    with pytest.raises(ValueError, match="axes=3"):
        UNet(2, axes=3, **options)
