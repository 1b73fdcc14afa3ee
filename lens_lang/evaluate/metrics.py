"""Scores of one answer against references, in any language: words, numbers and sequences.

Languages are BCP-47 tags, as `lens_lang.languages.language_tag` writes them. Before words are
compared, characters are composed (NFC) and forms of another width become ordinary ones, so that
full-width digits are digits and half-width kana are kana. More (NFKC) would make 102 of 10².
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

from lens_lang.errors import MissingExtraError, OptionError

_ARTICLES = {
    "en": "a an the",
    "de": "der die das den dem des ein eine einen einem einer eines",
    "es": "el la los las un una unos unas",
    "fr": "le la les un une des",
}


def _tags(names: str) -> frozenset[str]:
    return frozenset(names.split())


_WITHOUT_SPACES = _tags("zh cmn yue wuu hak nan gan lzh ja th lo km my bo dz")
_SCRIPTS_WITHOUT_SPACES = ("Han", "Hira", "Kana", "Bopo", "Thai", "Laoo", "Khmr", "Mymr", "Tibt")

_DECIMAL_COMMA = _tags(
    "af az be bg bs ca cs da de el es et eu fi fo fr gl hr hu hy id is it ka kk ky lb lt lv mk mn "
    "nb nl nn no pl pt ro ru sk sl sq sr sv tk tr tt uk uz vi"
)
_DECIMAL_POINT_IN = _tags("de-ch de-li it-ch es-419 es-mx es-us")
_THOUSANDS_BY_SPACE = _tags(
    "be bg cs es et fi fr hu hy ka kk ky lt lv nb nn no pl pt ru sk sv uk uz"
)
_LAKHS = _tags("as bn gu hi kn ml mr ne or pa ta te ur")


def exact_match(answer: str, references: Sequence[str], lang: str) -> float:
    """Say whether an answer is one of the references, up to case, punctuation and articles.

    The exact match of SQuAD (Rajpurkar et al., 2016): lower case, no punctuation, no articles,
    single spaces. As MLQA (Lewis et al., 2020) does it for other languages: punctuation is
    Unicode's and ASCII's; articles are the language's own (those of English, German, Spanish and
    French, with the elided ``l'``; for others, none are removed); and where words are written
    without spaces, spaces do not count.

    Args:
        answer: What was answered.
        references: Right answers.
        lang: Tag of the language of the references.

    Returns:
        1 or 0.

    Raises:
        OptionError: There is no reference.

    Examples:
        >>> exact_match("The Eiffel Tower!", ["Eiffel tower"], "en")
        1.0
        >>> exact_match("l’Europe", ["Europe"], "fr"), exact_match("東京 。", ["东京"], "zh")
        (1.0, 0.0)
    """
    return _best(lambda one: float(_words(answer, lang) == _words(one, lang)), references)


def token_f1(answer: str, references: Sequence[str], lang: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words.

    The F1 of SQuAD (Rajpurkar et al., 2016), on the words that `exact_match` compares. In a
    language that is written without spaces (Chinese, Japanese, Thai and their like) every
    character of such a script is a word, and Latin words and numbers stay whole (MLQA; Lewis et
    al., 2020).

    Args:
        answer: What was answered.
        references: Right answers.
        lang: Tag of the language of the references.

    Returns:
        The best over the references, between 0 and 1. Where either has no words, 1 if both have
        none.

    Raises:
        OptionError: There is no reference.

    Examples:
        >>> round(token_f1("in the city of Paris", ["Paris, France", "Rome"], "en"), 3)
        0.333
        >>> token_f1("东京市", ["东京"], "zh")
        0.8
    """
    return _best(lambda one: _f1(_words(answer, lang), _words(one, lang)), references)


def final_number(text: str, lang: str) -> Decimal | None:
    """Return the last number of a text: of what is behind the last ``####``, if there is one.

    Digits of every script count. What parts them is read so:

    1. No-break, narrow, thin and figure spaces and apostrophes part thousands, and a plain space
       does where the language is used to it (French, Russian, Polish; not English or German).
       Parts must be of three digits (in languages of India, lakhs are read too). A full-width
       comma or point is like an ordinary one between full-width digits, else punctuation.
    2. Of a comma and a point in one number, the last is the decimal mark: 1,234.5 and 1.234,5.
    3. One that stands more than once parts thousands: 1.234.567.
    4. A single one is the decimal mark in every language where three digits do not follow, or where
       a leading 0 or more than three digits come before: 3.5, 3,5, 0.125 and 1234.567.
    5. That leaves 1.234 and 1,234, where the language decides: the point parts thousands in German,
       French, Spanish, Russian and most of Europe, the comma in English, Chinese and others.

    Digits joined in a way that is none of these, such as 1,2,3, are numbers of their own. A minus
    counts directly before a number, or before its currency, unless it joins it to what is before:
    5-3 ends in 3. Words for numbers, as in 5万, powers and fractions are not read.

    Args:
        text: An answer, with its steps or without.
        lang: Tag of its language.

    Returns:
        The number, or None where there is none.

    Examples:
        >>> final_number("Half of 1,300 is 650, so #### $1,950.", "en")
        Decimal('1950')
        >>> final_number("1.234", "de"), final_number("1.234", "en")
        (Decimal('1234'), Decimal('1.234'))
        >>> final_number("答えは １２，５００ 円", "ja")
        Decimal('12500')
    """
    readings = _readings(text, lang)
    return readings[0] if readings else None


