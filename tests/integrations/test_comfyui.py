"""ComfyUI's calls, as `comfyui_host.py` recorded them (ComfyUI 0.33), fed to what the node puts on a model."""

import copy
import json
import logging
import re
import threading
from inspect import Parameter, Signature
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from psa_triton.config import PSAConfig
from psa_triton.integrations import attend, comfyui
from psa_triton.integrations.comfyui import OVERRIDE, patch_model, preset_names
from psa_triton.integrations.reuse import Attended
from psa_triton.presets import NamedAttention, PresetError

RECORDS = json.loads((Path(__file__).parent / "comfyui_calls.json").read_text(encoding="utf-8"))
SPARSE = {"wan": 2, "hunyuan": 3, "ltx": 2, "flux": 3, "ltx-av": 2, "minimax-h3": 2}
"""Calls over the visual tokens."""
SCHEDULE = (1.0, 0.97, 0.889, 0.7, 0.4, 0.0)


class Sampling:
    def percent_to_sigma(self, percent):
        return 8 * (1 - percent) / (1 + 7 * (1 - percent))


def tensors(value):
    """A recorded argument, with a tensor where there was one."""
    if not isinstance(value, list) or not value:
        return value
    return torch.zeros(value) if all(isinstance(size, int) for size in value) else [tensors(part) for part in value]


class Patcher:
    """What the node sees of a `ModelPatcher`."""

    def __init__(self, name, options=None):
        recorded = RECORDS[name]["model"]
        classes = ()
        for base in reversed(recorded["bases"]):
            classes = (type(base, classes, {}),)
        self.diffusion = classes[0]()
        vars(self.diffusion).update({key: [None] * count for key, count in recorded["blocks"].items()})
        if recorded["patch_size"] is not None:
            self.diffusion.patch_size = recorded["patch_size"]
        self.diffusion.ref_conv = None
        vars(self.diffusion).update(num_heads=4, dim=96, ffn_dim=128, patch_embedding=SimpleNamespace(in_channels=16))
        self.model_options = {"transformer_options": options or {}}
        self.wrappers = []
        self.callbacks = {}

    def clone(self):
        made = copy.copy(self)
        made.model_options, made.wrappers = copy.deepcopy(self.model_options), list(self.wrappers)
        made.callbacks = dict(self.callbacks)
        return made

    def get_model_object(self, name):
        return {"diffusion_model": self.diffusion, "model_sampling": Sampling()}[name]

    def add_wrapper_with_key(self, kind, key, wrapper):
        assert kind == "diffusion_model"
        self.wrappers.append(wrapper)

    def add_callback_with_key(self, kind, key, callback):
        self.callbacks[kind] = callback


