"""Every family of diffusers, on small models of its real classes, through `apply_psa` as a user calls it."""

import copy
import re
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from diffusers import ConfigMixin, FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_dispatch import attention_backend
from small_families import GRID, SMALL, TEXT, VISUAL, gradients, run
from torch import Tensor, nn
from torch._dynamo.utils import counters

from psa_triton import PSAConfig, apply_psa, remove_psa
from psa_triton.integrations.diffusers import Family, latent_grid, register_family
from psa_triton.integrations.diffusers.families import FAMILIES
from psa_triton.ordering import grid_order

# Of diffusers' own: a tensor made of a tensor (SkyReels), autocast that a CPU lacks (Mochi).
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct:UserWarning", "ignore:In CPU autocast:UserWarning")

EVERY_TOKEN = PSAConfig(block_m=32, block_n=32, mask_ratios={1: (0, 1)})
"""No approximation: only a wrong order, grid or mask can change the result."""
SPARSE = EVERY_TOKEN.replace(mask_ratios={1: (0, 0.3), 4: (0.3, 0.5), 0: (0.5, 1)})

THERE = {
    name: pytest.param(
        small, id=name, marks=[] if small.is_there else pytest.mark.skip("this diffusers has no such class")
    )
    for name, small in SMALL.items()
}
families = pytest.mark.parametrize("small", THERE.values())
SPARSE_ONES = [THERE[name] for name, small in SMALL.items() if None in small.reasons]
ADAPTED = [case for case in SPARSE_ONES if case.id not in ("allegro", "allegro-padded", "easyanimate", "latte")]
"""Those that take adapters."""
sparse_families = pytest.mark.parametrize("small", SPARSE_ONES)
SOME = pytest.mark.parametrize(
    "small",
    [
        THERE[name]
        for name in (
            *("wan-vace", "cogvideox", "hunyuan-video", "hunyuan-video-1.5", "ltx-2", "flux", "lumina-2"),
            "kandinsky-5",  # gives a bare tensor
        )
    ],
)


