"""One transformer, several pipelines, threads and schedulers: the state is that of the forward that is running."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from small_pipelines import (
    BOTH,
    SPARSE,
    make_cogvideox_pipeline,
    make_video,
    make_wan_inputs,
    make_wan_modular_pipeline,
    make_wan_pipeline,
    make_wan_transformer,
    sparse_steps,
)

from psa_triton import apply_psa, remove_psa

WARM = SPARSE.replace(warmup_steps=2)


def sharing(pipe, scheduler):
    """A second pipeline over the same components, with a scheduler of its own.

    And a tokenizer: a fast one keeps how it pads in itself, so that threads change it under each other's hands.
    """
    kind = CogVideoXPipeline if isinstance(pipe, CogVideoXPipeline) else WanPipeline
    other = kind.from_pipe(pipe)
    other.scheduler, other.tokenizer = scheduler, copy.deepcopy(pipe.tokenizer)
    assert other.transformer is pipe.transformer
    return other


@pytest.mark.parametrize(
    ("make_pipe", "scheduler"),
    [(make_wan_pipeline, FlowMatchEulerDiscreteScheduler(shift=5.0)), (make_cogvideox_pipeline, None)],
    ids=["wan", "cogvideox"],
)
def test_a_second_pipeline_goes_by_its_own_scheduler(make_pipe, scheduler):
    """Whether or not the first has run, and also if the timesteps of the one are among those of the other."""
    pipe = make_pipe()
    other = sharing(pipe, scheduler or CogVideoXDDIMScheduler())
    with apply_psa(pipe, WARM, dense_last_steps=1) as handle:
        for first, second in [(0, 4), (8, 4), (4, 8)]:
            if first:
                make_video(pipe, steps=first)
            handle.reset()
            make_video(other, steps=second)
            assert sparse_steps(handle.stats()) == {step: 2 <= step < second - 1 for step in range(second)}


def test_a_transformer_that_was_attached_alone_goes_by_the_pipeline_that_runs_it():
    pipe = make_wan_pipeline()
    with apply_psa(pipe.transformer, WARM, scheduler=UniPCMultistepScheduler()) as handle:
        make_video(pipe, steps=4)
    assert sparse_steps(handle.stats()) == {0: False, 1: False, 2: True, 3: True}


def test_of_pipelines_one_within_the_other_the_inner_one_counts():
    pipe = make_wan_pipeline()
    other = sharing(pipe, FlowMatchEulerDiscreteScheduler())
    alone = {}
    with apply_psa(pipe, WARM) as handle:
        alone["outer"], alone["inner"] = make_video(pipe, steps=3), make_video(other, steps=4)
        handle.reset()
        inner = []

        def run_the_other(_, step, timestep, kwargs):
            inner.append(make_video(other, steps=4))
            return kwargs

        assert torch.equal(make_video(pipe, steps=3, callback_on_step_end=run_the_other), alone["outer"])
        assert all(torch.equal(video, alone["inner"]) for video in inner) and len(inner) == 3
    # Twice two layers of the outer pipeline's warm-up, three times that of the inner one's.
    assert handle.stats().summary.dense_calls == 2 * (2 + 3 * 2)


def test_timesteps_rounded_on_their_way():
    """A modular pipeline in bfloat16 hands over 999 as 1000, and so on."""
    pipe = make_wan_pipeline()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8)
    modular = make_wan_modular_pipeline(pipe.components | {"scheduler": scheduler})
    options = {"prompt": "a red square", "num_frames": 5, "height": 32, "width": 64}
    with apply_psa(modular, WARM, min_tokens=0) as handle:
        modular(**options, num_inference_steps=3)
        assert sparse_steps(handle.stats()) == {0: False, 1: False, 2: True}
        handle.reset()
        modular.text_encoder.to(torch.bfloat16)
        modular.transformer.to(torch.bfloat16)
        modular(**options, num_inference_steps=20)
        assert sparse_steps(handle.stats()) == {step: step >= 2 for step in range(20)}


class TestALoopOfOnesOwn:
    """No pipeline's call is running: the scheduler of `apply_psa` counts, and only if it can be that of the loop."""

    def run(self, transformer, scheduler, count=4):
        scheduler.set_timesteps(count)
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                transformer(**make_wan_inputs(timestep=timestep[None]))

    def test_the_pipelines_scheduler(self):
        pipe = make_wan_pipeline()
        with apply_psa(pipe, WARM) as handle:
            self.run(pipe.transformer, pipe.scheduler)
        assert sparse_steps(handle.stats()) == {0: False, 1: False, 2: True, 3: True}

    def test_a_scheduler_that_was_never_set_is_refused(self):
        """Its timesteps are the 1000 of training: 999, 749, 500 and 250 would be steps 0, 250, 499 and 749."""
        pipe = make_wan_pipeline()
        with apply_psa(pipe, WARM), pytest.raises(ValueError, match="UniPC.* whose set_timesteps was not called"):
            self.run(pipe.transformer, UniPCMultistepScheduler())

    def test_a_scheduler_of_another_run_is_refused(self):
        pipe = make_wan_pipeline()
        with apply_psa(pipe, WARM) as handle:
            make_video(pipe, steps=3)
            handle.reset()
            with pytest.raises(ValueError, match=r"one of the 3 timesteps of the UniPC.*, got timestep 749 .* 66[67]"):
                self.run(pipe.transformer, UniPCMultistepScheduler())

    def test_timesteps_of_another_unit_are_refused(self):
        pipe = make_wan_pipeline()
        pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"timestep": kwargs["timestep"] / 1000}), with_kwargs=True
        )
        with apply_psa(pipe, WARM), pytest.raises(ValueError, match="got timestep 0.999 "):
            make_video(pipe, steps=3)

    def test_where_steps_do_not_matter_any_timestep_will_do(self):
        pipe = make_wan_pipeline()
        with apply_psa(pipe, SPARSE) as handle:
            self.run(pipe.transformer, UniPCMultistepScheduler())
        assert sparse_steps(handle.stats()) == {None: True}


