"""How likely a model finds given continuations of prompts: the options of a question, an answer.

A prompt is read once, whatever the number of its continuations, which go on from its keys and
values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.batches import padded_batch
from lens_lang.continuing import by_length, check_once, check_room, prompt_tokens, read_on
from lens_lang.documents import bos_token, tokenise, tokenizer_of
from lens_lang.errors import ActivationError, CorpusError, OptionError
from lens_lang.key_values import KeyValues
from lens_lang.positions import check_everywhere
from lens_lang.progress import progress_bar
from lens_lang.readout import check_before_readout, chunks, read_logits
from lens_lang.sites import FwdHooks, HookedModel, check_hooks, model_name

TokenPair = tuple[Int[Tensor, "_"], Int[Tensor, "_"]]
"""Tokens of a prompt, and of what follows it."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is.

    Attributes:
        log_probability: Of all its tokens after the prompt, in nats.
        n_tokens: How many tokens it has.
        greedy: Whether every one of them is the likeliest.
    """

    log_probability: float
    n_tokens: int
    greedy: bool


def token_pairs(model: Any, pairs: Sequence[tuple[str, str]]) -> list[TokenPair]:
    """Tokenise prompts with what follows them.

    The two are tokenised together and divided where the prompt's own tokens end, as everybody
    does who scores options; BOS is in front where TransformerLens has it.

    Args:
        model: Whose tokeniser.
        pairs: Prompts and continuations, the space between them with either.

    Returns:
        Token ids of both, neither of them empty.

    Raises:
        CorpusError: A prompt or a continuation has no token.
    """
    tokenizer, bos = tokenizer_of(model), bos_token(model, None)
    first = [] if bos is None else [bos]
    found = []
    for prompt, continuation in pairs:
        if not continuation:
            raise CorpusError(f"There is nothing to score behind the prompt {prompt[-40:]!r}")
        whole = tokenise(tokenizer, [prompt + continuation], limit=None, lang="a prompt")[0]
        own = len(tokenise(tokenizer, [prompt], limit=None, lang="a prompt")[0]) if prompt else 0
        own = min(own, len(whole) - 1)
        if own + len(first) == 0:
            raise CorpusError(
                f"{continuation[:40]!r} stands first in its row and the model has no BOS, so its "
                "first token has no probability"
            )
        ids = torch.tensor([*first, *whole.tolist()])
        found.append((ids[: own + len(first)], ids[own + len(first) :]))
    return found


def log_likelihoods(
    model: HookedModel,
    pairs: Sequence[TokenPair],
    *,
    fwd_hooks: FwdHooks = (),
    batch_size: int = 16,
    progress: bool = False,
) -> list[Likelihood]:
    """Score continuations of prompts.

    Args:
        model: The model.
        pairs: Token ids of prompts and continuations; see `token_pairs`. Equal prompts are read
            once.
        fwd_hooks: Interventions, on prompt and continuation alike.
        batch_size: Continuations per forward pass.
        progress: Show a bar on stderr, in a terminal or a notebook.

    Returns:
        One score per pair, in their order.

    Raises:
        CorpusError: A prompt or a continuation is empty, too long, or of another model.
        OptionError: `batch_size` is below 1, or hooks act on the prompt or on new tokens only,
            which here are not told apart.
        SiteError: A hook point does not exist, or comes after the last block.
        ModelError: The model is refused; see `lens_lang.generate`.
        ActivationError: NaN or infinity.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, got {batch_size}")
    check_hooks(model, fwd_hooks)
    check_before_readout(model, fwd_hooks)
    check_everywhere(fwd_hooks)
    check_once(model)
    prompts = prompt_tokens(model, [prompt for prompt, _ in pairs])
    answers = prompt_tokens(model, [continuation for _, continuation in pairs])
    # The last token is predicted, not read.
    check_room(model, max(len(p) + len(a) - 1 for p, a in zip(prompts, answers, strict=True)))
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt.tolist()), []).append(number)
    found: dict[int, Likelihood] = {}
    with progress_bar(progress, total=len(pairs), unit="option") as bar:
        for batch in _batches(list(by_prompt.values()), prompts, answers, batch_size):
            rows = [prompts[some[0]] for some in batch]
            scores = _scores(model, rows, [[answers[n] for n in some] for some in batch], fwd_hooks)
            numbers = [number for some in batch for number in some]
            found |= dict(zip(numbers, scores, strict=True))
            bar.update(len(numbers))
    return [found[number] for number in range(len(pairs))]