def assert_equal_to_rounding(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


def differ(actual, expected):
    return bool((actual - expected).abs().max() > 1e-3 * expected.abs().max())


@families
@torch.no_grad()
def test_exact_sparse_copied_and_gone(small):
    """All blocks at level 1: the model's own output; fewer: another one, at a density that says so; then as before.

    A copy stays attached, whatever backend is set, until it is detached itself.
    """
    model, inputs = small.make()
    dense = run(model, inputs)
    with apply_psa(model, EVERY_TOKEN) as handle:
        assert_equal_to_rounding(run(model, inputs), dense)
    stats = handle.stats()
    assert {record.reason for record in stats.records} == set(small.reasons)
    for record in stats.records:
        copies = record.tokens // sum(prod(grid) for grid in small.grids)
        assert copies >= 1 or record.reason == "causal" or small.kind == "Latte"
    with apply_psa(model, SPARSE) as handle:
        sparse = run(model, inputs)
        twin = copy.deepcopy(model)
    assert differ(sparse, dense) is (None in small.reasons)
    density = handle.stats().summary.sparse_density
    assert density is None if None not in small.reasons else 0.2 < density < 0.6
    assert torch.equal(run(model, inputs), dense)
    # Kandinsky 6's masks of text are none that the other backend takes.
    with attention_backend("native" if small.kind == "Kandinsky6" else "_native_math"):
        assert_equal_to_rounding(run(twin, inputs), sparse)  # cross attention goes by the backend
    remove_psa(twin)
    own = [value for module in twin.modules() for value in vars(module).values()]
    assert not any(type(value).__module__.startswith("psa_triton") for value in own)


def changed(small, inputs):
    """Arguments with one patch changed, at a place of the latent's grid; the number of its token in raster order."""
    place = (1, 2, 3)
    of_tokens = small.latent == "bnc"
    grid = small.grids[0] if of_tokens else small.grids[-1]
    t, h, w = place = tuple(min(index, size - 1) for index, size in zip(place, grid, strict=True))
    token = (t * grid[1] + h) * grid[2] + w
    inputs = dict(inputs)
    latent = inputs[small.argument]
    changes = latent[0].clone() if isinstance(latent, list) else latent.clone()
    if of_tokens:
        changes[:, token] += 1
    else:
        sizes = dict(zip(small.latent[-changes.ndim :], changes.shape, strict=True))
        where = [slice(None)] * changes.ndim
        for name, index, size in zip("thw", place, grid, strict=True):
            if name in sizes:
                patch = sizes[name] // size
                where[small.latent[-changes.ndim :].index(name)] = slice(index * patch, (index + 1) * patch)
        changes[tuple(where)] += 1
        token += sum(prod(before) for before in small.grids[:-1])
    inputs[small.argument] = [changes, *latent[1:]] if isinstance(latent, list) else changes
    return inputs, token


@sparse_families
@torch.no_grad()
def test_where_tokens_stand(small):
    """Of the keys of the first layer, one patch changes the one at its place on the curve and no other."""
    model, inputs = small.make()
    told = []
    other, token = changed(small, inputs)
    with apply_psa(model, EVERY_TOKEN, on_levels=told.append):
        run(model, inputs)
        calls = len(told)
        run(model, other)
    (_, before, _), (_, after, _) = told[0].qkv, told[calls].qkv
    moved = (before != after).any(-1).any(1)[0].nonzero().flatten().tolist()
    orders = [grid_order("Gilbert", grid).permutation for grid in small.grids]
    starts = [sum(map(len, orders[:index])) for index in range(len(orders))]
    curve = torch.cat([order + start for order, start in zip(orders, starts, strict=True)])
    assert moved == [told[0].prefix_tokens + int((curve == token).nonzero())]


@SOME
def test_gradients(small):
    """Of all blocks at level 1: the model's own; of fewer: the same of checkpointed blocks."""
    model, inputs = small.make()
    model.train()
    dense = gradients(model, inputs)
    with apply_psa(model, EVERY_TOKEN):
        exact = gradients(model, inputs)
    largest = max(gradient.abs().max() for gradient in dense.values()).item()
    assert exact.keys() == dense.keys() and len(dense) > 10
    for name, gradient in dense.items():
        torch.testing.assert_close(exact[name], gradient, rtol=0, atol=1e-5 * largest, msg=lambda m, n=name: n + m)
    with apply_psa(model, SPARSE):
        plain = gradients(model, inputs)
        model.enable_gradient_checkpointing()
        checkpointed = gradients(model, inputs)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def cropped(small, **sizes):
    """The model, and arguments with a smaller latent."""
    model, inputs = small.make()
    latent = inputs[small.argument]
    for dim, name in enumerate(small.latent[-latent.ndim :]):
        if name in sizes:
            latent = latent.narrow(dim, 0, min(sizes[name], latent.shape[dim]))
    return model, inputs | {small.argument: latent}


RESIZABLE = (
    *("wan", "skyreels-v2", "chronoedit", "hunyuan-video", "hunyuan-video-1.5", "hunyuan-image", "motif-video"),
    *("mochi", "cosmos-1", "easyanimate", "kandinsky-6", "sd-3.5", "lumina-2"),
)
"""Those whose other arguments are not of the latent's size."""


@pytest.mark.parametrize("small", [THERE[name] for name in RESIZABLE])
@pytest.mark.parametrize("sizes", [{"t": 1, "h": 16, "w": 24}, {"h": 10, "w": 14}], ids=["one frame", "odd"])
@torch.no_grad()
def test_one_frame_and_odd_grids(small, sizes):
    model, inputs = cropped(small, **sizes)
    dense = run(model, inputs)
    with apply_psa(model, EVERY_TOKEN, min_tokens=0) as handle:
        assert_equal_to_rounding(run(model, inputs), dense)
    assert {record.reason for record in handle.stats().records} == {None}


@pytest.mark.parametrize("small", ADAPTED)
@torch.no_grad()
def test_adapters(small):
    """A LoRA that comes after attaching acts as without PSA."""
    from peft import LoraConfig

    model, inputs = small.make()
    if not hasattr(model, "add_adapter"):
        pytest.skip("this diffusers has no adapters for the class")
    plain = run(model, inputs)
    attended = {id(layer) for layer in FAMILIES[small.class_name].layers(model)}
    inside = [module.named_modules(prefix=name) for name, module in model.named_modules() if id(module) in attended]
    linear = [name for modules in inside for name, module in modules if isinstance(module, nn.Linear)]
    with apply_psa(model, EVERY_TOKEN):
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=linear, init_lora_weights=False))
        adapted = run(model, inputs)
    assert_equal_to_rounding(adapted, run(model, inputs))
    assert differ(adapted, plain)


