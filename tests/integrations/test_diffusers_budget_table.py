"""Budgets by layer and denoising step, in pipelines."""

import torch
from small_pipelines import BOTH, make_video, make_wan_inputs, make_wan_pipeline, make_wan_transformer

from psa_triton.config import PSAConfig
from psa_triton.integrations.diffusers import apply_psa

UNIFORM = PSAConfig(block_m=32, block_n=32, mask_mode="budget", budget=0.3)
TABLE = UNIFORM.replace(budget_table=[{"start": 0, "budgets": [0.4, 0.6]}, {"start": 0.5, "budgets": [0.5, 1.0]}])


def attended(pipe, config, **settings):
    """Density and reason of each transformer, layer and step."""
    with apply_psa(pipe, config, min_tokens=0) as handle:
        make_video(pipe, **settings)
    return {
        (record.transformer, record.layer, record.step): (record.density, record.reason)
        for record in handle.stats().records
    }


def test_each_layer_and_step_has_its_own_budget():
    found = attended(make_wan_pipeline(), TABLE, steps=4, guidance_scale=3.0)
    for (_, layer, step), (density, reason) in found.items():
        if layer == 1 and step >= 2:
            assert (density, reason) == (1.0, "budget of 1")
        else:
            budget = TABLE.budget_table[step // 2].budgets[layer]
            assert reason is None
            assert 0.4 * budget < density < budget
    assert len(found) == 8


@BOTH
def test_the_same_budget_everywhere_is_the_one_budget(make_pipe):
    pipe = make_pipe()
    table = UNIFORM.replace(budget=0.9, budget_table=[{"start": start, "budgets": [0.3, 0.3]} for start in (0, 0.5)])
    videos = []
    for config in (UNIFORM, table):
        with apply_psa(pipe, config, min_tokens=0):
            videos.append(make_video(pipe, steps=3))
    assert torch.equal(*videos)


def test_two_transformers_read_one_table_by_their_own_layers():
    """Timesteps 999, 667, 333 around a boundary of 500: the last is the second transformer's."""
    pipe = make_wan_pipeline(two_transformers=True)
    found = attended(pipe, TABLE, steps=3)
    assert found["transformer_2", 1, 2] == (1.0, "budget of 1")
    assert 0.4 < found["transformer_2", 0, 2][0] / 0.5 < 1
    assert 0.4 < found["transformer", 1, 0][0] / 0.6 < 1
    assert len(found) == 6


def test_a_transformer_alone_needs_no_scheduler_for_budgets_by_layer():
    transformer = make_wan_transformer()
    with apply_psa(transformer, TABLE.replace(budget_table=TABLE.budget_table[:1]), min_tokens=0) as handle:
        transformer(**make_wan_inputs())
    first, second = (record.density for record in handle.stats().records)
    assert first < 0.4 < second < 0.6
