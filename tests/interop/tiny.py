"""Pipelines of diffusers with tiny random networks: one layer, a few channels, all seeds fixed."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    KandinskyV22Pipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
    VQModel,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = ("a", "red", "blue", "cat", "dog")


def seeded(make, *args, seed=0, **options):
    """A module with random weights, none of them zero (many start their last layer there)."""
    torch.manual_seed(seed)
    module = make(*args, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            if not bool(parameter.any()):
                parameter.normal_(0, 0.1)
    return module.eval()


def tokenizer(length=8):
    words = {word: i for i, word in enumerate(("<pad>", "<unk>", *WORDS, "</s>"))}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=length
    )


def clip(width=8, kind=CLIPTextModel, seed=1):
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=width, eos_token_id=7, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return seeded(kind, config, seed=seed)


def t5(width=8, seed=2):
    config = T5Config(vocab_size=8, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return seeded(T5EncoderModel, config, seed=seed)


def vae(channels=4, **options):
    return seeded(
        AutoencoderKL,
        seed=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
        **options,
    )


def unet(channels=3, classes=None, **options):
    return seeded(
        UNet2DModel,
        sample_size=8,
        in_channels=channels,
        out_channels=options.pop("out_channels", channels),
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=classes,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **options,
    )


def text_unet(width=8, **options):
    return seeded(
        UNet2DConditionModel,
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (8, 8),
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": width,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            **options,
        },
    )


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def normal(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DISCRETE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SD = {**DISCRETE, "steps_offset": 1, "set_alpha_to_one": False}
DPM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def case(pipe, x, solver, *, call, cond=None, null=None, scale=3.0, guided="guidance_scale", **more):
    """One family: how its pipeline is called, and what we are given for the same run.

    call: arguments of the pipeline; `guided` names its guidance scale, which is off at 1. cond, null: ours; None where
    the text encoders make them. scale: a guidance of our formula, None where the pipeline's is another.
    latents: whether the pipeline takes latents, and `pack` their packing. tokens: of the dynamic shift. whole: whether
    the scheduler truncates a flow's timesteps to whole numbers. decoded: whether images are compared.
    """
    values = {"pack": lambda z: z, "tokens": None, "latents": True, "whole": False, "decoded": True, **more}
    return SimpleNamespace(
        pipe=quiet(pipe), x=x, solver=solver, call=call, cond=cond, null=null, scale=scale, guided=guided, **values
    )


def stable_diffusion(solver, scheduler=None, **options):
    pipe = StableDiffusionPipeline(
        vae(), clip(), tokenizer(), text_unet(**options), scheduler or DDIMScheduler(**SD), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    return case(pipe, normal(2, 4, 8, 8), solver, call={"prompt": ["a red cat", "dog"]})


def stable_diffusion_xl(solver):
    net = text_unet(
        16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    second = clip(kind=CLIPTextModelWithProjection, seed=4)
    pipe = StableDiffusionXLPipeline(
        vae(), clip(), second, tokenizer(), tokenizer(), net, DPMSolverMultistepScheduler(**DPM), add_watermarker=False
    )
    return case(pipe, normal(2, 4, 8, 8), solver, call={"prompt": ["a red cat", "dog"]})


def stable_diffusion_3(solver):
    net = seeded(
        SD3Transformer2DModel,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    clips = [clip(kind=CLIPTextModelWithProjection, seed=seed) for seed in (1, 4)]
    pipe = StableDiffusion3Pipeline(
        net, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(shift_factor=0.3, scaling_factor=1.5),
        clips[0], tokenizer(), clips[1], tokenizer(), t5(16), tokenizer(),
    )  # fmt: skip
    return case(pipe, normal(2, 4, 8, 8), solver, call={"prompt": ["a red cat", "dog"]})


def flux(solver, distilled=True):
    net = seeded(
        FluxTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=distilled, base_shift=0.5, max_shift=1.15),
        vae(shift_factor=0.1159, scaling_factor=0.3611), clip(), tokenizer(), t5(), tokenizer(), net,
    )  # fmt: skip
    size = {"height": 16, "width": 24, "negative_prompt": ["", ""]}
    return case(
        pipe, normal(2, 4, 8, 12), solver, call={"prompt": ["a red cat", "dog"], **size}, guided="true_cfg_scale",
        pack=lambda z: FluxPipeline._pack_latents(z, 2, 4, 8, 12), tokens=24,
    )  # fmt: skip


def dit(solver):
    net = seeded(
        DiTTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    pipe = DiTPipeline(net, vae(), DDIMScheduler(clip_sample=False))
    return case(
        pipe, normal(2, 4, 8, 8), solver, call={"class_labels": [3, 5]}, cond={"class_labels": torch.tensor([3, 5])},
        latents=False,
    )  # fmt: skip


def pixart(solver, sigma=False):
    net = seeded(
        PixArtTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=24,
        sample_size=8 if sigma else 128,
        patch_size=2 if sigma else 32,
        norm_num_groups=4,
        caption_channels=8,
        use_additional_conditions=not sigma,
    )
    kind = PixArtSigmaPipeline if sigma else PixArtAlphaPipeline
    pipe = kind(tokenizer(), t5(), vae(), net, DPMSolverMultistepScheduler(**DPM))
    side = 16 if sigma else 256
    return case(
        pipe, normal(2, 4, side // 2, side // 2), solver,
        call={"prompt": ["a red cat", "dog"], "clean_caption": False, "use_resolution_binning": False}, decoded=sigma,
    )  # fmt: skip


def embeds(batch=2, length=6, width=8, seed=8):
    return normal(batch, length, width, seed=seed)


def masks(*lengths, most=6):
    return (torch.arange(most) < torch.tensor(lengths)[:, None]).long()


def sana(solver):
    net = seeded(
        SanaTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=8,
        timestep_scale=0.5,
    )
    coder = seeded(
        AutoencoderDC,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_block_types=("ResBlock",) * 6,
        decoder_block_types=("ResBlock",) * 6,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    pipe = SanaPipeline(
        tokenizer(), None, coder, net,
        DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
    )  # fmt: skip
    texts, empty = embeds(), embeds(seed=9)
    side = 8 * pipe.vae_scale_factor
    return case(
        pipe, normal(2, 4, 8, 8), solver,
        call={
            "prompt_embeds": texts, "prompt_attention_mask": masks(6, 3), "negative_prompt_embeds": empty,
            "negative_prompt_attention_mask": masks(1, 1), "height": side, "width": side, "negative_prompt": None,
            "use_resolution_binning": False,
        },
        cond={"encoder_hidden_states": texts, "encoder_attention_mask": masks(6, 3)},
        null={"encoder_hidden_states": empty, "encoder_attention_mask": masks(1, 1)}, whole=True,
    )  # fmt: skip


def auraflow(solver):
    net = seeded(
        AuraFlowTransformer2DModel,
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    pipe = AuraFlowPipeline(tokenizer(), t5(), vae(), net, FlowMatchEulerDiscreteScheduler(shift=1.73))
    return case(
        pipe, normal(2, 4, 8, 8), solver, call={"prompt": ["a red cat", "dog"], "height": 16, "width": 16},
    )  # fmt: skip


def cogvideox(solver, newer=False):
    net = seeded(
        CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=8,
        num_layers=1,
        sample_width=16,  # wider than what is sampled, whose places are then centred
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=226,
        use_rotary_positional_embeddings=True,
        patch_size_t=2 if newer else None,
        patch_bias=not newer,
    )
    coder = seeded(
        AutoencoderKLCogVideoX,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    )
    pipe = CogVideoXPipeline(
        tokenizer(), t5(), coder, net, CogVideoXDDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    )
    call = {"prompt": ["a red cat", "dog"], "height": 32, "width": 48, "num_frames": 9}
    # the newer pipeline pads its frames to pairs, and drops the first when it decodes
    return case(pipe, normal(2, 4 if newer else 3, 4, 4, 6), solver, call=call, decoded=not newer)


def lumina2(solver):
    net = seeded(
        Lumina2Transformer2DModel,
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 32, 32),
        cap_feat_dim=8,
    )
    pipe = Lumina2Pipeline(net, FlowMatchEulerDiscreteScheduler(shift=6.0), vae(shift_factor=0.2), None, tokenizer())
    texts, empty = embeds(), embeds(seed=9)
    return case(
        pipe, normal(2, 4, 8, 8), solver,
        call={
            "prompt_embeds": texts, "prompt_attention_mask": masks(6, 6), "negative_prompt_embeds": empty,
            "negative_prompt_attention_mask": masks(6, 6), "height": 16, "width": 16, "cfg_normalization": False,
        },
        cond={"encoder_hidden_states": texts, "encoder_attention_mask": masks(6, 6)},
        null={"encoder_hidden_states": empty, "encoder_attention_mask": masks(6, 6)},
    )  # fmt: skip


def hunyuandit(solver):
    net = seeded(
        HunyuanDiT2DModel,
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=8,
        cross_attention_dim_t5=8,
        pooled_projection_dim=4,
        hidden_size=16,
        text_len=6,
        text_len_t5=6,
    )
    pipe = HunyuanDiTPipeline(
        vae(), None, tokenizer(), net, DDPMScheduler(**DISCRETE, prediction_type="v_prediction"), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    texts, second, empty, empty_2 = (embeds(seed=seed) for seed in (8, 9, 10, 11))
    height, width = 32, 64
    meta = torch.tensor([[1024.0, 1024, height, width, 0, 0]]).repeat(2, 1)
    names = ("encoder_hidden_states", "text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5")
    return case(
        pipe, normal(2, 4, 4, 8), solver,
        call={
            "prompt_embeds": texts, "prompt_embeds_2": second, "negative_prompt_embeds": empty,
            "negative_prompt_embeds_2": empty_2, "prompt_attention_mask": masks(6, 3),
            "prompt_attention_mask_2": masks(4, 6), "negative_prompt_attention_mask": masks(1, 1),
            "negative_prompt_attention_mask_2": masks(2, 2), "height": height, "width": width,
            "use_resolution_binning": False,
        },
        cond={
            **dict(zip(names, (texts, masks(6, 3), second, masks(4, 6)), strict=True)),
            "image_meta_size": meta, "style": torch.zeros(2, dtype=torch.long),
        },
        null=dict(zip(names, (empty, masks(1, 1), empty_2, masks(2, 2)), strict=True)),
    )  # fmt: skip


def wan(solver, by_token=False):
    net = seeded(
        WanTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=8,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=16,
    )
    coder = seeded(
        AutoencoderKLWan,
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    pipe = WanPipeline(tokenizer(), t5(), coder, scheduler, net, expand_timesteps=by_token)
    call = {"prompt": ["a red cat", "dog"], "height": 32, "width": 32, "num_frames": 5}
    return case(pipe, normal(2, 16, 2, 4, 4), solver, call=call, whole=True)


def ltx(solver, told=False):
    net = seeded(
        LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=8,
    )
    coder = seeded(
        AutoencoderKLLTXVideo,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1, 1, 1, 1),
        patch_size=4,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
        timestep_conditioning=told,
    )
    coder.latents_mean.copy_(normal(8))
    coder.latents_std.copy_(normal(8, seed=6).exp())
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
    )
    pipe = LTXPipeline(scheduler, coder, t5(), tokenizer(), net)
    s, t = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
    return case(
        pipe, normal(2, 8, 2, 4, 4), solver,
        call={
            "prompt": ["a red cat", "dog"], "height": 4 * s, "width": 4 * s, "num_frames": t + 1,
        },
        pack=lambda z: z.flatten(2).transpose(1, 2), tokens=32,
    )  # fmt: skip


def qwenimage(solver):
    net = seeded(
        QwenImageTransformer2DModel,
        in_channels=64,
        out_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    coder = seeded(
        AutoencoderKLQwenImage,
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    pipe = QwenImagePipeline(scheduler, coder, None, tokenizer(), net)
    texts = embeds()
    return case(
        pipe, normal(2, 16, 4, 6), solver,
        call={
            "prompt_embeds": texts, "prompt_embeds_mask": masks(6, 3), "height": 32, "width": 48,
        },
        cond={"encoder_hidden_states": texts, "encoder_hidden_states_mask": masks(6, 3)},
        guided="true_cfg_scale", scale=None,
        pack=lambda z: QwenImagePipeline._pack_latents(z, 2, 16, 4, 6), tokens=6,
    )  # fmt: skip


def kandinsky(solver):
    net = text_unet(
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=8,
        encoder_hid_dim_type="image_proj",
        class_embed_type=None,
        time_embedding_type="positional",
    )
    movq = seeded(
        VQModel,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        layers_per_block=1,
    )
    pipe = KandinskyV22Pipeline(net, DDPMScheduler(**DISCRETE, variance_type="learned_range"), movq)
    image = normal(2, 8, seed=9)
    return case(
        pipe, normal(2, 4, 8, 8), solver,
        call={"image_embeds": image, "negative_image_embeds": 0 * image, "height": 16, "width": 16},
        cond={"image_embeds": image}, null={"image_embeds": 0.0}, scale=None,
    )  # fmt: skip
