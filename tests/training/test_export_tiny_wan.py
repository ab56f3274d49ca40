import pytest
import torch
from diffusers import WanPipeline
from export_tiny_wan import LARGEST_BYTES, build_pipeline, export, folder_bytes
from recipe import make_text_encoder, make_tokenizer, make_transformer

from psa_triton.tools.generation import find_source


@pytest.fixture(scope="module")
def weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = make_text_encoder(len(make_tokenizer()))
        return torch.nn.ModuleDict({"transformer": make_transformer(), "text_encoder": encoder}).state_dict()


def test_a_checkpoint_becomes_a_folder_that_wan_pipeline_loads(weights, tmp_path):
    torch.save({"average": weights, "step": 1}, tmp_path / "checkpoint.pt")
    folder = tmp_path / "made" / "tiny-wan"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("the model card")
    (folder / "old_part").mkdir()

    size = export(tmp_path / "checkpoint.pt", folder, shift=6.5)

    assert size <= LARGEST_BYTES
    assert (folder / "README.md").read_text() == "the model card"
    assert not (folder / "old_part").exists()
    assert folder_bytes(folder) == size + len("the model card")
    assert not list(folder.rglob("*.bin"))
    assert find_source(str(folder)).spec.key == "tiny-wan"
    pipe = WanPipeline.from_pretrained(folder)
    assert pipe.scheduler.config.flow_shift == 6.5
    assert pipe.transformer.dtype == torch.float32
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(tensor, weights[f"transformer.{name}"]), name


def test_names_of_a_compiled_model_are_refused(weights):
    wrapped = {name.replace("transformer.", "transformer._orig_mod."): value for name, value in weights.items()}
    with pytest.raises(ValueError, match="compiled wrapper"):
        build_pipeline(wrapped, shift=3.0)


def test_weights_of_another_recipe_are_refused(weights):
    with pytest.raises(RuntimeError, match=r"transformer.proj_out.bias"):
        build_pipeline(
            {name: value for name, value in weights.items() if name != "transformer.proj_out.bias"}, shift=3.0
        )