def _batches(
    groups: Sequence[Sequence[int]],
    prompts: Sequence[Tensor],
    answers: Sequence[Tensor],
    batch_size: int,
) -> list[list[list[int]]]:
    """Numbers of pairs in batches, those of a prompt together as far as they fit.

    Prompts of similar length share a batch, unless a long prompt and another's long continuation
    would together be wider than any pair is: learned positions end.
    """
    parts = [
        list(group[start : start + batch_size])
        for group in groups
        for start in range(0, len(group), batch_size)
    ]
    widest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    batches: list[list[list[int]]] = []
    room = longest = 0
    for (place,) in by_length([prompts[part[0]] for part in parts], 1):
        part = parts[place]
        more = max(longest, max(len(answers[number]) for number in part))
        # The first prompt of a batch is its longest.
        fits = bool(batches) and len(prompts[batches[-1][0][0]]) + more <= widest
        if len(part) > room or not fits:
            batches.append([])
            room, more = batch_size, max(len(answers[number]) for number in part)
        batches[-1].append(part)
        room, longest = room - len(part), more
    return batches


def _scores(
    model: HookedModel,
    rows: Sequence[Tensor],
    answers: Sequence[Sequence[Tensor]],
    fwd_hooks: FwdHooks,
) -> list[Likelihood]:
    """Score every continuation of every prompt, prompt after prompt."""
    batch = padded_batch(
        rows, language="", numbers=range(len(rows)), bos_id=None, padding_side="left"
    )
    past = KeyValues(model, len(rows))
    resid = read_on(model, batch.tokens, past, real=batch.attention_mask, fwd_hooks=fwd_hooks)
    owner = torch.tensor([place for place, some in enumerate(answers) for _ in some])
    flat = [answer for some in answers for answer in some]
    resid = resid[:, -1:][owner.to(resid.device)]
    longest = max(map(len, flat))
    if longest > 1:
        past.select(owner)
        # The last token of a continuation predicts nothing that is scored.
        shorter = torch.zeros(len(flat), longest - 1, dtype=torch.int64)
        real = torch.zeros_like(shorter, dtype=torch.bool)
        for place, answer in enumerate(flat):
            shorter[place, : len(answer) - 1] = answer[:-1]
            real[place, : len(answer) - 1] = True
        more = read_on(model, shorter, past, real=real, fwd_hooks=fwd_hooks)
        resid = torch.cat([resid, more], dim=1)
    scored = torch.tensor([[n < len(answer) for n in range(longest)] for answer in flat])
    targets = torch.cat(flat)
    log_p, likeliest = _read(model, resid[scored.to(resid.device)], targets)
    sizes = [len(answer) for answer in flat]
    parts = zip(torch.split(log_p, sizes), torch.split(likeliest, sizes), strict=True)
    return [Likelihood(float(p.sum()), len(p), bool(hits.all())) for p, hits in parts]


def _read(
    model: HookedModel, resid: Float[Tensor, "token d_model"], targets: Int[Tensor, "token"]
) -> tuple[Float[Tensor, "token"], Any]:
    log_p, hits = [], []
    with torch.inference_mode():
        for some in chunks(model, len(resid)):
            logits = read_logits(model, resid[some])
            wanted = targets[some].to(logits.device)
            log_p.append((logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1)).cpu())
            hits.append((logits.argmax(1) == wanted).cpu())
    found = torch.cat(log_p).double()
    if not bool(torch.isfinite(found).all()):
        raise ActivationError(
            f"{model_name(model)} gave NaN or infinite logits while reading a continuation"
        )
    return found, torch.cat(hits)
