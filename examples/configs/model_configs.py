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
    "wan21_i2v_14b": {"model_id": "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers"},
    "wan22_i2v_a14b": {"model_id": "Wan-AI/Wan2.2-I2V-A14B-Diffusers"},
    "wan21_vace_14b": {"model_id": "Wan-AI/Wan2.1-VACE-14B-diffusers"},
    "wan22_animate_14b": {"model_id": "Wan-AI/Wan2.2-Animate-14B-Diffusers"},
    "skyreels_v2_14b": {"model_id": "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers"},
    "hunyuan_video": {"model_id": "hunyuanvideo-community/HunyuanVideo"},
    "hunyuan_video_1.5_480p": {"model_id": "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v"},
    "hunyuan_video_1.5_720p": {"model_id": "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v"},
    "ltx_video": {"model_id": "Lightricks/LTX-Video"},
    "ltx_2": {"model_id": "Lightricks/LTX-2"},
    "mochi_1": {"model_id": "genmo/mochi-1-preview"},
    "framepack": {"model_id": "hunyuanvideo-community/HunyuanVideo"},
    "cosmos_predict2.5_2b": {"model_id": "nvidia/Cosmos-Predict2.5-2B"},
    "cosmos_predict2.5_14b": {"model_id": "nvidia/Cosmos-Predict2.5-14B"},
    "allegro": {"model_id": "rhymes-ai/Allegro"},
    "kandinsky5_lite": {"model_id": "kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers"},
    "kandinsky5_pro": {"model_id": "kandinskylab/Kandinsky-5.0-T2V-Pro-sft-5s-Diffusers"},
    "minimax_h3": {"model_id": "MiniMaxAI/MiniMax-H3"},
    "flux.1-dev": {"model_id": "black-forest-labs/FLUX.1-dev"},
    "flux.2-dev": {"model_id": "black-forest-labs/FLUX.2-dev"},
    "qwen-image": {"model_id": "Qwen/Qwen-Image"},
    "sd3.5-large": {"model_id": "stabilityai/stable-diffusion-3.5-large"},
    "z-image-turbo": {"model_id": "Tongyi-MAI/Z-Image-Turbo"},
}
