"""The attentions that `peers.py` puts side by side."""
