"""Turn a training checkpoint into the pipeline folder that the package ships: `python training/export_tiny_wan.py`."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import WanPipeline
from recipe import fit_codec, make_scheduler, make_text_encoder, make_tokenizer, make_transformer

ROOT = Path(__file__).resolve().parent
LARGEST_BYTES = 16 * 2**20


def build_pipeline(weights: dict[str, torch.Tensor], shift: float) -> WanPipeline:
    """The pipeline of averaged float32 `weights`, keys `transformer.*` and `text_encoder.*`.

    Raises:
        ValueError: names come from a compiled wrapper.
        RuntimeError: names or shapes differ from the recipe's modules.
    """
    wrapped = [name for name in weights if "_orig_mod" in name]
    if wrapped:
        raise ValueError(f"weights: expected the names of the plain modules, got a compiled wrapper's: {wrapped[0]}")
    tokenizer = make_tokenizer()
    parts = torch.nn.ModuleDict({"transformer": make_transformer(), "text_encoder": make_text_encoder(len(tokenizer))})
    parts.load_state_dict(weights)
    parts.float().eval().requires_grad_(False)
    return WanPipeline(tokenizer=tokenizer, vae=fit_codec(), scheduler=make_scheduler(shift), **parts)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def replace_folder(new: Path, old: Path) -> None:
    """Put `new` where `old` is, keeping files such as the model card that only `old` has at its top."""
    if old.exists():
        for file in old.iterdir():
            if file.is_file() and not (new / file.name).exists():
                shutil.copy2(file, new / file.name)
        shutil.rmtree(old)
    os.replace(new, old)


def export(checkpoint: Path, output: Path, shift: float) -> int:
    """Write the pipeline folder and return its size in bytes.

    Raises:
        ValueError: the folder would be larger than the package may carry.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as work:
        folder = Path(work) / output.name
        build_pipeline(state["average"], shift).save_pretrained(folder, safe_serialization=True)
        # Weights are saved readable by their owner alone; an installed package is read by others.
        for file in folder.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        size = folder_bytes(folder)
        if size > LARGEST_BYTES:
            raise ValueError(f"pipeline folder: expected at most {LARGEST_BYTES} bytes, got {size}")
        replace_folder(folder, output)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "work" / "checkpoint.pt")
    parser.add_argument(
        "--output", type=Path, default=ROOT.parent / "src" / "psa_triton" / "tools" / "builtin" / "tiny-wan"
    )
    parser.add_argument("--shift", type=float, required=True, help="flow shift of the scheduler, as trained")
    args = parser.parse_args()
    size = export(args.checkpoint, args.output, args.shift)
    print(f"{args.output}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
