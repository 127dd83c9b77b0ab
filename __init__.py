"""Sparse Atoms: sparse dictionary adapters for ComfyUI."""

from .nodes import WEB_DIRECTORY, comfy_entrypoint

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