class Host:
    """ComfyUI, as far as an evaluation of a model goes.

    Attributes:
        dense: arguments that came to its own attention.
        outputs: of each call, what it was given and what its own attention would have given.
    """

    def __init__(self, name, patcher):
        self.record, self.patcher = RECORDS[name], patcher
        self.dense = []
        self.outputs = []

    def attention(self, q, k, v, heads, mask=None, **kwargs):
        self.dense.append(((q, k, v, heads), kwargs))
        return self.attend(q, k, v, heads, mask, **kwargs)

    @staticmethod
    def attend(q, k, v, heads, mask=None, *, skip_reshape=False, **kwargs):
        if not skip_reshape:
            q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, scale=kwargs.get("scale"))
        return out if kwargs.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)

    def evaluate(
        self, sigma=0.4, schedule=SCHEDULE, edit=lambda call: None, given=None, uuids=("a", "b"), during=lambda: None
    ):
        """One call of the model.

        Args:
            sigma: noise level.
            schedule: of the sampling.
            edit: changes a recorded call before it is made.
            given: arguments of the model by name, instead of the recorded ones.
            uuids: of the conditions.
            during: called before the attention calls.
        """
        options = {
            **self.patcher.model_options["transformer_options"],
            "sigmas": torch.tensor([sigma]),
            "sample_sigmas": torch.tensor(schedule),
            "uuids": list(uuids),
            "cond_or_uncond": [1, 0],
        }

        def forward(*args, **kwargs):
            during()
            for index, recorded in enumerate(self.record["calls"]):
                call = copy.deepcopy(recorded)
                edit(call)
                draw = torch.Generator().manual_seed(index)
                dtype = getattr(torch, call.get("dtype", "float32"))
                q, k, v = (torch.randn(shape, generator=draw).to(dtype) for shape in call["args"][:3])
                args = (q, k, v, *call["args"][3:])
                kwargs = {
                    key: torch.zeros(value) if key == "mask" and value else value
                    for key, value in call["kwargs"].items()
                }
                kwargs["transformer_options"] = {**options, **call["options"]}
                override = options.get(OVERRIDE)
                out = override(self.attention, *args, **kwargs) if override else self.attention(*args, **kwargs)
                if dtype == torch.float32:
                    del kwargs["transformer_options"], kwargs["_inside_attn_wrapper"]
                    self.outputs.append((out, self.attend(*args, **kwargs)))
            return "done"

        model, parameters = self.record["model"], []
        for name in model["parameters"]:
            parameters.append(
                Parameter(name, Parameter.VAR_KEYWORD if name == "kwargs" else Parameter.POSITIONAL_OR_KEYWORD)
            )
        forward.__signature__ = Signature(parameters)
        names = model["parameters"]
        args = {**dict(zip(names, map(tensors, model["args"]), strict=False)), **(given or {})}
        args["transformer_options"] = options
        positional = [args.pop(name) for name in names[: len(model["args"])]]
        executor = SimpleNamespace(class_obj=self.patcher.diffusion, original=forward)
        wrapped = Executor(executor.class_obj, forward, self.patcher.wrappers)
        kwargs = {key: tensors(value) for key, value in model["kwargs"].items()}
        assert wrapped(*positional, **{**kwargs, **args}) == "done"


class Executor:
    def __init__(self, class_obj, original, wrappers):
        self.class_obj, self.original, self._wrappers = class_obj, original, wrappers

    def __call__(self, *args, **kwargs):
        if not self._wrappers:
            return self.original(*args, **kwargs)
        return self._wrappers[0](Executor(self.class_obj, self.original, self._wrappers[1:]), *args, **kwargs)


def host(name="wan", options=None, **settings):
    settings = {"budget": 0.4, "min_tokens": 0, "start_percent": 0.2, **settings}
    return Host(name, patch_model(Patcher(name, options), **settings))


@pytest.fixture
def log(caplog):
    """The lines since last asked."""
    caplog.set_level(logging.INFO, "psa_triton")

    def take():
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    return take


@pytest.fixture
def reads_all(monkeypatch):
    """Sparse attention that reads every block in full."""
    config = PSAConfig(mask_ratios={1: (0.0, 1.0)}, block_n=32, block_m=32)
    monkeypatch.setattr(comfyui, "resolve", lambda *_: NamedAttention("full", config, "", None))


@pytest.mark.usefixtures("reads_all")
@pytest.mark.parametrize(
    "more", [{}, {"skip_output_reshape": True, "scale": 0.3, "something_new": 1}], ids=["", "more"]
)
@pytest.mark.parametrize("name", RECORDS)
def test_attention_over_the_video_is_answered_in_the_layout_of_the_host(name, more):
    run = host(name, budget=None)
    run.evaluate(edit=lambda call: call["kwargs"].update(more))
    assert len(run.outputs) - len(run.dense) == SPARSE[name]
    for out, dense in run.outputs:
        torch.testing.assert_close(out, dense)


@pytest.mark.parametrize("name", RECORDS)
def test_each_shape_is_told_once(name, log):
    run = host(name)
    run.evaluate()
    lines = log()
    assert sum("sparse" in line for line in lines) == 1
    assert re.search(
        rf": {SPARSE[name]} calls sparse, density 0\.\d+, measured error \d\.\d+ ± \d\.\d+", "\n".join(lines)
    )
    run.evaluate()
    assert log() == []


