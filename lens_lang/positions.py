"""Where an intervention acts while a text is generated: on the prompt, on new tokens, on both."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

from torch import Tensor

from lens_lang.errors import OptionError

Positions = Literal["all", "prompt", "new"]
"""Where to intervene: everywhere, or while generating only on the prompt or on new tokens."""


def check_positions(positions: str) -> None:
    """Refuse what is no `Positions`.

    Raises:
        OptionError: It is none.
    """
    known = get_args(Positions)
    if positions not in known:
        raise OptionError(f"positions must be one of {', '.join(known)}, got {positions!r}")


def acts_on(activations: Tensor, positions: Positions) -> bool:
    """Say whether an intervention acts on what a forward pass brings.

    With a key-value cache, a new token comes alone and a prompt comes all at once.

    Args:
        activations: What a hook received, batch and position first.
        positions: Where the intervention acts.
    """
    is_new = activations.shape[1] == 1
    return positions == "all" or is_new == (positions == "new")


def check_everywhere(fwd_hooks: Iterable[tuple[Any, Any]]) -> None:
    """Refuse hooks that act on the prompt or on new tokens only, where nothing is generated.

    Args:
        fwd_hooks: Hooks about to be attached.

    Raises:
        OptionError: One of lens_lang's is made so.
    """
    for _, hook in fwd_hooks:
        if getattr(hook, "positions", "all") != "all":
            raise OptionError(
                "Text that is given is read at once, so hooks cannot act on the prompt or on new "
                "tokens only: make them with positions='all'"
            )
