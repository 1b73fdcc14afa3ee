"""Letting a model answer open questions under interventions, and steering them into a language.

Every run of a language is a part that is kept as soon as it is done; `generation` says what came
out.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lens_lang.continuing import prompt_tokens
from lens_lang.decoding import Decoding, generate
from lens_lang.errors import OptionError
from lens_lang.evaluate.generation import GenerationMatrix, identifier_name, judged
from lens_lang.evaluate.runs import measure_runs, plan_runs
from lens_lang.fingerprint import weights_digest
from lens_lang.identification import Identify, LangidIdentifier
from lens_lang.intervene import Hooks
from lens_lang.languages import distinct_languages, language_tag
from lens_lang.parts import Parts, hooks_digest, model_digest
from lens_lang.sites import FwdHooks, HookedModel, hooked_names, model_name
from lens_lang.storage import versions

ANSWER = Decoding(new_tokens=32, repetition_penalty=1.1, stop=("\nQ:", "\nA:"))
"""How open questions are answered: as in Tang et al. (2024), if shorter. The stops belong to the
frame of `lens_lang.open_questions`."""

SteeringMethod = Callable[[str, str, float], Hooks]
"""Makes hooks from the language to leave, the one to speak, and a strength."""


@dataclass(frozen=True, eq=False)
class Steering:
    """An intervention that is to turn answers into one language, from several others.

    Attributes:
        target: The language to answer in.
        hooks: By language of the question. Questions in other languages are not asked.
        method: What it is called in tables and figures.
        strength: How strong it is.
    """

    target: str
    hooks: Mapping[str, FwdHooks]
    method: str = ""
    strength: float | int = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", language_tag(self.target))


def steerings(
    methods: Mapping[str, SteeringMethod],
    languages: Sequence[str],
    strengths: Sequence[float | int] = (1.0,),
    *,
    targets: Sequence[str] | None = None,
) -> dict[str, Steering]:
    """Prepare a sweep: every method, at every strength, from every language into every target.

    Args:
        methods: For example ``{"LAPE": lambda source, target, strength: steer(neurons,
            source=source, target=target, mean=mean, strength=strength)}``.
        languages: Of the questions.
        strengths: Passed to the methods.
        targets: Languages to answer in; None takes all of `languages`.

    Returns:
        Interventions for `generation_matrix`, named after method, target and strength.

    Examples:
        >>> sweep = steerings({"none": lambda source, target, strength: []}, ("en", "fr"), (1, 2))
        >>> list(sweep)
        ['none en x1', 'none en x2', 'none fr x1', 'none fr x2']
    """
    tags = distinct_languages(language_tag(lang) for lang in languages)
    wanted = tags if targets is None else [language_tag(lang) for lang in targets]
    sweep: dict[str, Steering] = {}
    for name, method in methods.items():
        for target in wanted:
            for strength in strengths:
                hooks = {
                    lang: method(lang, target, float(strength)) for lang in tags if lang != target
                }
                steering = Steering(target, hooks, name, strength)
                # Short names, as long as they tell strengths apart.
                short = f"{name} {target} x{strength:g}"
                sweep[f"{name} {target} x{strength!r}" if short in sweep else short] = steering
    return sweep


def generation_matrix(
    model: HookedModel,
    prompts: Mapping[str, Sequence[str]],
    interventions: Mapping[str, FwdHooks | Steering],
    *,
    controls: int = 0,
    decoding: Decoding = ANSWER,
    identify: Identify = LangidIdentifier(),  # noqa: B008  frozen
    batch_size: int = 16,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> GenerationMatrix:
    """Let a model answer open questions under interventions, and say in which language it does.

    Args:
        model: The model.
        prompts: Questions by language; see `lens_lang.open_questions`.
        interventions: Hooks by name, the same for all questions; or a `Steering`, whose
            hooks depend on the question's language (see `steerings`). No hooks at all change
            nothing and cost nothing.
        controls: Random controls per intervention (see `lens_lang.matched_control`).
        decoding: How to answer; its seed is also that of the controls.
        identify: Says in which language a text is: `lens_lang.LangidIdentifier`,
            `lens_lang.LinguaIdentifier`, or any callable.
        batch_size: Questions at once.
        run_dir: Folder that keeps every run of a language as soon as it is done, so that the
            same call goes on after an interruption.
        progress: Show a bar on stderr, in a terminal or a notebook.

    Returns:
        All answers, and the languages they are in.

    Raises:
        OptionError: `controls` is negative, or a hook that is not of lens_lang is to be
            controlled or kept.
        LanguageError: A language is unknown, or given twice.
        CorpusError: A question is empty.
        SiteError: A hook's name is unknown, or it comes after the last block.
        MissingExtraError: The identifier is not installed.
        ActivationError: The model produced NaN or infinity.
    """
    if not prompts or not all(prompts.values()):
        raise OptionError("generation_matrix needs at least one question in each language")
    for lang, given in prompts.items():
        if isinstance(given, str):
            raise OptionError(f"The questions in {lang!r} are one string: give a list of questions")
    identify(["."])  # a missing library should cost no hour
    tags = distinct_languages(language_tag(lang) for lang in prompts)
    asked = dict(zip(tags, map(tuple, prompts.values()), strict=True))
    hooks = {
        name: each.hooks if isinstance(each, Steering) else each
        for name, each in interventions.items()
    }
    plan = plan_runs(
        model,
        hooks,
        tags,
        controls=controls,
        seed=decoding.seed,
        kept=run_dir is not None,
        measured="questions are",
    )
    answers = _Answers(model, asked, decoding, batch_size, Parts(run_dir))
    said = measure_runs(plan, answers.of, progress=progress)
    return _matrix(model, asked, interventions, said, controls, decoding, identify)


class _Answers:
    """A model's answers to the questions of a language, from a file if they are there."""

    def __init__(
        self,
        model: HookedModel,
        asked: Mapping[str, Sequence[str]],
        decoding: Decoding,
        batch_size: int,
        parts: Parts,
    ) -> None:
        self.model, self.asked, self.decoding = model, asked, decoding
        self.batch_size, self.parts = batch_size, parts
        self.weights = model_digest(model) if parts.folder else ""

    def of(self, lang: str, hooks: FwdHooks) -> list[dict[str, Any]]:
        prompts = list(self.asked[lang])

        def answer() -> list[dict[str, Any]]:
            said = generate(
                self.model,
                prompts,
                self.decoding,
                fwd_hooks=hooks,
                batch_size=self.batch_size,
            )
            return [{**asdict(each), "tokens": list(each.tokens)} for each in said]

        if self.parts.folder is None:
            return answer()
        key = {
            "what": "answers",
            "model": self.weights,
            "prompts": [row.tolist() for row in prompt_tokens(self.model, prompts)],
            "decoding": {**asdict(self.decoding), "stop": list(self.decoding.stop)},
            "hooks": hooks_digest(hooks),
        }
        return list(self.parts.get(key, answer))


