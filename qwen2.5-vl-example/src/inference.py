"""Questions about an image or a video, answered by Qwen2.5-VL.

`--help` shows every option.
"""

from psa_triton.tools.cli.script import make_understanding_script

app = make_understanding_script()

if __name__ == "__main__":
    app()