def _readings(text: str, lang: str) -> tuple[Decimal, ...]:
    """The last number of a text, and what it is too if its one comma or point parts thousands."""
    patterns = _patterns()
    text = text.rpartition("####")[2]
    # Only between full-width digits: 100，200 in Chinese are two numbers.
    text = patterns.wide_mark.sub(lambda mark: unicodedata.normalize("NFKC", mark[0]), text)
    text = re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), text)
    by_space = _language(lang) in _THOUSANDS_BY_SPACE
    found = [*(patterns.number_with_spaces if by_space else patterns.number).finditer(text)]
    if not found:
        return ()
    digits = found[-1]["digits"]
    value = _read_number(digits, lang)
    if value is None:  # several numbers; a sign belongs to the first
        return (Decimal(patterns.mark.split(digits)[-1]),)
    values = [value]
    if patterns.either.fullmatch(digits):
        values.append(Decimal(patterns.mark.sub("", digits)))
    # -value would round
    return tuple(each.copy_negate() if found[-1]["minus"] else each for each in values)


def number_match(answer: str, references: Sequence[str], lang: str) -> float:
    """Say whether an answer's last number is that of a reference.

    Numbers are read as `final_number` reads them. Models often write numbers as English does,
    whatever the language, and so rule 5 alone would cost the other languages right answers. Where
    a reference is whole, an answer such as 4,800 or 4.800 (one comma or point, one to three digits
    before it that begin with no 0, and exactly three behind) is therefore right in every language
    if it is so with thousands, and still if it is so as the language writes it.

    Args:
        answer: What was answered, with its steps or without.
        references: Right answers, each with a number; write them as the language does.
        lang: Tag of the language of both.

    Returns:
        1 or 0; 0 for an answer without a number. 18 and 18.00 are equal.

    Raises:
        OptionError: There is no reference, or one has no number.

    Examples:
        >>> number_match("3 + 15 = 18.00 dollars", ["18"], "en")
        1.0
        >>> [number_match(text, ["4800"], "de") for text in ("4.800 Lampen", "4,800 Lampen")]
        [1.0, 1.0]
        >>> [number_match("3.125", [right], "en") for right in ("3125", "3.125", "3")]
        [1.0, 1.0, 0.0]
        >>> number_match("3.125", ["3125.5"], "en"), number_match("3,125", ["3.125"], "en")
        (0.0, 0.0)
    """
    found = _readings(answer, lang)

    def equal(reference: str) -> float:
        right = final_number(reference, lang)
        if right is None:
            raise OptionError(f"A reference must hold a number, got {reference!r}")
        whole = right == right.to_integral_value()
        return float(right in (found if whole else found[:1]))

    return _best(equal, references)


