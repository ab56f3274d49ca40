"""What the attention backends for servers share: a program's own objects tell them of calls, and they keep no run."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, Final

from torch import Tensor

from psa_triton.config import PSAConfig
from psa_triton.integrations.hosts import HostAttention
from psa_triton.integrations.rules import DenseRules
from psa_triton.presets import resolve

PRESET: Final = "PSA_PRESET"
"""Environment variable with the preset to serve, as SECTION/PRESET."""


def served_config() -> PSAConfig | None:
    """The attention that the environment names, by default `general/psa_budget`; None for a dense one.

    Raises:
        PresetError: there is no such preset.
        ValueError: its layers reuse what they computed in earlier steps, or it has a table of budgets.
    """
    name = os.environ.get(PRESET, "general/psa_budget")
    config = resolve(name).config
    if config is not None and (config.reuse is not None or config.budget_table):
        raise ValueError(
            f"{PRESET}: expected a preset without reuse and budget_table, which need a whole run where servers show "
            f"single calls, got {name}; take psa_balanced or psa_budget"
        )
    return config


class ServedAttention:
    """The attention of all layers of a server's model: in each layer's own implementation this is the shared part."""

    def __init__(self, config: PSAConfig | None, *, layers: Collection[int] = (), last_steps: int = 0) -> None:
        self._rules = DenseRules(kind="diffusion", config=config, layers=frozenset(layers), last_steps=last_steps)
        self._host = HostAttention(self._rules)
        self._last: tuple[int | None, int] = None, 0

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        layer: int | None,
        step: int | None,
        steps: int | None,
        reason: str | None,
        **call: Any,
    ) -> Tensor | None:
        """Attention of one call, as `HostAttention.attend`; None if the server's own is to run.

        Args:
            q, k, v: `[B, H, N, D]`.
            layer: index; a forward begins where it is lower than before. None where the server tells none, which runs
                dense.
            step: of the denoising; None where the server tells none, which runs dense if it matters.
            steps: of the denoising.
            reason: why the call runs dense.
            call: what else `HostAttention.attend` takes.
        """
        if layer is None:
            layer, reason = -1, reason or "no layer known"
        before, self._last = self._last, (step, layer)
        if step != before[0] or layer < max(before[1], 0):
            self._host.tell()
        is_known = step is not None and (steps is not None or self._rules.last_steps == 0)
        if self._rules.need_steps and not is_known:
            reason = reason or "no denoising step known"
        elif step is not None:
            reason = reason or self._rules.of_step(step, step + 1 if steps is None else steps)
        return self._host.attend(q, k, v, layer=layer, reason=reason, step=step, **call)
