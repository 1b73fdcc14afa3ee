"""What the lm-evaluation-harness says in texts: ``--model_args`` and ``generation_kwargs``.

What cannot be honoured is refused rather than ignored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import torch

from lens_lang.decoding import Decoding
from lens_lang.errors import OptionError, near_misses
from lens_lang.intervene import Hooks, ablate, matched_control, scale
from lens_lang.neurons import LanguageNeurons

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_HONOURED = ("until", *_LENGTHS, "do_sample", "temperature", "top_p", "repetition_penalty", "seed")
# What a setting may be without meaning anything; None never does.
_IDLE: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "use_cache": (True, False),
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
}
_SAMPLING_ONLY = ("top_p", "top_k", "min_p", "typical_p")
_INTERVENTIONS = ("ablate", "scale", "random")


@dataclass(frozen=True)
class HarnessArguments:
    """What follows ``--model_args``, as ``name=value`` with commas.

    Attributes:
        pretrained: The model, as `lens_lang.load_model` takes it.
        neurons: File of `LanguageNeurons`; without it the model runs as it is.
        language: Whose neurons; of several languages together with ``+``, as in ``fr+de``.
        intervention: ``ablate``; or ``scale``, by `factor`; or ``random``, which does the same to
            as many other neurons of the same layers: the control.
        factor: Multiplies the neurons.
        seed: Of the random neurons.
        dtype: Of the weights, such as ``bfloat16``; ``auto`` is what the checkpoint says.
        device: Where to run; without it the GPU, where there is one.
        batch_size: Rows at once.
        max_batch_size: Never more rows than this.
        max_length: Longest row in tokens; without it what the model can read.
        max_gen_toks: Longest answer in tokens, where the task does not say.
        add_bos_token: Whether rows begin with BOS; without it as TransformerLens has it.
    """

    pretrained: str
    neurons: str | None = None
    language: str | None = None
    intervention: str = "ablate"
    factor: float | None = None
    seed: int | None = None
    dtype: torch.dtype | None = None
    device: str | None = None
    batch_size: int = 16
    max_batch_size: int | None = None
    max_length: int | None = None
    max_gen_toks: int = 256
    add_bos_token: bool | None = None

    def __post_init__(self) -> None:
        if self.neurons is None:
            named = ("language", "factor", "seed")
            idle = [name for name in named if getattr(self, name) is not None]
            if idle or self.intervention != "ablate":
                raise OptionError(
                    f"{(idle or ['intervention'])[0]} is given, but no neurons: add "
                    "neurons=FILE.safetensors, or leave it out"
                )
        elif self.language is None:
            raise OptionError("language is needed, to say whose neurons: language=fr, or fr+de")
        if self.intervention not in _INTERVENTIONS:
            raise OptionError(
                f"intervention must be one of {', '.join(_INTERVENTIONS)}, got "
                f"{self.intervention!r}"
            )
        if (self.intervention == "scale") > (self.factor is not None):
            raise OptionError("intervention=scale needs a factor: factor=0.5")
        if self.intervention == "ablate" and self.factor is not None:
            raise OptionError("factor is given, but ablate has none: use intervention=scale")
        if self.intervention != "random" and self.seed is not None:
            raise OptionError("seed is given, but only intervention=random draws anything")

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "HarnessArguments":
        """Read what the harness made of ``name=value``; None is as if not given.

        Args:
            given: Values by name.

        Raises:
            OptionError: A name is unknown, a value is not of its kind, or some do not go together.

        Examples:
            >>> HarnessArguments.read({"pretrained": "gemma-3-270m", "batch_size": "8"}).batch_size
            8
        """
        given = {name: value for name, value in given.items() if value is not None}
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                advice = near_misses(name, known)
                raise OptionError(f"lens_lang has no model argument {name!r}{advice}")
        if "pretrained" not in given:
            raise OptionError("pretrained is needed, to say which model: pretrained=gemma-3-270m")
        if str(given.get("batch_size", "")).startswith("auto"):
            raise OptionError(
                "batch_size=auto is not offered, because nothing here measures what fits: give a "
                "number, such as 16"
            )
        return cls(**{name: _read(name, value) for name, value in given.items()})

    def hooks(self) -> Hooks:
        """Return the intervention.

        Raises:
            StorageError: The file of neurons cannot be read.
            LanguageError: It does not have the language.
        """
        if self.neurons is None or self.language is None:
            return []
        found = LanguageNeurons.load(self.neurons)
        sets = [found[name.strip()] for name in self.language.split("+")]
        chosen = reduce(lambda some, more: some | more, sets)
        hooks = ablate(chosen) if self.factor is None else scale(chosen, self.factor)
        if self.intervention != "random":
            return hooks
        return matched_control(hooks, generator=torch.Generator().manual_seed(self.seed or 0))


def decoding_of(
    settings: Mapping[str, Any], *, max_gen_toks: int = 256, end: str | None = None
) -> Decoding:
    r"""Read a task's ``generation_kwargs``.

    Args:
        settings: Values by name; None is as if not given. `Decoding` has what they mean.
        max_gen_toks: Tokens at most, where the settings do not say.
        end: Text that ends every answer.

    Raises:
        OptionError: A setting cannot be honoured.

    Examples:
        >>> decoding = decoding_of({"until": ["\n"], "max_gen_toks": 8}, end="</s>")
        >>> decoding.stop, decoding.new_tokens, decoding.temperature
        (('\n', '</s>'), 8, 0.0)
    """
    given = {name: value for name, value in settings.items() if value is not None}
    temperature = _number(given, "temperature", 0.0)
    sampling = bool(given.get("do_sample", temperature > 0))
    if sampling and temperature == 0:
        raise OptionError("do_sample=True draws tokens, which needs a temperature above 0")
    if not sampling:
        given = {name: value for name, value in given.items() if name not in _SAMPLING_ONLY}
    for name, value in given.items():
        if name not in _HONOURED and value not in _IDLE.get(name, ()):
            raise OptionError(
                f"lens_lang cannot honour the generation setting {name}={value!r}; it knows "
                f"{', '.join(_HONOURED)}"
            )
    until = given.get("until", [])
    stop = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(each, str) for each in stop):
        raise OptionError(f"until must be a text or a list of texts, got {until!r}")
    lengths = [_number(given, name, 0) for name in _LENGTHS if name in given]
    return Decoding(
        new_tokens=int(lengths[0] if lengths else max_gen_toks),
        temperature=temperature if sampling else 0.0,
        top_p=_number(given, "top_p", 1.0),
        repetition_penalty=_number(given, "repetition_penalty", 1.0),
        stop=tuple(dict.fromkeys(each for each in [*stop, end] if each)),
        seed=int(_number(given, "seed", 0)),
    )


def _number(given: Mapping[str, Any], name: str, otherwise: float | int) -> float:
    try:
        return float(given.get(name, otherwise))
    except (TypeError, ValueError):
        raise OptionError(f"{name} must be a number, got {given[name]!r}") from None


def _read(name: str, value: Any) -> Any:
    kind, convert = _KINDS.get(name, ("text", str))
    try:
        return convert(value)
    except (TypeError, ValueError, AttributeError):
        raise OptionError(f"{name} must be {kind}, got {value!r}") from None


def _dtype(value: Any) -> torch.dtype | None:
    if value == "auto":
        return None
    found = getattr(torch, str(value).removeprefix("torch."))
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError
    return found


def _truth(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError
    return str(value).lower() == "true"


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError
    return int(value)


_KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "factor": ("a number", float),
    "dtype": ("auto or the name of a floating-point type, such as bfloat16", _dtype),
    "add_bos_token": ("True or False", _truth),
    **dict.fromkeys(
        ("seed", "batch_size", "max_batch_size", "max_length", "max_gen_toks"),
        ("a whole number", _whole),
    ),
}
