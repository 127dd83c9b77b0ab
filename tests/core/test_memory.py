"""Memory that does not suffice, in the words of every device."""

from __future__ import annotations

import pytest
import torch

from sparse_core.memory import is_out_of_memory


def test_is_told_of_the_processor_of_this_system() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 50)
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9"
        ),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 9.06 GB, other allocations: 1.08 MB, max allowed: 9.07 GB)."
        ),
    ],
)
def test_is_told_of_other_devices_and_systems(error: RuntimeError) -> None:
    assert is_out_of_memory(error)


def test_other_faults_are_no_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))
