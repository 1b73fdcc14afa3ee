"""A measurement's runs: without intervention, under each, and under random controls."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from lens_lang.errors import LanguageError, OptionError
from lens_lang.evaluate.task_scores import WITHOUT
from lens_lang.intervene import matched_control
from lens_lang.languages import distinct_languages, find_language, language_tag
from lens_lang.parts import hooks_digest, seeded
from lens_lang.progress import progress_bar
from lens_lang.readout import check_before_readout
from lens_lang.sites import FwdHooks, HookedModel, check_hooks

HooksByLanguage = FwdHooks | Mapping[str, FwdHooks]
"""Hooks for all languages, or by language; a language without hooks is not measured then."""

T = TypeVar("T")


def plan_runs(
    model: HookedModel,
    interventions: Mapping[str, HooksByLanguage],
    languages: Sequence[str],
    *,
    controls: int,
    seed: int,
    kept: bool,
    measured: str,
) -> list[dict[str, FwdHooks]]:
    """Say which hooks each run has in each language, and find out what would be in the way.

    Args:
        model: The model.
        interventions: Hooks by name.
        languages: Of the prompts.
        controls: Random controls per intervention.
        seed: Of the random neurons, which do not depend on the other interventions.
        kept: Whether runs are kept for later, so that hooks must be known again.
        measured: What errors say of the languages, such as "questions are".

    Returns:
        One run without hooks, one per intervention, and then the controls of each.

    Raises:
        OptionError: `controls` is negative, an intervention is called as the run without any, or
            a hook that is not of lens_lang is to be controlled or kept.
        LanguageError: An intervention names no language of the prompts.
        SiteError: A hook's name is unknown, or it comes after the last block.
    """
    if controls < 0:
        raise OptionError(f"controls must be at least 0, got {controls}")
    if not isinstance(interventions, Mapping):
        raise OptionError(
            f"interventions are hooks by name, {{name: hooks}}, got {type(interventions).__name__}"
        )
    if WITHOUT in interventions:
        raise OptionError(f"No intervention can be called {WITHOUT!r}: that is the run without any")
    plan: list[dict[str, FwdHooks]] = [dict.fromkeys(languages, ())]
    for name, hooks in interventions.items():
        plan.append(_by_language(hooks, languages, f"The intervention {name!r}", measured))
    for row, name in zip(plan[1:], interventions, strict=True):
        for draw in range(controls):
            # One source for all languages: equal hooks get the same random neurons in each.
            plan.append(
                {
                    lang: matched_control(hooks, generator=seeded(seed, name, draw))
                    for lang, hooks in row.items()
                }
            )
    for row in plan:
        for hooks in row.values():
            check_hooks(model, hooks)
            check_before_readout(model, hooks)
            if kept:
                hooks_digest(hooks)  # refuses what it does not know
    return plan


def measure_runs(
    plan: Sequence[Mapping[str, FwdHooks]],
    measure: Callable[[str, FwdHooks], T],
    *,
    progress: bool,
    label: str | None = None,
) -> list[dict[str, T]]:
    """Measure every language of every run; no hooks change nothing, so that is measured once.

    Args:
        plan: What `plan_runs` returned.
        measure: Makes the measurement of a language under hooks.
        progress: Show a bar on stderr, in a terminal or a notebook.
        label: What the bar is called.
    """
    total = sum(bool(hooks) or run == 0 for run, row in enumerate(plan) for hooks in row.values())
    done: list[dict[str, T]] = []
    with progress_bar(progress, total=total, unit="run", label=label) as bar:
        for row in plan:
            done.append({})
            for lang, hooks in row.items():
                bar.set_postfix_str(lang, refresh=False)
                if hooks or len(done) == 1:
                    done[-1][lang] = measure(lang, hooks)
                    bar.update()
                else:
                    done[-1][lang] = done[0][lang]
    return done


def _by_language(
    hooks: HooksByLanguage, languages: Sequence[str], who: str, measured: str
) -> dict[str, FwdHooks]:
    if not isinstance(hooks, Mapping):
        return dict.fromkeys(languages, hooks)
    named = {lang: each for lang, each in hooks.items() if language_tag(lang) in languages}
    tags = [languages[find_language(lang, languages)] for lang in named]
    if tags:
        distinct_languages(tags)
    found = dict(zip(tags, named.values(), strict=True))
    if not found:
        raise LanguageError(
            f"{who} has hooks for {', '.join(hooks) or 'no language'}, and {measured} in "
            f"{', '.join(languages)}"
        )
    return found
