"""Tuning the tiles of the GPU kernels, in Triton's interpreter with a clock of the test's own."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from psa_triton.kernels.triton import tiles
from psa_triton.kernels.triton.tiles import Tiles, choose_tiles
from psa_triton.tools.bench import tiles as bench
from psa_triton.tools.bench.tiles import candidates, only, try_tiles, write_best
from psa_triton.tools.shapes import find_shape


def chosen(kernel, **how):
    q = torch.empty(1, 1, 8, how.pop("dim", 128), dtype=how.pop("dtype", torch.bfloat16))
    return choose_tiles(kernel, q, *(how.get(name, default) for name, default in CASE.items()))


CASE = {"block_m": 128, "rows": 64, "is_causal": False, "is_corrected": False}


def test_the_fastest_that_runs_is_written_and_then_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PSA_TILES", str(tmp_path / "new" / "tiles.json"))
    shape = replace(find_shape("tiny-wan"), heads=1, key_heads=1, dim=64, grid=(1, 4, 8), prefix_tokens=0)
    calls = 0

    def measure(call):
        nonlocal calls
        calls += 1
        if calls == 1:
            call()
        if calls == 2:
            raise OutOfResources(232_449, 232_448, "shared memory")
        return {4: 0.5}.get(calls, 1.0 + calls)

    trials = list(try_tiles(shape, 32, 32, torch.empty(0, dtype=torch.bfloat16), measure))
    assert [trial.seconds for trial in trials[:4]] == [2.0, None, 4.0, 0.5]
    file = write_best(trials, "interpreter", torch.bfloat16, shape, 32)
    first, second = len(json.loads(file.read_text())), write_best(trials, "interpreter", torch.bfloat16, shape, 32)
    assert len(json.loads(second.read_text())) == first == 3, "the same case is written once"
    best = min((t for t in trials if t.kernel == "attend" and t.seconds), key=lambda t: t.seconds).tiles
    assert chosen("attend", dim=64, rows=32) == best


def test_a_smaller_tile_has_fewer_warps_and_a_table_comes_before_the_defaults():
    with only(Tiles(128, 64, 32, 8, 5), "attend"):
        assert chosen("attend") == Tiles(128, 64, 32, 8, 5)
        assert chosen("attend", block_m=32) == Tiles(32, 64, 32, 4, 5)
        assert chosen("query_gradient") != Tiles(128, 64, 32, 8, 5)


def test_settings_of_somebody_else_are_none_and_a_table_that_was_named_is_to_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    assert tiles._rules.__wrapped__(tmp_path / "tiles.json") == ()
    monkeypatch.setenv("PSA_TILES", str(tmp_path / "tiles.json"))
    with pytest.raises(PermissionError):
        tiles._rules.__wrapped__(tmp_path / "tiles.json")


def test_a_kernel_by_tma_is_written_where_it_agrees_and_is_faster(tmp_path, monkeypatch):
    monkeypatch.setenv("PSA_TILES", str(tmp_path / "tiles.json"))
    for module in (tiles, bench):
        monkeypatch.setattr(module, "current_target", lambda device: "sm_90")
    shape = replace(find_shape("tiny-wan"), heads=1, key_heads=1, dim=64, grid=(1, 4, 8), prefix_tokens=0)
    q, like = torch.empty(1, 1, 8, 64, dtype=torch.bfloat16), torch.empty(0, dtype=torch.bfloat16)

    def written(error, seconds):
        """Whether it comes into the table, its output being off by `error`; others take a second."""

        def is_asked_for():
            return tiles.own_tiles("attend_tma", "sm_90", q, 64) is not None

        def attend(q, k, v, *others):
            return (q + k + v) * (1.0 + error * is_asked_for()), None

        monkeypatch.setattr(bench, "attend", attend)
        trials = list(try_tiles(shape, 128, 64, like, lambda call: seconds if is_asked_for() else 1.0))
        assert sum(trial.kernel == "attend_tma" for trial in trials) == 2
        write_best(trials, "sm_90", torch.bfloat16, shape, 64)
        tiles._rules.cache_clear()
        return tiles.own_tiles("attend_tma", "sm_90", q, 64)

    assert written(error=0.0, seconds=0.5) == candidates("sm_90", "attend_tma", 2, 64)[0]
    assert written(error=0.0, seconds=1.5) is None
    assert written(error=0.1, seconds=0.5) is None


@pytest.mark.parametrize(
    ("target", "nearest"),
    [
        ("sm_90", "sm_90"),
        ("sm_89", "sm_86"),
        ("sm_103", "sm_100"),
        ("sm_121", "sm_120"),
        ("sm_75", "sm_86"),
        ("gfx950", "gfx942"),
    ],
)
def test_a_gpu_that_the_table_does_not_know_is_taken_for_a_smaller_one(target, nearest):
    assert tiles._nearest(target, {"sm_86", "sm_90", "sm_100", "sm_120", "gfx942"}) == nearest


def test_128_keys_are_for_gpus_whose_instructions_take_them_whole():
    assert candidates("sm_90", "attend", 2, 128)[0].n == 128
    assert all(t.n < 128 for t in candidates("sm_86", "attend", 2, 128))


def test_a_table_that_is_none_is_named(tmp_path, monkeypatch):
    file = tmp_path / "mine.json"
    file.write_text('[{"for": {}}]')
    monkeypatch.setenv("PSA_TILES", str(file))
    with pytest.raises(ValueError, match=r"mine\.json: expected a table as `psa bench --tune-kernels` writes it"):
        chosen("attend")
