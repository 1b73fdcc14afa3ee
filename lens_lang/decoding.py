"""Continuing prompts, many at once, under any hooks.

Prompts of different length are padded on the left and read once; then a token costs one position.
What comes out is what each prompt alone would give, without a cache: `check_decoding` proves that
on the model at hand, and nothing depends on which prompts share a batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.continuing import (
    Prompts,
    by_length,
    check_once,
    check_room,
    ending_tokens,
    prompt_tokens,
    read_on,
)
from lens_lang.errors import ActivationError, OptionError
from lens_lang.key_values import KeyValues
from lens_lang.progress import progress_bar
from lens_lang.readout import check_before_readout, chunks, read_logits
from lens_lang.sites import FwdHooks, HookedModel, check_hooks, model_name


@dataclass(frozen=True)
class Decoding:
    """How prompts are continued.

    Attributes:
        new_tokens: At most so many.
        temperature: 0 takes the likeliest token; above, tokens are drawn from
            softmax(logits / temperature).
        top_p: Draw only among the likeliest tokens that together have this probability.
        repetition_penalty: Divides the positive logits of tokens that the prompt or the
            continuation has, and multiplies the negative ones (Keskar et al. 2019); Tang et al.
            (2024) use 1.1.
        stop: Text that ends a continuation, and is cut off.
        skip_blank: Look for `stop` only behind the first word: an answer may begin on a new line
            and still end at the next.
        seed: Of the drawing. Every prompt has its own stream of randomness, by its place among
            the prompts, so batches change nothing.
    """

    new_tokens: int = 64
    temperature: float | int = 0.0
    top_p: float | int = 1.0
    repetition_penalty: float | int = 1.0
    stop: tuple[str, ...] = ()
    skip_blank: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.new_tokens < 1:
            raise OptionError(f"new_tokens must be at least 1, got {self.new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise OptionError(f"temperature must be 0 or above, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise OptionError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise OptionError(f"stop must be texts that are not empty, got {self.stop!r}")


_KNOWN_BEFORE = 16
"""Tokens of a prompt that a continuation is decoded with."""

GREEDY = Decoding()
"""The likeliest token every time, 64 times."""


@dataclass(frozen=True)
class Continuation:
    """What a model said.

    Attributes:
        text: Without special tokens, and without what ended it; empty if the model has no
            tokeniser.
        tokens: Ids of the new tokens, those that ended it among them.
        nll: Their negative log-likelihood as the model under its hooks gave them, in nats.
        ended: Whether it ended by itself: an end-of-text token, or text to stop at.
    """

    text: str
    tokens: tuple[int, ...]
    nll: float
    ended: bool


def generate(
    model: HookedModel,
    prompts: Prompts,
    decoding: Decoding = GREEDY,
    *,
    fwd_hooks: FwdHooks = (),
    batch_size: int = 16,
    progress: bool = False,
) -> list[Continuation]:
    """Continue prompts, many at once.

    Equal to continuing each by itself without a cache, whatever the hooks, up to rounding, as long
    as they act on every position alike. Hooks made with ``positions="prompt"`` act on the
    first pass only, those with ``positions="new"`` on the tokens that come after.

    Args:
        model: The model.
        prompts: Texts or token ids.
        decoding: How to continue.
        fwd_hooks: Interventions.
        batch_size: Prompts at once; those of similar length go together.
        progress: Show a bar on stderr, in a terminal or a notebook.

    Returns:
        One continuation per prompt, in their order.

    Raises:
        CorpusError: A prompt is empty, too long for the model, or tokenised for another.
        OptionError: `batch_size` is below 1, or text is to stop a model without tokeniser.
        SiteError: A hook point does not exist, or comes after the last block.
        ModelError: The model is refused, its logits are not read this way, or its cache does not
            do what it should.
        ActivationError: NaN or infinity.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, got {batch_size}")
    tokenizer = getattr(model, "tokenizer", None)
    if decoding.stop and tokenizer is None:
        raise OptionError("Stopping at text needs a tokeniser, and this model has none")
    check_hooks(model, fwd_hooks)
    check_before_readout(model, fwd_hooks)
    check_once(model)
    rows = prompt_tokens(model, prompts)
    # The last new token is said, not read.
    check_room(model, max(map(len, rows)) + decoding.new_tokens - 1)
    ends = ending_tokens(model)
    found: dict[int, Continuation] = {}
    with progress_bar(progress, total=len(rows), unit="prompt") as bar:
        for numbers in by_length(rows, batch_size):
            speech = _Speech(model, [rows[number] for number in numbers], numbers, decoding)
            speech.run(fwd_hooks, ends)
            found |= speech.continuations()
            bar.update(len(numbers))
    return [found[number] for number in range(len(rows))]


