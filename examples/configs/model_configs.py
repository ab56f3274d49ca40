"""The models of these examples: edit this file to say where their weights are, or to change what they are run with.

A setting on the command line comes first, then the one here, then the library's own (`psa_triton/models.py`). This file
is read by the scripts in `examples/inference`, and by `psa` where the library is installed from this checkout
(`pip install -e .`).

`model_id` is a repository on the Hugging Face hub, or the folder of a diffusers pipeline. `lora_path` is a safetensors
file, a folder with one, or OWNER/REPOSITORY/FILE on the hub. A path is relative to the folder that a script is run in.
These may be added for a model: preset, width, height, num_frames, num_inference_steps, guidance_scale,
guidance_scale_2, fps, cpu_offload, vae_tiling, vae_slicing.
"""

MODEL_CONFIGS = {
    "cogvideo_5b": {"model_id": "THUDM/CogVideoX-5b"},
    "cogvideo1.5_5b": {"model_id": "THUDM/CogVideoX1.5-5B"},
    "cogvideo_5b_lora": {
        "model_id": "THUDM/CogVideoX-5b",
        # Downloaded to ./weights? Then: "lora_path": "./weights"
        "lora_path": "GYP666/BLADE/cogvideox-5b-psa-lora/pytorch_lora_weights.safetensors",
    },
    "wan21_1.3b": {"model_id": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"},
    "wan21_14b": {"model_id": "Wan-AI/Wan2.1-T2V-14B-Diffusers"},
    "wan22_5b": {"model_id": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"},
    "wan22_a14b": {"model_id": "Wan-AI/Wan2.2-T2V-A14B-Diffusers"},
}
