"""Loading any result that lens_lang has saved."""

from pathlib import Path
from typing import Any, get_args

from lens_lang.attribute.cards import NeuronCards
from lens_lang.attribute.categories import CategoryContributions
from lens_lang.attribute.scores import NeuronScores
from lens_lang.contexts import NeuronContexts
from lens_lang.curves import LanguageCurve
from lens_lang.delta import Delta
from lens_lang.errors import StorageError, near_misses
from lens_lang.evaluate.categories import CategoryEffect
from lens_lang.evaluate.generation import GenerationMatrix
from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.evaluate.story import MWork
from lens_lang.evaluate.task_scores import TaskMatrix
from lens_lang.heads import HeadAttention
from lens_lang.importance import Importance
from lens_lang.latent import LatentLanguages
from lens_lang.neurons import LanguageNeurons
from lens_lang.patterns import SharingPatterns
from lens_lang.signs import NeuronSigns
from lens_lang.stats import Activations, Frequency
from lens_lang.storage import read_tensors
from lens_lang.vocabulary import VocabularyLanguages

Result = (
    Frequency
    | Activations
    | Importance
    | HeadAttention
    | NeuronContexts
    | NeuronSigns
    | LanguageNeurons
    | PerplexityMatrix
    | GenerationMatrix
    | TaskMatrix
    | MWork
    | Delta
    | VocabularyLanguages
    | LanguageCurve
    | LatentLanguages
    | SharingPatterns
    | CategoryContributions
    | CategoryEffect
    | NeuronScores
    | NeuronCards
)
"""Everything that has ``save``."""

_CLASSES: dict[str, Any] = {cls.__name__: cls for cls in get_args(Result)}


def load(path: str | Path) -> Result:
    """Read a result of any class from the file its ``save`` wrote.

    Args:
        path: The file.

    Returns:
        The result; its class is named in the file.

    Raises:
        StorageError: The file is missing, damaged, or not a result of lens_lang.
    """
    kind, _, _ = read_tensors(path)
    if kind not in _CLASSES:
        raise StorageError(
            f"{path} holds a {kind!r}, no result to load{near_misses(kind, _CLASSES)}"
        )
    return _CLASSES[kind].load(path)
