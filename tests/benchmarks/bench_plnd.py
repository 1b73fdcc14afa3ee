"""What PLND costs: over a plain forward pass, and beside the ways it replaces.

    python tests/benchmarks/bench_plnd.py          all three tables
    python tests/benchmarks/bench_plnd.py passes   ratios to a forward pass of real size
    python tests/benchmarks/bench_plnd.py queries  queries and keys, time and memory
    python tests/benchmarks/bench_plnd.py mlp      feed-forward, time and memory

*passes*: one document of 256 tokens through the packaged Gemma (a norm behind its MLPs, QK-norm)
and through a random Llama of the same size (neither); "plain" runs to the last block as the
scores do, "logits" is a whole ``model(tokens)``. Same process, alternating, median of five.

*queries*: one layer. "released" is what the published code does: a tensor of the changed scores
for every head, channel, query and key, its softmax, and the squared difference, which gives one
list for queries and keys. "removed" zeroes one column after another and runs the attention again
(16 columns, the rest extrapolated). Ours gives both lists. Memory is the peak beyond the inputs.
"""

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lens_lang.attention import Attention, AttentionRule, read_attention
from lens_lang.batches import TokenBatch
from lens_lang.first_order import first_order_importance
from lens_lang.models import PACKAGED, bridge, load_model
from lens_lang.removal import mlp_importance, pattern_importance, row_norms
from lens_lang.scoring import PLNDImportance
from lens_lang.sites import (
    ATTN_K,
    ATTN_PATTERN,
    ATTN_Q,
    ATTN_V,
    MLP_POST,
    RESID_POST,
    ROTARY_COS,
    ROTARY_SIN,
    n_layers,
    run_until,
)
from lens_lang.specs import Reading, Sums

ROUNDS = 5
LENGTH = 256


def medians(functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each function, run in turns; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


# --- passes ---


def scored_pass(model: Any, batch: TokenBatch, spec: PLNDImportance) -> Callable[[], None]:
    """One forward pass that scores everything the spec asks for, as `collect` runs it."""
    bound = spec.bind(model)

    def run() -> None:
        sums, seen = Sums(), {}

        def read(values: Any, hook: Any, site: Any, layer: int) -> None:
            held = seen.setdefault(layer, {})
            held[site] = values
            if len(held) == len(bound.sites):
                bound.update(sums, Reading(layer, seen.pop(layer), batch.mask))

        readers = [
            (site.at(layer), lambda values, hook, s=site, n=layer: read(values, hook, s, n))
            for layer in range(n_layers(model))
            for site in bound.sites
        ]
        run_until(model, batch.tokens, readers=readers)

    return run


def passes() -> None:
    """Ratios of scored passes to plain ones."""
    gemma = load_model(PACKAGED)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=10,
        num_key_value_heads=5,
        max_position_embeddings=512,
    )
    llama = bridge(LlamaForCausalLM(config).eval())
    for name, model in (("gemma-3-270m", gemma), ("llama of its size", llama)):
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(3, 30_000, (1, LENGTH), generator=generator)
        batch = TokenBatch(
            tokens, torch.ones_like(tokens, dtype=torch.bool), "en", None, torch.tensor([0])
        )
        last = RESID_POST.at(n_layers(model) - 1)

        def plain(model: Any = model, tokens: Any = tokens, last: str = last) -> None:
            run_until(model, tokens, readers=[(last, lambda values, hook: None)])

        def logits(model: Any = model, tokens: Any = tokens) -> None:
            with torch.inference_mode():
                model(tokens)

        queries = {"sites": (ATTN_Q, ATTN_K)}
        seconds = medians(
            {
                "plain": plain,
                "logits": logits,
                "mlp and v": scored_pass(model, batch, PLNDImportance(sites=(MLP_POST, ATTN_V))),
                "q and k, first order": scored_pass(
                    model, batch, PLNDImportance(mode="first_order", **queries)
                ),
                "q and k, exact": scored_pass(model, batch, PLNDImportance(**queries)),
                "everything": scored_pass(model, batch, PLNDImportance()),
            }
        )
        print(f"{name}, {LENGTH} tokens, {torch.get_num_threads()} threads, float32")
        for what, value in seconds.items():
            plainly, whole = value / seconds["plain"], value / seconds["logits"]
            print(f"  {what:22s} {value:7.3f} s   {plainly:5.2f} x plain {whole:5.2f} x logits")


# --- one layer ---


