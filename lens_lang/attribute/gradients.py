"""How much an answer depends on each MLP neuron, by gradients through the rest of the model.

Gradient times activation is what the answer's score would lose, to first order, if the neuron were
off. Integrated gradients follow the score as the neurons of one layer together write nothing, then
more and more of what they write; their sum over the layer is the whole change (completeness).

What is scaled on that path is what reaches the residual stream. Without a norm behind the MLP that
is the same as scaling the activations. With one (Gemma 2 and 3) scaled activations would come out
of the norm unscaled, all the way down to 0, and the whole change would hide in the last step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.attention import widened
from lens_lang.attribute.scores import (
    Answers,
    NeuronScores,
    answer_tokens,
    batches_with_numbers,
    prompt_languages,
    scores_provenance,
    texts_of,
)
from lens_lang.attribute.writing import Writing, check_writing
from lens_lang.batches import TokenBatch
from lens_lang.errors import ActivationError, OptionError
from lens_lang.lens import Prompts, prepare
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import at_last_token, last_tokens
from lens_lang.readout import chunks, read_logits
from lens_lang.sites import (
    MLP_OUT,
    MLP_POST,
    RESID_POST,
    FwdHooks,
    HookedModel,
    Site,
    model_name,
    n_layers,
    preflight,
    run_until,
)
from lens_lang.specs import Reading

Objective = Literal["logit", "log_probability"]
"""What of the answer's token is attributed."""

_ROWS = 16
"""Points of the integral that go through the model together."""


def gradient_attribution(
    model: HookedModel,
    prompts: Prompts | ParallelCorpora,
    answers: Answers = None,
    *,
    method: Literal["gradient_x_activation", "integrated_gradients"] = "gradient_x_activation",
    objective: Objective = "logit",
    positions: Literal["last", "all"] = "last",
    steps: int = 64,
    fwd_hooks: FwdHooks = (),
    batch_size: int = 4,
) -> NeuronScores:
    """Attribute the score of each prompt's answer to the MLP neurons.

    Args:
        model: The model. Whether its weights ask for gradients is of no matter, and is left as it
            was.
        prompts: Texts by language, or of no stated language; corpora; or parallel examples.
        answers: One per prompt; see `lens_lang.effective_score`.
        method: ``"gradient_x_activation"``: one pass for all layers. ``"integrated_gradients"``:
            one layer after the other, from writing nothing to what it writes, by Gauss-Legendre
            quadrature; exact up to that.
        objective: The answer's logit, or its log-probability.
        positions: Attribute to the neurons at the last token, or at all tokens but BOS, summed.
        steps: Points of the quadrature.
        fwd_hooks: Interventions under which to attribute; they act before the neurons are read.
        batch_size: Prompts per pass, for gradient times activation.

    Returns:
        One score per prompt and neuron, as many as `contribution` returns. For integrated
        gradients with the change that each layer's scores add up to, and `completeness_error`.

    Raises:
        OptionError: An option is out of its range, or there is not one answer per prompt.
        CorpusError: A prompt is empty, too long, or tokenised for another model.
        SiteError: A hook point does not exist, comes after the last block, or, for integrated
            gradients, changes what an MLP adds behind its neurons.
        ModelError: The model's logits are not read this way.
        ActivationError: NaN or infinity.
    """
    if method not in ("gradient_x_activation", "integrated_gradients"):
        raise OptionError(
            f"method must be gradient_x_activation or integrated_gradients, got {method!r}"
        )
    if objective not in ("logit", "log_probability"):
        raise OptionError(f"objective must be logit or log_probability, got {objective!r}")
    if positions not in ("last", "all"):
        raise OptionError(f"positions must be last or all, got {positions!r}")
    if steps < 1:
        raise OptionError(f"steps must be at least 1, got {steps}")
    texts = texts_of(model, prompts)
    tokens = answer_tokens(model, prompts, answers, texts)
    prepare(model, texts, fwd_hooks)
    preflight(model, [MLP_POST])
    integrated = method == "integrated_gradients"
    layers = check_writing(model, fwd_hooks) if integrated else []
    paths = _Paths(model, objective, positions, fwd_hooks, layers)
    values, change = [], []
    with _frozen(model):
        for batch, numbers in batches_with_numbers(texts, 1 if integrated else batch_size):
            answer = tokens[numbers]
            if integrated:
                found = [
                    paths.integrate(batch, answer, layer, steps) for layer in range(len(layers))
                ]
                values.append(torch.stack([scores for scores, _ in found])[None])
                change.append(torch.stack([whole for _, whole in found])[None])
            else:
                values.append(paths.gradient_x_activation(batch, answer))
    scores = torch.cat(values)
    if not bool(torch.isfinite(scores.sum())):
        raise ActivationError(f"{model_name(model)} gave NaN or infinite gradients on a prompt")
    options: dict[str, Any] = {"method": method, "objective": objective, "positions": positions}
    if integrated:
        options["steps"] = steps
    return NeuronScores(
        prompt_languages(texts),
        scores,
        torch.cat(change) if change else None,
        provenance=scores_provenance(model, texts, fwd_hooks, options),
    )


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Let no weight ask for a gradient: what a pass keeps then begins at the neurons."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


