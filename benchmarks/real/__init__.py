"""What `real_attention.py` compares, how it measures, and how it shows what it found."""
