"""How results came to be, in words: models, texts, options and versions from their records."""

from collections.abc import Iterator, Mapping
from typing import Any

from lens_lang.identification import UNDETERMINED
from lens_lang.sections.section import Section

_MOST = 12
"""More values than this are counted and left to the raw record."""

_OWN = ("model", "weights", "versions", "saved_with")
"""Said of a whole result, and not again of the statistic it was made from."""


def options_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a record of provenance as names and values to read.

    Args:
        record: ``provenance`` of a result.

    Examples:
        >>> options_of({"method": "lape", "options": {"top": 0.01, "max_entropy": None}})
        [('method', 'lape'), ('options', 'top 0.01, max entropy not set')]
        >>> options_of({"fwd_hooks": [], "statistic": {"spec": {"spec": "MeanActivation"}}})
        [('fwd hooks', 'none'), ('statistic: spec', 'MeanActivation')]
    """
    rows = []
    for name, value in record.items():
        if name == "statistic" and _is_mapping(value):
            own = {k: v for k, v in value.items() if k not in _OWN or k not in record}
            rows += [(f"statistic: {key}", said) for key, said in options_of(own)]
        else:
            rows += _rows(name.replace("_", " "), value)
    return rows


def facts_of(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return what holds for all results together: models, weights, languages, versions.

    Args:
        records: Provenance, by the result's name.

    Examples:
        >>> facts_of({"a": {"model": "toy", "weights": "9d3c", "versions": {"torch": "2.9"}}})
        [('Model', 'toy (weights 9d3c)'), ('Made with', 'torch 2.9')]
    """
    models: dict[str, None] = {}
    languages: dict[str, None] = {}
    versions: dict[str, None] = {}
    for record in records.values():
        for each in _mappings(record):
            if isinstance(each.get("model"), str):
                digest = f" (weights {each['weights']})" if each.get("weights") else ""
                models[each["model"] + digest] = None
            if _is_texts(each):
                languages |= dict.fromkeys(
                    lang for lang in each["n_tokens"] if lang != UNDETERMINED
                )
            for key in ("versions", "saved_with"):
                if _is_mapping(each.get(key)):
                    versions |= dict.fromkeys(f"{k} {v}" for k, v in sorted(each[key].items()))
    # weights may be recorded for some results only
    kept = [name for name in models if not any(m.startswith(f"{name} (weights") for m in models)]
    found = [
        ("Model" if len(kept) == 1 else "Models", ", ".join(kept)),
        ("Languages", f"{', '.join(languages)} ({len(languages)})" if len(languages) > 1 else ""),
        ("Made with", ", ".join(versions)),
    ]
    return [(name, said) for name, said in found if said]


