"""A comparison of the small pipeline's videos, made once."""

from dataclasses import replace

import pytest

from psa_triton.config import PSAConfig


@pytest.fixture(scope="session")
def sparse():
    """Of ten key blocks two are read in full and three in pairs: a density of .2 + .3 / 2."""
    from psa_triton.tools.generation import Attention

    ratios = {1: (0, 0.2), 2: (0.2, 0.5), 0: (0.5, 1)}
    return Attention(name="hand/half", config=PSAConfig(block_m=64, block_n=32, mask_ratios=ratios, warmup_steps=1))


@pytest.fixture(scope="session")
def full():
    """Reads everything."""
    from psa_triton.tools.generation import Attention

    return Attention(name="hand/full", config=PSAConfig(block_m=64, block_n=32, mask_ratios={1: (0, 1)}))


@pytest.fixture(scope="session")
def comparison(pipe, request_320, sparse, full):
    """Dense, dense in bfloat16, `sparse` and `full`; `sparse` as if it had been the fastest."""
    import torch

    from psa_triton.tools.evaluation.ceiling import choose_ceiling
    from psa_triton.tools.evaluation.compare import compare_attentions

    ceiling = choose_ceiling("dtype", torch.device("cpu"), torch.float32)
    made = compare_attentions(pipe, request_320, [sparse, full], ceiling=ceiling)
    timed = [
        replace(one, video=replace(one.video, cost=replace(one.video.cost, total_seconds=seconds)))
        for one, seconds in zip(made.candidates, (0.5, 1.0), strict=True)
    ]
    return replace(made, candidates=tuple(timed))


@pytest.fixture(scope="session")
def model():
    """Settings of a model, for a case."""
    return {"model": "small", "weights": "small-wan", "lora": None, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="session")
def described():
    """What else a file holds."""
    return {"versions": {"torch": "2"}, "hardware": {"cpu": "a CPU"}, "command": "psa compare", "date": "today"}


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, comparison, request_320, sparse, full, model, described):
    """A run of two seeds, and of a prompt that failed; the report of a case is in its folder."""
    from psa_triton.tools.evaluation.case import plan_cases, write_case, write_summary

    folder = tmp_path_factory.mktemp("run")
    cases = plan_cases(folder, [request_320], [1, 2], [sparse, full], ceiling=None, model=model)
    written = [write_case(case, comparison, described) for case in cases]
    write_summary(folder, written, [{"name": "prompt_0001_seed_1", "error": "ValueError: no"}], described)
    return folder


@pytest.fixture
def case(tmp_path, request_320, sparse, full, model):
    """The only case of a run, into `tmp_path / "out"`."""
    from psa_triton.tools.evaluation.case import plan_cases

    (only,) = plan_cases(tmp_path / "out", [request_320], [42], [sparse, full], ceiling=None, model=model)
    return only
