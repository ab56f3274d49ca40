"""The built-in model `tiny-wan`: a folder that diffusers' own `WanPipeline` loads.

Importing this package imports the codec, which is what lets `WanPipeline.from_pretrained(tiny_wan_path())` find it:
diffusers resolves a component of another library by its full module name, and only once that module is imported.
It then notes that the VAE is not its own `AutoencoderKLWan`, which is so on purpose; `psa_triton.tools.generation`
loads the model without that note.
"""

from __future__ import annotations

from pathlib import Path

from psa_triton.tools.builtin.codec import LinearVideoCodec
from psa_triton.tools.builtin.transformer import FrameWanTransformer3DModel

__all__ = ["FrameWanTransformer3DModel", "LinearVideoCodec", "tiny_wan_path"]

_TINY_WAN = Path(__file__).parent / "tiny-wan"


def tiny_wan_path() -> Path:
    """Folder of the built-in model, as `WanPipeline.save_pretrained` wrote it.

    Raises:
        FileNotFoundError: the weights are not part of this installation.
    """
    if not (_TINY_WAN / "model_index.json").is_file():
        raise FileNotFoundError(
            f"the built-in model is missing from {_TINY_WAN}: reinstall psa_triton, or train it with "
            "training/train_tiny_wan.py and training/export_tiny_wan.py"
        )
    return _TINY_WAN
