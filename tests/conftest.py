"""A real `WanPipeline` of a moment's size, saved to disk, for tests that make videos.

Fixtures import what they need themselves: tests of other parts shall not wait for diffusers.
"""

import os
from pathlib import Path

import pytest

# Where there is no GPU, Triton's kernels run in its interpreter. It is chosen when Triton is imported.
if not Path("/dev/nvidiactl").exists() and not Path("/dev/kfd").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """Two layers, two heads of 32, random weights; 8x8 pixels and 4 frames a token, like the built-in model."""
    import torch
    from diffusers import WanPipeline, WanTransformer3DModel
    from recipe import TEXT_DIM, make_scheduler, make_text_encoder, make_tokenizer

    from psa_triton.tools.builtin import LinearVideoCodec

    folder = tmp_path_factory.mktemp("models") / "small-wan"
    tokenizer = make_tokenizer()
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
        # No embedding for `going` and what comes after it: see `failing_prompt`.
        text_encoder = make_text_encoder(tokenizer.convert_tokens_to_ids("going"))
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=codec.eval(),
        transformer=transformer.eval(),
        scheduler=make_scheduler(3.0),
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def failing_prompt():
    """Its word `going` has a token that the small pipeline's text encoder has no embedding for: encoding raises."""
    return "a red square going left"


@pytest.fixture(scope="session")
def source(pipeline_folder):
    from psa_triton.tools.generation import find_source

    return find_source(str(pipeline_folder))


@pytest.fixture(scope="session")
def pipe(source):
    import torch

    from psa_triton.tools.generation import load_pipeline

    return load_pipeline(source, device=torch.device("cpu"), dtype=torch.float32, width=64, height=64)


@pytest.fixture(scope="session")
def request_320():
    """A video of 5x8x8 = 320 tokens: ten key blocks of 32."""
    from psa_triton.tools.generation import VideoRequest

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
def poisoned():
    """New tensors are NaN, those of integers full of the largest: what is not written, or read before, shows."""
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
