"""Fine-tuning of exactly the chosen neurons: nothing else in the model moves by a bit.

The chosen entries of the weights are copied into float32 parameters, which are all that the
optimiser sees: its state is as large as they are, and neither its weight decay nor its momentum
reaches anything else. After every step they are written back into the model's own dtype. Gradients
of whole weights exist one at a time, and only until the chosen entries are taken out of them.
"""

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.batches import TokenBatch
from lens_lang.corpora import Corpora, check_fits
from lens_lang.delta import Delta, WeightChange
from lens_lang.errors import ActivationError, CorpusError, ModelError, OptionError, StorageError
from lens_lang.evaluate.nll import DocumentNLL, document_nll, scored_positions, token_nll
from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.fingerprint import weights_digest
from lens_lang.neurons import NeuronSet, random_like
from lens_lang.progress import progress_bar
from lens_lang.readout import chunks
from lens_lang.sites import (
    RESID_POST,
    HookedModel,
    check_supported,
    model_name,
    n_layers,
    run_until,
)
from lens_lang.storage import read_tensors, versions, write_tensors
from lens_lang.weights import WeightSlice, neuron_weights

logger = logging.getLogger(__name__)

Optimiser = Callable[..., torch.optim.Optimizer]
"""Called with the trained parameters and ``lr=``."""


@dataclass(frozen=True)
class Recipe:
    """How to train, apart from how long and how fast.

    Attributes:
        batch_size: Rows per forward and backward pass.
        accumulation: Passes per step; their gradients are averaged by token.
        warmup: Share of the steps in which the rate rises from 0; it falls as a cosine after.
        checkpointing: Keep only what enters each block and run it again going back: less memory,
            a third more time.
        max_norm: The gradient of the chosen entries is shortened to this length; None leaves it.
        optimiser: Any of torch's, or a function of parameters and ``lr``; its weight decay acts
            on the chosen entries only. AdamW by default.
        evaluate_every: Steps between looks at held-out text.
        patience: Stop after so many looks without improvement, and keep the best; None never
            stops early.
        save_every: Steps between checkpoints in a run folder.
        seed: Of the order of the rows, and of the random neurons of controls.
        progress: Show a bar on stderr, in a terminal or a notebook.
    """

    batch_size: int = 8
    accumulation: int = 1
    checkpointing: bool = False
    warmup: float = 0.05
    max_norm: float | None = 1.0
    optimiser: Optimiser = torch.optim.AdamW
    evaluate_every: int = 10
    patience: int | None = None
    save_every: int = 20
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise OptionError(f"warmup is a share of the steps below 1, got {self.warmup}")
        if self.max_norm is not None and not self.max_norm > 0:
            raise OptionError(f"max_norm must be above 0, got {self.max_norm}")
        if self.patience is not None and self.patience < 1:
            raise OptionError(f"patience must be at least 1, got {self.patience}")


@dataclass(frozen=True, eq=False)
class Tuned:
    """What fine-tuning did.

    Attributes:
        delta: The change of the weights; it is in the model.
        losses: NLL in nats per token of each step's text, before the step.
        held_out: NLL of held-out text before and after, by language, beside the same training
            of as many random neurons; None where no text was held out. Row ``tuned``.
    """

    delta: Delta
    losses: Float[Tensor, "step"]
    held_out: PerplexityMatrix | None = None

    def __repr__(self) -> str:
        return (
            f"Tuned({len(self.losses)} steps, {self.losses[0]:.3f} to {self.losses[-1]:.3f} nats "
            f"per token; {self.delta!r})"
        )


