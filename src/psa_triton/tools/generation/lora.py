"""LoRA weights: found and checked before a model is loaded, then put on its transformer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, model_info, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

_HALVES = (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"))
"""How formats name the two factors of a weight's change: [rank, in] and [out, rank]."""
_DEFAULT_FILE = "pytorch_lora_weights.safetensors"
_ON_HUB = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*(?<!\.safetensors))(?:/(?P<file>.+\.safetensors))?")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA weights on this machine."""

    path: str
    """What was asked for: the full path of a file, or OWNER/REPOSITORY/FILE on the hub."""
    file: Path
    """The safetensors file."""
    sha256: str
    """Of the file's bytes."""

    def as_dict(self) -> dict[str, str]:
        """Plain data for a sidecar."""
        return {"path": self.path, "sha256": self.sha256}


def find_lora(path: str) -> Lora:
    """The LoRA weights that a path stands for; those on the hub are fetched.

    Args:
        path: a safetensors file; a folder with `pytorch_lora_weights.safetensors`, or with just one safetensors file,
            in it or in a folder of it; or OWNER/REPOSITORY or OWNER/REPOSITORY/FILE on the Hugging Face hub. What is on
            this machine comes first.

    Raises:
        FileNotFoundError: there is no such file here, nor can one be fetched.
        ValueError: a folder with several candidates, or a file without LoRA weights in safetensors format.
    """
    local = Path(path).expanduser()
    if local.exists():
        file = (_file_in(local) if local.is_dir() else local).resolve()
        name = str(file)
    elif (named := _ON_HUB.fullmatch(path)) is not None:
        repo, in_repo = named["repo"], named["file"] or _DEFAULT_FILE
        file, name = _fetch(repo, in_repo), f"{repo}/{in_repo}"
    else:
        raise FileNotFoundError(f"lora_path: there is no file or folder {local.absolute()}")
    _check(file)
    with file.open("rb") as data:
        return Lora(path=name, file=file, sha256=hashlib.file_digest(data, "sha256").hexdigest())


def load_lora(pipe: Any, lora: Lora) -> None:
    """Put LoRA weights on a pipeline's transformer, in the type of its weights.

    Raises:
        ValueError: the weights do not fit the transformer, or name none of its layers.
    """
    try:
        pipe.load_lora_weights(str(lora.file.parent), weight_name=lora.file.name, use_safetensors=True)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"lora_path: {lora.path} does not fit the transformer: {error}") from error
    if not pipe.get_active_adapters():
        raise ValueError(f"lora_path: {lora.path} has weights for none of the transformer's layers")
    for name, weight in pipe.transformer.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.to(pipe.transformer.dtype)


def _file_in(folder: Path) -> Path:
    files = sorted(folder.rglob("*.safetensors"))
    named = [file for file in files if file.name == _DEFAULT_FILE] or files
    if not named:
        raise FileNotFoundError(f"lora_path: there is no safetensors file in {folder.absolute()}")
    if len(named) > 1:
        found = ", ".join(str(file.relative_to(folder)) for file in named[:4])
        raise ValueError(f"lora_path: expected one file in {folder}, got {len(named)} ({found}); name the file")
    return named[0]


def _fetch(repo: str, file: str) -> Path:
    """A file of a hub repository, from the hub or else from the cache of earlier downloads."""
    try:
        model_info(repo)  # fails at once without network, where `hf_hub_download` would go on trying
        return Path(hf_hub_download(repo, file))
    except Exception as error:  # the HTTP library behind huggingface_hub, and so its errors, depend on the release
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):
            return Path(cached)
        raise FileNotFoundError(
            f"lora_path: {repo}/{file} is not on this machine and could not be fetched ({type(error).__name__}); where "
            f"there is network, run `hf download {repo} {file} --local-dir weights`, then give --lora_path weights, or "
            "set lora_path in examples/configs/model_configs.py"
        ) from error


def _check(file: Path) -> None:
    """Only safetensors: other formats can run code when they are loaded. Every weight must be of a pair that fits."""
    if file.suffix != ".safetensors":
        raise ValueError(f"lora_path: expected a .safetensors file, got {file}")
    try:
        with safe_open(file, framework="pt") as weights:
            names = frozenset(weights.keys())
            if not any("lora" in name for name in names):
                named = f"others ({', '.join(sorted(names)[:3])})" if names else "none"
                raise ValueError(f"lora_path: expected LoRA weights, got {named} in {file}")
            for name in sorted(names):
                _check_weight(file, name, weights.get_tensor(name), weights.get_slice, names)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"lora_path: {file} is damaged or no safetensors file: {error}; fetch it again, or name another"
        ) from error


def _check_weight(
    file: Path, name: str, weight: torch.Tensor, shape_of: Callable[[str], Any], names: Collection[str]
) -> None:
    """Finite numbers, and the other half of the low-rank product in the same file."""
    if not weight.is_floating_point() or not weight.isfinite().all():
        came = "NaN or infinity" if weight.is_floating_point() else str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"lora_path: expected finite numbers in {name}, got {came} in {file}; fetch it again")
    for down, up in _HALVES:
        other = name.replace(down, up) if down in name else name.replace(up, down)
        if other not in names:
            raise ValueError(f"lora_path: expected {other} beside {name}, found none in {file}")
        shapes = list(weight.shape), list(shape_of(other).get_shape())
        if down in name and (min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][1]):
            raise ValueError(
                f"lora_path: expected shapes [rank, in] and [out, rank], got {shapes[0]} and {shapes[1]} of {name} and "
                f"{other} in {file}"
            )
