"""The sections of what layers and heads do: curves, latent languages, attention."""

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
            text=["Of the same prompts, with paired 95 % intervals."],
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
            f"to one that was not asked for is other. Prompts: {prompts}. Means over prompts with "
            "95 % intervals by bootstrap over prompts."
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
            *(layers.layer_languages(curve, prompts=lang).to_json() for lang in curve.groups[:1]),
        ],
    )


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
            "energy of the residual stream."
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
