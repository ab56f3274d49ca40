import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

import psa_triton
from psa_triton.config import PSAConfig
from psa_triton.tools.files import json_bytes
from psa_triton.tools.generation import DENSE, Attention, choose_attention, find_source
from psa_triton.tools.generation.loading import Target
from psa_triton.tools.generation.lora import Lora
from psa_triton.tools.generation.sidecar import command_line, differences, settings_of, surroundings

CPU = torch.device("cpu")


def test_settings_name_everything_that_determines_a_video_and_survive_json(source, request_320):
    attention = choose_attention(source, "tiny-wan/psa_balanced")
    settings = settings_of(Target(source, CPU, torch.bfloat16), request_320, attention)
    assert settings["model"] == settings["weights"] == source.location
    assert settings["lora"] is None
    assert settings["attention"]["config"]["block_n"] == 32
    assert (settings["device"], settings["dtype"], settings["seed"]) == ("cpu", "bfloat16", 42)
    assert differences(json.loads(json_bytes(settings)), settings) == ""


def test_a_changed_seed_attention_or_type_is_a_difference(source, request_320):
    def settings(request, dtype):
        return settings_of(Target(source, CPU, dtype), request, DENSE)

    before = settings(request_320, torch.float32)
    after = settings(replace(request_320, seed=1), torch.float16)
    assert differences(before, after) == "seed: 42 -> 1, dtype: 'float32' -> 'float16'"


def test_the_built_in_model_and_a_lora_are_named_the_same_on_every_machine(request_320, monkeypatch):
    path = "GYP666/BLADE/x.safetensors"
    fetched = Lora(path=path, file=Path("/here/x.safetensors"), sha256="ab")
    monkeypatch.setattr("psa_triton.tools.generation.loading.find_lora", {path: fetched}.get)
    source = find_source("tiny-wan")
    tuned = replace(source, spec=replace(source.spec, lora_path=path))
    settings = settings_of(Target(tuned, CPU, torch.float32), request_320, DENSE)
    assert (settings["model"], settings["weights"]) == ("tiny-wan", "built-in")
    assert settings["lora"] == {"path": "GYP666/BLADE/x.safetensors", "sha256": "ab"}


def test_verbose_is_no_part_of_what_determines_a_video():
    quiet, loud = (Attention(name="a/b", config=PSAConfig(verbose=verbose)) for verbose in (False, True))
    assert quiet.as_dict() == loud.as_dict()


def test_differences_are_found_in_nested_added_and_removed_settings():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == (
        "a.c: 2 -> 5, d: 3 -> None, e: None -> 4"
    )


def test_surroundings_name_versions_hardware_command_and_date():
    found = surroundings(CPU)
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["psa_triton"] == psa_triton.__version__
    assert found["hardware"]["cpu"]
    assert (found["hardware"]["gpu"], found["hardware"]["threads"]) == (None, torch.get_num_threads())
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["date"])).total_seconds()) < 60
    assert found["command"]


def test_the_command_is_psa_however_its_module_was_started(monkeypatch):
    monkeypatch.setattr("sys.argv", ["src/psa_triton/tools/cli/app.py", "generate", "--prompt", "a red ring"])
    assert command_line() == "psa generate --prompt 'a red ring'"
    monkeypatch.setattr("sys.argv", ["examples/wan21_14b.py", "--use_psa"])
    assert command_line() == "wan21_14b.py --use_psa"
