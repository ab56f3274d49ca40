"""What `gpu_attention.py` compares, how it checks, measures and reports."""
