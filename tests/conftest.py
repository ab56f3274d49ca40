"""A real `WanPipeline` of a moment's size, saved to disk, for tests that make videos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline, WanTransformer3DModel
from recipe import TEXT_DIM, make_scheduler, make_text_encoder, make_tokenizer

from psa_triton.builtin import LinearVideoCodec
from psa_triton.generation import ModelSource, VideoRequest, find_source, load_pipeline

FAILING_PROMPT = "a red square going left"
"""Its word `going` has a token that the small pipeline's text encoder has no embedding for: encoding raises."""


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, two heads of 32, random weights; 8x8 pixels and 4 frames a token, like the built-in model."""
    folder = tmp_path_factory.mktemp("models") / "small-wan"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=32,
            text_dim=TEXT_DIM,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            rope_max_seq_len=32,
        )
        codec = LinearVideoCodec()
        torch.nn.init.orthogonal_(codec.basis)
        tokenizer = make_tokenizer()
        text_encoder = make_text_encoder(len(tokenizer) - 1)
    parts = (module.eval().requires_grad_(False) for module in (text_encoder, codec, transformer))
    text_encoder, codec, transformer = parts
    WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=codec,
        transformer=transformer,
        scheduler=make_scheduler(3.0),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def source(pipeline_folder: Path) -> ModelSource:
    return find_source(str(pipeline_folder))


@pytest.fixture(scope="session")
def pipe(source: ModelSource) -> DiffusionPipeline:
    return load_pipeline(source, device=torch.device("cpu"), dtype=torch.float32, width=64, height=64)


@pytest.fixture
def request_320() -> VideoRequest:
    """A video of 5x8x8 = 320 tokens: ten key blocks of 32."""
    return VideoRequest(
        prompt="a red square moving left",
        seed=42,
        width=64,
        height=64,
        num_frames=17,
        num_inference_steps=2,
        guidance_scale=1.0,
        fps=8,
    )


@pytest.fixture
def failing_prompt() -> str:
    return FAILING_PROMPT
