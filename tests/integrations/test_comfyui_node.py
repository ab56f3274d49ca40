"""The folder that goes into ComfyUI's `custom_nodes/`, with a stand-in for what ComfyUI makes nodes of."""

import asyncio
import importlib.util
import inspect
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import psa_triton
from psa_triton.integrations import comfyui

FOLDER = Path(__file__).parents[2] / "comfyui"


class Kind:
    """A type of input or output: `io.Model`, say."""

    @staticmethod
    def Input(id, **options):
        return SimpleNamespace(id=id, **options)

    @staticmethod
    def Output():
        return "output"


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A copy, loaded by its path under a name of ComfyUI's choice."""
    api = ModuleType("comfy_api.latest")
    names = ("Model", "Combo", "Float", "Int", "String", "Boolean")
    api.io = SimpleNamespace(
        ComfyNode=object, Schema=SimpleNamespace, NodeOutput=SimpleNamespace, **dict.fromkeys(names, Kind)
    )
    api.io.NodeOutput = lambda *results: results
    api.ComfyExtension = object
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", api)
    copy, name = tmp_path / "my attention.v1", "custom_nodes_x_my_attention_v1"
    shutil.copytree(FOLDER, copy)
    spec = importlib.util.spec_from_file_location(name, copy / "__init__.py", submodule_search_locations=[str(copy)])
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, made)
    spec.loader.exec_module(made)
    yield made
    sys.modules.pop(f"{name}.nodes", None)


def node_of(package):
    extension = asyncio.run(package.comfy_entrypoint())
    (node,) = asyncio.run(extension.get_node_list())
    return node


def test_the_inputs_are_what_patch_model_takes(package, monkeypatch):
    node, given = node_of(package), {}
    inputs = {each.id: each for each in node.define_schema().inputs}
    assert list(inputs) == list(inspect.signature(comfyui.patch_model).parameters)
    assert {"default", "psa_balanced", "psa_budget"} <= set(inputs["preset"].options)
    monkeypatch.setattr(
        sys.modules[node.__module__],
        "patch_model",
        lambda model, preset, **options: given.update(options) or (model, preset),
    )
    defaults = {name: getattr(each, "default", "default") for name, each in inputs.items()}
    assert node.execute(**{**defaults, "model": "model"}) == (("model", None),)
    signature = inspect.signature(comfyui.patch_model).parameters
    assert given == {name: signature[name].default if name != "dense_blocks" else set() for name in given}
    assert node.execute(**{**defaults, "preset": "psa_budget", "dense_blocks": " 0, 38-39"})[0][1] == "psa_budget"
    assert given["dense_blocks"] == {0, 38, 39}


@pytest.mark.parametrize("text", ["a", "1-", "-1", "2;3"])
def test_blocks_that_are_none(package, text):
    with pytest.raises(ValueError, match=f'like "0, 38-39", got {re.escape(repr(text))}'):
        sys.modules[node_of(package).__module__].block_indexes(text)


def test_without_the_library_it_says_what_to_install(package, monkeypatch):
    nodes = sys.modules[node_of(package).__module__]
    monkeypatch.setitem(sys.modules, "psa_triton", None)
    for name in [name for name in sys.modules if name.startswith("psa_triton.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="pip install --no-deps psa-triton"):
        nodes.__loader__.exec_module(nodes)


def test_what_it_installs_moves_no_torch():
    wanted = (FOLDER / "requirements.txt").read_text(encoding="utf-8").split()
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dependencies"] == wanted
    assert project["project"]["version"] == psa_triton.__version__
    assert {re.split("[<>=]", name)[0] for name in wanted} == {"packaging", "pydantic", "pyyaml", "typing_extensions"}


def test_the_example_uses_the_node_as_it_is(package):
    (file,) = (FOLDER / "example_workflows").glob("*.json")
    workflow = json.loads(file.read_text(encoding="utf-8"))
    (node,) = (node for node in workflow["nodes"] if node["type"] == "PyramidSparseAttention")
    schema = node_of(package).define_schema()
    settings = [each for each in schema.inputs if each.id != "model"]
    assert node["widgets_values"] == [getattr(each, "default", "default") for each in settings]
    ends = {(link[1], link[3]) for link in workflow["links"]}
    assert len(ends) == len(workflow["links"])
    assert {end for pair in ends for end in pair} == {each["id"] for each in workflow["nodes"]}