def rouge_l(answer: str, references: Sequence[str], lang: str) -> float:
    """Return ROUGE-L: how long a sequence of words an answer has in common with a reference.

    The F-measure of the longest common subsequence (Lin, 2004), by the library ``rouge-score``,
    without stemming. Words are runs of letters and digits of any script in lower case (the
    library's own would drop all but a to z); in a language that is written without spaces, every
    character of such a script is a word. On English in ASCII it equals the library's.

    Args:
        answer: What was answered.
        references: Right answers.
        lang: Tag of the language of the references.

    Returns:
        The best over the references, between 0 and 1; 0 where either has no words.

    Raises:
        OptionError: There is no reference.
        MissingExtraError: rouge-score is not installed.

    Examples:
        >>> reference = "The quick brown fox jumps over the lazy dog"
        >>> round(rouge_l("The quick brown dog jumps on the log.", [reference], "en"), 3)
        0.588
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise MissingExtraError("ROUGE-L", "eval") from None
    scorer = RougeScorer(["rougeL"], tokenizer=_RougeTokenizer(lang))
    return _best(lambda one: float(scorer.score(one, answer)["rougeL"].fmeasure), references)


@dataclass(frozen=True)
class _RougeTokenizer:
    """What the scorer of rouge-score asks for words."""

    lang: str

    def tokenize(self, text: str) -> list[str]:
        patterns = _patterns()
        words: list[str] = patterns.word.findall(_apart(_folded(text), self.lang))
        return words


# With marks, because a letter under one that has no composed form is another letter.
_IN_WORDS = r"[\p{L}\p{M}\p{N}]"


@dataclass(frozen=True)
class _Patterns:
    """Regular expressions of the module ``regex``, which knows scripts."""

    word: Any
    alone: Any
    mark: Any
    either: Any
    wide_mark: Any
    number: Any
    number_with_spaces: Any


@cache
def _patterns() -> _Patterns:
    import regex  # costs a moment, and only answers need it

    scripts = "".join(rf"\p{{scx={script}}}" for script in _SCRIPTS_WITHOUT_SPACES)
    marks = r"[.,٫٬'’\u00a0\u2007\u2009\u202f]"
    # Not behind what it would join the number to: 5-3, 10%-20%, (x)-1, COVID-19.
    minus = r"(?P<minus>(?<![\p{L}\p{N}%)\]}])[-‐‑–−－]\p{Sc}?)?"
    begin = r"(?:[0-9]|(?<![\p{L}\p{N}.])\.(?=[0-9]))"  # .5 is a number, the end of "etc.5" is 5

    def number(between: str) -> Any:
        return regex.compile(rf"{minus}(?P<digits>{begin}[0-9]*(?:{between}[0-9]+)*)")

    return _Patterns(
        word=regex.compile(rf"{_IN_WORDS}+"),
        alone=regex.compile(rf"[[\p{{L}}\p{{N}}]&&[{scripts}]]\p{{M}}*", regex.V1),
        mark=regex.compile(r"\D"),
        either=regex.compile(r"[1-9][0-9]{0,2}[.,][0-9]{3}"),  # a fraction, or thousands
        wide_mark=regex.compile(r"(?<=[０-９])[，．](?=[０-９])"),
        number=number(marks),
        number_with_spaces=number(rf"(?:{marks}|\x20(?=[0-9]{{3}}(?![0-9])))"),
    )


def _best(score: Callable[[str], float], references: Sequence[str]) -> float:
    if isinstance(references, str):
        raise OptionError(f"References are a list of texts, got one text: {references!r}")
    if not references:
        raise OptionError("An answer needs at least one reference to be compared with")
    return max(map(score, references))


def _language(lang: str) -> str:
    """The tag without script and region."""
    return lang.replace("_", "-").lower().partition("-")[0]


def _folded(text: str) -> str:
    """Composed, of ordinary width, in lower case."""
    ordinary = "".join(
        unicodedata.normalize("NFKC", each)
        if unicodedata.decomposition(each).startswith(("<wide>", "<narrow>"))
        else each
        for each in text
    )
    # After the width, because half-width kana have their voicing marks apart.
    return unicodedata.normalize("NFC", ordinary).lower()


def _apart(text: str, lang: str) -> str:
    """With spaces around the characters that are words, in a language that writes none."""
    if _language(lang) not in _WITHOUT_SPACES:
        return text
    spaced: str = _patterns().alone.sub(r" \g<0> ", text)
    return spaced


def _words(text: str, lang: str) -> list[str]:
    """The words that SQuAD compares."""
    language, text = _language(lang), _folded(text)
    if language == "fr":  # before the apostrophe is lost as punctuation
        text = _elided().sub("", text)
    text = "".join(each for each in text if not _is_punctuation(each))
    if language in _ARTICLES:
        text = _articles(language).sub(" ", text)
    return _apart(text, lang).split()


def _is_punctuation(char: str) -> bool:
    # Unicode calls $ + < = > ^ ` | ~ symbols; SQuAD removes them.
    return unicodedata.category(char).startswith("P") or char in string.punctuation


@cache
def _articles(language: str) -> Any:
    import regex

    words = "|".join(_ARTICLES[language].split())
    return regex.compile(rf"(?<!{_IN_WORDS})(?:{words})(?!{_IN_WORDS})")


@cache
def _elided() -> Any:
    import regex

    return regex.compile(rf"(?<!{_IN_WORDS})l['’](?={_IN_WORDS})")


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference))


def _read_number(digits: str, lang: str) -> Decimal | None:
    """Digits with marks between them as one number, by the rules of `final_number`."""
    patterns = _patterns()
    parts, marks = patterns.mark.split(digits), patterns.mark.findall(digits)
    if not marks:
        return Decimal(digits)
    last, before = marks[-1], marks[:-1]
    fraction = (
        last in ".,٫" and last not in before and (not before or _grouped(parts[:-1], before, lang))
    )
    whole = last != "٫" and _grouped(parts, marks, lang)
    if fraction and (not whole or last == _decimal_mark(lang)):
        return Decimal(f"{''.join(parts[:-1])}.{parts[-1]}")
    return Decimal("".join(parts)) if whole else None


def _grouped(parts: Sequence[str], marks: Sequence[str], lang: str) -> bool:
    """Whether marks part thousands."""
    first, *middle, end = parts
    sizes = (2, 3) if _language(lang) in _LAKHS and marks[0] == "," else (3,)
    return (
        len(set(marks)) == 1
        and 1 <= len(first) <= 3
        and not first.startswith("0")
        and len(end) == 3
        and all(len(part) in sizes for part in middle)
    )


def _decimal_mark(lang: str) -> str:
    parts = lang.replace("_", "-").lower().split("-")
    comma = parts[0] in _DECIMAL_COMMA and f"{parts[0]}-{parts[-1]}" not in _DECIMAL_POINT_IN
    return "," if comma else "."
