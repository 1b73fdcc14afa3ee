"""The sections of what layers and heads do: curves, latent languages, attention."""

from collections.abc import Mapping, Sequence
from typing import Any

from lens_lang.curves import LanguageCurve
from lens_lang.heads import HeadAttention
from lens_lang.latent import LatentLanguages
from lens_lang.plot import layers
from lens_lang.sections.section import Section, share_with_interval


def curve_section(name: str, curve: LanguageCurve) -> Section:
    """Which language each layer speaks, or how that changed."""
    if curve.is_difference:
        change = curve.story() if _has_story(curve) else curve
        return Section(
            title=f"Change of the language of each layer ({name})",
            text=[
                "Of the same prompts, with paired 95 % intervals.",
                *_read_under(curve.provenance["difference of"][0]),
                _numbered(curve.values.shape[1], curve.provenance["difference of"][0]),
            ],
            figures=[layers.language_curve(change).to_json()],
        )
    known = _has_story(curve)
    shown = curve.story() if known else curve
    mean, ci = shown.mean, shown.ci
    rows = []
    if known:
        peaks = curve.summary()["layer"].tolist()
        for group, (lang, peak) in enumerate(zip(curve.groups, peaks, strict=True)):
            own = 0 if lang == "en" else 1
            rows.append(
                [
                    lang,
                    share_with_interval(mean[group, 0, own], ci[group, 0, own]),
                    str(peak),
                    share_with_interval(mean[group, peak, 0], ci[group, peak, 0]),
                    share_with_interval(mean[group, peak, own], ci[group, peak, own]),
                    share_with_interval(mean[group, -1, own], ci[group, -1, own]),
                ]
            )
    prompts = ", ".join(f"{lang} {curve.prompt_languages.count(lang)}" for lang in curve.groups)
    return Section(
        title=f"Language of each layer ({name})",
        text=[
            "The residual stream after each layer, read as a prediction; its probability summed "
            "by the language of the vocabulary items. What belongs to no language, to several, or "
            f"to one that was not asked for is drawn as no language. Prompts: {prompts}. Means "
            "over prompts with 95 % intervals by bootstrap over prompts.",
            *_read_under(curve.provenance),
            _numbered(curve.values.shape[1], curve.provenance),
        ],
        columns=[
            "prompts in",
            "own language at the embeddings",
            "layer with most English",
            "English there",
            "own language there",
            "own language at the end",
        ]
        if rows
        else [],
        rows=rows,
        figures=[
            layers.language_curve(shown).to_json(),
            *(layers.layer_languages(curve, prompts=lang).to_json() for lang in _mapped(curve)),
        ],
    )


_UNKNOWN = " The record does not say what these hooks do."


def _mapped(curve: LanguageCurve) -> tuple[str, ...]:
    """The prompts whose map is drawn: the first that are not English, which says more."""
    return tuple(lang for lang in curve.groups if lang != "en")[:1] or curve.groups[:1]


def _numbered(layers_read: int, record: Mapping[str, Any]) -> str:
    """What the number of a layer means here, and what it does not."""
    last = layers_read - 1
    own = "the model's own prediction" if record.get("norm", True) else "after the last block"
    return (
        f"Layer 0 is the embeddings; layer n is after n blocks, so {last} is {own}. "
        f"Neurons have the number of their block: block {max(0, last - 1)} writes layer {last}."
    )


def _read_under(record: Mapping[str, Any]) -> list[str]:
    """Say which hooks were there while layers were read; nothing if there were none."""
    hooks = record.get("fwd_hooks") or ()
    edits = record.get("edits") or ()
    if isinstance(hooks, Mapping):
        some = {lang: names for lang, names in hooks.items() if names}
        known = edits if isinstance(edits, Mapping) else {}
        unknown = any(not known.get(lang) for lang in some)
        said = [f"{lang}: {', '.join(known.get(lang) or _places(n))}" for lang, n in some.items()]
        none = [lang for lang in hooks if lang not in some]
        if said and none:
            said.append(f"{', '.join(none)}: no hook")
        if not said:
            return []
        return [f"Each language was read under: {'; '.join(said)}.{_UNKNOWN if unknown else ''}"]
    if not hooks:
        return []
    return [f"Read under: {', '.join(edits or _places(hooks))}.{'' if edits else _UNKNOWN}"]


def _places(names: Sequence[str]) -> list[str]:
    """Names of hook points, shortened: the record does not say what the hooks do."""
    layers_of: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        inside = len(parts) > 2 and parts[0] == "blocks"
        place = ".".join(parts[2:]) if inside else name
        layers_of.setdefault(place, set()).update(parts[1:2] if inside else ())
    return [
        f"hooks at {place}"
        + (f" of {len(some)} block{'' if len(some) == 1 else 's'}" if some else "")
        for place, some in layers_of.items()
    ]


def _has_story(curve: LanguageCurve) -> bool:
    """Whether English and every prompt's own language are among its columns."""
    return {"en", *curve.groups} <= set(curve.languages)


def latent_section(name: str, latent: LatentLanguages) -> Section:
    """In which language a word is on its way, layer by layer."""
    mean, ci = latent.mean, latent.ci
    rows = []
    for column, lang in enumerate(latent.languages):
        peak = int(mean[:, column].argmax())
        rows.append(
            [
                lang,
                str(peak),
                share_with_interval(mean[peak, column], ci[peak, column]),
                share_with_interval(mean[-1, column], ci[-1, column]),
            ]
        )
    return Section(
        title=f"Latent language ({name})",
        text=[
            f"{len(latent.probability)} prompts that ask for one word. The probability, at the "
            "last token, of all vocabulary items with which that word could begin, in the language "
            "asked for and in English; beside it the entropy of the prediction and the token "
            "energy of the residual stream.",
            *_read_under(latent.provenance),
            _numbered(latent.probability.shape[1], latent.provenance),
        ],
        columns=["language", "layer where it is likeliest", "there", "at the end"],
        rows=rows,
        figures=[layers.latent_language(latent).to_json()],
    )


def heads_section(name: str, attention: HeadAttention) -> Section:
    """What each head looks at."""
    return Section(
        title=f"Attention heads ({name})",
        text=[
            "What each head looks at, on average over the tokens of all languages: the first "
            "position, the token before, the token itself, tokens of the text's own language; and "
            "the entropy of its pattern."
        ],
        figures=[
            layers.head_attention(attention, measure=measure).to_json()
            for measure in attention.measures
        ],
    )
