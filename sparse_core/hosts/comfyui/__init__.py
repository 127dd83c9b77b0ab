"""ComfyUI as a host. The only package of the core that imports ComfyUI."""

from .applying import (
    HEARD,
    KEY,
    Wrapper,
    apply_adapter,
    hook_adapter,
    import_lora,
    patch_clip,
    with_stacks,
)
from .host import ComfyHost, Condition, examples_of, one_entry, single_entries
from .inverting import invert_latent
from .layers import list_layers, named_modules
from .words import PROMPT, LearningClip, Prompt, listen, pupil_of, speak, teach, token_names

__all__ = [
    "HEARD",
    "KEY",
    "PROMPT",
    "ComfyHost",
    "Condition",
    "LearningClip",
    "Prompt",
    "Wrapper",
    "apply_adapter",
    "examples_of",
    "hook_adapter",
    "import_lora",
    "invert_latent",
    "list_layers",
    "listen",
    "named_modules",
    "one_entry",
    "patch_clip",
    "pupil_of",
    "single_entries",
    "speak",
    "teach",
    "token_names",
    "with_stacks",
]
