"""Checks of the tensors that every stage of the operator takes, with errors that say what to change."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from psa_triton.config import PSAConfig


DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOST_HEADS: Final = 128
"""No known model has more heads: tensors with more, and fewer tokens than this, have the two mixed up."""


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors as `torch.autocast`, where it is on, hands them to scaled dot-product attention: in its dtype.

    float64 stays as it is, and so does what is no tensor.
    """
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else ""
    if device not in ("cpu", "cuda", "xpu", "mps") or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.dtype in narrow else x for x in tensors)


def check_attention_inputs(q: Tensor, k: Tensor, *values: Tensor) -> None:
    """Check that `q [B, Hq, Nq, D]`, `k` and `v [B, Hkv, Nk, D]` belong together. B, Hq, Nq and Nk may be 0.

    Args:
        q, k: queries and keys.
        values: `v`, if there are values.

    Raises:
        TypeError: an argument that is no dense tensor, a dtype that is not supported, or dtypes or devices that differ.
        ValueError: a rank, size or head count that does not fit, or heads and tokens that look mixed up.
    """
    for name, x in zip("qkv", (q, k, *values), strict=False):
        _check_tensor(name, x)
        if x.dtype != q.dtype or x.device != q.device:
            raise TypeError(
                f"{name}: expected dtype and device of q, {q.dtype} on {q.device}, got {x.dtype} on {x.device}"
            )
        if x.shape[0] != q.shape[0] or x.shape[3] != q.shape[3]:
            raise ValueError(
                f"{name}: expected batch {q.shape[0]} and head dimension {q.shape[3]} as in q, got {tuple(x.shape)}"
            )
    dim, heads, key_heads = q.shape[3], q.shape[1], k.shape[1]
    if dim == 0:
        raise ValueError(f"q: expected at least one channel, got shape {tuple(q.shape)}")
    if dim % 8:
        raise ValueError(
            f"q: expected a head dimension that is a multiple of 8, got {dim}; pad q, k and v with "
            f"torch.nn.functional.pad(x, (0, {-dim % 8})), pass scale={dim} ** -0.5, and take out[..., :{dim}]"
        )
    if (heads % key_heads if key_heads else heads) != 0:
        raise ValueError(f"q: expected a multiple of k's {key_heads} heads, got {heads}{_mixed_up(q, k)}")
    for v in values:
        if v.shape != k.shape:
            raise ValueError(f"v: expected the shape of k, {tuple(k.shape)}, got {tuple(v.shape)}")
    if min(heads, key_heads) > MOST_HEADS >= max(q.shape[2], k.shape[2]) > 0:
        raise ValueError(
            f"q: expected [batch, heads, tokens, channels], got {tuple(q.shape)}{_mixed_up(q, k)}; "
            f"if these are {heads} heads of {q.shape[2]} tokens, make them part of the batch"
        )


def _check_tensor(name: str, x: Tensor) -> None:
    """Raise unless `x`, the argument called `name`, is a dense tensor of four dimensions and a supported dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.is_nested or x.layout != torch.strided:
        kind = "nested tensor" if x.is_nested else str(x.layout).removeprefix("torch.")
        raise TypeError(
            f"{name}: expected a dense tensor, got a {kind}; use to_padded_tensor, to_dense or the like first"
        )
    if x.dim() != 4:
        raise ValueError(f"{name}: expected 4 dimensions [batch, heads, tokens, channels], got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"{name}: expected one of {known}, got {x.dtype}; convert it first")


def _mixed_up(q: Tensor, k: Tensor) -> str:
    """Words for an error's end if `q` and `k` would fit as `[B, N, H, D]`."""
    heads, key_heads = q.shape[2], k.shape[2]
    fits = 0 < key_heads <= heads <= MOST_HEADS and heads % key_heads == 0
    if not fits or q.shape[1] <= heads or k.shape[1] <= key_heads:
        return ""
    return "; they look like [batch, tokens, heads, channels]: pass q.transpose(1, 2), and k and v alike"


