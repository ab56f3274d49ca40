import pytest
import torch

from psa_triton.attention import psa_attention
from psa_triton.config import PSAConfig
from psa_triton.presets import load_presets_file
from psa_triton.tools.bench import measure
from psa_triton.tools.shapes import find_shape

CPU = torch.device("cpu")
CONFIGS = [
    pytest.param(PSAConfig(pool_correction="isotropic"), id="pool_correction"),
    pytest.param(PSAConfig(pool_correction="isotropic", block_n=32, mask_ratios={8: (0, 0.5), 32: (0.5, 1)}), id="32"),
    *(
        pytest.param(config, id=f"{section}/{name}")
        for section, presets in load_presets_file().sections.items()
        for name, preset in presets.attention_configs.items()
        if section in ("CogVideo_5b", "tiny-wan", "Qwen2.5-VL") and (config := preset.config()) is not None
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_kernel_and_choice_of_levels_together_are_the_operator(config):
    """What is timed apart must be what runs together: no setting is lost on the way."""
    causal = config.importance == "antidiagonal" or config.keep_first_block
    shape = find_shape("qwen25vl-32k" if causal else "cogvideo-480p").with_heads(1).shrunk(1000)
    settings = measure.Settings(config=config, device=CPU, dtype=torch.float32)
    inputs = measure._inputs(shape, settings)
    found = measure._attend(inputs, settings, inputs.choose_levels(config))
    plain = config.replace(use_rearrange=False)
    marks = {"prefix_tokens": shape.prefix_tokens, "is_causal": shape.is_causal}
    torch.testing.assert_close(found, psa_attention(inputs.q, inputs.k, inputs.v, plain, **marks))