@pytest.mark.parametrize("previous", [False, True])
def test_what_runs_dense_passes_as_it_came(previous):
    seen = []

    def chained(func, *args, **kwargs):
        seen.append((func, kwargs))
        return func(*args, **kwargs)

    run = host("wan", {OVERRIDE: chained} if previous else None)
    run.evaluate()
    crossing = [call for call in RECORDS["wan"]["calls"] if call["args"][0] != call["args"][1]]
    assert len(run.dense) == len(crossing)
    assert [func for func, _ in seen] == [run.attention] * (len(crossing) if previous else 0)
    for args, kwargs in run.dense:
        assert kwargs.keys() == {"transformer_options", "_inside_attn_wrapper"}
        assert all(x._base is None for x in args[:3])  # the tensors themselves


def more_tokens(call):
    for shape in call["args"][:3]:
        shape[-2] *= 2


def set_in(part, key, value):
    return lambda call: call[part].update({key: value})


def head_dim_of_20(call):
    for shape in call["args"][:3]:
        shape[-1] = 20


def no_dtype_of_the_operator(call):
    call["dtype"] = "float8_e4m3fn"


@pytest.mark.parametrize(
    "reason, settings, evaluation",
    [
        ("attention mask", {}, {"edit": set_in("kwargs", "mask", [1, 1, 272])}),
        ("no approximation asked for", {}, {"edit": set_in("kwargs", "low_precision_attention", False)}),
        ("other tokens than those of the video", {}, {"edit": more_tokens}),
        ("head dimension of 20, no multiple of 8", {}, {"edit": head_dim_of_20}),
        ("warm-up", {}, {"sigma": 0.98}),
        ("last steps", {"end_percent": 0.5}, {"sigma": 0.7}),
        ("fewer than 300 tokens", {"min_tokens": 300}, {}),
        ("dense layer", {"dense_blocks": {0, 1, 2}}, {}),
        ("dense preset", {"preset": "dense", "budget": None}, {}),
    ],
)
def test_what_runs_dense(reason, settings, evaluation, log):
    run = host("hunyuan", **settings)
    run.evaluate(**evaluation)
    assert len(run.dense) == len(run.record["calls"])
    assert any(line.endswith(f"calls dense: {reason}") for line in log())


def test_types_that_the_operator_does_not_have_pass(log):
    run = host("wan")
    run.attention = lambda q, *args, **kwargs: q
    run.evaluate(edit=no_dtype_of_the_operator)
    assert any(line.endswith("dense: float8_e4m3fn") for line in log())


def test_a_reference_frame_of_wan_stands_in_front_and_context_behind():
    def edit(extra):
        return lambda call: [shape.__setitem__(1, shape[1] + extra) for shape in call["args"][:3] if shape[1] == 256]

    run = host("wan")
    run.patcher.diffusion.ref_conv = "a convolution"
    reference = {"reference_latent": torch.zeros(1, 16, 16, 16)}
    run.evaluate(edit=edit(64), given=reference)
    assert len(run.dense) == 2  # the cross-attention
    run.evaluate(edit=edit(64 + 256), given={**reference, "context_latents": []})
    assert len(run.dense) == 2 + 4


def test_the_single_blocks_are_counted_on_from_the_double_ones():
    for blocks in ({0}, {2}):
        run = host("flux", dense_blocks=blocks)
        run.evaluate()
        ((_, kwargs),) = run.dense
        at = kwargs["transformer_options"]
        assert (at["block_type"], at["block_index"]) == (("double", 0) if blocks == {0} else ("single", 1))
    with pytest.raises(ValueError, match=r"expected indexes from 0 to 2, got \[3\]"):
        host("flux", dense_blocks={3})


def test_the_window_goes_by_percent_and_not_by_place_in_the_schedule():
    """KSamplerAdvanced hands over the rest of a schedule, and some samplers look between its levels."""
    sparse = {}
    for sigma in (1.0, 0.9697, 0.9698, 0.93, 0.889, 0.4):
        run = host("ltx")
        run.evaluate(sigma, schedule=(0.93, 0.889, 0.4, 0.0))
        sparse[sigma] = len(run.dense) == 2
    assert sparse == {1.0: False, 0.9697: True, 0.9698: False, 0.93: True, 0.889: True, 0.4: True}


