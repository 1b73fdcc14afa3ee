"""A backend for EleutherAI's lm-evaluation-harness: any of its tasks, on a model under hooks.

From Python, ``HarnessModel(model, fwd_hooks=...)`` goes into ``lm_eval.simple_evaluate`` as its
model. On the command line, the harness's own options follow ``python -m lens_lang.harness``::

    python -m lens_lang.harness run --model lens_lang --tasks xnli_fr --batch_size 16 \
        --model_args pretrained=gemma-3-270m,neurons=lape.safetensors,language=fr

Versions of the harness above 0.4.13 find the backend by themselves, from ``lm_eval --model
lens_lang``; 0.4.13 and older ones do not look for backends outside their own code.

Numbers are those of the harness's own ``hf`` backend on the same weights; where the two differ,
which is BOS, `HarnessModel` says so.
"""

import logging
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from lens_lang.continuing import last_residual
from lens_lang.decoding import Continuation, Decoding, generate
from lens_lang.documents import bos_token, tokenizer_of
from lens_lang.errors import (
    CorpusError,
    LensLangError,
    MissingExtraError,
    OptionError,
)
from lens_lang.harness_settings import HarnessArguments, decoding_of
from lens_lang.likelihood import Likelihood, log_likelihoods
from lens_lang.models import load_model
from lens_lang.sites import FwdHooks, HookedModel, check_hooks, model_name
from lens_lang.storage import versions

try:
    from lm_eval.api.model import TemplateLM
except ImportError:  # said when a model is made, so that this module can always be read
    TemplateLM = object

logger = logging.getLogger(__name__)

NAME = "lens_lang"
"""What the backend is called in the harness: ``--model lens_lang``."""

