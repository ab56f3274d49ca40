"""Every preset and mode at any length from 1 to 300, against the definition in float64.

`python tests/test_fuzz.py --cases 10000` tries as many cases and prints those that are wrong, with the seeds that
repeat them; the suite tries some.
"""

import argparse
import random

import pytest
import torch

from psa_triton import PSAConfig, load_preset, psa_attention, pyramid_attention
from psa_triton.attention import sparse_attention
from psa_triton.exempt import count, find_sides
from psa_triton.ordering import token_orders
from psa_triton.presets import load_presets_file

DTYPES = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3, torch.float64: 1e-11}
"""How far the output may be from the float64 oracle's, relative to it: a few roundings."""
LONGEST = 300
LONGEST_INTERPRETED = 70


def all_configs():
    """The shipped presets, and every mode with every estimator and scope."""
    sections = load_presets_file().sections.items()
    presets = [load_preset(model, name) for model, section in sections for name in section.attention_configs]
    small = PSAConfig(block_m=32, block_n=32)
    estimators = ("sampled", "finely_sampled", "antidiagonal", "pooled", "representative")
    modes = [
        small.replace(mask_mode=mode, importance=estimator, budget=0.3)
        for estimator in estimators
        for mode in ("topk", "thresholdbound", "budget")
    ]
    scopes = [small.replace(mask_mode="budget", budget_scope=scope) for scope in ("head", "layer")]
    orders = [small.replace(rearrange_method=order) for order in ("STA", "SemanticAware", "Hybrid")]
    coarse = small.replace(mask_ratios={2: (0, 0.2), 16: (0.2, 0.5), 32: (0.5, 0.9), 0: (0.9, 1)}, use_sim_mask=False)
    others = [*modes, *scopes, *orders, coarse, small.replace(pool_correction="isotropic")]
    return [x for x in presets if x is not None] + others


CONFIGS = all_configs()


