"""What Markdown files tell people to type: commands parse, presets are valid, Python works, links lead somewhere."""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest
import yaml
from programs import ROOT, load_script
from typer.core import TyperCommand
from typer.testing import CliRunner

from psa_triton.models import MODELS, QWEN2_5_VL
from psa_triton.presets import load_presets_file, shipped_presets
from psa_triton.presets.yaml_file import read_mapping
from psa_triton.tools.cli.app import app as psa

FOLDERS = ("", "configs", "docs", "examples", "qwen2.5-vl-example", "src/psa_triton")
FILES = [str(file.relative_to(ROOT)) for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.md"))]
RUNNABLE = ["src/psa_triton/README.md", "src/psa_triton/README_zh.md", "docs/own_model.md"]
"""Pages whose Python needs no weights: it is run."""
PLACEHOLDER = re.compile(r"[A-Z_]+|\./\S+")
"""What stands for a folder, where a model's key could."""

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_INLINE_COMMAND = re.compile(r"`(psa [^`\n]* --[^`\n]*)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


def read(file):
    return (ROOT / file).read_text(encoding="utf-8")


def prose(file):
    """A page without its fenced blocks."""
    return _BLOCK.sub("", read(file))


def blocks(file, language):
    """A page's fenced blocks of a language, without the indent of their fences."""
    found = [block for block in _BLOCK.finditer(read(file)) if block["language"] == language]
    return [re.sub(f"^{block['indent']}", "", block["text"], flags=re.MULTILINE) for block in found]


def commands(file):
    """The words of each command that a page gives, in blocks and in running text."""
    lines = [line for text in blocks(file, "bash") for line in text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in (*lines, *_INLINE_COMMAND.findall(prose(file)))]
    return [command for command in words if command]


def test_the_pages_are_found():
    pairs = [folder for folder in FOLDERS if folder not in ("docs", "qwen2.5-vl-example")]
    both = {str(Path(folder) / f"README{end}") for folder in pairs for end in (".md", "_zh.md")}
    both |= {f"qwen2.5-vl-example/README{end}" for end in (".md", "_CN.md")}
    assert both | {"CONTRIBUTING.md", "examples/INFERENCE.md", "docs/design.md"} <= set(FILES)


@pytest.fixture
def understood(monkeypatch):
    """The options of each command that parses; none of them runs."""
    options = []
    monkeypatch.setattr(TyperCommand, "invoke", lambda _, context: options.append(context.params), raising=False)
    return options


@pytest.mark.parametrize("file", [file for file in FILES if commands(file)])
def test_commands_parse(file, understood):
    for program, *arguments in commands(file):
        app = psa
        if program == "python" and arguments[0].endswith(".py"):
            script = ROOT / arguments.pop(0)
            assert script.is_file(), f"{file}: there is no {script}"
            if script.relative_to(ROOT).parts[0] not in ("examples", "qwen2.5-vl-example"):
                continue
            app = load_script(script).app
        elif program != "psa":
            continue
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{file}: {shlex.join([program, *arguments])}: {result.output}"
    for options in understood:
        check_names(options)


def check_names(options):
    """Models and presets that a command names exist, but for those that a page tells people to make."""
    sections = load_presets_file().sections
    model = options.get("model", "tiny-wan")
    if PLACEHOLDER.fullmatch(model):
        return
    models = {**MODELS, QWEN2_5_VL.key: QWEN2_5_VL}
    assert model in models or model in sections, f"unknown model {model}"
    given = options.get("attention_preset") or options.get("preset") or []
    section = models[model].preset_section if model in models else model
    for preset in [given] if isinstance(given, str) else given:
        assert preset in {*sections[section].attention_configs, "my_custom_preset", "psa_tuned"}, (
            f"{section} has no {preset}"
        )


@pytest.mark.parametrize("file", [file for file in FILES if blocks(file, "yaml")])
def test_presets_are_valid(file, tmp_path):
    """A section may leave out what the shipped one has; what is no section is part of a preset."""
    shipped = read_mapping(shipped_presets())
    for index, text in enumerate(blocks(file, "yaml")):
        path = tmp_path / f"block_{index}.yaml"
        path.write_text(text, encoding="utf-8")
        block = read_mapping(path)
        if not any(isinstance(value, dict) and "attention_configs" in value for value in block.values()):
            block = {"CogVideo_5b": {"attention_configs": {"part": {"type": "psa", **block}}}}
        for name, section in block.items():
            base = shipped.get(name, {"attention_configs": {}})
            presets = base["attention_configs"] | section["attention_configs"]
            path.write_text(yaml.safe_dump({name: base | section | {"attention_configs": presets}}), encoding="utf-8")
            load_presets_file(path)


def calls(tree, names):
    """Calls of `names`, with the keywords that are given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield names[node.func.id], {keyword.arg for keyword in node.keywords if keyword.arg is not None}


@pytest.mark.parametrize("file", [file for file in FILES if blocks(file, "python")])
def test_python_names_what_exists(file):
    imported = {}
    for text in blocks(file, "python"):
        compile(text, file, "exec")
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("psa_triton"):
                module = importlib.import_module(node.module)
                imported |= {alias.name: getattr(module, alias.name) for alias in node.names}
        for called, keywords in calls(tree, imported):
            unknown = keywords - inspect.signature(called).parameters.keys()
            assert not unknown, f"{file}: {called.__name__} takes no {', '.join(unknown)}"


@pytest.mark.parametrize("file", RUNNABLE)
def test_python_of_the_operators_page_runs(file):
    namespace = {}
    for text in blocks(file, "python"):
        exec(compile(text, file, "exec"), namespace)
    assert "psa_attention" in namespace


def messages_of_the_source():
    """Every text of the source, with `...` for what an f-string fills in."""
    found = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_troubleshooting_quotes_real_messages():
    quoted = re.findall(r"^\* `([^`]+)`:", read("docs/troubleshooting.md"), flags=re.MULTILINE)
    assert len(quoted) > 8
    source = "\n".join(messages_of_the_source())
    for message in quoted:
        pattern = ".*".join(re.escape(part) for part in message.split("..."))
        assert re.search(pattern, source), f"no message of the source says: {message}"


def test_reasons_to_run_dense_are_real():
    texts = messages_of_the_source()
    lists = (
        prose("docs/running.md").partition("Reasons to run dense")[2]
        + prose("docs/transformers.md").partition("gives the reason")[2].partition("## ")[0]
    )
    reasons = [
        reason
        for line in re.findall(r"^\* (`[^:]+`):", lists, flags=re.MULTILINE)
        for reason in line[1:-1].split("`, `")
    ]
    assert len(reasons) > 20
    for reason in reasons:
        assert re.sub(r"\b[NM]\b", "...", reason) in texts, f"nothing runs dense for: {reason}"


def anchors(file):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = [heading.lower() for _, heading in _HEADING.findall(prose(file))]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", [file for file in FILES if _LINK.search(prose(file))])
def test_links_lead_somewhere(file):
    for link in _LINK.findall(prose(file)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / file).parent / path if path else ROOT / file
        assert target.exists(), f"{file}: there is no {link}"
        if anchor:
            assert anchor in anchors(str(target)), f"{file}: {path or 'the page'} has no heading for #{anchor}"


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("_zh.md")])
def test_a_translation_has_all_of_its_original(file):
    original = file.replace("_zh.md", ".md")
    assert commands(file) == commands(original)
    assert outline(file) == outline(original)


def outline(file):
    """The marks of headings, list items and table rows, in their order."""
    return re.findall(r"^ *(#+ |[*-] |\d\. |\|)", prose(file), flags=re.MULTILINE)
