"""What `real_attention.py` measures: sets of inputs, samples of them, and methods at a wanted total cost."""