def caution_of(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Warn of results that come from several versions of one model's weights; "" if none do.

    Args:
        records: Provenance, by the result's name.

    Examples:
        >>> caution_of({"a": {"model": "toy", "weights": "9d3c"},
        ...             "b": {"model": "toy", "weights": "cd50"}})
        'These results come from 2 versions of the weights (see Data); compare across them with \
care.'
    """
    versions: dict[str, set[str]] = {}
    for record in records.values():
        for each in _mappings(record):
            if isinstance(each.get("model"), str) and each.get("weights"):
                versions.setdefault(each["model"], set()).add(str(each["weights"]))
    most = max((len(some) for some in versions.values()), default=0)
    if most < 2:
        return ""
    return (
        f"These results come from {most} versions of the weights (see Data); compare across them "
        "with care."
    )


def made_by(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the model, the beginning of its weights' digest, and the versions of one record.

    Args:
        record: ``provenance`` of a result; what it was made from is asked where it says nothing.

    Examples:
        >>> made_by({"method": "lape", "statistic": {"model": "toy", "versions": {"torch": "2.9"}}})
        {'model': 'toy', 'torch': '2.9'}
    """
    found: dict[str, str] = {}
    for each in _mappings(record):
        if isinstance(each.get("model"), str):
            found.setdefault("model", each["model"])
        if each.get("weights"):
            found.setdefault("weights", str(each["weights"])[:8])
        for key in ("versions", "saved_with"):
            if _is_mapping(each.get(key)):
                for name, version in each[key].items():
                    found.setdefault(str(name), str(version))
    return found


def texts_section(records: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """How much text of each language was read, for every collection of texts in the records.

    Args:
        records: Provenance, by the result's name.

    Returns:
        A section with a row for each language and a column for each collection; None if no
        record names texts.
    """
    found: dict[str, Mapping[str, Any]] = {}
    users: dict[str, list[str]] = {}
    for name, record in records.items():
        for each in _mappings(record):
            if _is_texts(each):
                digest = str(each["digest"])[:8]
                found.setdefault(digest, each)
                users[digest] = list(dict.fromkeys([*users.get(digest, []), name]))
    if not found:
        return None
    languages = list(
        dict.fromkeys(str(lang) for each in found.values() for lang in each["n_tokens"])
    )
    rows = [
        [
            lang,
            *(
                f"{each['n_tokens'][lang]:,}" if lang in each["n_tokens"] else ""
                for each in found.values()
            ),
        ]
        for lang in languages
    ]
    if len(languages) > 1:
        rows.append(["all", *(f"{sum(each['n_tokens'].values()):,}" for each in found.values())])
    return Section(
        title="Texts",
        text=[
            "Tokens of each language, as they were read; the head of a column is the digest of "
            "those texts.",
            *(
                f"{digest}: {_told(each)}. Read for {', '.join(users[digest])}."
                for digest, each in found.items()
            ),
        ],
        columns=["language", *found],
        rows=rows,
    )


def _told(texts: Mapping[str, Any]) -> str:
    """What texts are, beside their languages and tokens."""
    said = []
    if "examples" in texts:
        said.append(f"{texts['examples']} examples, each in {len(texts['n_tokens'])} languages")
    if texts.get("ctx_len"):
        filled = "filled with several documents" if texts.get("pack") else "one document each"
        said.append(f"rows of at most {texts['ctx_len']} tokens, {filled}")
    if texts.get("bos_id") is not None:
        counted = "counted" if texts.get("count_bos") else "not counted"
        said.append(f"each begins with token {texts['bos_id']}, {counted}")
    part = texts.get("shard")
    if isinstance(part, list | tuple) and len(part) == 2 and part[1] > 1:
        said.append(f"part {part[0] + 1} of {part[1]}")
    known = ("languages", "n_tokens", "digest", "examples", "ctx_len", "pack", "bos_id")
    other = {k: v for k, v in texts.items() if k not in (*known, "count_bos", "shard")}
    said += [f"{name} {value}" for name, value in options_of(other)]
    return "; ".join(said) or "tokens"


def _rows(name: str, value: Any) -> list[tuple[str, str]]:
    if not _is_mapping(value):
        return [(name, _said(value))]
    if _is_texts(value):
        total = sum(value["n_tokens"].values())
        return [(name, f"{str(value['digest'])[:8]}, {total:,} tokens")]
    if not value:
        return [(name, "none")]
    if any(isinstance(each, list | tuple) and len(each) > _MOST for each in value.values()):
        return [(name, _counted(value))]
    if not any(_is_mapping(each) for each in value.values()):
        if len(value) > 2 * _MOST:
            return [(name, _counted(value))]
        return [(name, _pairs(name, value))]
    rows = [row for key, each in value.items() for row in _rows(f"{name}: {_words(key)}", each)]
    return rows if len(rows) <= _MOST else [(name, _counted(value))]


def _pairs(name: str, value: Mapping[str, Any]) -> str:
    """Names and values on one line: packages by their names, and of a spec its own."""
    words = str if name in ("versions", "saved with") else _words
    return ", ".join(
        _said(each) if key == "spec" else f"{words(key)} {_said(each)}"
        for key, each in value.items()
    )


def _counted(value: Mapping[str, Any]) -> str:
    names = [str(name) for name in value]
    shown = ", ".join(names[:_MOST]) + (", …" if len(names) > _MOST else "")
    return f"{len(names)}: {shown} (each in the raw record under Data)"


def _said(value: Any) -> str:
    if value is None:
        return "not set"
    if _is_mapping(value):
        return f"({_pairs('', value)})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        if not value:
            return "none"
        if len(value) > _MOST:
            return f"{len(value)}, {_said(value[0])} to {_said(value[-1])}"
        return ", ".join(
            repr(x) if isinstance(x, str) and x != x.strip() else _said(x) for x in value
        )
    return str(value)


def _words(name: Any) -> str:
    return str(name).replace("_", " ")


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """A record and every record inside it."""
    if _is_mapping(value):
        yield value
        for each in value.values():
            yield from _mappings(each)


def _is_texts(value: Any) -> bool:
    return (
        _is_mapping(value)
        and "digest" in value
        and _is_mapping(value.get("n_tokens"))
        and all(isinstance(n, int) for n in value["n_tokens"].values())
    )


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
