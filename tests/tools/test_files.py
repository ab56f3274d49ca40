"""Files whole or not at all, folders looked at first, names that one process has at a time."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ENVIRONMENT, python

from psa_triton.tools.files import TakenError, check_room, held, json_bytes, output_folder, staged, write_file


def names(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


@pytest.fixture
def small_disk(mount_disk):
    return mount_disk("64k")


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "new" / "folder" / "a.txt"
    write_file(file, b"one")
    write_file(file, b"two")
    assert file.read_bytes() == b"two"
    assert names(tmp_path) == ["new", "new/folder", "new/folder/a.txt"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    write_file(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"content"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_is_left_unfinished_leaves_nothing(error, tmp_path):
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(error), staged() as files:
        files.write(tmp_path / "a", b"after")
        files.write(tmp_path / "deep" / "er" / "b", b"after")
        raise error
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_of_several_files_the_last_appears_last(tmp_path, monkeypatch):
    """Whoever sees the last one, which tells that all are done, sees files of one kind."""
    for name in ("a", "last"):
        (tmp_path / name).write_bytes(b"before")
    placed = []

    def replace(part, path):
        placed.append((Path(path).name, (tmp_path / "last").exists()))
        os.rename(part, path)

    monkeypatch.setattr(os, "replace", replace)
    with staged() as files:
        files.write(tmp_path / "a", b"after")
        files.write(tmp_path / "last", b"after")
        assert (tmp_path / "last").read_bytes() == b"before", "all are written before the first is placed"
    assert placed == [("a", False), ("last", False)]


def test_a_full_disk_leaves_nothing_and_tells_how_much_is_needed(small_disk):
    message = r"b could not be written: no room: it needs 40 KiB, \d+ KiB are free; free some"
    with pytest.raises(OSError, match=message), staged() as files:
        files.write(small_disk / "folder" / "a", bytes(40 << 10))
        files.write(small_disk / "folder" / "b", bytes(40 << 10))
    assert names(small_disk) == []


def test_room_is_looked_at_before(small_disk):
    with output_folder(small_disk / "out", room=30 << 10):
        write_file(small_disk / "out" / "a", bytes(30 << 10))
    message = r"output_dir: expected about 50 KiB of room for the results in \S+/new, found \d+ KiB; free some, or name"
    with pytest.raises(OSError, match=message), output_folder(small_disk / "new", room=50 << 10):
        raise AssertionError("not reached")
    assert names(small_disk) == ["out", "out/a"]
    with pytest.raises(OSError, match="expected about 1.0 GiB"):
        check_room(small_disk / "not" / "there", 1 << 30)


@pytest.mark.parametrize(
    ("prepare", "folder", "message"),
    [
        ("full", "out", "cannot be written: no room: "),
        ("read-only", "out", "cannot be written: read-only file system; name another folder"),
        ("file", "file", "file cannot be written: .*/file is a file; name another folder"),
        ("file", "file/sub/sub", "sub cannot be written: .*/file is a file; name another folder"),
        ("", "x" * 300, "cannot be written: file name too long"),
    ],
    ids=["full", "read-only", "file", "file above", "long name"],
)
def test_a_folder_that_cannot_be_written_is_told_before(prepare, folder, message, small_disk):
    if prepare == "full":
        with pytest.raises(OSError):
            (small_disk / "ballast").write_bytes(bytes(1 << 20))
    elif prepare == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    elif prepare == "file":
        (small_disk / "file").write_bytes(b"mine")
    before = names(small_disk)
    with pytest.raises(OSError, match=f"output_dir: .*{message}"), output_folder(small_disk / folder, room=0):
        raise AssertionError("not reached")
    assert names(small_disk) == before


def test_folders_made_in_vain_go_and_others_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "new/er"):
        with output_folder(tmp_path / folder, room=0):
            assert (tmp_path / folder).is_dir()
    assert names(tmp_path) == ["mine"]
    with output_folder(tmp_path / "new" / "er", room=0):
        write_file(tmp_path / "new" / "er" / "a", b"")
    assert names(tmp_path) == ["mine", "new", "new/er", "new/er/a"]


def test_a_limit_on_the_size_of_files(tmp_path):
    script = f"""if True:
        import resource
        from pathlib import Path
        from psa_triton.tools.files import write_file
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_file(Path({str(tmp_path / "a")!r}), bytes(2000))
        except OSError as error:
            print(error)
        """
    done = python("-c", script)
    assert done.stdout == f"{tmp_path / 'a'} could not be written: file too large; name another folder\n", done.stderr
    assert names(tmp_path) == []


def test_json_has_no_infinity():
    with pytest.raises(ValueError, match="JSON"):
        json_bytes({"psnr": math.inf})


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_name_is_held_by_one_process_and_goes_with_it(kind, tmp_path):
    path = tmp_path / "place"
    if kind == "folder":
        path.mkdir()
    script = f"""if True:
        import sys
        from pathlib import Path
        from psa_triton.tools.files import held
        with held(Path({str(path)!r}), "a red square"):
            print("held", flush=True)
            sys.stdin.readline()
        """
    command, pipes = [sys.executable, "-c", script], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(TakenError, match=rf"place is being written by process {other.pid} on \S+, since ") as taken,
            held(path),
        ):
            raise AssertionError("not reached")
        assert taken.value.purpose == "a red square"
        other.kill()
    with held(path):  # what a killed process leaves is nobody's
        pass
    assert names(tmp_path) == (["place"] if kind == "folder" else [])


def test_a_name_can_be_held_again(tmp_path):
    with held(tmp_path / "a"), held(tmp_path / "b"), pytest.raises(TakenError), held(tmp_path / "a"):
        raise AssertionError("not reached")
    with held(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_names_of_files_in_another_encoding_are_kept_in_json():
    data = {"command": "psa --output-dir caf\udce9", "prompt": "über"}
    assert json.loads(json_bytes(data).decode()) == data
