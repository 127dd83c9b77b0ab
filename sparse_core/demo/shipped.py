"""Where the dictionaries and LoRAs lie that were trained on the lessons and ship with the package."""

from __future__ import annotations

from pathlib import Path

DICTIONARIES = Path(__file__).with_name("dictionaries")
LORAS = Path(__file__).with_name("loras")


def lora_name(creature: str) -> str:
    """The file of a creature's LoRA, told apart in a list of a person's own."""
    return f"sparse_atoms_demo_{creature}.safetensors"