def ways(lines):
    """The ways of the layers in each evaluation, by their first letter."""
    return "".join(match[1][0] for line in lines if (match := re.search(r"calls (sparse|refresh|broadcast),", line)))


def test_refreshes_in_the_rhythm_of_the_steps(log):
    run = host("ltx", refresh=3, start_percent=0.0, verbose=True)
    for sigma in SCHEDULE[:-1]:
        run.evaluate(sigma)
    assert ways(log()) == "rssrs"
    run.patcher.callbacks["on_cleanup"](run.patcher)
    run.evaluate(SCHEDULE[1])
    assert ways(log()) == "r"  # nothing was kept of the sampling that ended


def test_guidance_in_two_calls_and_looks_between_levels_keep_apart(log):
    run = host("ltx", refresh=9, start_percent=0.0, verbose=True)
    for sigma in SCHEDULE[:3]:
        run.evaluate(sigma, uuids=("text",))
        run.evaluate(sigma, uuids=("no text",))
    assert ways(log()) == "rrssss"
    run.patcher.callbacks["on_cleanup"](run.patcher)
    for sigma in (1.0, 0.98, 0.97, 0.93, 0.889):  # 0.98 and 0.97 are one step: the second look keeps for itself
        run.evaluate(sigma)
    assert ways(log()) == "rsrss"


def test_windows_of_a_long_video_keep_apart(log):
    """They are conditioned alike, and may change places from step to step."""
    run = host("ltx", refresh=9, start_percent=0.0, verbose=True)
    options = run.patcher.model_options["transformer_options"]
    for sigma, windows in zip(SCHEDULE, ("abcdef", "bacdef", "bacdeg"), strict=False):
        for window in windows:
            options["context_window"] = SimpleNamespace(index_list=[window])
            run.evaluate(sigma)
    assert ways(log()) == "rrrrrr" + "ssssss" + "sssssr"


def test_older_hunyuan_video_with_text_behind_runs_dense(log):
    run = host("hunyuan", verbose=True)
    run.patcher.diffusion.double_blocks[0] = SimpleNamespace(flipped_img_txt=True)
    run.evaluate()
    assert len(run.dense) == len(run.record["calls"])
    assert any(line.endswith("calls dense: other tokens behind the video") for line in log())


def test_a_bounded_error_is_kept(log):
    run = host("ltx", max_error=1e-6, start_percent=0.0, verbose=True)
    for sigma in SCHEDULE[:3]:
        run.evaluate(sigma)
    assert ways(log()) == "rrr"
    for out, dense in run.outputs:
        torch.testing.assert_close(out, dense)