@pytest.mark.parametrize(
    "small",
    [
        THERE[name]
        for name in ("wan", "wan-vace", "cogvideox", "hunyuan-video", "framepack", "ltx", "mochi", "flux", "qwen-image")
    ],
)
@torch.no_grad()
def test_a_step_cache_leaves_out_what_it_would(small):
    """Also of VACE, to whose hidden states diffusers adds control between blocks, left out or not."""
    outputs = []
    for attached in (False, True):
        model, inputs = small.make()
        handle = apply_psa(model, EVERY_TOKEN) if attached else None
        model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
        with model.cache_context("cond"):
            run(model, inputs)
            calls = handle.stats().summary.sparse_calls if handle else 0
            outputs.append(run(model, inputs))
    assert_equal_to_rounding(outputs[1], outputs[0])
    assert handle is not None and calls < handle.stats().summary.sparse_calls < 2 * calls


@pytest.mark.parametrize(
    "small",
    [
        THERE["hunyuan-video"],
        THERE["flux"],
        *(pytest.param(*THERE[name].values, id=name, marks=pytest.mark.slow) for name in ("wan", "ltx")),
    ],
)
@torch.no_grad()
def test_compiled_once_for_all_steps(small):
    """A graph breaks around each attention layer, a step at another time compiles nothing anew, and PSA can go."""
    model, inputs = small.make()
    dense, layers = run(model, inputs), len(FAMILIES[small.class_name].layers(model))
    with apply_psa(model, SPARSE) as handle:
        counters.clear()
        compiled = torch.compile(model, backend="eager")
        run(compiled, inputs)
        breaks = sum(counters["graph_break"].values())
        later = inputs | {"timestep": (inputs["timestep"] / 2).to(inputs["timestep"].dtype)}
        eager = run(model, later)
        handle.reset()
        with torch.compiler.set_stance("fail_on_recompile"):
            assert_equal_to_rounding(run(compiled, later), eager)
        assert handle.stats().summary.sparse_calls == layers
    assert 0 < breaks <= layers + 2  # and the hooks
    assert_equal_to_rounding(run(compiled, inputs), dense)
    assert handle.stats().summary.sparse_calls == layers


@pytest.mark.parametrize("small", [THERE["hunyuan-video"], THERE["hunyuan-video-1.5"], THERE["lumina-2"]])
@torch.no_grad()
def test_padding_is_found_once_a_forward(small, monkeypatch):
    from psa_triton.integrations.diffusers import layout

    seen = []
    looked_at = layout.as_key_mask

    def spy(mask, *others):
        seen.append(mask)
        return looked_at(mask, *others)

    monkeypatch.setattr(layout, "as_key_mask", spy)
    model, inputs = small.make()
    with apply_psa(model, SPARSE) as handle:
        run(model, inputs)
    assert handle.stats().summary.sparse_calls > len(seen) == 1


@torch.no_grad()
def test_a_timestep_that_is_another_than_the_schedulers():
    """Flux gets a thousandth of it: the scheduler itself tells where it stands."""
    model, inputs = SMALL["flux"].make()
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    latents = inputs["hidden_states"]
    with apply_psa(model, SPARSE.replace(warmup_steps=1), scheduler=scheduler) as handle:
        for timestep in scheduler.timesteps:
            out = run(model, inputs | {"timestep": timestep.expand(2) / 1000})
            latents = scheduler.step(out, timestep, latents).prev_sample
    assert {record.step: record.sparse for record in handle.stats().records} == {0: False, 1: True, 2: True}


def later(inputs, step, timestep):
    """Arguments of a step: what is of its state and its time is another one."""
    changes = {}
    for name, value in inputs.items():
        if name in ("hidden_states", "audio_hidden_states"):
            changes[name] = value + 0.1 * step
        elif name in ("x", "vision_tokens"):
            changes[name] = [item + 0.1 * step for item in value]
        elif name in ("t", "sigma", "timestep", "audio_timestep"):
            changes[name] = timestep.expand(value.shape).to(value.dtype)
    return inputs | changes