class _Speech:
    """Prompts that are being continued together; those that have ended leave."""

    def __init__(
        self, model: HookedModel, rows: list[Tensor], numbers: Sequence[int], decoding: Decoding
    ) -> None:
        self.model, self.rows, self.numbers, self.decoding = model, rows, numbers, decoding
        self.tokenizer: Any = getattr(model, "tokenizer", None)
        self.said: list[list[int]] = [[] for _ in rows]
        self.nll = [0.0] * len(rows)
        self.ended = [False] * len(rows)
        self.chance = [_generator(decoding.seed, number) for number in numbers]
        penalised = decoding.repetition_penalty != 1
        self.seen = [torch.unique(row) for row in rows] if penalised else []

    def run(self, fwd_hooks: FwdHooks, ends: set[int]) -> None:
        """Say one token after the other until all have ended, or said enough."""
        # Two positions at least: what comes alone is a new token to hooks that tell them apart.
        widest = max(len(row) for row in self.rows)
        tokens = torch.zeros(len(self.rows), max(widest, 2), dtype=torch.int64)
        real = torch.zeros_like(tokens, dtype=torch.bool)
        for place, row in enumerate(self.rows):
            tokens[place, -len(row) :] = row
            real[place, -len(row) :] = True
        active = list(range(len(self.rows)))
        past = KeyValues(self.model, len(active))
        for step in range(self.decoding.new_tokens):
            resid = read_on(self.model, tokens, past, real=real, fwd_hooks=fwd_hooks)[:, -1]
            chosen = self._choose(resid, active)
            going = []
            for place, (number, token) in enumerate(zip(active, chosen, strict=True)):
                self.said[number].append(token)
                self.ended[number] = token in ends or self._stops(number)
                if not self.ended[number]:
                    going.append(place)
            if not going or step + 1 == self.decoding.new_tokens:
                return
            if len(going) < len(active):
                past.select(torch.tensor(going))
            active = [active[place] for place in going]
            tokens = torch.tensor([[self.said[row][-1]] for row in active])
            real = torch.ones_like(tokens, dtype=torch.bool)

    def continuations(self) -> dict[int, Continuation]:
        """Return what was said, by the prompts' numbers."""
        return {
            number: Continuation(
                self._text(place), tuple(self.said[place]), self.nll[place], self.ended[place]
            )
            for place, number in enumerate(self.numbers)
        }

    def _choose(self, resid: Float[Tensor, "row d_model"], active: Sequence[int]) -> list[int]:
        chosen: list[int] = []
        with torch.inference_mode():
            for some in chunks(self.model, len(resid)):
                logits = read_logits(self.model, resid[some])
                whole = logits.logsumexp(1)
                if not bool(torch.isfinite(whole).all()):
                    raise ActivationError(
                        f"{model_name(self.model)} gave NaN or infinite logits while continuing "
                        "a prompt; half precision often needs bfloat16 or float32, and an "
                        "intervention a lower strength"
                    )
                rows = active[some]
                picked = self._pick(logits, rows)
                nll = (whole - logits.gather(1, picked[:, None])[:, 0]).tolist()
                for row, loss in zip(rows, nll, strict=True):
                    self.nll[row] += loss
                chosen += picked.tolist()
        return chosen

    def _pick(self, logits: Float[Tensor, "row item"], rows: Sequence[int]) -> Int[Tensor, "row"]:
        decoding = self.decoding
        if decoding.repetition_penalty != 1:
            logits = logits.clone()
            for line, row in enumerate(rows):
                last = torch.tensor(self.said[row][-1:], dtype=torch.int64)
                self.seen[row] = torch.unique(torch.cat([self.seen[row], last]))
                known = self.seen[row].to(logits.device)
                old = logits[line, known]
                factor = torch.tensor(float(decoding.repetition_penalty), device=old.device)
                logits[line, known] = torch.where(old < 0, old * factor, old / factor)
        if decoding.temperature == 0:
            return logits.argmax(1)
        # From the largest down and in float64, so that no temperature is too low.
        apart = (logits - logits.amax(1, keepdim=True)).double() / decoding.temperature
        probability, items = apart.softmax(1).sort(1, descending=True)
        reached = probability.cumsum(1)
        # The item that reaches top_p is the last to be drawn.
        kept = (reached < decoding.top_p).sum(1).clamp(max=logits.shape[1] - 1)
        total = reached.gather(1, kept[:, None])
        drawn = torch.stack([torch.rand(1, generator=self.chance[row]) for row in rows])
        level = drawn.to(reached.device, torch.float64) * total
        place = torch.searchsorted(reached, level, right=True).clamp(max=kept[:, None])
        return items.gather(1, place)[:, 0]

    def _stops(self, row: int) -> bool:
        if not self.decoding.stop:
            return False
        assert self.tokenizer is not None  # generate asked for one
        # A token may be part of a character, and a stop may begin inside a token.
        reach = 4 * max(map(len, self.decoding.stop)) + 8
        if len(self.said[row]) <= reach:
            return self._cut(self._said_text(row)) is not None
        tail = self.tokenizer.decode(self.said[row][-reach:], skip_special_tokens=True)
        # What stands before the tail is no blank beginning any more, and held no stop.
        return any(stop in tail for stop in self.decoding.stop)

    def _cut(self, text: str) -> int | None:
        """Where text to stop at begins."""
        blank = len(text) - len(text.lstrip()) if self.decoding.skip_blank else 0
        cuts = [text.find(stop, blank) for stop in self.decoding.stop]
        return min((cut for cut in cuts if cut >= 0), default=None)

    def _text(self, place: int) -> str:
        if self.tokenizer is None:
            return ""
        text = self._said_text(place)
        return text[: self._cut(text)]

    def _said_text(self, place: int) -> str:
        """All that was said, decoded with what it continues.

        Sentencepiece drops the space in front of a text.
        """
        before = self.rows[place].tolist()[-_KNOWN_BEFORE:]
        prompt = self.tokenizer.decode(before, skip_special_tokens=True)
        whole = self.tokenizer.decode([*before, *self.said[place]], skip_special_tokens=True)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        return self.tokenizer.decode(self.said[place], skip_special_tokens=True)


def _generator(seed: int, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
