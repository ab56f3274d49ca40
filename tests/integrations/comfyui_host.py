"""Runs the node in a checkout of ComfyUI, on small random models and a CPU, for `test_comfyui_real.py`.

    COMFYUI=path/to/ComfyUI python tests/integrations/comfyui_host.py [record FILE]

`record` writes the calls that ComfyUI makes, for `test_comfyui.py`. Of what ComfyUI needs, torchvision and torchaudio
may be missing: nothing of them is run here.
"""

from __future__ import annotations

import asyncio
import importlib.machinery
import importlib.util
import inspect
import json
import logging
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

CHECKOUT = Path(os.environ["COMFYUI"])
NODE = Path(__file__).parents[2] / "comfyui"


class Stub(types.ModuleType):
    """A package of which nothing is run."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for package in ("torchvision", "torchaudio"):
    if importlib.util.find_spec(package) is None:
        parts = ("", ".transforms", ".transforms.functional", ".functional", ".io", ".ops")
        for name in (f"{package}{part}" for part in parts):
            stub = sys.modules[name] = Stub(name)
            stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, stub)
COMMAND, sys.argv = sys.argv[1:], ["comfyui", "--cpu"]
sys.path.insert(0, str(CHECKOUT))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402

from psa_triton.integrations.comfyui import OVERRIDE, patch_model  # noqa: E402

CPU = torch.device("cpu")
WAN = {
    **{"model_type": "t2v", "patch_size": (1, 2, 2), "text_len": 16, "in_dim": 16, "out_dim": 16, "dim": 96},
    **{"ffn_dim": 128, "freq_dim": 32, "text_dim": 32, "num_heads": 4, "num_layers": 2},
}
STREAMS = {
    **{"in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 32, "hidden_size": 96},
    **{"mlp_ratio": 2.0, "num_heads": 4, "depth": 1, "depth_single_blocks": 2, "theta": 256, "qkv_bias": True},
}
HUNYUAN = {**STREAMS, "axes_dim": [4, 10, 10], "patch_size": [1, 2, 2], "guidance_embed": True}
HUNYUAN |= {"byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None}
HUNYUAN |= {"meanflow_sum": False}
FLUX = {**STREAMS, "axes_dim": [4, 10, 10], "patch_size": 2, "guidance_embed": True, "txt_ids_dims": []}
LTX = {"in_channels": 128, "cross_attention_dim": 96, "attention_head_dim": 24, "num_attention_heads": 4}
LTX |= {"caption_channels": 32, "num_layers": 2}
LTX_AV = {**LTX, "audio_in_channels": 128, "audio_cross_attention_dim": 48, "audio_attention_head_dim": 24}
LTX_AV |= {"audio_num_attention_heads": 2}
H3 = {"hidden_size": 96, "num_layers": 2, "token_refiner_num_layers": 1, "num_attention_heads": 4}
H3 |= {"attention_head_dim": 24, "ffn_hidden_size": 96, "text_dim": 32, "timestep_input_dim": 32}
H3 |= {"time_embed_hidden_size": 32, "time_embed_dim": 32, "rope_inv_freq_len": 4}
POOLED = {"pooled_output": torch.zeros(1, 32)}
HALF = (torch.tensor([0.5]), torch.tensor([0.5]))
MODELS: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...], dict[str, Any]]] = {
    "wan": ("WAN21_T2V", "WAN21", WAN, (1, 16, 4, 16, 16), {}),
    "hunyuan": ("HunyuanVideo", "HunyuanVideo", HUNYUAN, (1, 16, 4, 16, 16), POOLED),
    "ltx": ("LTXV", "LTXV", LTX, (1, 128, 4, 8, 8), {"attention_mask": torch.ones(1, 16, dtype=torch.int64)}),
    "flux": ("Flux", "Flux", FLUX, (1, 16, 31, 32), POOLED),
    "ltx-av": ("LTXAV", "LTXAV", LTX_AV, (1, 128, 4, 8, 8), {"attention_mask": None, "timestep": HALF}),
    "minimax-h3": ("MiniMaxH3", "MiniMaxH3", H3, (1, 24, 4, 16, 16), {"timestep": torch.tensor([500.0])}),
}
"""Class of the settings and of the model, the model's shape, a latent's, and conditions besides the text."""
AUDIO = {"ltx-av": ((1, 8, 9, 16), 64), "minimax-h3": ((1, 32, 2, 9), 32)}
"""Latent of the sound, and channels of the text: these models are called themselves, without a sampler."""


def patcher(name: str) -> Any:
    settings, model, shape, *_ = MODELS[name]
    config = getattr(comfy.supported_models, settings)(
        {**getattr(comfy.supported_models, settings).unet_config, "dtype": torch.float32, **shape}
    )
    config.set_inference_dtype(torch.float32, None)
    torch.manual_seed(0)
    made = getattr(comfy.model_base, model)(config, device=CPU)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return comfy.model_patcher.ModelPatcher(made, CPU, CPU)


def sample(name: str, model: Any, *, sampler: str = "euler", steps: int = 4, cfg: float = 3.0, **options: Any) -> Any:
    _, _, _, latent, conditions = MODELS[name]
    draw = torch.Generator().manual_seed(0)
    noise, text = torch.randn(latent, generator=draw), torch.randn(1, 16, 32, generator=draw)
    positive, negative = [[text, dict(conditions)]], [[text * 0, dict(conditions)]]
    empty = torch.zeros(latent)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "simple", positive, negative, empty, seed=1, disable_pbar=True, **options
    )


@torch.no_grad()
def evaluate(name: str, model: Any) -> Any:
    """The video that a model makes: by a sampler, or in one call of those that make sound, too."""
    if name not in AUDIO:
        return sample(name, model)
    _, _, _, latent, conditions = MODELS[name]
    (sound, channels), draw = AUDIO[name], torch.Generator().manual_seed(0)
    options = {
        **model.model_options["transformer_options"],
        "sigmas": torch.tensor([0.5]),
        "sample_sigmas": torch.tensor([1.0, 0.5, 0.0]),
        "wrappers": model.wrappers,
    }
    latents = [torch.randn(latent, generator=draw), torch.randn(sound, generator=draw)]
    context = torch.randn(1, 16, channels, generator=draw)
    return model.model.diffusion_model(latents, context=context, transformer_options=options, **conditions)[0]


class Log(logging.Handler):
    """The lines that PSA logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("psa_triton").addHandler(self)
        logging.getLogger("psa_triton").setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