class _Paths:
    """From a layer's neurons to an answer's score, with gradients."""

    def __init__(
        self,
        model: HookedModel,
        objective: Objective,
        positions: Literal["last", "all"],
        fwd_hooks: FwdHooks,
        layers: Sequence[Writing],
    ) -> None:
        self.model, self.objective, self.fwd_hooks = model, objective, fwd_hooks
        self.positions = positions
        self.last = n_layers(model) - 1
        self.layers = layers

    def gradient_x_activation(
        self, batch: TokenBatch, answer: Int[Tensor, "row"]
    ) -> Float[Tensor, "row layer neuron"]:
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def watch(values: Tensor, hook: Any, layer: int) -> Tensor:
            # a sum with zeros has a gradient even where all weights are frozen
            zeros = torch.zeros_like(values, requires_grad=True)
            seen[layer] = (values.detach(), zeros)
            return values + zeros

        watchers = [
            (MLP_POST.at(layer), partial(watch, layer=layer)) for layer in range(self.last + 1)
        ]
        score = self._score(batch, answer, watchers)
        layers = sorted(seen)
        gradients = torch.autograd.grad(score.sum(), [seen[layer][1] for layer in layers])
        chosen = self._positions(batch)
        return torch.stack(
            [
                (widened(seen[layer][0]) * widened(gradient)).mul(chosen.to(gradient.device)).sum(1)
                .cpu()
                for layer, gradient in zip(layers, gradients, strict=True)
            ],
            dim=1,
        )  # fmt: skip

    def integrate(
        self, batch: TokenBatch, answer: Int[Tensor, "one"], layer: int, steps: int
    ) -> tuple[Float[Tensor, "neuron"], Float[Tensor, ""]]:
        """One layer's integrated gradients on one prompt, and the change that they explain."""
        import numpy as np

        nodes, weights = np.polynomial.legendre.leggauss(steps)
        # [-1, 1] to [0, 1]; the ends of the path come along for the change they make
        scales = torch.tensor([*((nodes + 1) / 2), 0.0, 1.0], dtype=torch.float64)
        parts = torch.tensor([*(weights / 2), 0.0, 0.0], dtype=torch.float64)
        writes, chosen = self.layers[layer], self._positions(batch)[0]
        found: list[Tensor] = []
        slope: Tensor | None = None
        read: dict[Site, Tensor] = {}
        for start in range(0, len(scales), _ROWS):
            some, part = scales[start : start + _ROWS], parts[start : start + _ROWS]
            moving: list[Tensor] = []
            path = partial(_grow, scales=some, chosen=chosen, writes=writes, read=read, held=moving)
            rows = TokenBatch(
                batch.tokens.expand(len(some), -1),
                batch.mask.expand(len(some), -1),
                batch.language,
                None,
                batch.documents.expand(len(some)),
            )
            watchers: FwdHooks = [
                *((site.at(layer), partial(_note, site=site, read=read)) for site in writes.sites),
                (MLP_OUT.at(layer), path),
            ]
            score = self._score(rows, answer.expand(len(some)), watchers)
            (gradient,) = torch.autograd.grad(score.sum(), moving)
            weighted = (widened(gradient) * part.to(gradient)[:, None, None]).sum(0)
            slope = weighted if slope is None else slope + weighted
            found.append(score.detach().cpu().double())
        assert slope is not None  # there are at least the two ends
        one = {site: values[0] for site, values in read.items()}
        per_neuron = widened(one[MLP_POST]) / writes.divisor(one) * writes.read_by(slope)
        ends = torch.cat(found)
        total = (per_neuron * chosen.to(per_neuron)).sum(0)
        return total.cpu().double(), ends[-1] - ends[-2]

    def _positions(self, batch: TokenBatch) -> Float[Tensor, "row pos 1"]:
        """1 where neurons are attributed to, else 0."""
        counted = batch.mask
        if self.positions == "last":
            places = last_tokens(Reading(0, {}, counted))
            counted = torch.arange(counted.shape[1])[None] == places[:, None]
        return counted[..., None].float()

    def _score(
        self, batch: TokenBatch, answer: Int[Tensor, "row"], watchers: FwdHooks
    ) -> Float[Tensor, "row"]:
        """The answers' scores at the last token; the unembedding sees no other."""
        held: list[Tensor] = []

        def keep(resid: Tensor, hook: Any) -> None:
            held.append(
                at_last_token(Reading(self.last, {RESID_POST: resid}, batch.mask), RESID_POST)
            )

        run_until(
            self.model,
            batch.tokens,
            attention_mask=batch.attention_mask,
            fwd_hooks=[*self.fwd_hooks, *watchers],
            readers=[(RESID_POST.at(self.last), keep)],
            gradients=True,
        )
        with torch.enable_grad():
            parts = [
                _of_answers(self.model, held[0][some], answer[some], self.objective)
                for some in chunks(self.model, len(answer))
            ]
        return torch.cat(parts)


def _of_answers(
    model: HookedModel,
    resid: Float[Tensor, "row d_model"],
    answer: Int[Tensor, "row"],
    objective: Objective,
) -> Float[Tensor, "row"]:
    logits = read_logits(model, resid)
    chosen = logits.gather(1, answer.to(logits.device)[:, None])[:, 0]
    return chosen if objective == "logit" else chosen - logits.logsumexp(1)


def _note(values: Tensor, hook: Any, site: Site, read: dict[Site, Tensor]) -> None:
    read[site] = values.detach()


def _grow(
    values: Tensor,
    hook: Any,
    scales: Float[Tensor, "row"],
    chosen: Float[Tensor, "pos 1"],
    writes: Writing,
    read: dict[Site, Tensor],
    held: list[Tensor],
) -> Tensor:
    """Let each row's neurons write its share of what they do write, at the chosen tokens."""
    whole = values.detach()
    written = whole - (writes.bias / writes.divisor(read)).to(whole)
    less = chosen.to(whole) * (1 - scales.to(whole)[:, None, None])
    held[:] = [(whole - less * written).requires_grad_()]
    return held[0]