TokenRequest = tuple[Any, list[int], list[int]]
"""A request of the harness: its texts or None, tokens of the context, tokens of what follows."""


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness is not typed
    """A model under hooks, as the lm-evaluation-harness wants one.

    Contexts and continuations are tokenised, divided, cut on the left and scored as by the
    harness's ``hf`` backend. BOS is the one difference: it is in front where TransformerLens has
    it, and not where the tokeniser would put it, unless `add_bos_token` says so. A text that begins
    with BOS, as chat templates write it, gets no second one.

    Args:
        model: The model, with its tokeniser.
        fwd_hooks: Interventions.
        batch_size: Rows at once.
        max_length: Longest row in tokens; None takes the model's context length. Attention takes
            memory by its square, so long contexts may want less.
        max_gen_toks: Longest answer in tokens, where the task does not say.
        add_bos_token: Whether rows begin with BOS; None takes what TransformerLens does.

    Raises:
        MissingExtraError: The harness is not installed.
        CorpusError: The model has no tokeniser, or BOS is asked for and there is none.
        OptionError: A size is below 1.
        SiteError: A hook point does not exist.
        ShapeError: The neurons are of another model.
    """

    def __init__(
        self,
        model: HookedModel,
        *,
        fwd_hooks: FwdHooks = (),
        batch_size: int = 16,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
    ) -> None:
        _check_installed()
        super().__init__()
        context = int(model.cfg.n_ctx)
        sizes = {
            "batch_size": batch_size,
            "max_length": context if max_length is None else max_length,
            "max_gen_toks": max_gen_toks,
        }
        for name, value in sizes.items():
            if value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}")
        check_hooks(model, fwd_hooks)
        # Building the requests of a task takes minutes; neurons of another model show at once.
        last_residual(model, [torch.tensor([0, 1])], fwd_hooks)
        self.model, self.fwd_hooks = model, fwd_hooks
        speaking: Any = model  # that it has a tokeniser is found out here
        self.tokenizer = tokenizer_of(speaking)
        self.batch_size, self.max_gen_toks = batch_size, max_gen_toks
        self.max_length = sizes["max_length"]
        self._bos = bos_token(speaking, add_bos_token)
        self._device = torch.device(model.cfg.device)
        # The last token of a row is predicted, not read.
        self._longest_row = self.max_length + 1

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """Load what ``--model_args`` says; the harness calls this.

        Args:
            arg_dict: The model arguments.
            additional_config: The harness's own ``--batch_size``, ``--max_batch_size`` and
                ``--device``, which model arguments override.

        Raises:
            OptionError: See `HarnessArguments.read`.
            LensLangError: The neurons or the model cannot be loaded, or do not fit each other.
        """
        _check_installed()
        more = {k: v for k, v in (additional_config or {}).items() if v is not None}
        some = HarnessArguments.read({**more, **arg_dict})
        hooks = some.hooks()  # first: a wrong name must not wait for the model
        device = some.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            load_model(some.pretrained, dtype=some.dtype, device=device),
            fwd_hooks=hooks,
            batch_size=min(some.batch_size, some.max_batch_size or some.batch_size),
            max_length=some.max_length,
            max_gen_toks=some.max_gen_toks,
            add_bos_token=some.add_bos_token,
        )

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """Do the same from one string; see `create_from_arg_obj`."""
        _check_installed()
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # --- text and tokens ---

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without context follows: BOS, or else EOS."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise CorpusError(
            "The tokeniser has neither BOS nor EOS, so a text without context has nothing to follow"
        )

    @property
    def tokenizer_name(self) -> str:
        """What the harness files prepared requests under."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Return the tokens of a text.

        Args:
            string: The text.
            add_special_tokens: False leaves BOS out; None adds it where rows have it and the text
                does not.
        """
        # verbose=False: what is too long is cut later
        encoded = self.tokenizer(string, add_special_tokens=False, verbose=False)
        ids = list(encoded["input_ids"])
        if self._bos is None or add_special_tokens is False:
            return ids
        given = add_special_tokens is None and string.startswith(self.tokenizer.bos_token)
        return ids if given else [self._bos, *ids]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation as one text, as the tokeniser's chat template has it.

        Args:
            chat_history: Messages with their ``role`` and ``content``.
            add_generation_prompt: Begin the answer; else the last message is to be continued.

        Raises:
            OptionError: The tokeniser has no chat template.
        """
        from jinja2.exceptions import TemplateError

        if not getattr(self.tokenizer, "chat_template", None):
            raise OptionError(
                f"The tokeniser of {model_name(self.model)} has no chat template: leave out "
                "--apply_chat_template"
            )

        def written(messages: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            return written(chat_history)
        except TemplateError:
            # Gemma's template refuses system messages; the hf backend leaves them out, too.
            logger.warning("the chat template refuses the system message, which is left out")
            return written([each for each in chat_history if each["role"] != "system"])

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes beside its results: model, intervention, versions."""
        return {
            "transformer_lens_model": model_name(self.model),
            "model_dtype": str(self.model.cfg.dtype).removeprefix("torch."),
            "intervention": [f"{name}: {hook!r}" for name, hook in self.fwd_hooks],
            "versions": versions(),
        }

    # --- the three kinds of request ---

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score continuations of contexts.

        Args:
            requests: The harness's instances of (context, continuation).
            disable_tqdm: Show no bars.

        Returns:
            Log-probability of the continuation, and whether each of its tokens is the likeliest.

        Raises:
            CorpusError: A continuation has no token, or more than fit into the context.
        """
        for context, continuation in (request.args for request in requests):
            if not continuation:
                raise CorpusError(f"There is nothing to score behind {context[-40:]!r}")
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts, in windows of the context's length that do not overlap.

        As in the ``hf`` backend, the first token follows BOS; so where rows begin with BOS, the
        sum has the log-probability of BOS behind BOS.

        Args:
            requests: The harness's instances of (text,).
            disable_tqdm: Show no bars.
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._longest_row - 1,
                context_len=1,
            )
            mine = [make_disjoint_window(window) for window in rolling]
            windows += mine
            owners += [number] * len(mine)
        totals = [0.0] * len(requests)
        waiting = Counter(owners)
        for place, score in self._scores(windows, disable_tqdm):
            number = owners[place]
            totals[number] += score.log_probability
            waiting[number] -= 1
            if not waiting[number]:
                self.cache_hook.add_partial(
                    "loglikelihood_rolling", requests[number].args, totals[number]
                )
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts until a text, or enough tokens.

        Args:
            requests: The harness's instances of (context, settings); see `decoding_of`.
            disable_tqdm: Show no bars.

        Raises:
            OptionError: A setting cannot be honoured, or the answer leaves no room for a context.
        """
        eos = self.eot_token_id
        end = None if eos is None else self.tokenizer.decode([eos])
        groups: dict[Decoding, list[int]] = {}
        for number, request in enumerate(requests):
            decoding = decoding_of(request.args[1], max_gen_toks=self.max_gen_toks, end=end)
            groups.setdefault(decoding, []).append(number)
        said = [""] * len(requests)
        with _bar(len(requests), "continuing", disable_tqdm) as bar:
            for decoding, numbers in groups.items():
                for some in self._portions(decoding, numbers):
                    texts = self._continued([requests[n].args[0] for n in some], decoding)
                    for number, text in zip(some, texts, strict=True):
                        said[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(some))
        return said

    # --- how they are answered ---

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        pairs = [(context, continuation) for _, context, continuation in requests]
        for number, score in self._scores(pairs, disable_tqdm):
            answers[number] = (score.log_probability, score.greedy)
            self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
        return answers

    def _scores(
        self, pairs: Sequence[tuple[list[int], list[int]]], disable_tqdm: bool
    ) -> Iterator[tuple[int, Likelihood]]:
        """Yield scores as they come, so that the harness's cache outlives a killed run."""
        rows = [self._row(context, continuation) for context, continuation in pairs]
        with _bar(len(rows), "scoring", disable_tqdm) as bar:
            for numbers in _portions_that_fit(rows, 64 * self.batch_size, self._longest_row):
                scores = log_likelihoods(
                    self.model,
                    [(torch.tensor(rows[n][0]), torch.tensor(rows[n][1])) for n in numbers],
                    fwd_hooks=self.fwd_hooks,
                    batch_size=self.batch_size,
                )
                yield from zip(numbers, scores, strict=True)
                bar.update(len(numbers))

    def _row(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Cut a context on the left; white space alone may have no token, and needs one before."""
        most = self._longest_row - 1
        if not 1 <= len(continuation) <= most:
            raise CorpusError(
                f"A continuation must have 1 to {most} tokens of its own to be scored, but one has "
                f"{len(continuation)}: see max_length, and how the task divides its texts"
            )
        context = context or [self.prefix_token_id]
        return context[-(self._longest_row - len(continuation)) :], continuation

    def _portions(self, decoding: Decoding, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        # The harness never keeps what was drawn; and `generate` draws by the place among the
        # prompts of one call, so equal prompts in several calls would be answered alike.
        size = 16 * self.batch_size if decoding.temperature == 0 else len(numbers)
        return (numbers[start : start + size] for start in range(0, len(numbers), size))

    def _continued(self, contexts: Sequence[str], decoding: Decoding) -> list[str]:
        room = self.max_length - decoding.new_tokens
        if room < 1:
            raise OptionError(
                f"An answer of {decoding.new_tokens} tokens leaves no room for its context in "
                f"{self.max_length}: lower max_gen_toks, or raise max_length"
            )
        rows = [(self.tok_encode(text) or [self.prefix_token_id])[-room:] for text in contexts]
        said = generate(
            self.model, rows, decoding, fwd_hooks=self.fwd_hooks, batch_size=self.batch_size
        )
        return [self._text(each, decoding.stop) for each in said]

    def _text(self, said: Continuation, stop: Sequence[str]) -> str:
        """Decode an answer by itself, as the hf backend does, and cut it where it stops."""
        # `generate` looks for stops in text without special tokens, but tasks also stop at those.
        special = [
            each for each in stop if any(s in each for s in self.tokenizer.all_special_tokens)
        ]

        def stops(length: int) -> bool:
            text = self.tokenizer.decode(said.tokens[:length])
            return any(each in text for each in special)

        length = bisect_left(range(len(said.tokens)), True, key=stops)
        text = self.tokenizer.decode(said.tokens[:length], skip_special_tokens=True)
        for each in stop:
            text = text.split(each)[0]
        return text


def main() -> None:
    """Run the harness's own command line, with this backend in it.

    Raises:
        SystemExit: With a sentence, where something is wrong with what was asked.
    """
    try:
        _check_installed()
        _register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except LensLangError as error:
        sys.stderr.write(f"lens_lang: {error}\n")
        raise SystemExit(2) from None


def _check_installed() -> None:
    if TemplateLM is object:
        raise MissingExtraError("The backend for the lm-evaluation-harness", "eval")


def _register() -> None:
    # The harness names its own backends only while it knows none.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    # Named, not given: this module may be running as __main__, and then there are two of it.
    if NAME not in model_registry:
        model_registry.register(NAME, target=f"lens_lang.harness:{HarnessModel.__name__}")


def _bar(total: int, what: str, disable_tqdm: bool) -> Any:
    return tqdm(total=total, desc=what, unit="request", disable=True if disable_tqdm else None)


def _portions_that_fit(
    rows: Sequence[tuple[list[int], list[int]]], size: int, longest: int
) -> Iterator[list[int]]:
    """Divide rows, equal contexts together: in none is any context too long for any continuation.

    Those of a portion may be padded to each other's length.
    """
    order = sorted(range(len(rows)), key=lambda n: (-len(rows[n][0]), rows[n][0], n))
    portion: list[int] = []
    most = 0
    for number in order:
        more = max(most, len(rows[number][1]))
        if portion and (len(portion) == size or len(rows[portion[0]][0]) + more > longest):
            yield portion
            portion, more = [], len(rows[number][1])
        portion.append(number)
        most = more
    if portion:
        yield portion


if TemplateLM is not object:
    _register()
if __name__ == "__main__":
    main()
