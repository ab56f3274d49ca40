"""The JSON file beside a video: what it was made with, and what it cost."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from psa_triton.generation.attention import Attention
from psa_triton.generation.lora import Lora
from psa_triton.generation.request import VideoRequest
from psa_triton.generation.source import ModelSource
from psa_triton.machine import hardware, versions


def settings_of(
    source: ModelSource,
    request: VideoRequest,
    attention: Attention,
    *,
    device: torch.device,
    dtype: torch.dtype,
    lora: Lora | None = None,
) -> dict[str, Any]:
    """Everything that determines a video, as plain data: two videos of equal settings are the same video."""
    return {
        "model": source.name,
        "weights": source.weights,
        "lora": None if lora is None else lora.as_dict(),
        **asdict(request),
        "attention": attention.as_dict(),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }


def surroundings(device: torch.device) -> dict[str, Any]:
    """What a result is reported with: versions, hardware, command line, date in UTC."""
    return {
        "versions": versions(),
        "hardware": hardware(device),
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def command_line() -> str:
    """What was typed; `psa ...` however its module was started."""
    program = Path(sys.argv[0]).name
    return shlex.join(["psa" if program == "app.py" else program, *sys.argv[1:]])


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data`, complete or not at all.

    Raises:
        ValueError: a number is infinite or NaN, which JSON cannot hold.
    """
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_settings(sidecar: Path) -> dict[str, Any] | None:
    """The settings in a sidecar; None if there is no such file.

    Raises:
        ValueError: it is no sidecar of a video.
    """
    if not sidecar.exists():
        return None
    try:
        return dict(json.loads(sidecar.read_text(encoding="utf-8"))["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{sidecar}: expected the sidecar of a video; move it away or give --overwrite") from error


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """`name: old -> new` for each setting that differs, nested ones by dotted name, joined by commas."""
    before, after = _flat(old), _flat(new)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in names)


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
