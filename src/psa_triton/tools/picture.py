"""Pictures that people hand over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


@contextmanager
def open_picture(path: Path, option: str, hint: str = "") -> Iterator[Image.Image]:
    """The picture in a file, which is read as far as is needed.

    Args:
        path: of the file.
        option: that names it, for messages.
        hint: what to do if it is none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture, or is damaged or larger than Pillow takes for sound.
    """
    if not path.is_file():
        wrong = "expected a file, got the folder" if path.is_dir() else "there is no file"
        raise FileNotFoundError(f"{option}: {wrong} {path}")
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"{option}: expected an image such as PNG or JPEG, got {path}, which is none{hint}") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{option}: the image {path} cannot be read: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """Its pixels, RGB, the way up that its camera noted."""
    return ImageOps.exif_transpose(image).convert("RGB")
