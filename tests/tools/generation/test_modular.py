"""Modular pipelines of diffusers: every one with a transformer of a known family, by role and by its folder."""

import json

import diffusers
import pytest
from command_line import psa
from small_families import SMALL
from small_modular import MODULAR, make_modular, save_modular
from torch import nn

from psa_triton import PSAConfig
from psa_triton.integrations.diffusers import apply_psa

pytestmark = [
    pytest.mark.skipif(not hasattr(diffusers, "LTXModularPipeline"), reason="this diffusers has few, without parts"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),  # Helios' scheduler
]
EVERY = [name for name in dir(diffusers) if name.endswith("ModularPipeline") and name != "ModularPipeline"]
MODELS = {small.class_name: name for name, small in reversed(SMALL.items()) if small.is_there}


@pytest.mark.parametrize("name", MODULAR)
def test_it_makes_files(name, tmp_path):
    folder = tmp_path / "model"
    save_modular(make_modular(name), folder)
    size = [f"--{setting}={value}" for setting, value in MODULAR[name][1].items()]
    options = [f"--model={folder}", f"--output_dir={tmp_path}", "--prompt=a red square", "--num-inference-steps=2"]
    preset = ["--min_tokens=0", "--attention_preset=CogVideo_5b/psa_4steps"]
    result = psa("generate", *options, *size, *preset)
    assert result.exit_code == 0, result.output
    kind = "video" if "num_frames" in MODULAR[name][1] else "image"
    sidecar = json.loads((tmp_path / "model" / f"{kind}_0000.json").read_text())
    assert 0 < sidecar["cost"]["attention_density"] < 1


@pytest.mark.parametrize("name", EVERY)
def test_transformers_are_found_by_role_or_named_in_the_error(name):
    pipe = getattr(diffusers, name)()
    kinds = {
        part: spec.type_hint
        for part, spec in pipe._component_specs.items()
        if isinstance(spec.type_hint, type) and issubclass(spec.type_hint, nn.Module)
    }
    known = {part: kind.__name__ for part, kind in kinds.items() if kind.__name__ in MODELS}
    if not known and kinds.get("transformer") is not None:
        unknown = kinds["transformer"].__new__(kinds["transformer"])
        nn.Module.__init__(unknown)
        pipe.update_components(transformer=unknown)
    if not known:
        with pytest.raises(TypeError, match=f"expected .*, got {kinds.get('transformer', type(pipe)).__name__}"):
            apply_psa(pipe, PSAConfig())
        return
    made = {part: SMALL[MODELS[kind]].make()[0] for part, kind in known.items()}
    pipe.update_components(**made)
    with apply_psa(pipe, PSAConfig(), min_tokens=0):
        for transformer in made.values():
            with pytest.raises(ValueError, match="PSA is attached"):
                apply_psa(transformer, PSAConfig())