LOG = Log()


def apart(out: Any, dense: Any) -> float:
    return float((out - dense).norm() / dense.norm())


def outcome(name: str) -> dict[str, Any]:
    """What a model of ComfyUI does with the node."""
    model = patcher(name)
    dense = evaluate(name, model)
    all_dense = torch.equal(evaluate(name, patch_model(model, "dense")), dense)
    LOG.take()
    patched = patch_model(model, budget=0.4, min_tokens=0)
    sparse = evaluate(name, patched)
    return {
        "dense_is_equal": all_dense,
        "apart": apart(sparse, dense),
        "log": LOG.take(),
        "clone_is_alike": torch.equal(evaluate(name, patched.clone()), sparse),
        "logs_again": LOG.take(),
        "original_is_untouched": torch.equal(evaluate(name, model), dense)
        and OVERRIDE not in model.model_options["transformer_options"],
    }


def samplings() -> dict[str, Any]:
    """How samplers and settings of ComfyUI call the model: lines of the log, with `verbose`, of one Wan."""
    model = patcher("wan")
    found: dict[str, Any] = {}
    runs: dict[str, dict[str, Any]] = {
        "no_guidance": {"cfg": 1.0},
        "from_the_middle": {"start_step": 2, "force_full_denoise": True},
        "between_levels": {"sampler": "dpmpp_sde"},
        "two_evaluations": {"sampler": "heun"},
    }
    for name, options in runs.items():
        LOG.take()
        sample("wan", patch_model(model, budget=0.4, min_tokens=0, start_percent=0.5, verbose=True), **options)
        found[name] = [line for line in LOG.take() if "cross-attention" not in line]
    dense = sample("wan", model, steps=8)
    for name, control in {"refresh": {"refresh": 3}, "max_error": {"max_error": 0.02}}.items():
        LOG.take()
        patched = patch_model(model, budget=0.4, min_tokens=0, start_percent=0.0, verbose=True, **control)
        found[name] = {"apart": apart(sample("wan", patched, steps=8), dense)}
        found[name]["log"] = [line for line in LOG.take() if "cross-attention" not in line]
    compiled = patch_model(model, budget=0.4, min_tokens=0)
    same = sample("wan", compiled)
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    set_torch_compile_wrapper(compiled, backend="eager")
    found["compiled_is_apart"] = apart(sample("wan", compiled), same)
    return found


