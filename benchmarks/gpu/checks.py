"""Whether results are right: against the definition in float64, as close as torch's steps in the same dtype come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from gpu.cases import BLOCK_M, BLOCK_N, BLOCKS, DTYPE, ESTIMATORS, Inputs, levels_of, sparse
from psa_triton.blocks import Blocks
from psa_triton.importance import block_importance
from psa_triton.kernels import Reading, attend, pyramid_attention
from psa_triton.kernels.triton import tiles as tables
from psa_triton.levels import densities_triton, read_density, select_levels, similarity_caps
from psa_triton.levels.budget import budget_levels, expected_errors
from psa_triton.ratios import COARSEST_LEVEL
from psa_triton.tools.bench.tiles import candidates, only

MARGIN: Final = 2.0
"""A result may be this many times as far from the definition as torch's steps in the same dtype are."""
_RATIOS: Final = {1: (0.0, 0.2), 2: (0.2, 0.4), 4: (0.4, 0.6), 8: (0.6, 0.8), 0: (0.8, 1.0)}

Errors = dict[str, float]
"""Over what is allowed."""


def check_rows(x: Inputs) -> Errors:
    """Of the output in a query block midway and in the last, measured by eager attention there."""
    levels = levels_of(x)
    out, last = sparse(x, levels), levels.shape[2] - 1
    places = ((0, last // 2), (x.shape.heads - 1, last))
    return {f"head {h}, query block {i}": _row_error(x, levels, out, h, i) for h, i in places}


def _row_error(x: Inputs, levels: Tensor, out: Tensor, head: int, block: int) -> float:
    causal, tokens = x.shape.is_causal, x.shape.tokens
    rows = slice(block * BLOCK_M, min((block + 1) * BLOCK_M, tokens))
    # Aligned at the bottom right, queries see no key after their block, and mask each other among the last.
    seen = rows.stop if causal else tokens
    of_keys = [head // (x.shape.heads // x.shape.key_heads)]
    parts = x.q[:, [head], rows], x.k[:, of_keys, :seen], x.v[:, of_keys, :seen]
    wide = [t.double() for t in parts]
    chosen = levels[:, [head], block : block + 1, : -(-seen // BLOCK_N)]
    exact = pyramid_attention(*wide, chosen, **BLOCKS, is_causal=causal, impl="reference")
    eager = _error(_eager(*parts, causal), _eager(*wide, causal))
    return _error(out[:, [head], rows], exact) / eager / MARGIN


def _error(found: Tensor, exact: Tensor) -> float:
    """Relative, in norm; not a number if anything found is not."""
    return float((found.double() - exact).norm() / exact.norm())


@dataclass(frozen=True)
class Check:
    """Kernels at a small shape, and the same by torch."""

    name: str
    run: Callable[[str, torch.dtype], dict[str, Tensor]]
    """Results by name, of an implementation and a dtype of the inputs."""
    yardstick: str = "eager"
    """What else `run` knows: torch's steps, whose error is the measure of others."""
    is_choice: bool = False
    """Whether results are levels, or count them: these must be the same."""

    def errors(self) -> Errors:
        """Measured by those of torch's steps; of levels, the pairs that differ, each of them too many."""
        found = self.run("triton", DTYPE)
        if self.is_choice:
            expected = self.run("torch", DTYPE)
            differ = {name: (found[name].double() - expected[name].double()).abs() > 1e-5 for name in found}
            return {name: 2.0 * float(pairs.sum()) for name, pairs in differ.items()}
        exact = self.run("reference", torch.float64)
        eager, eager_exact = self.run(self.yardstick, DTYPE), self.run(self.yardstick, torch.float64)
        return {n: _error(found[n], exact[n]) / _error(eager[n], eager_exact[n]) / MARGIN for n in found}


def smoke_checks(device: torch.device) -> Iterator[Check]:
    """Every kernel, once or more; on the `meta` device they can be run and not compared."""
    for n, dim, causal, masked, correction, qk_dtype in _ATTENTIONS:
        marks = ", causal" * causal + ", keys left out" * masked + ", corrected" * (correction != "none")
        marks += ", in 8 bits" * (qk_dtype == "int8")
        run = _attention(device, n, dim, causal, masked, correction, qk_dtype)
        yield Check(f"attention, n={n}, D={dim}{marks}", run)
    if tables.current_target(device) == "sm_90":
        for dim in (64, 128):
            for tiles in candidates("sm_90", "attend_tma", DTYPE.itemsize, dim):
                yield Check(f"attention by TMA, D={dim}, tiles of {tiles.n}", _by_tma(device, dim, tiles))
    for method in (*ESTIMATORS, "finely_sampled", "representative"):
        for causal in (False, True):
            yield Check(f"importance, {method}{', causal' * causal}", _importance(device, method, causal), "reference")
    yield Check("levels by shares", _levels(device), is_choice=True)
    yield Check("similarity caps", _caps(device), is_choice=True)
    yield Check("density", _density(device), is_choice=True)
    for scope in ("row", "head", "layer"):
        yield Check(f"levels by a budget of a {scope}", _budget(device, scope), is_choice=True)


_ATTENTIONS: Final = (
    (64, 128, False, False, "none", "auto"),
    (32, 128, False, False, "none", "auto"),
    (128, 64, False, False, "none", "auto"),
    (64, 128, True, False, "none", "auto"),
    (32, 64, True, True, "none", "auto"),
    (64, 64, False, False, "isotropic", "auto"),
    (64, 128, True, False, "none", "int8"),
)


def _draw(device: torch.device, heads: int, tokens: int, dim: int, seed: int) -> Tensor:
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
    return torch.randn(1, heads, tokens, dim, generator=generator, device=device, dtype=DTYPE)


def _qkv(device: torch.device, dim: int) -> list[Tensor]:
    """Two query heads to a key head; fewer of all in Triton's interpreter, which takes seconds for what a GPU does."""
    tokens, heads = (140, 1) if device.type == "cpu" else (1000, 2)
    return [_draw(device, count, tokens, dim, seed) for seed, count in enumerate((2 * heads, heads, heads))]


def _attention(
    device: torch.device,
    n: int,
    dim: int,
    causal: bool,
    masked: bool,
    correction: str,
    qk_dtype: str,
    coarsest: int = 0,
) -> Any:
    """Output and, where there are any, gradients."""
    inputs = _qkv(device, dim)
    heads, tokens = inputs[0].shape[1:3]
    upstream = _draw(device, heads, tokens, dim, 9)
    rows, columns = torch.arange(-(-tokens // BLOCK_M))[:, None], torch.arange(-(-tokens // n))
    # 8, 4, 2, 1 and nothing in turn; the block at which a query block begins is read in full.
    levels = torch.tensor([8, 4, 2, 1, 0], dtype=torch.int8)[(rows + columns) % 5]
    levels = levels.masked_fill(columns == rows * BLOCK_M // n, 1).to(device).expand(1, heads, -1, -1).contiguous()
    key_mask = (torch.arange(tokens, device=device) % 5 > 0)[None] if masked else None
    blocks = Blocks(BLOCK_M, n, tokens, tokens, causal, key_mask)
    reading = Reading(dim**-0.5, correction, coarsest or min(n, COARSEST_LEVEL), qk_dtype, "reference")

    def run(impl: str, dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = [t.to(dtype).requires_grad_(qk_dtype == "auto") for t in inputs]
        eager = impl == "eager"
        how = replace(reading, impl=impl)
        out = _eager(*leaves, causal) if eager else attend(*leaves, levels, blocks, how)[0]
        if not out.requires_grad:
            return {"output": out}
        of_q, of_k, of_v = torch.autograd.grad(out, leaves, upstream.to(dtype))
        return {"output": out.detach(), "gradient of q": of_q, "gradient of k": of_k, "gradient of v": of_v}

    return run


def _by_tma(device: torch.device, dim: int, tiles: tables.Tiles) -> Any:
    from psa_triton.kernels.triton import forward_tma  # noqa: F401  # so that it is missed where it was not launched

    plain = _attention(device, BLOCK_N, dim, False, False, "none", "auto", coarsest=8)

    def run(impl: str, dtype: torch.dtype) -> dict[str, Tensor]:
        with only(tiles, "attend_tma"):
            return plain(impl, dtype)

    return run


def _eager(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Dense attention, every result in the dtype of the inputs; the last query sees all keys."""
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        logits = logits.masked_fill(
            torch.ones_like(logits, dtype=torch.bool).triu(1 + k.shape[2] - q.shape[2]), -torch.inf
        )
    return logits.softmax(-1) @ v


def _importance(device: torch.device, method: str, causal: bool) -> Any:
    q, k, _ = _qkv(device, 64)
    settings = dict(block_m=BLOCK_M, block_n=BLOCK_N, method=method, is_causal=causal)
    return lambda impl, dtype: {"importance": block_importance(q.to(dtype), k.to(dtype), impl=impl, **settings)}


def _levels(device: torch.device) -> Any:
    importance = _draw(device, 1, 4, 250, 2).float().mul(3).softmax(-1)
    importance[..., :9] = importance[..., 9:18]  # ties
    return lambda impl, _: {
        m: select_levels(importance, _RATIOS, mode=m, impl=impl) for m in ("topk", "thresholdbound")
    }


def _caps(device: torch.device) -> Any:
    keys = _qkv(device, 64)[1].cumsum(-2)
    thresholds = SimpleNamespace(x2=0.7, x4=0.65, x8=0.6)  # those of SimThresholds, which needs pydantic
    return lambda impl, _: {"caps": similarity_caps(keys, BLOCK_N, thresholds, impl=impl)}


def _density(device: torch.device) -> Any:
    blocks = Blocks(BLOCK_M, BLOCK_N, 1000, 1000, is_causal=True)
    levels = torch.tensor([1, 2, 4, 8, 0, 1, 0, 8], dtype=torch.int8).repeat(16).view(1, 1, 8, 16).to(device)

    def run(impl: str, _: torch.dtype) -> dict[str, Tensor]:
        if impl == "triton":
            return {"density": densities_triton.read_density(levels, blocks)}
        return {"density": read_density(levels.cpu(), blocks).to(device)}

    return run


def _budget(device: torch.device, scope: Any) -> Any:
    q, k, v = _qkv(device, 64)
    blocks = Blocks.of(q, k, BLOCK_M, 32)
    importance = block_importance(q, k, block_m=BLOCK_M, block_n=32, method="representative", impl="triton")
    fixed = dict(keep_first_block=False, scope=scope)

    def run(impl: Any, _: torch.dtype) -> dict[str, Tensor]:
        errors = expected_errors(q, k, v, blocks, scale=64**-0.5, impl="triton")
        return {"levels": budget_levels(importance, errors, blocks, 0.3, impl=impl, **fixed)}

    return run
