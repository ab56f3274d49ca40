"""The ComfyUI node of Pyramid Sparse Attention: this folder goes into `custom_nodes/`, under any name."""

from .nodes import comfy_entrypoint as comfy_entrypoint
