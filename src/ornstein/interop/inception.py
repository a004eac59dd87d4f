"""Inception features of images, and FID by them: torch-fidelity's network, which gives the published figures."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import pickle
import sys
import types
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ornstein._extras import require
from ornstein.errors import CheckpointError
from ornstein.metrics import Statistics, frechet_distance
from ornstein.metrics.statistics import arrays_of

FEATURES = 2048
"""Entries of the last pooling layer, on which FID and KID are quoted."""

WEIGHTS = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""The same weights as torch-fidelity and as pytorch-fid name them."""

PathLike: TypeAlias = str | os.PathLike[str]


class Inception:
    """f(x) = pool_3(Inception-v3(x)): images (n, 3, h, w) -> (n, 2048) float64 on the host.

    The network is the one of the TensorFlow graph of 2015-12-05 that FID is defined by, with its own bilinear resizing
    to 299 x 299, in float32 without TF32. Images are RGB: uint8 in 0 .. 255, or floating in [-1, 1], which become
    floor(127.5 x + 128) in 0 .. 255 (EDM's rounding), since published figures are of 8-bit images.

    `weights`: path of the state dictionary, by default one of `WEIGHTS` in torch.hub's folder of checkpoints;
    `download` fetches it there if it is missing. `batch_size` images pass at once on `device`.

    An instance serves as `features` of `frechet_distance`, or in a stream: Statistics.of(map(Inception(), batches)).

    Errors: ImportError without torch-fidelity (the extra `fid`); FileNotFoundError, with the way out, where the weights
    are missing; CheckpointError on a file that does not hold them; ValueError on images of other shapes, types, ranges.

    Source: Szegedy et al. 2016 (arXiv:1512.00567); as features of FID, Heusel et al. 2017 (arXiv:1706.08500).
    """

    def __init__(
        self,
        weights: PathLike | None = None,
        *,
        batch_size: int = 32,
        device: str | torch.device = "cpu",
        download: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.device = torch.device(device)
        module = _module()
        path = _find(weights, module.URL_INCEPTION_V3, download)
        self.net = _load(module, path).to(self.device)

    def __call__(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, 2048) float64 on the host."""
        _check(images)
        found = [torch.zeros(0, FEATURES, dtype=torch.float64)]
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for part in torch.split(images, self.batch_size):
                (features,) = self.net(_pixels(part.to(self.device)))
                found.append(features.double().cpu())
        return torch.cat(found)


def inception_features(
    images: Tensor | Iterable[Tensor],
    *,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    weights: PathLike | None = None,
    download: bool = False,
) -> Tensor:
    """f_i = Inception(x_i): images (n, 3, h, w), or batches of them, -> (n, 2048) float64 on the host.

    Options, units, errors and source as for `Inception`, which spares loading the weights again.
    """
    net = Inception(weights, batch_size=batch_size, device=device, download=download)
    return torch.cat([net(batch) for batch in ([images] if isinstance(images, Tensor) else images)])


def fid(
    x: Tensor | Iterable[Tensor] | Statistics | PathLike,
    reference: Tensor | Iterable[Tensor] | Statistics | PathLike,
    *,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    weights: PathLike | None = None,
    download: bool = False,
) -> float:
    """FID = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^{1/2}) of Inception features.

    Either side: images (n, 3, h, w) as `Inception` takes them; features (n, d) taken before; batches of the one or the
    other, which are streamed; `Statistics`; or the path of their `.npz`. Only images load the network.

    FID falls with the number of samples: published figures are of 50 000, and a figure of another number says nothing
    beside them. Warns where a side has no more samples than features: its covariance is singular.

    Errors as for `Inception`, `Statistics`, `frechet_distance`. Source: Heusel et al. 2017 (arXiv:1706.08500), eq. 6.
    """
    net: list[Inception] = []

    def features(batch: Tensor) -> Tensor:
        if batch.ndim == 2:
            return batch
        if not net:
            net.append(Inception(weights, batch_size=batch_size, device=device, download=download))
        return net[0](batch)

    sides: list[Statistics] = []
    for name, side in (("x", x), ("reference", reference)):
        if isinstance(side, (str, os.PathLike)):
            side = Statistics.load(side)
        elif not isinstance(side, Statistics):
            side = Statistics.of(map(features, [side] if isinstance(side, Tensor) else side))
        if side.count is not None and side.count <= side.features:
            warnings.warn(
                f"{name} has {side.count} samples for {side.features} features: its covariance is singular and FID far "
                "too large; published figures are of 50000",
                stacklevel=2,
            )
        sides.append(side)
    return frechet_distance(sides[0], sides[1])


def adm_images(path: PathLike) -> Tensor:
    """The images of an ADM sample or reference batch: `arr_0` (n, h, w, 3) uint8 -> (n, 3, h, w) uint8.

    Errors: FileNotFoundError; CheckpointError on a file that is no such batch.
    Source: Dhariwal and Nichol 2021 (arXiv:2105.05233), the form of its sample batches.
    """
    images = torch.from_numpy(arrays_of(path, ("arr_0",))["arr_0"])
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise CheckpointError(
            f"{os.fspath(path)}: arr_0 must be (n, h, w, 3) uint8, got {images.dtype} of shape {tuple(images.shape)}"
        )
    return images.permute(0, 3, 1, 2)


def _module() -> Any:
    """torch-fidelity's module of Inception alone: the package's own import needs torchvision, for other networks."""
    name = "torch_fidelity.feature_extractor_inceptionv3"
    if sys.modules.get("torch_fidelity") is not None:
        return importlib.import_module(name)
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None or spec.submodule_search_locations is None:
        return require("torch_fidelity", extra="fid")  # raises, and names the extra
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"torch-fidelity has no {name} ({error}): pip install -U 'ornstein[fid]'") from error
    finally:  # whoever imports the package later gets the whole of it
        for key in [key for key in sys.modules if key.partition(".")[0] == "torch_fidelity"]:
            del sys.modules[key]


def _find(weights: PathLike | None, url: str, download: bool) -> Path:
    """The file of the weights: the one given, or one at its usual place, fetched there if asked."""
    if weights is not None:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"weights={os.fspath(weights)!r} is no file: give the path of {WEIGHTS[0]}, {url}")
        return Path(weights)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    target = folder / WEIGHTS[0]
    way_out = f"get {url} and put it at {target}, or give its path as weights=..."
    if not download:
        raise FileNotFoundError(
            f"Inception's weights are not on this machine: {way_out}, or allow download=True (95 MB)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(target), progress=False)
    except OSError as error:
        raise FileNotFoundError(f"Inception's weights cannot be downloaded ({error}): {way_out}") from error
    return target


def _load(module: Any, path: Path) -> torch.nn.Module:
    content = io.BytesIO(path.read_bytes())
    try:
        torch.load(content, map_location="cpu", weights_only=True)  # the constructor would unpickle anything
        content.seek(0)
        with torch.random.fork_rng(devices=[]):  # nor may its random start move the caller's generator
            net: torch.nn.Module = module.FeatureExtractorInceptionV3("inception", [str(FEATURES)], content)
    except (pickle.UnpicklingError, RuntimeError, TypeError, ValueError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path} does not hold Inception's weights ({WEIGHTS[0]}): {reason}") from error
    return net


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        grey = "; repeat the channel of grey images: x.expand(-1, 3, -1, -1)" * (
            images.ndim == 4 and images.shape[1] == 1
        )
        last = "; move the channels: x.permute(0, 3, 1, 2)" * (images.ndim == 4 and images.shape[3] == 3)
        raise ValueError(f"images must be RGB (n, 3, h, w), got shape {tuple(images.shape)}{grey or last}")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 in 0 .. 255 or floating in [-1, 1], got {images.dtype}")
    if images.numel() == 0:
        return
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -1 and high <= 1):  # NaN too
        raise ValueError(
            f"floating images must be in [-1, 1], got {low:.6g} .. {high:.6g}: samples that overshoot take "
            "x.clamp(-1, 1), pixels in 0 .. 255 take .to(torch.uint8)"
        )
    if low >= 0:
        warnings.warn("no pixel is below 0: images in [0, 1] must be given as 2 x - 1", stacklevel=3)


def _pixels(images: Tensor) -> Tensor:
    """[-1, 1] -> 0 .. 255 uint8, each level the nearest."""
    if images.dtype == torch.uint8:
        return images
    return (127.5 * images.float() + 128).floor().clamp(0, 255).to(torch.uint8)
