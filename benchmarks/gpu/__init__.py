"""What `gpu_attention.py` compares, and how it prepares, checks and measures."""