def loaded() -> dict[str, Any]:
    """The folder copied into `custom_nodes/` under another name, loaded by ComfyUI, and its node run."""
    import nodes

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "my-attention"
        shutil.copytree(NODE, copy)
        done = asyncio.run(nodes.load_custom_node(str(copy)))
    node = nodes.NODE_CLASS_MAPPINGS["PyramidSparseAttention"]
    schema = node.GET_SCHEMA()
    arguments = {each.id: getattr(each, "default", None) for each in schema.inputs}
    model = patcher("wan")
    (patched,) = node.execute(**{**arguments, "model": model, "preset": "default", "dense_blocks": "0-1"}).result
    return {
        "loaded": done,
        "inputs": sorted(arguments),
        "changes": patched is not model,
        "v1": bool(node.INPUT_TYPES()),
    }


def recorded(name: str) -> dict[str, Any]:
    """The calls of one evaluation, as plain data: of the model, and of the attention."""
    model, calls, outer = patcher(name).clone(), [], {}

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return list(value.shape)
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        return None if isinstance(value, dict) else value

    def override(func: Any, *args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options", {})
        told = ("block_index", "block_type", "total_blocks", "grid_sizes", "img_slice", "cond_or_uncond")
        kwargs_seen = {key: plain(value) for key, value in kwargs.items() if key != "transformer_options"}
        options_seen = {key: plain(options[key]) for key in told if key in options}
        calls.append({"args": plain(args), "kwargs": kwargs_seen, "options": options_seen})
        return func(*args, **kwargs)

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        made = executor.class_obj
        calls.clear()
        outer["bases"] = [base.__name__ for base in type(made).__mro__ if base.__module__.startswith("comfy")]
        outer["patch_size"] = plain(getattr(made, "patch_size", None))
        names = ("blocks", "transformer_blocks", "double_blocks", "single_blocks")
        outer["blocks"] = {key: len(getattr(made, key)) for key in names if hasattr(made, key)}
        outer["parameters"] = list(inspect.signature(executor.original).parameters)
        outer["args"] = plain(args)
        outer["kwargs"] = {key: plain(value) for key, value in kwargs.items()}
        return executor(*args, **kwargs)

    model.model_options["transformer_options"][OVERRIDE] = override
    model.add_wrapper_with_key("diffusion_model", "record", wrapper)
    evaluate(name, model)
    return {**outer, "calls": calls}


def record(file: Path) -> None:
    """Writes the calls of all models, a line each."""
    models = []
    for name in MODELS:
        made = recorded(name)
        calls = ",\n    ".join(json.dumps(call) for call in made.pop("calls"))
        models.append(f' "{name}": {{\n  "model": {json.dumps(made)},\n  "calls": [\n    {calls}\n  ]\n }}')
    file.write_text("{\n" + ",\n".join(models) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if COMMAND:
        record(Path(COMMAND[1]))
    else:
        result = {**{name: outcome(name) for name in MODELS}, "samplings": samplings(), "node": loaded()}
        print("RESULT " + json.dumps(result))