def tune(
    model: HookedModel,
    neurons: NeuronSet,
    corpora: Corpora,
    *,
    steps: int,
    lr: float = 1e-4,
    held_out: Corpora | None = None,
    controls: int = 0,
    recipe: Recipe | None = None,
    run_dir: str | Path | None = None,
) -> Tuned:
    """Train the weights of chosen neurons to predict text, and nothing else.

    Zhao et al. (2024) enhance a language by training its neurons on a few hundred documents. A
    unit of an MLP is trained in W_gate, W_up, their biases and W_down; a query, key or value
    neuron in its projection and bias; an output neuron in W_O.

    Args:
        model: A raw TransformerBridge. Trained in place; ``tuned.delta.remove(model)`` undoes it.
        neurons: The neurons to train.
        corpora: Text to train on.
        steps: Steps of the optimiser.
        lr: Highest learning rate.
        held_out: Text to judge on, of any languages; needed for `controls` and for stopping
            early, which watches the languages that are also trained on.
        controls: Train so many random sets of the same size per site and layer as well, each
            from the model as it was, and report them beside.
        recipe: Everything else.
        run_dir: Folder for checkpoints; the same call continues there after an interruption and
            ends with the same weights.

    Returns:
        The change, the losses, and held-out text before and after.

    Raises:
        OptionError: There are no neurons, or a number is out of range.
        ModelError: The weights cannot be trained in place.
        ActivationError: The loss became NaN or infinite; the weights are as before the call.
        StorageError: The run folder belongs to another run.
    """
    recipe = recipe or Recipe()
    if steps < 1:
        raise OptionError(f"steps must be at least 1, got {steps}")
    if not 0 < lr < math.inf:
        raise OptionError(f"lr must be a number above 0, got {lr}")
    if held_out is None and (controls or recipe.patience):
        raise OptionError("Controls and patience need held_out, text that is not trained on")
    if len(neurons) == 0:
        raise OptionError("There are no neurons to train: the set is empty")
    check_supported(model)
    check_fits(corpora, model.cfg)
    described = {
        "model": model_name(model),
        "weights": weights_digest(model),
        "neurons": {site.name: int(mask.sum()) for site, mask in neurons.masks.items()},
        "neurons digest": neurons.digest,
        "corpora": corpora.describe(),
        "steps": steps,
        "lr": lr,
        "recipe": {**asdict(recipe), "optimiser": _name(recipe.optimiser)},
    }
    folder = None if run_dir is None else Path(run_dir)
    before = {} if held_out is None else document_nll(model, held_out)
    runs: list[dict[str, DocumentNLL]] = []
    generator = torch.Generator().manual_seed(recipe.seed)
    plan = _Plan(corpora, held_out, steps, lr, recipe)
    for control in range(controls):
        drawn = random_like(neurons, generator=generator)
        where = None if folder is None else folder / f"control-{control}"
        delta, _ = _train(model, drawn, plan, where, {**described, "control": control})
        runs.append(document_nll(model, held_out) if held_out is not None else {})
        delta.remove(model)
    delta, losses = _train(model, neurons, plan, folder, described)
    if held_out is None:
        return Tuned(delta, losses)
    runs.insert(0, document_nll(model, held_out))
    documents = {
        lang: DocumentNLL(
            torch.cat([first.nll, *(run[lang].nll for run in runs)]), first.n_tokens, first.n_bytes
        )
        for lang, first in before.items()
    }
    provenance = {**described, "held out": held_out.describe(), "versions": versions()}
    matrix = PerplexityMatrix(("tuned",), tuple(documents), documents, controls, provenance)
    return Tuned(delta, losses, matrix)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is the same for the chosen neurons and for their controls."""

    corpora: Corpora
    held_out: Corpora | None
    steps: int
    lr: float
    recipe: Recipe

    def batches(self) -> Iterator[list[TokenBatch]]:
        """Yield the passes of every step; each round through the text has its own order."""
        rows = list(self.corpora.batches(self.recipe.batch_size))
        if not any(bool(scored_positions(row).any()) for row in rows):
            raise CorpusError("There is no token to learn: every row has one token only")
        order = self._order(len(rows))
        for _ in range(self.steps):
            yield [rows[next(order)] for _ in range(self.recipe.accumulation)]

    def _order(self, length: int) -> Iterator[int]:
        shuffled = random.Random(self.recipe.seed)
        while True:
            yield from shuffled.sample(range(length), length)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear up, cosine down."""
        warmup = round(self.recipe.warmup * self.steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = (step - warmup) / max(self.steps - warmup, 1)
        return self.lr * (1 + math.cos(math.pi * done)) / 2

    def watched(self) -> Corpora | None:
        """The held-out text of the languages that are trained on."""
        if self.held_out is None or self.recipe.patience is None:
            return None
        common = [lang for lang in self.held_out.languages if lang in self.corpora.languages]
        if not common:
            raise OptionError(
                "patience watches held-out text of the languages trained on, and there is none: "
                f"{', '.join(self.held_out.languages)} and {', '.join(self.corpora.languages)}"
            )
        documents = {lang: self.held_out.documents[lang] for lang in common}
        return Corpora(documents, bos_id=self.held_out.bos_id)


@dataclass
class _State:
    """Everything that training changes."""

    masters: list[Tensor]
    optimiser: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    best: list[Tensor] = field(default_factory=list)
    best_nll: float = math.inf
    worse: int = 0

    @property
    def step(self) -> int:
        return len(self.losses)


def _train(
    model: HookedModel,
    neurons: NeuronSet,
    plan: _Plan,
    folder: Path | None,
    described: Mapping[str, Any],
) -> tuple[Delta, Float[Tensor, "step"]]:
    recipe, watched = plan.recipe, plan.watched()
    slices = _joined(neuron_weights(model, neurons))
    original = [some.read() for some in slices]
    masters = [torch.nn.Parameter(values.to(torch.float32, copy=True)) for values in original]
    state = _State([*masters], recipe.optimiser(masters, lr=plan.lr))
    if folder is not None:
        _resume(folder, state, described)
    bar = progress_bar(
        recipe.progress, total=plan.steps, unit="step", label="tune", done=state.step
    )
    shown: dict[str, float] = {}
    try:
        _write(slices, state.masters)
        saving = _checkpointing(model) if recipe.checkpointing else nullcontext()
        with saving, _learning(model, slices, masters):
            for number, passes in enumerate(plan.batches()):
                if number < state.step:
                    continue
                if recipe.patience is not None and state.worse >= recipe.patience:
                    break
                for group in state.optimiser.param_groups:
                    group["lr"] = plan.rate(number)
                losses = _step(model, state, passes, recipe.max_norm)
                _write(slices, state.masters)
                state.losses.append(_mean(losses))
                shown.update({lang: round(total / n, 3) for lang, (total, n) in losses.items()})
                bar.set_postfix(shown, refresh=False)
                bar.update()
                if watched is not None and state.step % recipe.evaluate_every == 0:
                    _look(model, watched, state)
                last = state.step == plan.steps
                if folder is not None and (last or state.step % recipe.save_every == 0):
                    _save(folder, state, described)
    except BaseException:
        _write(slices, original)  # the model is left as it was; a run folder has the checkpoint
        raise
    finally:
        bar.close()
    if state.best:
        _write(slices, state.best)
    changes = {
        some.name: WeightChange(some.axis, some.indices, values.cpu(), some.read().cpu())
        for some, values in zip(slices, original, strict=True)
    }
    provenance = {**described, "steps done": state.step, "versions": versions()}
    return Delta(changes, provenance), torch.tensor(state.losses)


def _step(
    model: HookedModel, state: _State, passes: Sequence[TokenBatch], max_norm: float | None
) -> dict[str, tuple[float, int]]:
    """One step of the optimiser; return each language's NLL and number of tokens."""
    state.optimiser.zero_grad(set_to_none=True)
    total = sum(int(scored_positions(batch).sum()) for batch in passes)
    losses: dict[str, tuple[float, int]] = {}
    for batch in passes:
        n_tokens = int(scored_positions(batch).sum())
        if not n_tokens:
            continue
        nll = _backward(model, batch, total)
        held = losses.get(batch.language, (0.0, 0))
        losses[batch.language] = (held[0] + nll, held[1] + n_tokens)
    if not math.isfinite(_mean(losses)):
        raise ActivationError(
            f"The loss of {model_name(model)} became {_mean(losses)} in step {state.step}: the "
            "weights are as they were before. Use a smaller lr, or bfloat16 instead of float16"
        )
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.masters, max_norm)
    state.optimiser.step()
    return losses


