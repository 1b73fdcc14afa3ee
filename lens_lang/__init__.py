"""Find, explain, switch and steer the neurons that carry languages in a language model.

    model = lens_lang.load_model("gemma-3-270m")
    train, test = lens_lang.Corpora.sample(model).split(0.8, seed=0)
    freq = lens_lang.collect(model, train, lens_lang.ActivationFrequency())
    neurons = lens_lang.lape(freq)
    with model.hooks(fwd_hooks=lens_lang.ablate(neurons["fr"])):
        model.generate("Bonjour", max_new_tokens=20)

Names are imported when they are first used, so that ``lens-lang --help`` answers at once. No
module is called what a public function is called; otherwise importing the one would hide the
other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens_lang import formats, models, plot
    from lens_lang.attribute.card import (
        NeuronCard,
    )
    from lens_lang.attribute.cards import (
        NeuronCards,
        neuron_card,
        neuron_cards,
    )
    from lens_lang.attribute.categories import (
        CategoryContribution,
        CategoryContributions,
    )
    from lens_lang.attribute.gradients import (
        gradient_attribution,
    )
    from lens_lang.attribute.scores import (
        NeuronScores,
        contribution,
        effective_score,
    )
    from lens_lang.attribute.telling import (
        top_neurons,
    )
    from lens_lang.batches import TokenBatch
    from lens_lang.collection import (
        collect,
        collect_parallel,
    )
    from lens_lang.concepts import (
        Concept,
        Prompt,
        cloze_prompts,
        read_concepts,
        repetition_prompts,
        translation_prompts,
    )
    from lens_lang.contexts import Context, NeuronContexts, TopContexts
    from lens_lang.corpora import Corpora, sample_sentences
    from lens_lang.curves import (
        LanguageCurve,
    )
    from lens_lang.decoding import (
        Continuation,
        Decoding,
        generate,
    )
    from lens_lang.delta import (
        Delta,
    )
    from lens_lang.detect.baselines import (
        lap,
        lave,
        random_neurons,
    )
    from lens_lang.detect.lape import (
        LapeVariant,
        activation_entropy,
        lape,
    )
    from lens_lang.detect.plnd import (
        plnd,
    )
    from lens_lang.detect.sharing import (
        Sharing,
        sharing,
    )
    from lens_lang.documents import (
        Documents,
    )
    from lens_lang.errors import (
        ActivationError,
        CorpusError,
        LanguageError,
        LensLangError,
        MissingExtraError,
        ModelError,
        OptionError,
        ShapeError,
        SiteError,
        StorageError,
    )
    from lens_lang.evaluate.answering import (
        Steering,
        generation_matrix,
        steerings,
    )
    from lens_lang.evaluate.answers import (
        AnswerScores,
        answer_scores,
    )
    from lens_lang.evaluate.categories import CategoryEffect, sharing_and_accuracy
    from lens_lang.evaluate.generation import (
        GenerationMatrix,
    )
    from lens_lang.evaluate.metrics import (
        exact_match,
        final_number,
        number_match,
        rouge_l,
        token_f1,
    )
    from lens_lang.evaluate.mwork import (
        RegionSearch,
        mwork,
        tune_regions,
    )
    from lens_lang.evaluate.nll import (
        DocumentNLL,
    )
    from lens_lang.evaluate.per_example import PerExample, category_effect
    from lens_lang.evaluate.perplexity import (
        PerplexityMatrix,
        perplexity_matrix,
    )
    from lens_lang.evaluate.significance import (
        holm,
        sign_flip_test,
    )
    from lens_lang.evaluate.solving import (
        TaskOptions,
        task_matrix,
    )
    from lens_lang.evaluate.story import (
        MWork,
    )
    from lens_lang.evaluate.task_scores import (
        TaskMatrix,
    )
    from lens_lang.exporting import (
        export,
    )
    from lens_lang.heads import (
        HeadAttention,
        HeadPattern,
        head_set,
        random_heads,
    )
    from lens_lang.identification import (
        LangidIdentifier,
        LinguaIdentifier,
        spoken_languages,
    )
    from lens_lang.importance import (
        Importance,
    )
    from lens_lang.intervene import (
        ablate,
        add,
        matched_control,
        replace,
        scale,
        steer,
    )
    from lens_lang.items import (
        Template,
        inference_template,
        open_questions,
        read_entailment,
        read_facts,
        read_questions,
        stream_questions,
    )
    from lens_lang.languages import (
        language_tag,
    )
    from lens_lang.latent import (
        LatentLanguages,
        latent_language,
        separable_prompts,
        single_token_concepts,
    )
    from lens_lang.lens import (
        LensTable,
        language_curve,
        lens_table,
    )
    from lens_lang.likelihood import (
        Likelihood,
        log_likelihoods,
        token_pairs,
    )
    from lens_lang.models import (
        load_model,
    )
    from lens_lang.neurons import (
        LanguageNeurons,
        NeuronSet,
        random_like,
    )
    from lens_lang.page import (
        report,
    )
    from lens_lang.parallel import (
        ParallelCorpora,
    )
    from lens_lang.patterns import (
        SharingPattern,
        SharingPatterns,
    )
    from lens_lang.questions import (
        Question,
        demonstrated,
    )
    from lens_lang.regions import (
        Regions,
    )
    from lens_lang.relations import (
        read_edits,
        read_relations,
    )
    from lens_lang.results import (
        load,
    )
    from lens_lang.rows import (
        ablate_rows,
    )
    from lens_lang.scoring import (
        PLNDImportance,
    )
    from lens_lang.signs import FiringSign, NeuronSigns
    from lens_lang.single_neurons import neuron_set
    from lens_lang.sites import (
        ATTN_K,
        ATTN_Q,
        ATTN_V,
        ATTN_Z,
        MLP_POST,
        MLP_PRE,
        MLP_UP,
        RESID_POST,
        RESID_PRE,
        HookedModel,
        Site,
        preflight,
    )
    from lens_lang.stats import (
        ActivationFrequency,
        Activations,
        Frequency,
        MeanActivation,
    )
    from lens_lang.task_reading import (
        read_task,
        stream_task,
    )
    from lens_lang.tasks import (
        MGSM,
        TASKS,
        XCSQA,
        XLSUM,
        XNLI,
        XQUAD,
        Item,
        Task,
        TaskItems,
        find_task,
    )
    from lens_lang.token_readings import (
        AttentionPatterns,
        TokenActivations,
        attention_patterns,
        token_activations,
    )
    from lens_lang.tuning import (
        Recipe,
        Tuned,
        tune,
    )
    from lens_lang.vectors import (
        shift,
    )
    from lens_lang.vocabulary import (
        VocabularyLanguages,
    )

__version__ = "0.1.0"

_HOMES = {
    "attribute.card": ("NeuronCard",),
    "attribute.cards": ("NeuronCards", "neuron_card", "neuron_cards"),
    "attribute.categories": ("CategoryContribution", "CategoryContributions"),
    "attribute.gradients": ("gradient_attribution",),
    "attribute.scores": ("NeuronScores", "contribution", "effective_score"),
    "attribute.telling": ("top_neurons",),
    "batches": ("TokenBatch",),
    "collection": ("collect", "collect_parallel"),
    "concepts": (
        "Concept",
        "Prompt",
        "cloze_prompts",
        "read_concepts",
        "repetition_prompts",
        "translation_prompts",
    ),
    "contexts": ("Context", "NeuronContexts", "TopContexts"),
    "corpora": ("Corpora", "sample_sentences"),
    "curves": ("LanguageCurve",),
    "decoding": ("Continuation", "Decoding", "generate"),
    "delta": ("Delta",),
    "detect.baselines": ("lap", "lave", "random_neurons"),
    "detect.lape": ("LapeVariant", "activation_entropy", "lape"),
    "detect.plnd": ("plnd",),
    "detect.sharing": ("Sharing", "sharing"),
    "documents": ("Documents",),
    "errors": (
        "ActivationError",
        "CorpusError",
        "LanguageError",
        "LensLangError",
        "MissingExtraError",
        "ModelError",
        "OptionError",
        "ShapeError",
        "SiteError",
        "StorageError",
    ),
    "evaluate.answering": ("Steering", "generation_matrix", "steerings"),
    "evaluate.answers": ("AnswerScores", "answer_scores"),
    "evaluate.categories": ("CategoryEffect", "sharing_and_accuracy"),
    "evaluate.generation": ("GenerationMatrix",),
    "evaluate.metrics": ("exact_match", "final_number", "number_match", "rouge_l", "token_f1"),
    "evaluate.mwork": ("RegionSearch", "mwork", "tune_regions"),
    "evaluate.nll": ("DocumentNLL",),
    "evaluate.per_example": ("PerExample", "category_effect"),
    "evaluate.perplexity": ("PerplexityMatrix", "perplexity_matrix"),
    "evaluate.significance": ("holm", "sign_flip_test"),
    "evaluate.solving": ("TaskOptions", "task_matrix"),
    "evaluate.story": ("MWork",),
    "evaluate.task_scores": ("TaskMatrix",),
    "exporting": ("export",),
    "heads": ("HeadAttention", "HeadPattern", "head_set", "random_heads"),
    "identification": ("LangidIdentifier", "LinguaIdentifier", "spoken_languages"),
    "importance": ("Importance",),
    "intervene": ("ablate", "add", "matched_control", "replace", "scale", "steer"),
    "items": (
        "Template",
        "inference_template",
        "open_questions",
        "read_entailment",
        "read_facts",
        "read_questions",
        "stream_questions",
    ),
    "languages": ("language_tag",),
    "latent": ("LatentLanguages", "latent_language", "separable_prompts", "single_token_concepts"),
    "lens": ("LensTable", "language_curve", "lens_table"),
    "likelihood": ("Likelihood", "log_likelihoods", "token_pairs"),
    "models": ("load_model",),
    "neurons": ("LanguageNeurons", "NeuronSet", "random_like"),
    "page": ("report",),
    "parallel": ("ParallelCorpora",),
    "patterns": ("SharingPattern", "SharingPatterns"),
    "questions": ("Question", "demonstrated"),
    "regions": ("Regions",),
    "relations": ("read_edits", "read_relations"),
    "results": ("load",),
    "rows": ("ablate_rows",),
    "scoring": ("PLNDImportance",),
    "single_neurons": ("neuron_set",),
    "signs": ("FiringSign", "NeuronSigns"),
    "sites": (
        "ATTN_K",
        "ATTN_Q",
        "ATTN_V",
        "ATTN_Z",
        "MLP_POST",
        "MLP_PRE",
        "MLP_UP",
        "RESID_POST",
        "RESID_PRE",
        "HookedModel",
        "Site",
        "preflight",
    ),
    "stats": ("ActivationFrequency", "Activations", "Frequency", "MeanActivation"),
    "task_reading": ("read_task", "stream_task"),
    "tasks": (
        "MGSM",
        "TASKS",
        "XCSQA",
        "XLSUM",
        "XNLI",
        "XQUAD",
        "Item",
        "Task",
        "TaskItems",
        "find_task",
    ),
    "token_readings": (
        "AttentionPatterns",
        "TokenActivations",
        "attention_patterns",
        "token_activations",
    ),
    "tuning": ("Recipe", "Tuned", "tune"),
    "vectors": ("shift",),
    "vocabulary": ("VocabularyLanguages",),
}
_MODULES = ("formats", "models", "plot")
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, *_MODULES])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"lens_lang.{name}")
    if name in _HOME:
        value = getattr(import_module(f"lens_lang.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lens_lang' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
