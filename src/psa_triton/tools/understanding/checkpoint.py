"""Which model a name or a folder stands for: what is small of it at once, its weights when asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from psa_triton.models import QWEN2_5_VL, model_key
from psa_triton.tools.understanding.patches import Patcher

MODEL_TYPES = ("qwen2_5_vl", "qwen2_vl")
"""The models whose input this package makes, in transformers' names."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SMALL_FILES = ["*.json", "*.jinja", "*.txt"]
_WEIGHTS = ["*.safetensors"]


@dataclass(frozen=True)
class Checkpoint:
    """A vision-language model without its weights.

    Attributes:
        name: as it was asked for: a folder, or a repository on the Hugging Face hub.
        folder: where its files are on this machine.
        config: transformers' configuration.
        tokenizer: with a chat template.
        patcher: cuts images and frames as the model expects.
    """

    name: str
    folder: Path
    config: Any
    tokenizer: Any
    patcher: Patcher

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.config.get_text_config().max_position_embeddings

    def load_weights(self, *, device: torch.device, dtype: torch.dtype) -> Any:
        """The model, ready to run.

        Raises:
            OSError: the weights are not on this machine and cannot be fetched, or a file is missing or damaged.
        """
        if not Path(self.name).is_dir():
            _fetch(self.name, _WEIGHTS)
        with _errors_in_one_line(self.name):
            model = AutoModelForImageTextToText.from_pretrained(
                self.folder, config=self.config, dtype=dtype, device_map=device, use_safetensors=True
            )
        return model.eval()


def find_checkpoint(model: str, *, max_pixels: int | None = None) -> Checkpoint:
    """A model's configuration, tokenizer and image settings.

    Args:
        model: `qwen2.5-vl-7b` or its preset section, a folder as transformers saves it, or a repository on the hub.
        max_pixels: of an image, or of each frame; None for the model's own.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: the files are not on this machine and cannot be fetched, or some are missing.
        ValueError: the model is of another kind, has no chat template, or `max_pixels` is too small.
    """
    if not Path(model).is_dir() and model_key(model) == QWEN2_5_VL.key:
        model = QWEN2_5_VL.hub_id
    folder = Path(model) if Path(model).is_dir() else _fetch(model, _SMALL_FILES)
    if not (folder / "config.json").is_file():
        raise ValueError(f"model: expected a folder as transformers saves it, but there is no {folder / 'config.json'}")
    with _errors_in_one_line(model):
        config = AutoConfig.from_pretrained(folder)
    if config.model_type not in MODEL_TYPES:
        raise ValueError(f"model: expected one of {', '.join(MODEL_TYPES)}, got the {config.model_type} {model}")
    with _errors_in_one_line(model):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _chat_template(folder)
    return Checkpoint(model, folder, config, tokenizer, Patcher(folder, max_pixels=max_pixels))


def _fetch(model: str, files: list[str]) -> Path:
    """The folder with these files of a hub repository, from the hub or else from the cache of earlier downloads."""
    if _HUB_ID.fullmatch(model) is None:
        raise FileNotFoundError(f"model: there is no folder {model}, nor is it {QWEN2_5_VL.key} or a hub id OWNER/NAME")
    try:
        return Path(snapshot_download(model, allow_patterns=files))
    except OSError as error:
        raise OSError(
            f"model: {model} is not on this machine and could not be fetched; where there is network, run "
            f"`hf download {model}`, or copy its folder here and give --model PATH"
        ) from error


def _chat_template(folder: Path) -> str:
    """The template of checkpoints that keep it in a file of its own."""
    file = folder / "chat_template.json"
    if not file.is_file():
        raise ValueError(f"model: {folder} has no chat template, so there is no way to put a question to it")
    return json.loads(file.read_text(encoding="utf-8"))["chat_template"]


@contextmanager
def _errors_in_one_line(model: str) -> Iterator[None]:
    """Says which model it was, in one line where transformers takes many."""
    try:
        yield
    except Exception as error:  # tokenizers and safetensors raise classes of their own, which are no OSError
        raise OSError(f"model: {model} cannot be loaded: {' '.join(str(error).split())}") from error