def _backward(model: HookedModel, batch: TokenBatch, n_tokens: int) -> float:
    """Add the gradient of a batch's NLL over `n_tokens`; return its NLL.

    The unembedding is not trained, so its logits exist a chunk at a time: each chunk's gradient
    is taken back to the residual stream at once, and from there through the blocks together.
    """
    rows, places = scored_positions(batch).nonzero(as_tuple=True)
    held: list[Tensor] = []

    def keep(resid: Tensor, hook: Any) -> None:
        held.append(resid[rows.to(resid.device), places.to(resid.device) - 1])

    run_until(
        model,
        batch.tokens,
        attention_mask=batch.attention_mask,
        readers=[(RESID_POST.at(n_layers(model) - 1), keep)],
        gradients=True,
    )
    (resid,) = held
    targets = batch.tokens[rows, places].to(resid.device)
    gradient = torch.empty_like(resid)
    total = 0.0
    for some in chunks(model, len(resid)):
        chunk = resid[some].detach().requires_grad_()
        with torch.enable_grad():
            nll = token_nll(model, chunk, targets[some]).sum()
        (gradient[some],) = torch.autograd.grad(nll / n_tokens, chunk)
        total += float(nll.detach())
    torch.autograd.backward([resid], [gradient])
    return total


def _mean(losses: Mapping[str, tuple[float, int]]) -> float:
    return sum(nll for nll, _ in losses.values()) / max(sum(n for _, n in losses.values()), 1)


