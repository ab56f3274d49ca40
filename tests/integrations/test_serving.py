"""The attention backends for servers, against what the servers were seen to hand over, and refuse.

`serving_contracts.json` holds the names that the backends rely on. With an unpacked wheel of vLLM-Omni in VLLM_OMNI, or
a checkout of LightX2V in LIGHTX2V, the names are looked for there.
"""

import ast
import importlib
import importlib.metadata
import json
import logging
import os
import sys
import tomllib
from dataclasses import field, make_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from psa_triton.config import PSAConfig
from psa_triton.integrations import lightx2v, serving
from psa_triton.presets import load_preset

CONTRACTS = json.loads((Path(__file__).parent / "serving_contracts.json").read_text(encoding="utf-8"))
GRID = (4, 8, 8)


def names_in(file):
    """Fields and methods of the classes of a file."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            fields = [part.target.id for part in node.body if isinstance(part, ast.AnnAssign)]
            found[node.name] = fields + [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
    return found


@pytest.mark.parametrize("server", CONTRACTS)
def test_the_servers_source_has_the_names_of_the_contract(server):
    folder = os.environ.get(server.upper())
    if folder is None:
        pytest.skip(f"{server.upper()} names no copy of it")
    contract, root = CONTRACTS[server], Path(folder)
    found = names_in(root / contract["file"])
    for name, wanted in (*contract["fields"].items(), *contract["methods"].items()):
        assert set(wanted) <= set(found[name]), name
    for file, texts in contract["elsewhere"].items():
        source = (root / file).read_text(encoding="utf-8")
        assert [text for text in texts if text not in source] == [], file


BUDGET = load_preset("general", "psa_budget").replace(block_m=32, block_n=32, warmup_steps=0)
FULL = PSAConfig(mask_ratios={1: (0.0, 1.0)}, block_m=32, block_n=32)
"""Sparse attention that reads every block in full."""


@pytest.fixture(autouse=True)
def serve(monkeypatch):
    """Chooses the preset that is served; by default one with a budget."""

    def choose(config):
        monkeypatch.setattr(serving, "resolve", lambda name: SimpleNamespace(config=config, name=name))

    choose(BUDGET)
    lightx2v._shared.cache_clear()
    yield choose
    lightx2v._shared.cache_clear()


@pytest.fixture
def told(caplog):
    """What an attention logs of the calls so far."""
    caplog.set_level(logging.INFO, "psa_triton")

    def tell(attention):
        attention._host.tell()
        return caplog.text

    return tell


def tensors(*shape):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw) for _ in range(3)]


# ---------------------------------------------------------------- vLLM-Omni
class Slot(Enum):
    RAINFUSION_ATTN = "vllm_omni...RainFusionAttentionBackend"


@pytest.fixture
def omni(monkeypatch):
    """vLLM-Omni, as far as a backend sees it."""
    contract = CONTRACTS["vllm_omni"]
    made = SimpleNamespace(registered={}, parallel=SimpleNamespace(), step=5, steps=10, npu=False, dense=[])

    def module(name, **content):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, ModuleType(path))
        vars(sys.modules[name]).update(content)

    defaults = {"extra": field(default_factory=dict), "video_spans": field(default=())}
    for name, fields in contract["fields"].items():
        described = [(each, Any, defaults.get(each, field(default=None))) for each in fields]
        setattr(made, name, make_dataclass(name, described))
    impl = type("AttentionImpl", (), {"forward": lambda self, *args: self.forward_cuda(*args)})

    class Dense:
        def __init__(self, **arguments):
            assert arguments.keys() == set(contract["impl_arguments"]) - {"backend_kwargs"}

        def forward(self, query, key, value, metadata):
            made.dense.append(metadata)
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))
            return scaled_dot_product_attention(q, k, v).transpose(1, 2)

    default = SimpleNamespace(get_impl_cls=lambda: Dense)
    root = "vllm_omni.diffusion"
    module(
        f"{root}.attention.backends.abstract",
        AttentionBackend=type("AttentionBackend", (), {}),
        AttentionImpl=impl,
        AttentionMetadata=made.AttentionMetadata,
    )
    module(
        f"{root}.attention.backends.registry",
        DiffusionAttentionBackendEnum=Slot,
        register_diffusion_backend=made.registered.__setitem__,
    )
    module(f"{root}.attention.selector", get_attn_backend_for_role=lambda role, head_size: (default, None))
    current = SimpleNamespace(parallel_config=made.parallel)
    module(f"{root}.config", get_current_diffusion_config_or_none=lambda: current)
    module(
        f"{root}.forward_context",
        is_forward_context_available=lambda: made.step is not None,
        get_forward_context=lambda: SimpleNamespace(denoise_step_idx=made.step, total_denoise_steps=made.steps),
    )
    module("vllm_omni.platforms", current_omni_platform=SimpleNamespace(is_npu=lambda: made.npu))
    from psa_triton.integrations import vllm_omni

    vllm_omni.register()
    sys.modules.pop("psa_triton.integrations.vllm_omni.backend", None)
    if path := made.registered.get(Slot.RAINFUSION_ATTN):
        name, _, attribute = path.rpartition(".")
        made.module = importlib.import_module(name)
        made.backend = getattr(made.module, attribute)
    made.register = vllm_omni.register
    yield made
    sys.modules.pop("psa_triton.integrations.vllm_omni.backend", None)


def layer(omni, **changes):
    arguments = {
        **{"num_heads": 2, "head_size": 16, "softmax_scale": 0.25, "prefix": "blocks.3.attn1", "qkv_layout": "BSND"},
        **{"backend_kwargs": {"sparsity": 0.6, "start_step": 0, "end_step": 0, "precision": "bf16"}, "role": "self"},
        "backend_explicit": True,
    }
    return omni.backend.get_impl_cls()(**{**arguments, **changes})


def test_the_slot_is_taken_but_for_the_hardware_that_uses_it(omni):
    omni.register()  # again
    assert omni.registered == {Slot.RAINFUSION_ATTN: "psa_triton.integrations.vllm_omni.backend.PSABackend"}
    assert omni.backend.get_name() == "RAINFUSION_ATTN"
    assert omni.backend.get_supported_head_sizes() == []
    for name in CONTRACTS["vllm_omni"]["methods"]["AttentionBackend"]:
        assert hasattr(omni.backend, name)
    omni.registered.clear()
    omni.npu = True
    omni.register()
    assert omni.registered == {}


def layouts(omni):
    """Tokens of a sequence, and what models of 0.30 publish of it."""
    span = omni.VideoTokenSpan
    two = (span(8, (2, 4, 4), "reference"), span(48, GRID, "target"))
    return {
        "Wan 2.2": (256, omni.VideoTokenLayout(prefix_len=0, latent_grid=GRID, used_len=256)),
        "MiniMax H3": (300, omni.VideoTokenLayout(prefix_len=40, latent_grid=GRID)),
        "references": (320, omni.VideoTokenLayout(used_len=304, video_spans=two)),
    }


@pytest.mark.parametrize("model", ["Wan 2.2", "MiniMax H3", "references"])
def test_video_is_sparse_where_its_grid_is_published(omni, serve, model):
    serve(FULL)
    tokens, video = layouts(omni)[model]
    q, k, v = tensors(1, tokens, 2, 16)
    used = 296 if model == "MiniMax H3" else video.used_len
    out = layer(omni).forward(q, k, v, omni.AttentionMetadata(video_layout=video, extra={"max_seqlen_q": used}))
    exact = scaled_dot_product_attention(*(x[:, :used].transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert out.shape == q.shape
    assert omni.dense == []
    torch.testing.assert_close(out[:, :used], exact)


def test_options_of_the_server_become_a_configuration(omni):
    options = {"sparsity": 0.7, "start_step": 3, "end_step": 2, "skip_layers": [0, 4]}
    rules = layer(omni, backend_kwargs=options)._psa._rules
    assert rules.config.budget == pytest.approx(0.3)
    assert (rules.config.warmup_steps, rules.last_steps, rules.layers) == (3, 2, frozenset({0, 4}))


@pytest.mark.parametrize(
    "reason, change",
    [
        ("no grid known", {"video_layout": None}),
        ("attention mask", {"attn_mask": torch.ones(1, 256, dtype=torch.bool)}),
        ("attention mask", {"full_attn_spans": [[(0, 8)]]}),
        ("other tokens behind the video", {"extra": {"max_seqlen_q": 300}}),
    ],
)
def test_metadata_that_runs_dense(omni, told, reason, change):
    impl, metadata = layer(omni), omni.AttentionMetadata(video_layout=layouts(omni)["Wan 2.2"][1])
    vars(metadata).update(change)
    impl.forward(*tensors(1, 256, 2, 16), metadata)
    assert omni.dense == [metadata]
    assert f"1 calls dense: {reason}" in told(impl._psa)


@pytest.mark.parametrize(
    "reason, options, step, steps",
    [
        ("warm-up", {"start_step": 6}, 5, 10),
        ("last steps", {"end_step": 5}, 5, 10),
        ("no denoising step known", {"end_step": 5}, 5, None),
        ("no denoising step known", {"start_step": 1}, None, None),
        ("dense layer", {"skip_layers": [3]}, 5, 10),
        ("budget of 1", {"sparsity": 0.0}, 5, 10),
        (None, {}, None, None),
        (None, {"start_step": 1}, 5, None),
    ],
)
def test_steps_and_layers(omni, told, reason, options, step, steps):
    omni.step, omni.steps = step, steps
    impl = layer(omni, backend_kwargs=options)
    impl.forward(*tensors(1, 256, 2, 16), omni.AttentionMetadata(video_layout=layouts(omni)["Wan 2.2"][1]))
    assert f"calls dense: {reason}" in told(impl._psa) if reason else omni.dense == []


def test_other_attention_runs_dense(omni):
    metadata = omni.AttentionMetadata(video_layout=layouts(omni)["Wan 2.2"][1])
    q, k, v = tensors(1, 256, 2, 16)
    layer(omni, causal=True).forward(q, k, v, metadata)
    layer(omni, qkv_layout=None).forward(q, k, v, metadata)
    layer(omni).forward(q, k[:, :64], v[:, :64], None)
    assert len(omni.dense) == 3


@pytest.mark.parametrize("name", ["allgather_degree", "ring_degree"])
def test_sequences_shared_between_processes_are_refused(omni, name):
    setattr(omni.parallel, name, 2)
    with pytest.raises(ValueError, match=f"{name}: expected 1 with PSA"):
        layer(omni)


def test_other_precisions_are_refused(omni):
    with pytest.raises(ValueError, match=r"block_sparse\.precision: expected bf16, got 'fp8'"):
        layer(omni, backend_kwargs={"precision": "fp8"})


# ---------------------------------------------------------------- LightX2V
@pytest.fixture
def weight(monkeypatch):
    """An attention as LightX2V makes it from `self_attn_1_type: psa`, whose own records its calls."""

    class OwnAttention:
        def __init__(self):
            self.calls = []

        def apply(self, q, k, v, **call):
            self.calls.append(call)
            return q.flatten(1)

    platform, registry = ModuleType("lightx2v_platform.registry_factory"), ModuleType("lightx2v.utils.registry_factory")
    platform.PLATFORM_ATTN_WEIGHT_REGISTER = {}
    for module in (platform, registry):
        for name in (module.__name__.split(".")[0], module.__name__.rpartition(".")[0], module.__name__):
            monkeypatch.setitem(sys.modules, name, module if name == module.__name__ else ModuleType(name))
    lightx2v.register()
    lightx2v.register()  # again
    registry.ATTN_WEIGHT_REGISTER = {**platform.PLATFORM_ATTN_WEIGHT_REGISTER, "torch_sdpa": OwnAttention}
    lightx2v._weight_class.cache_clear()
    yield registry.ATTN_WEIGHT_REGISTER["psa"]()
    lightx2v._weight_class.cache_clear()


def call(**changes):
    """What Wan's self-attention hands over."""
    lengths = torch.tensor([0, 256], dtype=torch.int32)
    return {
        **{"cu_seqlens_q": lengths, "cu_seqlens_kv": lengths, "max_seqlen_q": 256, "max_seqlen_kv": 256},
        **{"block_idx": 1, "scheduler": SimpleNamespace(step_index=4, infer_steps=10), "grid_sizes": GRID},
        "sol_morton_preordered": False,
        **changes,
    }