class Together:
    """Runs functions in threads that take turns at every attention call, so that their forwards interleave."""

    def __init__(self, transformers, parties):
        self._barrier = threading.Barrier(parties)
        self._hooks = [
            module.register_forward_pre_hook(self._meet)
            for transformer in transformers
            for module in transformer.modules()
            if hasattr(module, "processor")
        ]

    def _meet(self, *_):
        try:
            self._barrier.wait(timeout=20)
        except threading.BrokenBarrierError:
            return

    def run(self, *functions):
        def run(function):
            try:
                return function()
            finally:
                self._barrier.abort()  # the others go on alone

        with ThreadPoolExecutor(len(functions)) as threads:
            results = list(threads.map(run, functions))
        for hook in self._hooks:
            hook.remove()
        return results


@BOTH
def test_threads_make_the_videos_of_each_pipeline_alone(make_pipe):
    """Different sizes, numbers of steps and schedulers, with guidance or not, over one transformer."""
    pipe = make_pipe()
    schedulers = (
        [FlowMatchEulerDiscreteScheduler(shift=s) for s in (3.0, 1.0)]
        if isinstance(pipe, WanPipeline)
        else [CogVideoXDDIMScheduler(timestep_spacing=s) for s in ("trailing", "linspace")]
    )
    jobs = [
        (pipe, {"steps": 4}),
        (sharing(pipe, schedulers[0]), {"steps": 3, "grid": (2, 6, 6), "guidance_scale": 3.0}),
        (sharing(pipe, schedulers[1]), {"steps": 6, "grid": (4, 4, 5), "seed": 3}),
    ]
    run = [lambda pipe=pipe, options=options: make_video(pipe, **options) for pipe, options in jobs]
    with apply_psa(pipe, WARM) as handle:
        alone, counts = [], []
        for function in run:
            handle.reset()
            alone.append(function())
            counts.append(handle.stats())
        handle.reset()
        for found, expected in zip(Together([pipe.transformer], len(run)).run(*run), alone, strict=True):
            assert torch.equal(found, expected)
        both = handle.stats()
    for field in ("forwards", "gathers", "sparse_calls", "dense_calls"):
        assert getattr(both.summary, field) == sum(getattr(one.summary, field) for one in counts)
    assert set(both.records) == {record for one in counts for record in one.records}