def as_int(name: str, value: Any) -> int:
    """`value`, the argument called `name`, as an int: anything that counts as one (`operator.index`) but no bool.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except (TypeError, ValueError):  # torch raises either for tensors
        pass
    raise TypeError(f"{name}: expected an int, got {type(value).__name__}")


def as_count(name: str, value: Any) -> int:
    """`value`, the argument called `name`, as an int of at least 0.

    Raises:
        TypeError: it is no int.
        ValueError: it is negative.
    """
    if (count := as_int(name, value)) < 0:
        raise ValueError(f"{name}: expected 0 or more, got {count}")
    return count


def as_indexes(name: str, values: Any) -> frozenset[int]:
    """`values`, the argument called `name`, as a set of ints.

    Raises:
        TypeError: it is no collection, or not of ints.
    """
    try:
        return frozenset(as_int(name, value) for value in values)
    except TypeError as error:
        raise TypeError(f"{name}: expected a collection of ints, got {values!r}") from error


def check_causal(is_causal: bool, config: PSAConfig | None = None) -> None:
    """Raise unless `is_causal` is a bool, which `config` allows.

    Raises:
        TypeError: it is none; a string or a mask would count as True.
        ValueError: a causal mask, which `new_mask_type` has not.
    """
    if not isinstance(is_causal, bool):
        raise TypeError(f"is_causal: expected True or False, got {type(is_causal).__name__}")
    if is_causal and config is not None and config.attn_impl == "new_mask_type":
        raise ValueError("attn_impl: 'new_mask_type' has no causal mask; use attn_impl 'auto' or 'old_mask_type'")


def check_generator(generator: torch.Generator | None) -> None:
    """Raise unless `generator` is a `torch.Generator` or None.

    Raises:
        TypeError: it is neither.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator or None, got {type(generator).__name__}")


def check_key_mask(key_mask: Tensor | None, k: Tensor) -> None:
    """Check that `key_mask`, if there is one, says of every key of `k [B, Hkv, Nk, D]` whether it is there.

    Raises:
        TypeError: it is no bool tensor.
        ValueError: its shape is not `[B, Nk]`, or its device is not that of `k`.
    """
    if key_mask is None:
        return
    if not isinstance(key_mask, Tensor):
        raise TypeError(f"key_mask: expected a bool tensor or None, got {type(key_mask).__name__}")
    if key_mask.dtype != torch.bool:
        raise TypeError(
            f"key_mask: expected bool, True for keys that are there, got {key_mask.dtype}; convert with .bool()"
        )
    if key_mask.shape != (k.shape[0], k.shape[2]):
        raise ValueError(f"key_mask: expected [batch, keys] = {(k.shape[0], k.shape[2])}, got {tuple(key_mask.shape)}")
    if key_mask.device != k.device:
        raise ValueError(f"key_mask: expected the device of k, {k.device}, got {key_mask.device}")


def check_dropout(dropout_p: float) -> None:
    """Raise unless `dropout_p` is 0."""
    if not isinstance(dropout_p, (int, float)) or isinstance(dropout_p, bool):
        raise TypeError(f"dropout_p: expected 0.0, got {dropout_p!r}")
    if dropout_p != 0:
        raise ValueError(f"dropout_p: expected 0.0, got {dropout_p}; pyramid attention has no dropout")


def check_config(config: PSAConfig) -> None:
    """Raise unless `config` is a `PSAConfig`."""
    from psa_triton.config import PSAConfig  # here, so that kernels run where pydantic is missing

    if isinstance(config, PSAConfig):
        return
    if isinstance(config, Tensor):
        raise TypeError(
            "config: expected a PSAConfig as the fourth argument, got a tensor; if it is the mask that stands there in "
            "scaled_dot_product_attention, pass it by its name: attn_mask"
        )
    raise TypeError(f"config: expected a PSAConfig, got {type(config).__name__}; load_preset makes one from a preset")


def resolve_scale(scale: float | None, dim: int) -> float:
    """The factor of the logits: `scale`, or `dim ** -0.5` if None.

    Raises:
        ValueError: a scale that is not a finite number.
    """
    if scale is None:
        return dim**-0.5
    if not isinstance(scale, Real) or isinstance(scale, bool) or not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number, or None for head_dim ** -0.5, got {scale!r}")
    return float(scale)
