"""The tasks of Zhao et al. (2024) as values: what is asked, where, and what a good answer is.

Reading comprehension (XQuAD), sums in words (MGSM), common sense (X-CSQA), summaries (XL-Sum),
and inferences (XNLI) beside them. `lens_lang.task_reading` reads their items.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from lens_lang.errors import CorpusError, LanguageError, OptionError, near_misses
from lens_lang.tables import by_tag


@dataclass(frozen=True)
class Item:
    """One prompt in one language.

    Attributes:
        name: What to call it; the same in every language of an aligned set.
        prompt: Ends where the answer begins.
        references: Acceptable answers, the best first.
        options: What to choose from, where that is the task; the first reference is the right one.

    Examples:
        >>> Item("sum", "One and one is", ("2", "two")).references[0]
        '2'
    """

    name: str
    prompt: str
    references: tuple[str, ...]
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt or self.prompt[-1].isspace():
            raise CorpusError(f"The prompt of {self.name!r} must end in a word, not in a space")
        for what in ("references", "options"):
            texts = tuple(text.strip() for text in getattr(self, what))
            if not all(texts) or (not texts and what == "references"):
                raise CorpusError(f"{self.name!r} must have {what}, none of them blank")
            object.__setattr__(self, what, texts)
        if len(set(self.options)) < len(self.options) or len(self.options) == 1:
            raise CorpusError(f"{self.name!r} must offer at least two options, all different")
        if self.options and self.references[0] not in self.options:
            raise CorpusError(
                f"{self.name!r} offers {', '.join(self.options)}, and its answer "
                f"{self.references[0]!r} is none of them"
            )


@dataclass(frozen=True)
class Task:
    """What is asked, where its data set is, and how answers are judged.

    Attributes:
        name: One of `TASKS`; it says the schema of the rows and the prompts, too.
        dataset: Id on the hub.
        configs: The data set's configuration by language.
        split: The split whose answers are published.
        metric: How an answer is judged: words in common, the last number, the likeliest option, or
            the longest common subsequence.
        new_tokens: How long an answer may be; 0 where options are scored.
        stop: What ends an answer in every language. An answer may begin with white space, so look
            for these behind its first word.
        exported: Read the hub's own conversion to parquet: the data set is a script, which
            ``datasets`` refuses since version 4.
        revision: Commit, branch or tag of the data set, or of its conversion where that is read;
            None takes the newest.

    Examples:
        >>> XQUAD.metric, XCSQA.configs["ja"]
        ('f1', 'X-CSQA-jap')
    """

    name: str
    dataset: str
    configs: Mapping[str, str] = field(hash=False, repr=False)
    split: str
    metric: Literal["f1", "number", "choice", "rouge_l"]
    new_tokens: int
    stop: tuple[str, ...] = ()
    exported: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "configs", MappingProxyType(dict(self.configs)))


def _configs(languages: str, shape: str = "{}") -> dict[str, str]:
    return {lang: shape.format(lang) for lang in languages.split()}


XQUAD = Task(
    "xquad",
    "google/xquad",
    _configs("ar de el en es hi ro ru th tr vi zh", "xquad.{}"),
    split="validation",
    metric="f1",
    new_tokens=32,
    # an answer is a few words; after a line, base models ask and answer the next question
    stop=("\n",),
)
"""Questions about a paragraph, whose answers stand in it. The hub has no French."""

MGSM = Task(
    "mgsm",
    # the original, juletxara/mgsm, is a script, which `datasets` refuses
    "jbross-ibm-research/mgsm",
    _configs("bn de en es fr ja ru sw te th zh"),
    split="test",
    metric="number",
    new_tokens=512,
    # steps take several lines. Each language adds its own word (see `TaskItems.stops`), but models
    # fall back on English whatever they were asked in.
    stop=("\nQuestion:", "\nLet's think step by step. Question:"),
)
"""Sums told in words, to be solved step by step."""

XCSQA = Task(
    "xcsqa",
    "INK-USC/xcsr",
    {
        **_configs("ar de en es fr hi it nl pl pt ru sw ur vi zh", "X-CSQA-{}"),
        "ja": "X-CSQA-jap",
    },
    split="validation",  # the test split has no answers
    metric="choice",
    new_tokens=0,
)
"""Questions of common sense, with five options that the prompt does not show."""

XLSUM = Task(
    "xlsum",
    "csebuetnlp/xlsum",
    {  # of its 45 languages, those with prompts
        "en": "english",
        "es": "spanish",
        "fr": "french",
        "id": "indonesian",
        "ja": "japanese",
        "ru": "russian",
        "vi": "vietnamese",
        "zh": "chinese_simplified",
    },
    split="test",
    metric="rouge_l",
    new_tokens=96,
    stop=("\n",),  # a summary is one sentence
    exported=True,
)
"""News to sum up in one sentence. The hub has no German."""

XNLI = Task(
    "xnli",
    "facebook/xnli",
    _configs("ar bg de el en es fr hi ru sw th tr ur vi zh"),
    split="test",
    metric="choice",
    new_tokens=0,
)
"""Does a sentence follow from another, perhaps, or not? Asked as `inference_template` does."""

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (XQUAD, MGSM, XCSQA, XLSUM, XNLI)}
)
"""The tasks by their names."""


@dataclass(frozen=True, repr=False)
class TaskItems:
    """A task's items in one or several languages.

    Attributes:
        task: What is asked.
        items: By language, under any of its names.
        source: Where they are from: ``packaged``, ``files``, or ``hub: ...``.
        stops: What ends an answer in each language; the task's own where nothing else is said. As
            in `Task`, look for these behind an answer's first word.
    """

    task: Task
    items: Mapping[str, tuple[Item, ...]]
    source: str
    stops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        items = by_tag(self.items.items(), "A list of items")
        stops = by_tag(self.stops.items(), "A list of stops")
        if not items:
            raise LanguageError(f"{self.task.name} has items in no language; one is needed")
        for lang, some in items.items():
            if not some:
                raise CorpusError(f"{self.task.name} has no item in {lang!r}")
            (name, times) = Counter(item.name for item in some).most_common(1)[0]
            if times > 1:
                raise CorpusError(f"{times} items of {self.task.name} in {lang!r} are {name!r}")
        given = {lang: tuple(some) for lang, some in items.items()}
        ends = {lang: tuple(stops.get(lang, self.task.stop)) for lang in items}
        object.__setattr__(self, "items", MappingProxyType(given))
        object.__setattr__(self, "stops", MappingProxyType(ends))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in order."""
        return tuple(self.items)

    @property
    def aligned(self) -> bool:
        """Whether item n has the same name in every language."""
        return len({tuple(item.name for item in some) for some in self.items.values()}) == 1

    @property
    def digest(self) -> str:
        """Fingerprint of languages, names, prompts, references and options."""
        told = [
            [lang, [[each.name, each.prompt, each.references, each.options] for each in some]]
            for lang, some in self.items.items()
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    def limit(self, count: int) -> "TaskItems":
        """Return at most so many items in every language, evenly chosen from first to last.

        Languages with as many items lose the same ones, so that aligned items stay aligned.

        Args:
            count: How many to keep.

        Raises:
            OptionError: That is less than one.
        """
        if count < 1:
            raise OptionError(f"limit must be at least 1, got {count}")
        kept = {
            lang: some
            if count >= len(some)
            else tuple(some[place * len(some) // count] for place in range(count))
            for lang, some in self.items.items()
        }
        return replace(self, items=kept)

    def describe(self) -> dict[str, Any]:
        """Return task, source, counts and digest as JSON values, for a result's provenance."""
        return {
            "task": self.task.name,
            "source": self.source,
            "counts": {lang: len(some) for lang, some in self.items.items()},
            "digest": self.digest,
        }

    def __repr__(self) -> str:
        counts = ", ".join(f"{lang} {len(some)}" for lang, some in self.items.items())
        return f"TaskItems({self.task.name}, {self.source}: {counts})"


def find_task(name: str) -> Task:
    """Return a task by its name, however it is written.

    Args:
        name: Such as ``"xquad"``; ``"X-CSQA"`` serves as well.

    Raises:
        OptionError: There is no such task.

    Examples:
        >>> find_task("X-CSQA") is XCSQA
        True
    """
    plain = name.casefold().replace("-", "")
    if plain not in TASKS:
        raise OptionError(f"There is no task {name!r}{near_misses(plain, TASKS)}")
    return TASKS[plain]
