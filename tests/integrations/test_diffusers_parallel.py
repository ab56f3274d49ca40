"""Context parallelism: two processes that share the tokens make the video that one makes."""

import inspect
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers import ContextParallelConfig
from programs import TWO_PROCESSES, load_script, python
from small_pipelines import make_wan_transformer

from psa_triton.integrations.diffusers.parallel import head_parallel

WORKER = Path(__file__).with_name("parallel_worker.py")
CASES = load_script(WORKER).CASES


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two processes under torchrun found, rank by rank."""
    if "ulysses_anything" not in inspect.signature(ContextParallelConfig).parameters:
        pytest.skip("diffusers 0.36 shares no tokens but evenly, and those of the cases are odd")
    folder = tmp_path_factory.mktemp("ranks")
    done = python(*TWO_PROCESSES, WORKER, folder, PYTHONPATH=os.pathsep.join(sys.path), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_video_of_one(results, case):
    for result in results:
        assert result[case]["difference"] < 1e-5
        alone, shared = result[case]["records"]
        assert alone == shared and len(shared) > 0
        assert any(sparse for *_, sparse in shared) is not case.endswith("dense")


def test_gradients_return_to_the_tokens(results):
    assert [result["gradient"]["difference"] for result in results] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ({"ring_degree": 2, "ulysses_degree": 1}, "expected ring_degree=1, got 2; use ulysses_degree"),
        ({"ring_degree": 1, "ulysses_degree": 3}, "ulysses_degree of at most 2, the attention heads, got 3"),
    ],
    ids=["ring", "more-processes-than-heads"],
)
def test_forms_that_sparse_attention_cannot_take_part_in(degrees, message):
    transformer = make_wan_transformer()
    transformer._parallel_config = SimpleNamespace(context_parallel_config=SimpleNamespace(**degrees))
    with pytest.raises(ValueError, match=message):
        head_parallel(transformer)
