from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from psa_triton.cli.options import Target
from psa_triton.generation import ModelSource, VideoRequest
from psa_triton.models import find_model


@pytest.mark.parametrize(("key", "told"), [("tiny-wan", False), ("tiny-wan-16k", True)])
def test_a_model_for_taking_times_is_labelled_so(
    key: str, told: bool, source: ModelSource, request_320: VideoRequest
) -> None:
    output = io.StringIO()
    known = replace(source, name=key, spec=find_model(key))
    Target(known, torch.device("cpu"), torch.float32).load(request_320, Console(file=output))
    assert (f"{key} is for taking times" in output.getvalue()) is told
