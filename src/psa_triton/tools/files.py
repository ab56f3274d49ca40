"""Files written whole or not at all, folders looked at before long work, names that one process has at a time."""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

logger = logging.getLogger("psa_triton")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what file systems without locks answer


@contextmanager
def output_folder(folder: Path, *, room: int, option: str = "output_dir") -> Iterator[None]:
    """A folder for results; it is made, tried and measured before the work that they come from.

    Folders that were made for it and hold nothing at the end are removed.

    Args:
        folder: where results will go.
        room: bytes that they will take, roughly.
        option: what named the folder, for messages.

    Raises:
        OSError: the folder cannot be made or written, or has less room.
    """
    made: list[Path] = []
    try:
        try:
            _make(folder, made)
            with tempfile.TemporaryFile(dir=folder) as trial:
                trial.write(b"trial")
        except OSError as error:
            raise OSError(f"{option}: {folder} cannot be written: {_reason(error, _nearest(folder), 0)}") from error
        check_room(folder, room, option)
        yield
    finally:
        _remove_empty(made)


def check_room(folder: Path, room: int, option: str = "output_dir") -> None:
    """Look whether `room` bytes are free.

    Raises:
        OSError: fewer are.
    """
    if (free := shutil.disk_usage(_nearest(folder)).free) < room:
        raise OSError(
            f"{option}: expected about {_size(room)} of room for the results in {folder}, found {_size(free)}; free "
            "some, or name another folder"
        )


@dataclass
class Staging:
    """Files that belong together: each is written under a temporary name, then all get their own; see `staged`."""

    _parts: dict[Path, Path]
    _made: list[Path]

    def write(self, path: Path, data: bytes) -> None:
        """Write a file's content; the folder is made where it does not exist.

        Raises:
            OSError: it could not be written: why, how much room it takes, and how much there is.
        """
        target = Path(os.path.realpath(path))  # a link stays one
        part = _temporary(target.parent)
        try:
            _make(target.parent, self._made)
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder has its name")
            self._parts[target] = part
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise OSError(f"{path} could not be written: {_reason(error, target.parent, len(data))}") from error


@contextmanager
def staged() -> Iterator[Staging]:
    """Files that appear together when the block ends, and not at all when it is left by an error or an interrupt.

    While they get their names the last of several is absent: where it is, all are of one kind.
    """
    parts: dict[Path, Path] = {}
    made: list[Path] = []
    try:
        yield Staging(parts, made)
        if len(parts) > 1:
            next(reversed(parts)).unlink(missing_ok=True)
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
        _remove_empty(made)


def write_file(path: Path, data: bytes) -> None:
    """Write one file, whole or not at all.

    Raises:
        OSError: it could not be written: why, how much room it takes, and how much there is.
    """
    with staged() as files:
        files.write(path, data)


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """Content of a JSON file.

    Raises:
        ValueError: a number is infinite or NaN, which JSON cannot hold.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")  # names of files may be in another encoding: JSON has escapes for it


class TakenError(OSError):
    """Another process has a name.

    Attributes:
        purpose: what it takes it for, as it was told to `held`.
    """

    def __init__(self, path: Path, holder: str, purpose: str) -> None:
        self.purpose = purpose
        super().__init__(
            f"{path} is being written by {holder or 'another process'}; wait for its end, or name another place"
        )


@contextmanager
def held(path: Path, purpose: str = "") -> Iterator[None]:
    """A folder, or the name of a file, that no other process of this library writes meanwhile.

    It is a locked file beside the name, or in the folder. The lock goes with its process, however that ends.

    Args:
        path: the folder, or the file.
        purpose: told to others that want the same.

    Raises:
        TakenError: another process, or this one already, has it.
        OSError: the folder cannot be written.
    """
    folder = path if path.is_dir() else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    file = path / ".psa.lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    with ExitStack() as end:
        while (descriptor := _locked(file, path)) is None:
            pass
        end.callback(os.close, descriptor)
        if sys.platform != "win32":  # there, open files cannot be removed; an unlocked one is nobody's
            end.callback(file.unlink, missing_ok=True)
        since = datetime.now().strftime("%H:%M:%S")
        with suppress(OSError):  # on a full disk the lock holds, and cannot say whose it is
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n{purpose}".encode())
        yield


def _locked(file: Path, path: Path) -> int | None:
    """A descriptor that holds the lock; None where its last holder removed the file meanwhile."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor)
    except BlockingIOError as error:
        with os.fdopen(descriptor, "rb") as taken:
            holder, _, purpose = taken.read().decode(errors="replace").partition("\n")
        raise TakenError(path, holder, purpose) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
        logger.warning("%s: files cannot be locked here; do not start a second run into it", file.parent)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.stat(file), os.fstat(descriptor)):
            return descriptor
    os.close(descriptor)
    return None


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _temporary(folder: Path) -> Path:
    return folder / f".{os.getpid()}-{secrets.token_hex(4)}.part"


def _make(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; each that is new is added to `made`."""
    place = _nearest(folder)
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file")
    for name in folder.absolute().relative_to(place).parts:
        place = place / name
        with suppress(FileExistsError):  # another process was faster
            place.mkdir()
            made.append(place)


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    place = folder.absolute()
    while not os.path.exists(place):  # unlike Path.exists, False also where that is not to be known
        place = place.parent
    return place


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with suppress(OSError):  # somebody's files are in it by now
            folder.rmdir()


def _reason(error: OSError, folder: Path, size: int) -> str:
    """Why, without the number, and what to do; where room lacks, how much is needed and how much there is."""
    reason = error.strerror or str(error)
    if error.errno not in _FULL:
        return f"{reason[:1].lower()}{reason[1:]}; name another folder"
    free = _size(shutil.disk_usage(folder).free)
    wanted = f"it needs {_size(size)}, " if size else ""
    return f"no room: {wanted}{free} are free; free some, or name another folder"


def _size(count: int) -> str:
    """Bytes for people."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{-(-count // 1024)} KiB"
