"""Data flows one way: a module imports only what stands above it in `LAYERS`."""

import ast
import importlib.util

import pytest
from programs import ROOT, python

SOURCE = ROOT / "src"
PACKAGE = SOURCE / "psa_triton"

LIBRARY = [
    "names",  # messages for unknown names
    "mistakes",  # what pydantic finds wrong, in words
    "ratios",  # levels, and the shares of blocks that get them
    "config",  # one description of an attention
    "models",  # the checkpoints, and their preset sections
    "presets",  # attention_config.yaml -> config
    "inputs",  # checks of arguments
    "exempt",  # which tokens are read, or read, in full
    "kept",  # what a key mask leaves of blocks
    "blocks",  # cutting sequences into blocks
    "operators",  # functions as operators of torch
    "attn_mask",  # the mask of scaled_dot_product_attention -> key mask
    "impl",  # which implementation runs
    "gpu",  # launches of GPU kernels, and products inside them
    "products",  # matrix products on a CPU
    "pyramid",  # k, v -> every resolution
    "ordering",  # grid -> token order
    "importance",  # q, k -> importance of key blocks
    "levels",  # importance -> levels
    "kernels",  # pyramid and lists -> output
    "attention",  # the whole operator
    "integrations",  # the operator inside diffusers' and transformers' models
]
# The package's own __init__ hands out names of all layers; nothing inside imports it.

TOOLS = [
    "files",  # files written whole, folders looked at, names taken
    "clock",  # seconds, side by side
    "machine",  # versions and hardware
    "shapes",  # attention layers of the known checkpoints
    "builtin",  # the built-in model
    "picture",  # files -> pictures
    "video",  # frames <-> files
    "generation",  # prompt -> frames
    "understanding",  # frames and a question -> an answer
    "evaluation",  # how close is sparse to dense
    "inspection",  # what single attention calls read
    "tuning",  # budgets by layer and step
    "bench",  # times of attention on this machine
    "diagnosis",  # what runs on this machine
    "cli",  # the psa command
]
LAYERS = [*LIBRARY, *(f"tools.{name}" for name in TOOLS), "__main__"]


def module_name(file):
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module):
    """The layer of `psa_triton.LAYER...` or `psa_triton.tools.LAYER...`; None for other libraries."""
    parts = module.split(".")
    if parts[0] != "psa_triton" or len(parts) == 1:
        return None
    return ".".join(parts[1:3]) if parts[1] == "tools" else parts[1]


def imported_modules(file, source):
    """Every module that a file names in an import, inside functions and `if TYPE_CHECKING` too.

    `from psa_triton import levels` names `psa_triton.levels`: a name may be a module.
    """
    package = module_name(file) if file.name == "__init__.py" else module_name(file).rpartition(".")[0]
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            modules.update(f"{base}.{alias.name}" for alias in node.names)
    return modules


def forbidden_imports(file, source):
    """The imports of this package that stand below the file's own layer, or in no layer."""
    allowed = {None, *LAYERS[: LAYERS.index(layer(module_name(file))) + 1]}
    return [module for module in sorted(imported_modules(file, source)) if layer(module) not in allowed]


FILES = sorted(
    file
    for file in PACKAGE.rglob("*.py")
    if file.parent not in (PACKAGE, PACKAGE / "tools") or file.name != "__init__.py"
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_only_up(file):
    assert layer(module_name(file)) in LAYERS, f"give {file.name} a place in LAYERS"
    assert forbidden_imports(file, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import psa_triton.attention",
        "from psa_triton import attention",
        "from psa_triton.attention import psa_attention",
        "from .. import attention",
        "from ..attention import psa_attention",
        "def late():\n    from psa_triton.attention import psa_attention",
    ],
)
def test_an_import_of_a_later_layer_is_found(source):
    assert {layer(module) for module in forbidden_imports(PACKAGE / "levels" / "select.py", source)} == {"attention"}


def test_the_oracle_imports_torch_and_what_describes_its_arguments():
    file = PACKAGE / "kernels" / "reference.py"
    found = imported_modules(file, file.read_text(encoding="utf-8"))
    own = {module for module in found if module.startswith("psa_triton")}
    assert own == {"psa_triton.blocks.Blocks", "psa_triton.kernels.reading.Reading"}
    assert {module.split(".")[0] for module in found - own} == {"__future__", "torch"}


def loaded(modules, libraries):
    """Which of `libraries` a process has loaded once it has imported `modules`."""
    script = f"import sys, {modules}; print(sorted({libraries} & set(sys.modules)))"
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_does_not_load_torch():
    names = ("config", "presets", "tools.cli.explain", "models", "tools.shapes", "tools.cli.app")
    modules = ", ".join(f"psa_triton.{name}" for name in names)
    assert loaded(modules, {"torch", "diffusers", "transformers"}) == "[]"


def test_importing_an_integration_reads_no_presets():
    """A slip in a user's file must not break an import."""
    both = ", ".join(f"psa_triton.integrations.{name}" for name in ("diffusers", "transformers"))
    script = f"from psa_triton.presets import loading\nloading.read_mapping = None\nimport {both}"
    assert python("-c", script).returncode == 0


def test_the_operator_needs_torch_pydantic_and_yaml_alone():
    modules = ", ".join(f"psa_triton.{name}" for name in LIBRARY if name != "integrations")
    assert loaded(modules, {"accelerate", "av", "diffusers", "matplotlib", "transformers", "typer"}) == "[]"


def test_programs_that_call_an_attention_need_nothing_else():
    modules = ", ".join(f"psa_triton.integrations.{name}" for name in ("comfyui", "serving", "lightx2v", "vllm_omni"))
    assert loaded(modules, {"accelerate", "av", "comfy", "diffusers", "lightx2v", "transformers", "vllm_omni"}) == "[]"
