"""Loss scaling, for models that compute in half precision (Micikevicius et al. 2018, arXiv 1710.03740)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HIGHEST = 2.0**16
GROWS_AFTER = 500
"""Steps without an overflow until the scale is tried twice as high."""


class LossScale:
    """What a loss is multiplied by, so that its gradients don't vanish below the smallest number of half precision on their way
    through the model: a power of two, which rounds nothing. Torch's own `GradScaler` is not there for every device that
    ComfyUI runs on."""

    def __init__(self, dtype: torch.dtype) -> None:
        """
        :param dtype: what the model computes in; all but float16 reach far enough by themselves.
        """
        self.needed = dtype == torch.float16
        self.state = torch.tensor([HIGHEST if self.needed else 1.0, 0.0])
        """The scale, and the steps since it last changed."""

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to go backwards from."""
        return loss * self.state[0].item() if self.needed else loss

    @torch.no_grad()
    def unscale(self, gradients: Sequence[Tensor]) -> bool:
        """Divides gradients by the scale, in place. False where some have overflowed: the step must not be taken, and the next
        scale is half as high.

        :raises ValueError: the scale can't be lowered any further.
        """
        if not self.needed:
            return True
        scale, steps = self.state.tolist()
        finite = bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())
        if not finite and scale <= 1:
            raise ValueError("Gradients are no numbers any more. Lower the learning rate, or turn autocast on.")
        torch._foreach_div_(list(gradients), scale)
        grown = finite and steps + 1 >= GROWS_AFTER and scale < HIGHEST
        self.state[0] = scale * 2 if grown else scale if finite else scale / 2
        self.state[1] = 0 if grown or not finite else steps + 1
        return finite