class NoWaiting(TorchDispatchMode):
    """On a GPU, to read a number is to wait for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_inside_a_call(monkeypatch):
    """The operator itself is left out: on a CPU it plans with numbers."""
    levels = torch.ones(2, 4, 2, 4, dtype=torch.int8)
    monkeypatch.setattr(attend, "attend_once", lambda q, **_: Attended(q, "sparse", levels, True, 0, None))
    run = host("wan")
    original = run.patcher.model_options["transformer_options"][OVERRIDE]

    def watched(*args, **kwargs):
        with NoWaiting():
            return original(*args, **kwargs)

    run.evaluate()  # the order of tokens is made once
    run.patcher.model_options["transformer_options"][OVERRIDE] = watched
    run.evaluate()
    assert len(run.dense) == 4


def test_the_model_that_is_given_stays_as_it_is():
    model = Patcher("wan")
    patched = patch_model(model)
    assert (model.model_options, model.wrappers, model.callbacks) == ({"transformer_options": {}}, [], {})
    with pytest.raises(ValueError, match="PSA is on it already"):
        patch_model(patched.clone())


def test_two_models_at_the_same_time():
    """Each in a thread, and one of them in two: every forward has a grid of its own."""
    shared = patch_model(Patcher("wan"), budget=0.4, min_tokens=0)
    runs = [Host("wan", shared), Host("wan", shared.clone()), host("flux")]
    barrier, errors = threading.Barrier(3, timeout=60), []

    def evaluate(run, edit):
        try:
            for _ in range(3):
                run.evaluate(edit=edit, during=barrier.wait)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    def half(call):
        call["options"]["grid_sizes"] = [2, 8, 8]
        for shape in call["args"][:3]:
            shape[1] = min(shape[1], 128)

    edits = [lambda call: None, half, lambda call: None]
    threads = [threading.Thread(target=evaluate, args=pair) for pair in zip(runs, edits, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [len(run.dense) for run in runs] == [6, 6, 0]


def test_a_model_that_failed_leaves_nothing_behind():
    run = host("wan")
    with pytest.raises(RuntimeError, match="no memory"):
        run.evaluate(during=lambda: (_ for _ in ()).throw(RuntimeError("no memory")))
    override = run.patcher.model_options["transformer_options"][OVERRIDE]
    q = torch.zeros(2, 256, 96)
    override(run.attention, q, q, q, heads=4)  # of a text encoder, say
    assert len(run.dense) == 1


def test_a_node_that_takes_the_place_is_noticed(log):
    run = host("wan")
    run.patcher.model_options["transformer_options"][OVERRIDE] = lambda func, *args, **kwargs: func(*args, **kwargs)
    run.evaluate()
    run.evaluate()
    (line,) = log()
    assert "another node took its place" in line


def test_a_step_that_a_caching_node_skips_is_no_other_attention(log):
    run = host("wan")
    run.evaluate()
    log()
    run.patcher.wrappers.append(lambda executor, *args, **kwargs: "done")
    run.evaluate()
    assert log() == []


# ---------------------------------------------------------------- settings
def config_of(patcher=None, **settings):
    patched = patch_model(patcher or Patcher("wan"), **settings)
    return patched.model_options["transformer_options"][OVERRIDE].__self__._rules.config


def test_settings_become_a_configuration():
    assert config_of().mask_mode == "thresholdbound"
    assert config_of().warmup_steps == 0  # a percentage says where it begins
    assert config_of(budget=0.3).budget == 0.3
    assert config_of(refresh=5).reuse.refresh_every == 5
    assert config_of(preset="Wan2.1_14b/psa_refresh", refresh=2).reuse.layer_groups == 2
    bounded = config_of(max_error=0.1)
    assert (bounded.reuse.max_error, bounded.reuse.keep, bounded.reuse.keep_on) == (0.1, "fp8", "host")
    assert bounded.probe > 0
    assert {"psa_balanced", "psa_budget", "psa_refresh", "baseline"} <= set(preset_names())


def test_a_known_model_has_its_own_presets():
    patcher = Patcher("wan")
    vars(patcher.diffusion).update(num_heads=12, dim=1536, blocks=[None] * 30, ffn_dim=8960)
    assert config_of(patcher) == comfyui.resolve(None, "Wan2.1_1.3b").config.replace(warmup_steps=0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"preset": "psa_balanced", "budget": 0.2}, "budget: expected none with preset general/psa_balanced"),
        ({"max_error": 0.1, "refresh": 2}, "refresh: expected none with max_error"),
        ({"start_percent": 0.6, "end_percent": 0.5}, "start_percent: expected 0 <= start_percent < end_percent"),
        ({"min_tokens": -1}, "min_tokens: expected 0 or more"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        host(**{"budget": None, **settings})


def test_other_models_and_presets_are_told_apart():
    with pytest.raises(PresetError, match="psa_balance"):
        host(preset="psa_balance", budget=None)
    patcher = Patcher("wan")
    patcher.diffusion = SimpleNamespace()
    with pytest.raises(TypeError, match="expected one of WanModel, HunyuanVideo, .* got SimpleNamespace"):
        patch_model(patcher)
