"""The JSON file beside a video: what it was made with, and what it cost."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from psa_triton.tools.generation.attention import Attention
from psa_triton.tools.generation.loading import Target
from psa_triton.tools.generation.request import VideoRequest
from psa_triton.tools.machine import hardware, versions

_SHOWN = 4


def settings_of(target: Target, request: VideoRequest, attention: Attention) -> dict[str, Any]:
    """Everything that determines a video, as plain data: two videos of equal settings are the same video."""
    model = target.as_dict()
    place = {name: model.pop(name) for name in ("device", "dtype")}
    return {**model, **asdict(request), "attention": attention.as_dict(), **place}


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
    return shlex.join(["psa" if program in ("app.py", "__main__.py") else program, *sys.argv[1:]])


def read_settings(sidecar: Path) -> dict[str, Any] | None:
    """The settings in a sidecar; None if there is no such file.

    Raises:
        ValueError: it is no sidecar of a video, or cannot be read.
    """
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(_no_sidecar(sidecar, "text that is no JSON")) from error
    except OSError as error:
        raise ValueError(_no_sidecar(sidecar, f"what cannot be read ({error.strerror})")) from error
    settings = data.get("settings") if isinstance(data, dict) else None
    if not isinstance(settings, dict):
        raise ValueError(_no_sidecar(sidecar, "JSON without a mapping `settings`"))
    return settings


def _no_sidecar(file: Path, came: str) -> str:
    return f"{file}: expected the sidecar of a video, got {came}; move it away or give --overwrite"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """`name: old -> new` for each setting that differs, the prompt first, nested ones by dotted name, joined by commas.

    Beyond four they are counted.
    """
    before, after = _flat(old), _flat(new)
    names = [name for name in {"prompt": None, **before, **after} if before.get(name) != after.get(name)]
    shown = [f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in names[:_SHOWN]]
    return ", ".join([*shown, *([f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])])


def settings_key(settings: Mapping[str, Any]) -> str:
    """The same text for equal settings: what is missing is as if it were None."""
    return json.dumps({name: value for name, value in _flat(settings).items() if value is not None}, sort_keys=True)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
