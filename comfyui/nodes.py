"""The node "Pyramid Sparse Attention": its inputs as ComfyUI shows them. What it does is in `psa_triton`."""

from __future__ import annotations

import re

from comfy_api.latest import ComfyExtension, io

try:
    from psa_triton.integrations.comfyui import patch_model, preset_names
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "psa_triton":
        raise
    raise ImportError(
        "psa_triton is not installed in the Python that runs ComfyUI; see README.md in this folder: "
        "python -m pip install --no-deps psa-triton"
    ) from error

DEFAULT = "default"


class PyramidSparseAttention(io.ComfyNode):
    """Model in, model out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The inputs; 0, or an empty text, leaves what the preset says."""
        return io.Schema(
            node_id="PyramidSparseAttention",
            display_name="Pyramid Sparse Attention",
            category="model/attention",
            description="Self-attention over video tokens at several resolutions: important keys in full, others "
            "averaged, the rest skipped. Put it after nodes that set an attention. Wan, HunyuanVideo, LTX, Flux, "
            "MiniMax H3.",
            is_experimental=True,
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input(
                    "preset",
                    options=[DEFAULT, *preset_names()],
                    tooltip="Of the model if it is known, or general ones.",
                ),
                io.Float.Input(
                    "budget",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of attention to compute, with preset psa_budget; 0: the preset's.",
                ),
                io.Float.Input(
                    "max_error",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Bound on the measured error of attention in every step; 0: none.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Dense before: the first steps decide where things are.",
                ),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Dense after."),
                io.String.Input("dense_blocks", default="", tooltip="Blocks that stay dense: 0, 38-39"),
                io.Int.Input(
                    "min_tokens",
                    default=-1,
                    min=-1,
                    max=1 << 24,
                    tooltip="Shorter sequences stay dense; -1: eight key blocks.",
                ),
                io.Int.Input(
                    "refresh",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Every so many steps a block runs dense, and the steps between add what sparse attention "
                    "lacked; 0: the preset's.",
                ),
                io.Boolean.Input("verbose", default=False, tooltip="Log every step with its measured error."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls, model, preset, budget, max_error, start_percent, end_percent, dense_blocks, min_tokens, refresh, verbose
    ) -> io.NodeOutput:
        """A patched clone of the model."""
        patched = patch_model(
            model,
            None if preset == DEFAULT else preset,
            budget=budget or None,
            max_error=max_error or None,
            start_percent=start_percent,
            end_percent=end_percent,
            dense_blocks=block_indexes(dense_blocks),
            min_tokens=None if min_tokens < 0 else min_tokens,
            refresh=refresh or None,
            verbose=verbose,
        )
        return io.NodeOutput(patched)


def block_indexes(text: str) -> set[int]:
    """The indexes that "0, 38-39" names: 0, 38, 39."""
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
        if match is None:
            raise ValueError(f'dense_blocks: expected indexes and ranges, like "0, 38-39", got {text!r}')
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


class PyramidSparseAttentionExtension(ComfyExtension):
    """What this folder adds to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Its one node."""
        return [PyramidSparseAttention]


async def comfy_entrypoint() -> ComfyExtension:
    """Called by ComfyUI."""
    return PyramidSparseAttentionExtension()
