import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from psa_triton.tools.generation.loading import choose_device
from psa_triton.tools.generation.processes import ALONE, Processes, launched_processes

WORKER = Path(__file__).with_name("processes_worker.py")
SOURCE = Path(__file__).parents[3] / "src"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_agree_and_one_notices_that_the_other_died():
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(SOURCE)}
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER)],
            env=os.environ | place | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    (first, errors), (second, _) = (process.communicate(timeout=600) for process in running)
    assert [process.returncode for process in running] == [0, 9], errors
    *found, death = (json.loads(line) for line in (*second.splitlines(), *first.splitlines()))
    assert "another process of this run has died" in death
    same = {"from_main": "made by 0", "error": "no such folder", "gathered": [{"index": 0}, {"index": 1}]}
    assert found == [
        {"processes": [2, 1, 1, False], "share": ["b", "d"], **same},
        {"processes": [2, 0, 0, True], "share": ["a", "c", "e"], **same},
    ]


def test_without_a_launcher_a_process_is_alone():
    with launched_processes() as processes:
        assert processes == ALONE
        assert processes.is_main
        assert processes.from_main(lambda: 3) == 3
        assert processes.gather(4) == [4]
        with pytest.raises(KeyError):
            processes.from_main(lambda: {}["missing"])


@pytest.mark.parametrize(
    ("device", "count", "expected"),
    [("auto", 1, "cuda"), ("auto", 4, "cuda:2"), ("cuda", 4, "cuda:2"), ("cuda:1", 4, "cuda:1"), ("cpu", 4, "cpu")],
)
def test_each_process_has_an_accelerator_of_its_own(device, count, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("psa_triton.tools.generation.loading.torch.empty", lambda *_, device: None)
    assert choose_device(device, Processes(count, 2, 2) if count > 1 else ALONE) == torch.device(expected)