def layer(length: int, heads: int, kv_heads: int, d_head: int) -> Attention:
    """Random queries, keys and their causal pattern, with rotary embeddings."""
    generator = torch.Generator().manual_seed(0)
    shapes = {ATTN_Q: heads, ATTN_K: kv_heads, ATTN_V: kv_heads}
    values = {
        site: torch.randn(1, length, n, d_head, generator=generator) for site, n in shapes.items()
    }
    speed = 1e4 ** -(torch.arange(0, d_head, 2) / d_head)
    angle = torch.arange(length)[:, None] * torch.cat([speed, speed])
    values |= {ROTARY_COS: angle.cos()[None], ROTARY_SIN: angle.sin()[None]}
    rule = AttentionRule(scale=d_head**-0.5)
    draft = {**values, ATTN_PATTERN: torch.zeros(1, heads, length, length)}
    attention = read_attention(rule, draft, 0, length)
    keys = attention.k_turned.repeat_interleave(heads // kv_heads, 1)
    scores = torch.einsum("tnd,snd->nts", attention.q_turned, keys)
    hidden = ~torch.ones(length, length).tril().bool()
    pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return read_attention(rule, {**values, ATTN_PATTERN: pattern[None]}, 0, length)


def released(attention: Attention) -> torch.Tensor:
    """The published tensor form: head, query, key, channel at once; one list."""
    group = attention.group
    q = attention.q_turned.transpose(0, 1) * attention.q.shape[-1] ** 0.5
    k = attention.k_turned.repeat_interleave(group, 1).transpose(0, 1)
    hidden = torch.zeros_like(attention.pattern).masked_fill(attention.pattern == 0, -torch.inf)
    scores = (q @ k.transpose(1, 2)) * attention.q.shape[-1] ** -0.5
    delta = q[:, :, None, :] * k[:, None, :, :]
    changed = torch.softmax(scores[..., None] - delta + hidden[..., None], dim=2)
    return (changed - attention.pattern[..., None]).square().sum((1, 2)).flatten()


def removed(attention: Attention, columns: int = 16) -> None:
    """Zero one query column after another and run the attention again."""
    for column in range(columns):
        q = attention.q.clone()
        q[:, 0, column] = 0
        turned = q * attention.cos[:, None] + (q * attention.sin[:, None])[..., attention.partner]
        k = attention.k_turned.repeat_interleave(attention.group, 1)
        scores = torch.einsum("tnd,snd->nts", turned, k)
        pattern = scores.masked_fill(attention.pattern == 0, -torch.inf).softmax(-1)
        (pattern - attention.pattern).norm()


def ours(attention: Attention) -> None:
    """Both lists, exactly."""
    rows = torch.arange(len(attention.q))
    for side in ("q", "k"):
        pattern_importance(attention, rows, side)  # type: ignore[arg-type]


def ours_first_order(attention: Attention) -> None:
    """Both lists, to first order."""
    rows = torch.arange(len(attention.q))
    for side in ("q", "k"):
        first_order_importance(attention, rows, side)  # type: ignore[arg-type]


WAYS: dict[str, Callable[[Attention], Any]] = {
    "ours": ours,
    "first order": ours_first_order,
    "released": released,
    "removed": removed,
}
SHAPES = [(128, 4, 1, 256), (256, 4, 1, 256), (512, 4, 1, 256), (256, 8, 8, 64), (256, 16, 4, 64)]


def peak(function: Callable[[], Any]) -> float:
    """MiB beyond what is held before, at the highest point of a call (Linux)."""

    def held(what: str) -> float:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024

    function()  # code and thread pools are loaded now
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
    before = held("VmRSS")
    function()
    return max(held("VmHWM") - before, 0.0)


def in_fresh_process(*arguments: Any) -> float:
    """Peak memory of one way at one shape, where nothing else has been."""
    command = [sys.executable, __file__, "peak", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def queries() -> None:
    """Queries and keys of one layer, as length and width grow."""
    print("queries and keys of one layer: seconds (peak MiB); removed is extrapolated")
    for shape in SHAPES:
        length, heads, kv_heads, d_head = shape
        attention = layer(*shape)
        with torch.inference_mode():
            seconds = medians({name: partial(way, attention) for name, way in WAYS.items()})
        # one list of query columns; ours and the released code's are whole
        seconds["removed"] *= (heads + kv_heads) * d_head / 16
        memory = {name: in_fresh_process("queries", name, *shape) for name in WAYS}
        cells = "  ".join(f"{n} {seconds[n]:.3f} ({memory[n]:.0f})" for n in WAYS)
        faster = seconds["released"] / seconds["ours"]
        print(
            f"  {length} tokens, {heads}/{kv_heads} heads of {d_head}:  {cells}   "
            f"{faster:.1f} x faster, 1/{memory['released'] / max(memory['ours'], 1):.0f} memory"
        )


def masked_mlp(post: torch.Tensor, w_out: torch.Tensor) -> None:
    """The paper's diagonal mask: the down-projection of each unit alone, 16 units at a time."""
    for units in torch.arange(len(w_out)).split(16):
        (post[:, units, None] * w_out[units]).square().sum((0, 2)).sqrt()


def mlp() -> None:
    """Feed-forward scores of one layer, as length and width grow."""
    print("feed-forward of one layer: milliseconds")
    for length, d_model, d_mlp in ((256, 640, 2048), (512, 640, 2048), (256, 1024, 4096)):
        generator = torch.Generator().manual_seed(0)
        post = torch.randn(length, d_mlp, generator=generator)
        w_out = torch.randn(d_mlp, d_model, generator=generator)
        seconds = medians(
            {
                "ours": lambda post=post, w=w_out: mlp_importance(post, row_norms(w)),
                "masked": lambda post=post, w=w_out: masked_mlp(post, w),
            }
        )
        faster = seconds["masked"] / seconds["ours"]
        print(
            f"  {length} tokens, {d_model} x {d_mlp}: ours {1000 * seconds['ours']:.2f}, "
            f"diagonal mask {1000 * seconds['masked']:.0f}   {faster:.0f} x faster"
        )


def main() -> None:
    """Print what was asked for."""
    if sys.argv[1:2] == ["peak"]:
        _, name, *shape = json.loads(sys.argv[2])
        attention = layer(*shape)
        with torch.inference_mode():
            print(peak(lambda: WAYS[name](attention)))
        return
    tables = {"passes": passes, "queries": queries, "mlp": mlp}
    for name in sys.argv[1:] or tables:
        tables[name]()


if __name__ == "__main__":
    main()
