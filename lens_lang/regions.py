"""The regions of a model in the MWork story: understand, think, generate (Zhao et al. 2024)."""

from dataclasses import dataclass

import torch

from lens_lang.errors import OptionError
from lens_lang.neurons import NeuronSet
from lens_lang.sites import MLP_POST, MLP_PRE, MLP_UP, Site

_MLP = (MLP_PRE, MLP_UP, MLP_POST)


@dataclass(frozen=True)
class Regions:
    """Which layers understand a language, which solve the task, which generate.

    The first layers turn the input into something common to all languages, the last ones turn
    the answer into the target language; between them attention and MLPs do different things and
    are regions of their own.

    Attributes:
        understanding: How many of the first layers; below 1, a share of all.
        generation: How many of the last layers; below 1, a share of all. The paper tuned both on
            XQuAD: 8 and 2 of 32 layers for Vicuna-7B, 6 and 3 of 32 for Mistral-7B.

    Examples:
        >>> regions = Regions(understanding=0.25, generation=0.06)
        >>> {name: (layers[0], layers[-1]) for name, layers in regions.layers(32).items()}
        {'understanding': (0, 7), 'task': (8, 29), 'generation': (30, 31)}
    """

    understanding: int | float = 0.25
    generation: int | float = 0.06

    def __post_init__(self) -> None:
        for name in ("understanding", "generation"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must not be negative, got {getattr(self, name)}")

    def layers(self, n_layers: int) -> dict[str, range]:
        """Return the layers of understanding, task solving and generation.

        A share that is not 0 gets at least one layer.

        Raises:
            OptionError: No layer is left for the task.
        """
        first, last = (_number(part, n_layers) for part in (self.understanding, self.generation))
        if first + last >= n_layers:
            raise OptionError(
                f"{first} layers of understanding and {last} of generation leave none of "
                f"{n_layers} for the task"
            )
        return {
            "understanding": range(first),
            "task": range(first, n_layers - last),
            "generation": range(n_layers - last, n_layers),
        }

    def split(self, neurons: NeuronSet) -> dict[str, NeuronSet]:
        """Divide neurons among the regions.

        Args:
            neurons: Neurons at any sites of MLPs and attention.

        Returns:
            ``understanding``, ``task_attention``, ``task_mlp`` and ``generation``; each neuron
            is in exactly one of them.
        """
        n_layers = len(next(iter(neurons.masks.values())))
        layers = self.layers(n_layers)
        mlp = tuple(site for site in neurons.sites if site in _MLP)
        attention = tuple(site for site in neurons.sites if site not in _MLP)
        return {
            "understanding": _inside(neurons, layers["understanding"], neurons.sites),
            "task_attention": _inside(neurons, layers["task"], attention),
            "task_mlp": _inside(neurons, layers["task"], mlp),
            "generation": _inside(neurons, layers["generation"], neurons.sites),
        }


def _number(part: int | float, n_layers: int) -> int:
    return max(round(part * n_layers), 1) if 0 < part < 1 else int(part)


def _inside(neurons: NeuronSet, layers: range, sites: tuple[Site, ...]) -> NeuronSet:
    masks = {}
    for site, mask in neurons.masks.items():
        kept = torch.zeros_like(mask)
        if site in sites and len(layers):
            kept[layers.start : layers.stop] = mask[layers.start : layers.stop]
        masks[site] = kept
    return NeuronSet(masks)