@pytest.mark.parametrize("small", [THERE[name] for name in ("z-image", "ltx-2", "cosmos-3", "qwen-image", "flux")])
@torch.no_grad()
def test_state_and_time_tell_no_pass(small):
    """They are others in each step, whatever a class calls them: a pass finds what it kept."""
    model, inputs = small.make()
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    if small.kind.startswith(("QwenImage", "Flux")):
        shape = *inputs["hidden_states"].shape[:2], model.inner_dim
        inputs["controlnet_block_samples"] = [torch.zeros(shape)]
    if small.kind == "LTX2Video":
        inputs["sigma"] = torch.ones(len(inputs["hidden_states"]))
    with apply_psa(model, SPARSE.replace(reuse={"refresh_every": 100}), scheduler=scheduler) as handle:
        for step, timestep in enumerate(scheduler.timesteps):
            given = later(inputs, step, timestep)
            if "controlnet_block_samples" in given:
                given["controlnet_block_samples"] = [torch.full(shape, 0.1 * step)]
            run(model, given)
            scheduler.step(torch.zeros(1), timestep, torch.zeros(1))
    ways = handle.stats().summary.ways
    assert set(ways) == {"refresh", "sparse"} and ways["sparse"] == 2 * ways["refresh"]


@torch.no_grad()
def test_an_ip_adapter_keeps_its_weights_and_its_scale():
    """Its processors are modules, which move with the model, and whose scale diffusers sets by their class."""
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    model, inputs = SMALL["flux"].make()
    torch.manual_seed(0)
    processors = dict(model.attn_processors)
    for name in processors:
        if name.startswith("transformer_blocks"):
            processors[name] = FluxIPAdapterAttnProcessor(model.inner_dim, model.inner_dim, num_tokens=(4,))
    model.set_attn_processor(processors)
    model.encoder_hid_proj = nn.Identity()
    image = torch.randn(len(inputs["hidden_states"]), 4, model.inner_dim)

    def output():
        return run(model, inputs | {"joint_attention_kwargs": {"ip_adapter_image_embeds": [image]}})

    def set_scale(scale):
        for processor in model.attn_processors.values():
            if isinstance(processor, FluxIPAdapterAttnProcessor):
                processor.scale = [scale]

    full, names = output(), set(model.state_dict())
    set_scale(0.3)
    less = output()
    set_scale(1.0)
    with apply_psa(model, EVERY_TOKEN) as handle:
        assert_equal_to_rounding(output(), full)
        assert handle.stats().summary.sparse_calls
        set_scale(0.3)
        assert_equal_to_rounding(output(), less)
        assert set(model.state_dict()) == names
        model.double()
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    assert set(model.state_dict()) == names and differ(less, full)


@torch.no_grad()
def test_processors_made_anew_after_attaching_are_told():
    """Loading an IP adapter makes those that it leaves alone anew, by their class."""
    model, inputs = SMALL["flux"].make()
    with apply_psa(model, EVERY_TOKEN):
        model.set_attn_processor({name: value.__class__() for name, value in model.attn_processors.items()})
        with pytest.raises(RuntimeError, match="was replaced by a FluxAttnProcessor after apply_psa"):
            run(model, inputs)
    run(model, inputs)


@pytest.mark.parametrize("small", [THERE["qwen-image"]])
@torch.no_grad()
def test_perturbed_attention_guidance(small):
    """diffusers' hook has values in the place of attention, in the layers it is asked for."""
    from diffusers.hooks import LayerSkipConfig, apply_layer_skip

    perturbed = dict(skip_attention=False, skip_attention_scores=True, skip_ff=False)
    model, inputs = small.make()
    plain = run(model, inputs)
    apply_layer_skip(model, LayerSkipConfig(indices=[0], **perturbed))
    handle = apply_psa(model, EVERY_TOKEN)
    found = run(model, inputs)
    reasons = {record.layer: record.reason for record in handle.stats().records}
    assert reasons == {0: "perturbed", **dict.fromkeys(range(1, len(reasons)))}
    handle.remove()
    expected = run(model, inputs)
    assert_equal_to_rounding(found, expected)
    assert differ(expected, plain)


@pytest.mark.parametrize("small", [THERE["hunyuan-video-1.5"]])
@torch.no_grad()
def test_hunyuan_video_15_makes_no_mask_of_queries_times_keys(small):
    model, inputs = small.make()
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dtype == torch.bool:
                sizes.append(out.numel())
            return out

    with apply_psa(model, SPARSE), Watch():
        run(model, inputs)
    tokens = VISUAL + TEXT + 6 + 3
    assert sizes and max(sizes) < tokens**2 / 4


