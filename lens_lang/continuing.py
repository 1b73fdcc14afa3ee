"""Reading rows of tokens on: from their keys and values, together, and provably as if alone.

What `lens_lang.generate` and `lens_lang.log_likelihoods` stand on. Prompts of different length are
padded on the left; `check_decoding` proves on the model at hand that neither this nor the cache
changes what is read.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.batches import padded_batch
from lens_lang.documents import bos_token, tokenise, tokenizer_of
from lens_lang.errors import CorpusError, ModelError
from lens_lang.key_values import KeyValues
from lens_lang.readout import check_readout
from lens_lang.sites import (
    RESID_POST,
    FwdHooks,
    HookedModel,
    check_supported,
    model_name,
    n_layers,
    run_until,
)

Prompts = Sequence[str] | Sequence[Int[Tensor, "_"]] | Sequence[Sequence[int]]
"""Texts, which get BOS as TransformerLens has it; or token ids, which are read as they are."""


_PROVEN: WeakSet[Any] = WeakSet()
"""Models that have passed `check_decoding`, which is worth as much as some tokens of an answer."""


def prompt_tokens(model: Any, prompts: Prompts) -> list[Int[Tensor, "_"]]:
    """Return prompts as token ids, BOS in front of texts where TransformerLens has it.

    Args:
        model: The model.
        prompts: Texts or token ids.

    Raises:
        CorpusError: There is no prompt, or one is empty, or not made for this model.
    """
    if isinstance(prompts, str):
        raise CorpusError("Prompts are one string where a list is expected: give [prompt]")
    given: list[Any] = list(prompts)
    if not given:
        raise CorpusError("There is no prompt to continue")
    if isinstance(given[0], str):
        if not all(isinstance(text, str) for text in given):
            raise CorpusError("Prompts are texts, or rows of token ids; these are some of each")
        empty = [number for number, text in enumerate(given) if not text]
        if empty:
            raise CorpusError(f"Prompt {empty[0]} is empty: there is nothing to continue")
        bos = bos_token(model, None)
        first = [] if bos is None else [bos]
        docs = tokenise(tokenizer_of(model), given, limit=None, lang="the prompts")
        if len(docs) != len(given):
            raise CorpusError("A prompt has no token: there is nothing to continue")
        rows = [torch.tensor([*first, *doc.tolist()]) for doc in docs]
    else:
        rows = [_token_row(each, number) for number, each in enumerate(given)]
    for number, row in enumerate(rows):
        if row.ndim != 1 or not len(row):
            raise CorpusError(f"Prompt {number} has no token: there is nothing to continue")
        if not 0 <= int(row.min()) <= int(row.max()) < int(model.cfg.d_vocab):
            raise CorpusError(
                f"Prompt {number} has a token id outside the model's {model.cfg.d_vocab}: it was "
                "tokenised for another model"
            )
    return rows


def _token_row(given: Any, number: int) -> Int[Tensor, "_"]:
    try:
        row = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        row = None
    if row is None or (len(row) and (row.is_floating_point() or row.dtype == torch.bool)):
        raise CorpusError(f"Prompt {number} is neither a text nor a row of token ids")
    return row.long()


def by_length(rows: Sequence[Tensor], batch_size: int) -> list[list[int]]:
    """Return the numbers of rows in batches, those of similar length together.

    Args:
        rows: The rows.
        batch_size: At most so many in a batch.

    Examples:
        >>> by_length([torch.ones(3), torch.ones(1), torch.ones(2)], 2)
        [[0, 2], [1]]
    """
    order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), number))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def check_room(model: HookedModel, longest: int) -> None:
    """Refuse rows that outgrow learned positions; rotations and slopes read on.

    Args:
        model: The model.
        longest: Tokens that are read in the longest row.

    Raises:
        CorpusError: The model has no position for the last of them.
    """
    learned = getattr(model.cfg, "positional_embedding_type", None) == "standard"
    if learned and longest > int(model.cfg.n_ctx):
        raise CorpusError(
            f"A prompt and what follows it have {longest} tokens to read, but the model has only "
            f"{model.cfg.n_ctx} positions: shorten the prompt, or ask for fewer new tokens"
        )


def ending_tokens(model: Any) -> set[int]:
    """Return the tokens that end a text: those of the tokeniser and of the generation settings.

    Args:
        model: The model.
    """
    hf = getattr(model, "original_model", None)
    settings = getattr(hf, "generation_config", None)
    given = [
        getattr(getattr(model, "tokenizer", None), "eos_token_id", None),
        getattr(settings, "eos_token_id", None),
    ]
    return {
        token
        for each in given
        if each is not None
        for token in (each if isinstance(each, list | tuple) else [each])
    }


def check_once(model: HookedModel) -> None:
    """Call `check_decoding`, unless the model has passed it before.

    Args:
        model: The model.

    Raises:
        ModelError: See `check_decoding`.
    """
    check_supported(model)
    if model not in _PROVEN:
        check_decoding(model)
        _PROVEN.add(model)


def check_decoding(model: HookedModel) -> None:
    """Prove that left padding and the cache change nothing, on a handful of tokens.

    Args:
        model: The model.

    Raises:
        ModelError: The model is refused, its logits are not read this way, or a token read after
            others, from their keys and values, is not what it is when all are read at once.
        ActivationError: The model gives NaN or infinity.
    """
    check_supported(model)
    check_readout(model)
    some = [token % int(model.cfg.d_vocab) for token in (0, 1, 2, 3, 4)]
    rows = [torch.tensor(some), torch.tensor(some[3:])]
    alone = [last_residual(model, [row], ()) for row in rows]
    past = KeyValues(model, 2)
    first = padded_batch(
        [row[:-1] for row in rows], language="", numbers=(0, 1), bos_id=None, padding_side="left"
    )
    read_on(model, first.tokens, past, real=first.attention_mask)
    last = read_on(model, torch.stack([row[-1:] for row in rows]), past)[:, -1]
    together = torch.cat(alone)
    size = together.float().norm()
    half = together.dtype in (torch.float16, torch.bfloat16)
    error = float((last - together).float().norm() / size)
    if not error <= (5e-2 if half else 1e-3):
        raise ModelError(
            f"{model_name(model)} reads a token differently ({error:.1%}) after left padding and "
            "from its key-value cache than when all tokens are read at once, so texts cannot be "
            "continued together. transformer-lens 3.7.3 does this to GPT-2; newer ones do not"
        )


def last_residual(
    model: HookedModel, rows: Sequence[Tensor], fwd_hooks: FwdHooks
) -> Float[Tensor, "row d_model"]:
    """Return the residual stream behind the last block at the end of rows, read anew.

    Args:
        model: The model.
        rows: Token ids.
        fwd_hooks: Interventions.
    """
    batch = padded_batch(
        list(rows), language="", numbers=range(len(rows)), bos_id=None, padding_side="left"
    )
    held: list[Tensor] = []

    def keep(resid: Tensor, hook: Any) -> None:
        held.append(resid[:, -1])

    run_until(
        model,
        batch.tokens,
        attention_mask=batch.attention_mask,
        fwd_hooks=fwd_hooks,
        readers=[(RESID_POST.at(n_layers(model) - 1), keep)],
    )
    return held[0]


def read_on(
    model: HookedModel,
    tokens: Int[Tensor, "row new"],
    past: KeyValues,
    *,
    real: Bool[Tensor, "row new"] | None = None,
    fwd_hooks: FwdHooks = (),
) -> Float[Tensor, "row new d_model"]:
    """Read more tokens of rows that a model remembers.

    Args:
        model: The model.
        tokens: The next tokens.
        past: What came before; it comes to hold these, too.
        real: False at padding.
        fwd_hooks: Interventions.

    Returns:
        The residual stream behind the last block.
    """
    held: list[Tensor] = []

    def keep(resid: Tensor, hook: Any) -> None:
        held.append(resid)

    run_until(
        model,
        tokens,
        attention_mask=real,
        fwd_hooks=fwd_hooks,
        readers=[(RESID_POST.at(n_layers(model) - 1), keep)],
        past=past,
    )
    return held[0]