@pytest.mark.parametrize("grid", [GRID, SimpleNamespace(tuple=GRID)])
def test_self_attention_of_lightx2v_is_sparse(weight, serve, grid):
    serve(FULL)
    q, k, v = tensors(256, 2, 16)
    out = weight.apply(q=q, k=k, v=v, **call(grid_sizes=grid))
    exact = scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1).flatten(1)
    assert weight.calls == []
    torch.testing.assert_close(out, exact)


@pytest.mark.parametrize(
    "change", [{"block_idx": None}, {"grid_sizes": None}, {"attn_mask": torch.ones(1)}, {"causal": True}]
)
def test_what_runs_lightx2vs_own(weight, change):
    given = call(**change)
    weight.apply(*tensors(256, 2, 16), **given)
    assert [seen.items() for seen in weight.calls] == [given.items()]


def test_calls_that_name_no_layer_are_told(weight, caplog):
    caplog.set_level(logging.INFO, "psa_triton")
    for _ in range(3):
        weight.apply(*tensors(256, 2, 16), **call(block_idx=None, scheduler=None))
    assert caplog.text.count("256 tokens, 2 heads of 16: 1 calls dense: no layer known") == 1


def test_warm_up_goes_by_lightx2vs_step(weight, serve):
    serve(BUDGET.replace(warmup_steps=5))
    for step in (4, 5):
        weight.apply(*tensors(256, 2, 16), **call(scheduler=SimpleNamespace(step_index=step, infer_steps=10)))
    assert len(weight.calls) == 1


# ---------------------------------------------------------------- both
def test_what_ran_is_told_where_no_step_is_known(caplog):
    caplog.set_level(logging.INFO, "psa_triton")
    attention = serving.ServedAttention(BUDGET)
    for layer in (0, 1, 0):
        attention.attend(*tensors(1, 2, 64, 16), layer=layer, step=None, steps=None, reason=None)
    assert "64 tokens, 2 heads of 16: 2 calls dense: no grid known" in caplog.text


def test_presets_that_need_a_whole_run_are_refused(serve):
    serve(load_preset("Wan2.1_14b", "psa_refresh"))
    with pytest.raises(ValueError, match="PSA_PRESET: expected a preset without reuse and budget_table"):
        serving.served_config()


def test_the_entry_points_lead_to_the_integrations():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group, server in (("vllm_omni.general_plugins", "vllm_omni"), ("lightx2v.platform_plugins", "lightx2v")):
        module, _, function = project["entry-points"][group]["psa_triton"].partition(":")
        assert module == f"psa_triton.integrations.{server}"
        assert callable(getattr(importlib.import_module(module), function))
