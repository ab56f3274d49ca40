"""`remove_psa`: detach PSA without the handle, from models of every library."""

from __future__ import annotations

from typing import Any, Final, Protocol

from torch import nn

from psa_triton.integrations.wrappers import library, parts

ATTACHMENT: Final = "psa_attachment"
"""Where a module keeps what `apply_psa` attached to it. It is copied and pickled with the module."""

ATTACHED_ALREADY: Final = (
    "call remove() on the handle that apply_psa returned, or psa_triton.remove_psa(model), or use that handle in a "
    "`with` block"
)
"""What to do about a model that has PSA."""


class Attachment(Protocol):
    """What `apply_psa` attached to one module."""

    def detach(self) -> None:
        """Undo. Again is fine."""


def remove_psa(model: Any) -> None:
    """Detach PSA from a model, whether or not the handle that `apply_psa` returned is still at hand.

    The attention of before is put back, as by the handle's `remove`. Copies (`copy.deepcopy`, pickle) of an attached
    model are attached as well and have no handle: this is how to detach them; the original stays attached. If nothing
    is attached, nothing happens. An `attn_implementation="psa"` that was set by name is not an attachment and stays.

    Args:
        model: a model of diffusers or transformers, anything that holds one (a pipeline, `PeftModel`,
            `DistributedDataParallel`, the result of `torch.compile`), or a copy of these. All models in it are looked
            through.

    Raises:
        TypeError: if there is no model in it.
        RuntimeError: if a diffusion transformer is running in another thread.
    """
    roots = [model] if isinstance(model, nn.Module) else [part for _, part in parts(model)]
    if not roots and library(model) is None:
        raise TypeError(
            "model: expected a model or pipeline of diffusers or transformers, or a wrapper or copy of one, "
            f"got {type(model).__name__} without any torch.nn.Module in it"
        )
    for root in roots:
        for module in root.modules():
            attachment: Attachment | None = vars(module).get(ATTACHMENT)
            if attachment is not None:
                attachment.detach()
