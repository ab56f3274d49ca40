import inspect
import io
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from rich.console import Console

from psa_triton.impl import Impl
from psa_triton.models import MODELS
from psa_triton.tools.cli.commands import Compare, DenseOptions, PresetOptions, Understand
from psa_triton.tools.cli.options import command
from psa_triton.tools.cli.target import load, read_dense_parts
from psa_triton.tools.evaluation.ceiling import CeilingKind
from psa_triton.tools.generation import DenseParts
from psa_triton.tools.generation.loading import Target
from psa_triton.tools.understanding import MediaKind


def test_help_has_a_line_a_paragraph():
    words, files = inspect.getdoc(command(Compare(), run="compare")).split("\n\n")
    assert words.endswith("it is.") and files.startswith("Writes") and "\n" not in words + files


@pytest.mark.parametrize(("key", "told"), [("tiny-wan", False), ("tiny-wan-16k", True)])
def test_a_model_for_taking_times_is_labelled_so(key, told, source, request_320):
    output = io.StringIO()
    known = replace(source, name=key, spec=MODELS[key])
    load(Target(known, torch.device("cpu"), torch.float32), request_320, Console(file=output))
    assert (f"{key} is for taking times" in output.getvalue()) is told


@pytest.mark.parametrize(
    ("text", "layers"),
    [("", ()), ("3", (3,)), ("0,1", (0, 1)), (" 2, 0-2 ,38-39", (0, 1, 2, 38, 39))],
    ids=["none", "one", "two", "ranges"],
)
def test_layers_are_given_as_indexes_and_ranges(text, layers):
    parts = read_dense_parts(DenseOptions(dense_last_steps=1, dense_layers=text))
    assert parts == DenseParts(min_tokens=None, dense_last_steps=1, dense_layers=layers)


@pytest.mark.parametrize("text", ["x", "-1", "1-", "1;2", "1-2-3", "1.5", "5-4"])
def test_other_layers_are_refused(text):
    with pytest.raises(ValueError, match="dense_layers: expected indexes such as 0,1 or 0,36-39"):
        read_dense_parts(DenseOptions(dense_layers=text))


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [(PresetOptions, "impl", Impl), (Compare, "ceiling", CeilingKind), (Understand, "type", MediaKind)],
)
def test_options_offer_the_words_that_the_library_knows(options, name, words):
    assert get_args(get_type_hints(options)[name]) == get_args(words)
