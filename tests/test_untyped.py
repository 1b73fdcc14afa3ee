"""Wrong words get a sentence from us, not a stack of somebody else's.

The other tests run with annotations enforced, which refuse a wrong ``Literal`` before our own
check can. Users run without, so this one does too.
"""

import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import types
import torch
from lens_lang.corpora import Corpora
from lens_lang.curves import LanguageCurve
from lens_lang.latent import LatentLanguages
from lens_lang.lens import language_curve
from lens_lang.vocabulary import VocabularyLanguages
from lens_lang.detect.lape import LapeVariant, lape
from lens_lang.evaluate.perplexity import perplexity_matrix
from lens_lang.intervene import ablate, replace, steer
from lens_lang.evaluate.solving import task_matrix
from lens_lang.task_reading import read_task
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.single_neurons import neuron_place, neuron_set
from lens_lang.sites import MLP_POST, MLP_PRE, check_hooks
from lens_lang.stats import ActivationFrequency, Activations, Frequency, MeanActivation
from lens_lang.attribute.categories import CategoryContribution
from lens_lang.attribute.gradients import gradient_attribution
from lens_lang.attribute.writing import token_vectors
from lens_lang.collection import collect, collect_parallel
from lens_lang.contexts import TopContexts
from lens_lang.plot.views import View, save_views
from lens_lang.token_readings import attention_patterns, token_activations
from lens_lang.detect.sharing import sharing
from lens_lang.evaluate.per_example import PerExample, category_effect
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import SharingPattern, SharingPatterns
from lens_lang.rows import ablate_rows
from lens_lang.items import inference_template
from lens_lang.relations import read_edits
PAIR = ParallelCorpora.from_tokens({'en': [[5]], 'fr': [[6]]})
SHARED = SharingPatterns.from_activations(torch.ones(1, 2, 1, 3), ('en', 'fr'))
SPELLER = types.SimpleNamespace(tokenizer=lambda texts, **_: 0, cfg=types.SimpleNamespace())
SPELLER.tokenizer.bos_token_id = 1
some = NeuronSet({MLP_POST: torch.eye(2, dtype=torch.bool)})
ALL = LanguageNeurons({'en': some, 'fr': some})
ONES, TWO = torch.ones(2, 2, 2), torch.tensor([2, 2])
FREQ = Frequency(('en', 'fr'), ONES.long(), TWO, site=MLP_PRE)
MEAN = Activations(('en', 'fr'), ONES.double(), ONES.double(), TWO)
"""

CASES = {
    "language_curve(None, [], None, positions='first')": "positions must be all, last or new, got",
    "LatentLanguages(('fr',), torch.rand(1, 4, 1), torch.rand(1, 3), torch.rand(1, 4))": (
        "entropy must be [1, 4], got [1, 3]"
    ),
    "LatentLanguages(('fr',), torch.rand(4), torch.rand(4), torch.rand(4))": "[prompt layer 1]",
    "VocabularyLanguages(('fr',), torch.rand(4))": "share must be [item lang_other], got [4]",
    "LanguageCurve(('fr',), ('fr',), torch.rand(4))": "must be [1 layer 2], got [4]",
    "SharingPattern(position='first')": "position must be last, mean or any, got 'first'",
    "SharingPattern(space='up')": "space must be gate or product, got 'up'",
    "SharingPattern(threshold=True)": "threshold must be a number, or several, got True",
    "sharing(SHARED, across='all')": "across must be every or any, got 'all'",
    "collect_parallel(None, PAIR, ActivationFrequency())": (
        "collect_parallel takes specs such as SharingPattern(), not ActivationFrequency"
    ),
    "collect(None, PAIR.by_language, SharingPattern())": (
        "collect takes specs such as ActivationFrequency(), not SharingPattern"
    ),
    "CategoryContribution(space='up')": "space must be gate or product, got 'up'",
    "CategoryContribution(vector='both')": "vector must be unembedding or embedding, got 'both'",
    "ablate_rows(torch.ones(2, 1, 5) > 0, at=torch.tensor([1]))": "at must be one token per row, 2",
    "PerExample(threshold=(0.0, 0.1))": "threshold must be one number here, got (0.0, 0.1)",
    "PerExample(threshold='0')": "threshold must be a number, or several, got '0'",
    "CategoryContribution(threshold=float('nan'))": "threshold must be a number",
    "CategoryContribution(top='800')": "top must be a share up to 1, or a whole number, got '800'",
    "collect_parallel(None, PAIR.by_language, SharingPattern())": (
        "collect_parallel reads ParallelCorpora, got Corpora"
    ),
    "collect(None, PAIR, ActivationFrequency())": "collect reads Corpora, got ParallelCorpora",
    "collect(None, PAIR.by_language, ActivationFrequency)": (
        "collect takes specs such as ActivationFrequency(), not ActivationFrequency"
    ),
    "ParallelCorpora.from_tokens({'en': [[5]], 'fr': [[6]]}, answers=[[1.5, 2]])": (
        "answers must be token ids"
    ),
    "ParallelCorpora.from_tokens({'en': [[5]], 'fr': [[6]]}, answers=[1, 2])": (
        "answers must be, for each example, one token per language"
    ),
    "category_effect(None, PAIR, 'all')": "takes ParallelCorpora and a PerExample rule, got",
    "ParallelCorpora.from_questions([1], SPELLER, languages='en')": "are lists: give",
    "PerExample(positions='first')": "positions must be all or last, got 'first'",
    "PerExample(space='up')": "space must be gate or product, got 'up'",
    "gradient_attribution(None, [], method='lrp')": "method must be gradient_x_activation or",
    "gradient_attribution(None, [], objective='loss')": "objective must be logit or log_prob",
    "gradient_attribution(None, [], positions='first')": "positions must be last or all, got",
    "token_vectors(None, [1], vector='both')": "vector must be unembedding or embedding, got",
    "inference_template('fr')": "instruction must be en or native, got 'fr'",
    "read_edits([], fact='french')": "fact must be english or own, got 'french'",
    "lape(MEAN)": "lape takes Frequency, which collect(model, corpora, ActivationFrequency())",
    "steer(ALL, source='en', target='fr', mean=FREQ)": "steer takes Activations, which collect(",
    "ablate(ALL)": "take a NeuronSet, got LanguageNeurons: choose a language, as in ablate(",
    "perplexity_matrix(None, None, ALL)": "Hooks are a list of (name, function), as lens_lang.abl",
    "perplexity_matrix(None, None, [])": "interventions are hooks by name",
    "task_matrix(None, read_task('xcsqa').limit(1), [])": "interventions are hooks by name",
    "check_hooks(None, some)": "Hooks are a list of (name, function), as lens_lang.ablate(",
    "check_hooks(None, [some])": "Hooks are a list of (name, function)",
    "Corpora.from_files('en.txt', SPELLER)": "files must be {language: path}, got str: write {'en'",
    "neuron_place((1, 2, 3))": "A neuron is (layer, index) or 'layer.index', such as (12, 1542)",
    "neuron_place((1.5, 2))": "A neuron is (layer, index)",
    "neuron_place(None)": "A neuron is (layer, index)",
    "neuron_set(None, (1, 3))": "Neurons come in a list: write [(1, 3)]",
    "neuron_set(None, '1.3')": "Neurons come in a list: write ['1.3']",
    "TopContexts({'fr': some})": "TopContexts takes a NeuronSet, got dict: give neurons['fr']",
    "token_activations(None, [], {'fr': some})": "token_activations takes a NeuronSet, got dict",
    "attention_patterns(None, [], (1, 2))": "pairs in a list, such as [(5, 0)], got (1, 2)",
    "attention_patterns(None, [], [(1, 2.5)])": "pairs in a list, such as [(5, 0)], got [(1, 2.5)]",
    "View('ColoredTokens', {'tokens': 3, 'values': [1]}, 'x')": "tokens must be a list, got 3",
    "View('ColoredTokens', {'tokens': ['a'], 'values': 'b'}, 'x')": "must be a list, got 'b'",
    "save_views('x', View('ColoredTokens', {'tokens': ['a'], 'values': [1]}, 'x'))": (
        "save_views takes a list of views, got one View: write [view]"
    ),
    "save_views('x', None)": "save_views takes a list of views, got NoneType",
    "MeanActivation('gates')": "space must be one of gate, product, up, residual, got 'gates'",
    "LapeVariant(scope='world')": "scope must be model or layer, got 'world'",
    "LapeVariant(assign='best')": "assign must be above_bar or argmax or exclusive, got 'best'",
    "ablate(some, positions='last')": "positions must be one of all, prompt, new, got 'last'",
    "replace(some, 1.0, space='up')": "space must be gate or product, got 'up'",
    "LanguageNeurons({'en': some}).overlap('dice')": "measure must be count, jaccard",
    "NeuronSet({MLP_POST: torch.zeros(3)})": "must be Bool[layer neuron], got torch.float32",
    "Corpora.from_texts({'en': 'one string'}, object())": "no tokeniser",
    "Corpora.from_texts({'en': ['a', None]}, SPELLER)": "document of 'en' is NoneType, where text",
    "Corpora.from_tokens({'x': [5, 9]})": "must be a list of token ids, got int",
    "Corpora.from_tokens({'x': [[1.7]]})": "must be a list of token ids, got list",
    "Corpora.from_tokens({'x': 'abc'})": "must be a list of token ids, got str",
    "perplexity_matrix(None, None, {}, control_on='mine')": "control_on must be all or own",
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    lines = [PRELUDE, "from lens_lang.errors import LensLangError"]
    for expression in CASES:
        lines.append(
            textwrap.dedent(f"""
            try:
                {expression}
            except LensLangError as error:
                print({expression!r}, "=>", error)
            """)
        )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    return dict(line.split(" => ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("expression", CASES)
def test_a_wrong_word_gets_one_sentence(expression: str, outcomes: dict[str, str]) -> None:
    assert CASES[expression] in outcomes[expression]
