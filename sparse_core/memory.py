"""Whether an error says that memory did not suffice."""

from __future__ import annotations

import torch

_UNTYPED = ("DefaultCPUAllocator", "MPS backend out of memory")
"""What torch says where it has no type for it: of the processor's memory, and of Apple's GPUs."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's memory did not suffice, be it the processor's."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _UNTYPED)