def test_what_on_levels_is_told_is_of_their_own_thread():
    pipe = make_wan_pipeline()
    other = sharing(pipe, FlowMatchEulerDiscreteScheduler())
    told = []

    def keep(record):
        told.append((threading.current_thread().name, record, record.qkv[0].shape[2]))

    def run(pipe, grid):
        threading.current_thread().name = str(grid)
        make_video(pipe, steps=2, grid=grid)

    with apply_psa(pipe, SPARSE, on_levels=keep):
        Together([pipe.transformer], 2).run(lambda: run(pipe, (3, 5, 7)), lambda: run(other, (2, 6, 6)))
    assert {(name, str(record.grid), tokens) for name, record, tokens in told} == {
        ("(3, 5, 7)", "(3, 5, 7)", 105),
        ("(2, 6, 6)", "(2, 6, 6)", 72),
    }
    assert len(told) == 2 * 2 * 2


@pytest.fixture
def held_forward():
    """A pipeline in the middle of a forward in another thread, and what lets it finish and gives the video."""
    pipe, entered, go_on = make_wan_pipeline(), threading.Event(), threading.Event()

    def hold(*_):
        entered.set()
        go_on.wait(timeout=20)

    pipe.transformer.blocks[1].register_forward_pre_hook(hold)
    with ThreadPoolExecutor(1) as threads:

        def start():
            video = threads.submit(make_video, pipe, steps=1)
            entered.wait(timeout=20)

            def finish():
                go_on.set()
                return video.result()

            return finish

        yield pipe, start
        go_on.set()


def test_detaching_in_the_middle_of_a_forward_is_refused(held_forward):
    """Some of its layers would be sparse and others not."""
    pipe, start = held_forward
    handle = apply_psa(pipe, SPARSE)
    finish = start()
    for detach in (handle.remove, lambda: remove_psa(pipe)):
        with pytest.raises(RuntimeError, match="transformer: a forward is running in another thread"):
            detach()
    sparse = finish()
    assert torch.equal(make_video(pipe, steps=1), sparse)
    handle.remove()
    assert not torch.equal(make_video(pipe, steps=1), sparse)


def test_attaching_in_the_middle_of_a_forward_leaves_that_one_dense(held_forward):
    pipe, start = held_forward
    finish = start()
    with apply_psa(pipe, SPARSE):
        dense = finish()
        assert not torch.equal(make_video(pipe, steps=1), dense)
    assert torch.equal(make_video(pipe, steps=1), dense)


def test_a_forward_that_failed_is_over():
    transformer, inputs = make_wan_transformer(), make_wan_inputs()
    handle = apply_psa(transformer, SPARSE)
    with ThreadPoolExecutor(1) as threads:  # the thread stays alive
        with pytest.raises(RuntimeError):
            threads.submit(transformer, **inputs | {"encoder_hidden_states": torch.zeros(1, 2, 3)}).result()
        handle.remove()


def test_backward_in_other_threads_and_another_order():
    """Checkpointed blocks are computed again in the backward, and see the forward that they were part of."""
    transformer = make_wan_transformer().train()
    inputs = [make_wan_inputs(), make_wan_inputs(hidden_states=torch.randn(1, 16, 2, 12, 12))]

    def gradient(output):
        transformer.zero_grad()
        (output**2).sum().backward()
        return transformer.blocks[0].attn1.to_q.weight.grad.clone()

    with apply_psa(transformer, SPARSE):
        expected = [gradient(transformer(**each).sample) for each in inputs]
        transformer.enable_gradient_checkpointing()
        outputs = [transformer(**each).sample for each in inputs]
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(gradient, outputs[1]).result()
        assert torch.equal(second, expected[1])
        assert torch.equal(gradient(outputs[0]), expected[0])
