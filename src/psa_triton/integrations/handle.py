"""What `apply_psa` returns, and `remove_psa`, which detaches without it; for models of every library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Protocol, Self

from torch import nn

from psa_triton.config import PSAConfig
from psa_triton.integrations.stats import Recorder, Stats
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


class PSAHandle(Generic[Stats]):
    """PSA as attached by `apply_psa`. Also a context manager that detaches at its end.

    Attributes:
        config: the attention in use; None where the preset is dense.
    """

    def __init__(self, config: PSAConfig | None, recorder: Recorder[Stats], attachments: Sequence[Attachment]) -> None:
        self.config = config
        self._recorder = recorder
        self._attachments = list(attachments)

    def stats(self) -> Stats:
        """What ran since attaching or the last `reset`: by layer and kind of call, and in sum. Waits for the device."""
        return self._recorder.stats()

    def reset(self) -> None:
        """Forget what ran so far."""
        self._recorder.reset()

    def remove(self) -> None:
        """Put back the attention that was there before. Again is fine.

        One that somebody set in the meantime is theirs and stays. Copies of the model that were made in the meantime
        stay attached: `psa_triton.remove_psa` detaches them.

        Raises:
            RuntimeError: if a diffusion transformer is running in another thread.
        """
        while self._attachments:
            self._attachments[-1].detach()
            self._attachments.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


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


def find_config(config_or_preset: Any, named: Callable[[str | None], PSAConfig | None]) -> PSAConfig | None:
    """The configuration that an argument of `apply_psa` asks for, by way of `named` if it is a name; None: dense.

    Raises:
        TypeError: it is neither a configuration nor a name.
    """
    if isinstance(config_or_preset, PSAConfig):
        return config_or_preset
    if isinstance(config_or_preset, str | None):
        return named(config_or_preset)
    raise TypeError(
        "config_or_preset: expected a PSAConfig, a preset's name, 'SECTION/PRESET' or None, "
        f"got {type(config_or_preset).__name__}"
    )