@pytest.mark.parametrize("small", [THERE["kandinsky-5"]])
@torch.no_grad()
def test_a_familys_own_sparse_attention_gives_way(small):
    model, inputs = small.make()
    dense = run(model, inputs)
    nabla = {"to_fractal": False, "sta_mask": torch.ones(1, 1, 5, 5).bool(), "P": 0.9, "attention_type": "nabla"}
    with apply_psa(model, EVERY_TOKEN) as handle:
        assert_equal_to_rounding(run(model, inputs | {"sparse_params": nabla}), dense)
    assert handle.stats().summary.dense_calls == 0


@pytest.mark.parametrize("small", [THERE["framepack"]])
def test_clusters_along_the_curve_want_one_grid(small):
    model, inputs = small.make()
    with apply_psa(model, EVERY_TOKEN.replace(rearrange_method="Hybrid")), pytest.raises(ValueError, match="one grid"):
        run(model, inputs)
    model, inputs = small.make()
    with torch.no_grad():
        dense = run(model, inputs)
        with apply_psa(model, EVERY_TOKEN.replace(rearrange_method="SemanticAware")):
            assert_equal_to_rounding(run(model, inputs), dense)


def test_the_page_tells_of_every_family():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\* `(\w+Transformer\w*)`", page, flags=re.MULTILINE)) == sorted(FAMILIES)
    assert {small.class_name for small in SMALL.values()} == set(FAMILIES)


class Attend(nn.Module):
    """Somebody's own attention module."""

    def __init__(self, processor):
        super().__init__()
        self.processor = processor

    def forward(self, x):
        return self.processor(self, x)


class Third(ModelMixin, ConfigMixin):
    """Somebody's own transformer."""

    @register_to_config
    def __init__(self, processor, patch_size=2):
        super().__init__()
        self.layers = nn.ModuleList([Attend(processor)])

    def forward(self, hidden_states, timestep, return_dict=True):
        x = hidden_states.unflatten(3, (-1, 2)).unflatten(5, (-1, 2)).permute(0, 2, 3, 5, 4, 6, 1).flatten(4)
        return (self.layers[0](x.flatten(1, 3)),)


class TheirProcessor:
    def __call__(self, attn, x):
        heads = x.unflatten(-1, (2, 8)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)


class SilentProcessor(TheirProcessor):
    def __call__(self, attn, x):
        return x.softmax(-1)


@pytest.fixture
def third():
    family = Family(attentions=("layers.*",), grids=latent_grid())
    register_family(Third, family)
    yield family
    del FAMILIES["Third"]


@torch.no_grad()
def test_a_family_of_ones_own(third):
    model, inputs = Third(TheirProcessor()), {"hidden_states": torch.randn(1, 4, 3, 16, 24), "timestep": torch.ones(1)}
    dense = run(model, inputs)
    with apply_psa(model, EVERY_TOKEN, min_tokens=0) as handle:
        assert_equal_to_rounding(run(model, inputs), dense)
    assert [(record.tokens, record.reason) for record in handle.stats().records] == [(prod(GRID), None)]


@torch.no_grad()
def test_a_frame_that_every_query_reads_in_full(third):
    """Frames of 32 and 64 tokens: key block 0 is the first one's, and query blocks 1 and 2 are the others'."""
    grids = lambda *_: [(1, 4, 8), (2, 4, 8)]  # noqa: E731
    register_family(Third, replace(third, grids=grids, exempt_keys=(0,), exempt_queries=(1,)))
    model, inputs = Third(TheirProcessor()), {"hidden_states": torch.randn(1, 4, 3, 8, 16), "timestep": torch.ones(1)}
    told = []
    with apply_psa(model, SPARSE.replace(mask_ratios={8: (0, 1)}), min_tokens=0, on_levels=told.append):
        run(model, inputs)
    assert told[0].levels[0, 0].tolist() == [[1, 8, 8], [1, 1, 1], [1, 1, 1]]


@torch.no_grad()
def test_an_attention_that_never_comes_is_told(third):
    model, inputs = Third(SilentProcessor()), {"hidden_states": torch.randn(1, 4, 3, 16, 24), "timestep": torch.ones(1)}
    with apply_psa(model, SPARSE, min_tokens=0) as handle:
        run(model, inputs)
    assert [record.reason for record in handle.stats().records] == ["no call of scaled_dot_product_attention"]


def test_a_pattern_that_names_nothing_is_an_error(third):
    register_family("Third", Family(attentions=("blocks.*.attn",), grids=latent_grid()))
    with pytest.raises(ValueError, match=r"attentions: expected 'blocks\.\*\.attn' to name attention modules.*none"):
        apply_psa(Third(TheirProcessor()), SPARSE)