@contextmanager
def _learning(
    model: HookedModel, slices: Sequence[WeightSlice], masters: Sequence[Tensor]
) -> Iterator[None]:
    """Let only the chosen weights have gradients, and hand these to the masters."""
    parameters = list(model.parameters())  # type: ignore[attr-defined]
    wanted = [parameter.requires_grad for parameter in parameters]
    handles = []

    def take(parameter: Tensor, some: WeightSlice, master: Tensor) -> None:
        assert parameter.grad is not None  # the hook runs when it has just been made
        chosen = some.read(parameter.grad).to(master)
        master.grad = chosen if master.grad is None else master.grad + chosen
        parameter.grad = None

    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for some, master in zip(slices, masters, strict=True):
            some.parameter.requires_grad_(True)
            hook = partial(take, some=some, master=master)
            handles.append(some.parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(before)


@contextmanager
def _checkpointing(model: HookedModel) -> Iterator[None]:
    """Run every block again in the backward pass, rather than keep what it computed.

    The layers of `transformers` can, but only in training mode; that is set for the layers alone,
    whose own dropout is set to 0, so that nothing else behaves as in training.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    hf_model = getattr(model, "original_model", None)
    modules = [] if hf_model is None else hf_model.modules()
    layers = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
    if hf_model is None or not layers:
        raise ModelError(
            f"The layers of {model_name(model)} cannot be run again in the backward pass: use "
            "checkpointing=False, and a smaller batch_size with accumulation to save memory"
        )
    kept = [(layer, layer.training, getattr(layer, "dropout", None)) for layer in layers]
    use_cache = hf_model.config.use_cache
    # `transformers` renamed them within the versions that we take
    kind = "activation" if hasattr(hf_model, "activation_checkpointing_enable") else "gradient"
    try:
        getattr(hf_model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        hf_model.config.use_cache = False  # a second run would find its own keys in it
        for layer, _, dropout in kept:
            layer.training = True
            if isinstance(dropout, float):
                layer.dropout = 0.0
        yield
    finally:
        getattr(hf_model, f"{kind}_checkpointing_disable")()
        hf_model.config.use_cache = use_cache
        for layer, training, dropout in kept:
            layer.training = training
            if isinstance(dropout, float):
                layer.dropout = dropout


def _joined(slices: Iterable[WeightSlice]) -> list[WeightSlice]:
    """Make one slice per weight: neurons at two sites may be made of the same."""
    joined: dict[str, WeightSlice] = {}
    for some in slices:
        indices = some.indices
        if some.name in joined:
            indices = torch.tensor(sorted({*joined[some.name].indices.tolist(), *indices.tolist()}))
        joined[some.name] = WeightSlice(some.name, some.site, some.parameter, some.axis, indices)
    return list(joined.values())


def _write(slices: Sequence[WeightSlice], values: Sequence[Tensor]) -> None:
    for some, value in zip(slices, values, strict=True):
        some.write(value.detach())


def _look(model: HookedModel, watched: Corpora, state: _State) -> None:
    """Judge on held-out text, and remember the best weights."""
    found = document_nll(model, watched).values()
    nll = sum(float(docs.nll.sum()) for docs in found) / sum(int(d.n_tokens.sum()) for d in found)
    if nll < state.best_nll:
        state.best_nll, state.worse = nll, 0
        state.best = [master.detach().clone() for master in state.masters]
    else:
        state.worse += 1


def _name(optimiser: Optimiser) -> str:
    return str(getattr(optimiser, "__name__", type(optimiser).__name__))


def _save(folder: Path, state: _State, described: Mapping[str, Any]) -> None:
    tensors = {f"master.{i}": master for i, master in enumerate(state.masters)}
    tensors |= {f"best.{i}": best for i, best in enumerate(state.best)}
    numbers: dict[str, Any] = {}
    for i, held in state.optimiser.state_dict()["state"].items():
        for key, value in held.items():
            if isinstance(value, Tensor):
                tensors[f"state.{i}.{key}"] = value
            else:
                numbers[f"state.{i}.{key}"] = value
    header = {
        "run": dict(described),
        "losses": state.losses,
        "numbers": numbers,
        "best_nll": None if math.isinf(state.best_nll) else state.best_nll,
        "worse": state.worse,
    }
    write_tensors(folder / "tuning.safetensors", "Tuning", header, tensors)


def _resume(folder: Path, state: _State, described: Mapping[str, Any]) -> None:
    """Continue from a checkpoint of the same run, if there is one."""
    path = folder / "tuning.safetensors"
    if not path.exists():
        return
    _, header, tensors = read_tensors(path, "Tuning")
    if header["run"] != dict(described):
        differing = [k for k in described if header["run"].get(k) != described[k]]
        raise StorageError(
            f"{folder} holds another run: it differs in {', '.join(differing)}. Use another folder"
        )
    for i, master in enumerate(state.masters):
        master.data.copy_(tensors[f"master.{i}"])
        if f"best.{i}" in tensors:
            state.best.append(tensors[f"best.{i}"].to(master))
    held: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *header["numbers"].items()]:
        kind, _, rest = key.partition(".")
        if kind == "state":
            index, _, name = rest.partition(".")
            held.setdefault(int(index), {})[name] = value
    groups = state.optimiser.state_dict()["param_groups"]
    state.optimiser.load_state_dict({"state": held, "param_groups": groups})
    state.losses = [float(x) for x in header["losses"]]
    state.best_nll = math.inf if header["best_nll"] is None else header["best_nll"]
    state.worse = int(header["worse"])
