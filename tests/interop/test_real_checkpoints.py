"""The script that judges published checkpoints: on a tiny random pipeline, resumed, and where there is no hub."""

import json

import diffusers
import numpy as np
import pytest
import torch

import real_checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random DDPM of 8 x 8 pixels, as `save_pretrained` writes it. It predicts x0, and weakly depends on the state,
    so that its flow has an end as that of a trained model does: net(x, 0) is near one x0 for all x."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.3)
    path = tmp_path_factory.mktemp("tiny")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="sample", timestep_spacing="trailing")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(path)
    return path


def run(*arguments):
    options = ["--steps", "5,10", "--seeds", "2", "--reference", "80", "--device", "cpu"]
    return real_checkpoints.main([*map(str, arguments), *options])


def test_a_checkpoint_is_judged_and_resumed(folder, tmp_path, capsys):
    """Distances fall with the steps, both samplers' (the reference is the limit of either), and a second run samples
    only what is missing, with the same noise: the same distances."""
    assert run("--checkpoint", folder, "--out", tmp_path) == 0
    (results,) = tmp_path.glob("*/results.json")
    found = json.loads(results.read_text())
    assert found["settings"]["pipeline"] == "DDPMPipeline"
    assert found["settings"]["diffusers"] == diffusers.__version__
    rows = found["rows"]
    assert set(rows) == {
        "reference-80",
        "half-the-reference-40",
        *(f"{name}-{n}" for name in ("published-ddimscheduler", "ours-dpm-2m", "ours-unipc") for n in (5, 10)),
    }
    for name in ("published-ddimscheduler", "ours-dpm-2m", "ours-unipc"):
        assert rows[f"{name}-10"]["distance"] < rows[f"{name}-5"]["distance"]
    assert rows["half-the-reference-40"]["distance"] < rows["ours-dpm-2m-10"]["distance"]
    images = np.load(results.parent / "ours-unipc-10.npy")
    reference = np.load(results.parent / "reference-80.npy")
    assert images.shape == (2, 8, 8, 3)
    assert images.std() > 0.01
    each = np.sqrt(((images.astype(float) - reference) ** 2).mean((1, 2, 3)))
    assert rows["ours-unipc-10"]["distances"] == pytest.approx(each, rel=1e-3)
    assert rows["ours-unipc-10"]["distance"] == pytest.approx(np.median(each), rel=1e-3)
    assert (results.parent / "images.png").read_bytes()[:4] == b"\x89PNG"

    before = dict(rows)
    found["rows"].pop("ours-unipc-10")
    results.write_text(json.dumps(found))
    assert run("--checkpoint", folder, "--out", tmp_path) == 0
    after = json.loads(results.read_text())["rows"]
    again = after.pop("ours-unipc-10")
    assert again["distances"] == before.pop("ours-unipc-10")["distances"]
    assert after == before  # seconds too: nothing else ran
    assert "10 steps" in capsys.readouterr().out


def test_every_run_begins_with_the_noise_of_its_seeds(folder):
    """The network first sees one noise a seed: the same for each sampler, number of steps and number of seeds; and what
    it is asked after that is the run's own scheduler's."""
    pipe = real_checkpoints.orn.load(folder).pipeline
    pipe.set_progress_bar_config(disable=True)
    seen = []
    pipe.unet.register_forward_pre_hook(lambda net, arguments: seen.append(arguments))
    expected = [torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for run, seeds in zip(real_checkpoints.plan(pipe.scheduler, [4, 6], 8), (3, 2, 3, 2, 3, 2, 3, 2), strict=True):
        seen.clear()
        real_checkpoints.sample(pipe, run, seeds)
        assert torch.equal(seen[0][0], torch.cat(expected[:seeds]))
        assert [float(t) for _, t in seen] == run.scheduler.timesteps.tolist()
        assert len(seen) == run.steps


def test_results_of_other_settings_are_not_mixed(folder, tmp_path, capsys):
    results = tmp_path / real_checkpoints.re.sub(r"\W+", "-", str(folder)).strip("-") / "results.json"
    results.parent.mkdir()
    results.write_text(json.dumps({"settings": {"seeds": 7}, "rows": {}}))
    assert run("--checkpoint", folder, "--out", tmp_path) == 1
    assert "other settings" in capsys.readouterr().err


def test_without_the_hub_it_says_what_is_missing(tmp_path, capsys, monkeypatch):
    """Nothing in the cache and the hub not asked: every checkpoint is named, and the way out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    names = ("google/nowhere-1", "google/nowhere-2")
    assert run("--checkpoint", *names, "--offline", "--out", tmp_path / "out") == 1
    printed = capsys.readouterr()
    for name in names:
        assert name in printed.err
    assert "it is not here, and the hub did not give it" in printed.err
    assert "--checkpoint path/to/folder" in printed.err
    assert not (tmp_path / "out").exists()


def test_another_kind_of_model_is_refused_by_name(tmp_path, capsys):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    unet.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "unet")
    assert run("--checkpoint", tmp_path / "unet", "--out", tmp_path / "out") == 1
    assert "DDPMPipeline" in capsys.readouterr().err
