"""What `real_attention.py` and `fidelity.py` share: inputs, samples of them, and methods at a wanted total cost."""