def _spoken_tokens(model: Any, answer: Mapping[str, Any]) -> list[int]:
    """An answer's tokens without those that ended it: an end of text, or text to stop at."""
    tokens, text = list(answer["tokens"]), str(answer["text"])
    tokenizer = getattr(model, "tokenizer", None)
    if not answer["ended"] or tokenizer is None:
        return tokens

    def says_all(count: int) -> bool:
        said = tokenizer.decode(tokens[:count], skip_special_tokens=True)
        return said.strip().startswith(text.strip())  # and not half of its last letter

    return tokens[: bisect_left(range(len(tokens)), True, key=says_all)]


def _matrix(
    model: HookedModel,
    asked: Mapping[str, Sequence[str]],
    interventions: Mapping[str, FwdHooks | Steering],
    said: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]],
    controls: int,
    decoding: Decoding,
    identify: Identify,
) -> GenerationMatrix:
    languages = tuple(lang for lang, texts in asked.items() for _ in texts)
    texts, nll, tokens, n_tokens = [], [], [], []
    for row in said:
        flat = [
            answer
            for lang, questions in asked.items()
            for answer in row.get(lang, [None] * len(questions))
        ]
        texts.append(tuple(None if each is None else str(each["text"]).strip() for each in flat))
        nll.append(
            [torch.nan if each is None else each["nll"] / len(each["tokens"]) for each in flat]
        )
        kept = [[] if each is None else _spoken_tokens(model, each) for each in flat]
        n_tokens.append([len(each) for each in kept])
        tokens += [token for each in kept for token in each]
    spoken, lines = judged(texts, identify)
    return GenerationMatrix(
        interventions=tuple(interventions),
        prompts=tuple(text for each in asked.values() for text in each),
        languages=languages,
        texts=tuple(texts),
        spoken=spoken,
        lines=lines,
        nll=torch.tensor(nll, dtype=torch.float64),
        tokens=torch.tensor(tokens, dtype=torch.int64),
        n_tokens=torch.tensor(n_tokens),
        steering={
            name: {
                "target": each.target,
                "method": each.method,
                "strength": each.strength,
            }
            for name, each in interventions.items()
            if isinstance(each, Steering)
        },
        n_controls=controls,
        provenance={
            "model": model_name(model),
            "weights": weights_digest(model),
            "decoding": {**asdict(decoding), "stop": list(decoding.stop)},
            "identifier": identifier_name(identify),
            "interventions": {
                name: {lang: hooked_names(model, hooks) for lang, hooks in each.hooks.items()}
                if isinstance(each, Steering)
                else hooked_names(model, each)
                for name, each in interventions.items()
            },
            "versions": versions(),
        },
    )