def grid_of(tokens, draw):
    """A random box of so many tokens."""
    t = draw.choice([x for x in range(1, tokens + 1) if tokens % x == 0])
    h = draw.choice([x for x in range(1, tokens // t + 1) if tokens // t % x == 0])
    return t, h, tokens // t // h


def problem(seed, impls=("cpu", "reference")):
    """What is wrong in the case that `seed` names; None if nothing is."""
    draw = random.Random(seed)
    config = CONFIGS[seed % len(CONFIGS)].replace(warmup_steps=0)
    impl = draw.choice(impls)
    dtype = draw.choice([x for x in DTYPES if impl != "triton" or x != torch.float64])
    longest = LONGEST_INTERPRETED if impl == "triton" else LONGEST
    queries = draw.randint(1, longest)
    shape = draw.choice(["plain", "causal", "cross", "grid", "masked"])
    keys = draw.randint(1, longest) if shape in ("cross", "causal") and draw.random() < 0.5 else queries
    exempt = {"prefix_tokens": min(draw.choice([0, 0, draw.randint(0, queries)]), keys)}
    for name, tokens in (("exempt", min(queries, keys)), ("exempt_queries", queries), ("exempt_keys", keys)):
        if draw.random() < 0.2:
            exempt[name] = [sorted(draw.randint(0, tokens) for _ in range(2)) for _ in range(2)]
    if shape == "grid" and draw.random() < 0.3:
        keys += draw.randint(1, 40)
    call = dict(exempt)
    key_mask = None
    if shape == "causal":
        config = config.replace(use_rearrange=False, attn_impl="auto")
        call["is_causal"] = True
    elif shape == "grid":
        _, of_queries, of_keys = find_sides(queries, keys, None, **exempt)
        visual = queries - count(of_queries.aside)
        if 0 < visual <= keys - count(of_keys.aside):
            call["grid"] = grid_of(visual, draw)
    generator = torch.Generator().manual_seed(seed)
    key_heads, group = draw.choice([1, 2]), draw.choice([1, 2])
    batch, dim = draw.choice([1, 1, 2]), draw.choice([8, 16, 32])
    q = torch.randn(batch, key_heads * group, queries, dim, generator=generator) * draw.choice([0.1, 1, 4])
    k, v = torch.randn(2, batch, key_heads, keys, dim, generator=generator)
    if draw.random() < 0.5:
        k, v = (x + x.cumsum(2) / 4 for x in (k, v))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    if shape == "masked":
        key_mask = call["key_mask"] = torch.rand(batch, keys, generator=generator) < draw.choice([0.1, 0.5, 0.9])
    name = f"seed {seed}: {impl} {dtype} {queries}x{keys} {shape} {config.mask_mode} {config.importance}"

    out, levels = sparse_attention(q, k, v, config, impl=impl, **call)
    if not torch.equal(out, psa_attention(q, k, v, config, impl=impl, **call)):
        return f"{name}: another result the second time"
    if out.shape != q.shape or out.dtype != dtype or not out.isfinite().all():
        return f"{name}: not finite, or of another shape or dtype"

    sides = find_sides(queries, keys, call.get("grid"), **exempt)
    orders = token_orders(q, k, config, *sides, key_mask=key_mask)
    wide = [x.double() for x in (q, k, v)]
    seen = None if key_mask is None else key_mask[:, None].expand(-1, key_heads, -1)
    if orders is not None:
        wide = [order.apply(x) for order, x in zip((orders[0], orders[1], orders[1]), wide, strict=True)]
        seen = None if seen is None else orders[1].apply(seen, dim=-1)
    if seen is not None and not torch.equal(seen, seen[:, :1].expand_as(seen)):
        seen, expected = None, None  # an order for each head: the oracle takes one mask for all of them
    else:
        blocks = dict(block_m=config.block_m, block_n=config.block_n, pool_correction=config.pool_correction)
        mask = None if seen is None else seen[:, 0].contiguous()
        expected = pyramid_attention(
            *wide, levels, key_mask=mask, is_causal=call.get("is_causal", False), impl="reference", **blocks
        )
        expected = expected if orders is None else orders[0].restore(expected)
        error = float((out.double() - expected).norm() / expected.norm().clamp(min=1e-9))
        if error > DTYPES[dtype]:
            return f"{name}: error {error:.2e}"

    # Whoever may see a key reads something.
    sees = torch.ones(batch, queries, dtype=torch.bool)
    if key_mask is not None:
        sees = sees & key_mask.any(-1, keepdim=True)
    if call.get("is_causal"):
        sees = sees & (torch.arange(queries) + keys - queries >= 0)
    if not (out != 0).any(-1).transpose(1, 2)[sees].all():
        return f"{name}: a query that sees a key reads nothing"
    if (out != 0).any(-1).transpose(1, 2)[~sees].any():
        return f"{name}: a query that sees no key reads something"

    # Whoever is exempt is read, or reads, in full.
    if key_mask is None and "is_causal" not in call:
        for side, size, of_blocks in zip(sides[1:], (config.block_m, config.block_n), (levels, levels.mT), strict=True):
            ranges = side.exempt if orders is None else side.front
            touched = {token // size for pair in ranges for token in range(*pair)}
            if (of_blocks[..., sorted(touched), :] != 1).any():
                return f"{name}: exempt tokens that are not read in full"

    # Levels of the implementations: alike in float64 and float32, whose estimates differ by rounding.
    if dtype in (torch.float32, torch.float64):
        _, others = sparse_attention(q, k, v, config, impl="reference", **call)
        same = (levels == others).float().mean()
        if same < (1 if impl == "cpu" else 0.9):
            return f"{name}: {1 - same:.1%} of the levels differ from the reference's"
    return None


def wrong(cases, first, impls, tell):
    """How many cases from seed `first` on are wrong."""
    count = 0
    for seed in range(first, first + cases):
        try:
            found = problem(seed, impls)
        except Exception as error:  # whatever a case raises is a finding
            found = f"seed {seed}: {type(error).__name__}: {error}"
        if found is not None:
            count += 1
            tell(found)
    return count


def test_any_preset_at_any_length():
    assert [found for seed in range(150) if (found := problem(seed)) is not None] == []


def test_by_gpu_kernels():
    pytest.importorskip("triton")
    seeds = (7001, 7020)
    assert [found for seed in seeds if (found := problem(seed, ("triton",))) is not None] == []


@pytest.mark.slow
def test_two_thousand_cases():
    problems = []
    assert wrong(2000, 10_000, ("cpu", "reference"), problems.append) == 0, problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--impls", nargs="+", default=["cpu", "reference"], choices=["cpu", "reference", "triton"])
    options = parser.parse_args()
    count = wrong(options.cases, options.first, tuple(options.impls), lambda text: print(text, flush=True))
    print(f"{options.cases} cases, {count} wrong")
