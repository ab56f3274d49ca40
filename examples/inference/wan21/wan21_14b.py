"""Videos from prompts with Wan2.1 14B.

`--help` shows every option; settings of the model are in `examples/configs/model_configs.py`.
"""

from pathlib import Path

from psa_triton.tools.cli.script import make_script

CONFIGS = Path(__file__).parents[2] / "configs" / "model_configs.py"

app = make_script("wan21_14b", configs=CONFIGS)

if __name__ == "__main__":
    app()
