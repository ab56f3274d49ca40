"""Videos from prompts with CogVideoX-5B, CogVideoX1.5-5B, or CogVideoX-5B with the 4-step LoRA.

`--help` shows every option; settings of the model are in `examples/configs/model_configs.py`.
"""

from pathlib import Path

from psa_triton.tools.cli.script import make_script

CONFIGS = Path(__file__).parents[2] / "configs" / "model_configs.py"

app = make_script("cogvideo_5b", "cogvideo1.5_5b", "cogvideo_5b_lora", configs=CONFIGS)

if __name__ == "__main__":
    app()
