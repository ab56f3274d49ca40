"""Models inside other things: wrappers, compiled modules, pipelines of every kind, and what is said of the rest."""

import pytest
import small_language_models as small
import torch
import torch.distributed as dist
from accelerate import Accelerator
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from peft import LoraConfig, get_peft_model
from small_pipelines import (
    SPARSE,
    make_tokenizer,
    make_video,
    make_wan_inputs,
    make_wan_modular_pipeline,
    make_wan_pipeline,
    make_wan_transformer,
    sparse_steps,
)
from torch import nn
from transformers import pipeline as language_pipeline

from psa_triton import apply_psa, load_preset, remove_psa
from psa_triton.integrations.diffusers import PSAHandle, layer_count

# PEFT's own use of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

WARM = SPARSE.replace(warmup_steps=1)
CAUSAL = SPARSE.replace(use_rearrange=False)


@pytest.fixture(scope="module")
def one_process():
    """A process group of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def with_lora(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["to_q", "to_v", "q_proj", "v_proj"]))


def prepared(model):
    return Accelerator(cpu=True).prepare(model)


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "peft": with_lora,
    "ddp": nn.parallel.DistributedDataParallel,
    "data-parallel": nn.DataParallel,
    "accelerate": prepared,
    "average": torch.optim.swa_utils.AveragedModel,
    "peft-in-ddp": lambda model: nn.parallel.DistributedDataParallel(with_lora(model)),
}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))


@wrappers
@torch.no_grad()
@pytest.mark.usefixtures("one_process")
def test_a_wrapped_transformer(wrap):
    inputs = make_wan_inputs()
    dense = make_wan_transformer()(**inputs).sample
    with apply_psa(make_wan_transformer(), SPARSE) as handle:
        sparse = handle._attachments[0].transformer(**inputs).sample
    wrapped = wrap(make_wan_transformer())
    assert layer_count(wrapped) == 2
    for detach in (PSAHandle.remove, lambda handle: remove_psa(wrapped)):
        handle = apply_psa(wrapped, SPARSE)
        with pytest.raises(ValueError, match="attached to its transformer already"):
            apply_psa(wrapped, SPARSE)
        assert torch.equal(wrapped(**inputs).sample, sparse)
        assert (handle.stats().summary.forwards, handle.stats().summary.sparse_calls) == (1, 2)
        detach(handle)
        assert torch.equal(wrapped(**inputs).sample, dense)
    apply_psa(transformer := make_wan_transformer(), SPARSE)
    wrapped = wrap(transformer)  # after attaching
    assert torch.equal(wrapped(**inputs).sample, sparse)
    remove_psa(wrapped)
    assert torch.equal(wrapped(**inputs).sample, dense)


@pytest.mark.parametrize("wrap", [with_lora, prepared], ids=["peft", "accelerate"])
def test_a_pipeline_whose_transformer_is_wrapped(wrap):
    """Its scheduler is found, of the wrapper as well as of the transformer in it."""
    pipe = make_wan_pipeline()
    with apply_psa(pipe, WARM):
        sparse = make_video(pipe)
    pipe.transformer = wrap(pipe.transformer)
    with apply_psa(pipe, WARM) as handle:
        assert torch.equal(make_video(pipe), sparse)
    assert sparse_steps(handle.stats()) == {0: False, 1: True, 2: True}
    with apply_psa(pipe.transformer, WARM, scheduler=UniPCMultistepScheduler()) as handle:
        assert torch.equal(make_video(pipe), sparse)


def test_a_pipeline_compiled_after_attaching():
    """Its scheduler is found through the compiled module; `test_diffusers_composition.py` looks at the results."""
    pipe = make_wan_pipeline(make_wan_transformer(num_layers=1))
    handle = apply_psa(pipe, WARM)
    pipe.transformer = compiled(pipe.transformer)
    make_video(pipe, steps=2)
    assert sparse_steps(handle.stats()) == {0: False, 1: True}
    with pytest.raises(ValueError, match="attached to its transformer already"):
        apply_psa(pipe, WARM)
    remove_psa(pipe)


class TestPipelines:
    def test_the_second_transformer_alone(self):
        parts = make_wan_pipeline(two_transformers=True).components | {"transformer": None}
        pipe = WanPipeline(**parts, boundary_ratio=1.0)
        dense = make_video(pipe)
        with apply_psa(pipe, WARM) as handle:
            make_video(pipe)
        assert {(record.transformer, record.step, record.sparse) for record in handle.stats().records} == {
            ("transformer_2", step, step > 0) for step in range(3)
        }
        assert torch.equal(make_video(pipe), dense)

    @pytest.mark.parametrize("missing", [True, False], ids=["second-alone", "both"])
    def test_presets_of_two_transformers(self, missing):
        with torch.device("meta"):
            first, second = (WanTransformer3DModel(num_layers=40) for _ in range(2))
        pipe = make_wan_pipeline()
        pipe.transformer, pipe.transformer_2 = None if missing else first, second
        with apply_psa(pipe) as handle:
            assert handle.config == load_preset("Wan2.2_A14B")

    def test_the_same_transformer_for_both(self):
        pipe = make_wan_pipeline(two_transformers=True)
        pipe.transformer_2 = pipe.transformer
        with apply_psa(pipe, WARM) as handle:
            make_video(pipe)
        assert handle.stats().summary.forwards == 3

    def test_a_modular_pipeline(self):
        pipe = make_wan_modular_pipeline({})
        with pytest.raises(TypeError, match="a pipeline with a transformer, got WanModularPipeline .*load_components"):
            apply_psa(pipe, WARM)
        pipe = make_wan_modular_pipeline(make_wan_pipeline().components)
        options = {"prompt": "a red square", "num_frames": 5, "height": 32, "width": 64}

        def video():
            options["generator"] = torch.Generator().manual_seed(0)
            return torch.as_tensor(pipe(**options, num_inference_steps=3, output="videos"))

        dense = video()
        with apply_psa(pipe, WARM, min_tokens=0) as handle:
            assert not torch.equal(video(), dense)
        assert sparse_steps(handle.stats()) == {0: False, 1: True, 2: True}
        apply_psa(pipe, WARM)
        remove_psa(pipe)
        assert torch.equal(video(), dense)

    def test_components_by_other_names(self):
        """Roles are told by class, as components of modular pipelines may be called anything."""

        class Renamed(DiffusionPipeline):
            def __init__(self, denoiser, sampler):
                super().__init__()
                self.register_modules(denoiser=denoiser, sampler=sampler)

            @torch.no_grad()
            def __call__(self, steps):
                self.sampler.set_timesteps(steps)
                for timestep in self.sampler.timesteps:
                    self.denoiser(**make_wan_inputs(timestep=timestep[None]))

        pipe = Renamed(make_wan_transformer(), UniPCMultistepScheduler())
        with apply_psa(pipe, WARM) as handle:
            pipe(3)
            assert sparse_steps(handle.stats()) == {0: False, 1: True, 2: True}
            other = Renamed(pipe.denoiser, DPMSolverMultistepScheduler())
            handle.reset()
            other(5)
        assert sparse_steps(handle.stats()) == {step: step > 0 for step in range(5)}
        assert {record.transformer for record in handle.stats().records} == {"denoiser"}


@pytest.mark.parametrize("wrap", [wrap for name, wrap in WRAPPERS.items() if name != "average"])
@torch.no_grad()
@pytest.mark.usefixtures("one_process")
def test_a_wrapped_language_model(wrap):
    inputs = small.text_inputs()
    model = wrap(small.make_model(small.llama))
    dense = model(**inputs).logits
    for detach in ("remove", None):
        handle = apply_psa(model, CAUSAL)
        with pytest.raises(ValueError, match="attached to it already"):
            apply_psa(model, CAUSAL)
        assert (model(**inputs).logits - dense).abs().max() > 0.01
        assert handle.stats().summary.sparse_calls == 2
        handle.remove() if detach else remove_psa(model)
        assert torch.equal(model(**inputs).logits, dense)


def test_a_pipeline_of_transformers():
    pipe = language_pipeline("text-generation", small.make_model(small.llama), tokenizer=make_tokenizer())
    options = {"max_new_tokens": 2, "do_sample": False, "return_tensors": True}
    with apply_psa(pipe, CAUSAL) as handle:
        pipe("a red square moving left " * 30, **options)
    assert handle.stats().summary.sparse_calls == 2
    apply_psa(pipe, CAUSAL)
    remove_psa(pipe)
    assert pipe.model.config._attn_implementation == "sdpa"
