"""The closed forms give what removing each neuron gives, to the last digits that float64 has."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, hf_model
from float64 import in_float64, tiny64
from hypothesis import given
from hypothesis import strategies as st

from lens_lang.attention import Attention, AttentionRule, RMSNorm, read_attention
from lens_lang.first_order import first_order_importance
from lens_lang.models import bridge
from lens_lang.neurons import NeuronSet
from lens_lang.removal import (
    NormedOutput,
    mlp_importance,
    mlp_importance_behind_norm,
    pattern_importance,
    released_pattern_score,
    row_norms,
    value_gram,
    value_importance,
)
from lens_lang.scoring import PLNDImportance
from lens_lang.sites import (
    ATTN_K,
    ATTN_PATTERN,
    ATTN_Q,
    ATTN_V,
    ATTN_Z,
    MLP_OUT,
    MLP_POST,
    ROTARY_COS,
    ROTARY_SIN,
    Site,
    flat_neurons,
)
from lens_lang.specs import Reading
from lens_lang.weights import neuron_weights

GOLDEN = Path(__file__).parent / "golden" / "plnd_llama_tiny.pt"


def close(found: torch.Tensor, expected: torch.Tensor, *, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


# --- golden case 1: weights, inputs and scores that were computed by removing columns one by one


@cache
def golden() -> dict[str, Any]:
    return torch.load(GOLDEN, weights_only=True)


def angles(n_tokens: int, d_head: int, theta: float) -> torch.Tensor:
    speed = theta ** -(torch.arange(0, d_head, 2).double() / d_head)
    turned = torch.arange(n_tokens).double()[:, None] * speed
    return torch.cat([turned, turned], -1)


def attention_of(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    rule: AttentionRule | None = None,
    angle: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> Attention:
    """Attention over (token, head, channel) tensors, its pattern made here and not by a model."""
    rule = rule or AttentionRule(scale=q.shape[-1] ** -0.5)
    n_tokens, n_heads, _ = q.shape
    values = {ATTN_Q: q[None], ATTN_K: k[None], ATTN_V: v[None]}
    if angle is not None:
        values |= {ROTARY_COS: angle.cos()[None], ROTARY_SIN: angle.sin()[None]}
    empty = torch.zeros(1, n_heads, n_tokens, n_tokens).double()
    draft = read_attention(rule, {**values, ATTN_PATTERN: empty}, 0, n_tokens)
    mask = torch.ones(n_tokens, n_tokens).tril().bool() if mask is None else mask
    scores = torch.stack(
        [draft.q_turned[:, n] @ draft.k_turned[:, n // draft.group].T for n in range(n_heads)]
    )
    if rule.cap is not None:
        scores = rule.cap * torch.tanh(scores / rule.cap)
    pattern = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return read_attention(rule, {**values, ATTN_PATTERN: pattern[None]}, 0, n_tokens)


@cache
def golden_attention() -> Attention:
    held = golden()
    projected = [
        (held["x"] @ held[f"W_{name}"].T).view(5, -1, held["d_head"]) for name in ("q", "k", "v")
    ]
    return attention_of(*projected, angle=angles(5, held["d_head"], held["rope_theta"]))


def golden_z() -> torch.Tensor:
    attention = golden_attention()
    return torch.einsum("nts,snd->tnd", attention.pattern, attention.v.repeat_interleave(2, 1))


def golden_w_o() -> torch.Tensor:
    return golden()["W_o"].T.reshape(4, 4, 16)


def golden_post() -> torch.Tensor:
    held = golden()
    gate = torch.nn.functional.silu(held["mx"] @ held["W_gate"].T)
    return gate * (held["mx"] @ held["W_up"].T)


def test_golden_mlp_values_and_output() -> None:
    held, w_o = golden(), golden_w_o()
    mlp = mlp_importance(golden_post(), row_norms(held["W_down"].T))
    close(mlp.square(), held["paper_imp_ffn_sq"])
    close(mlp[:3].square(), torch.tensor([86.37176, 8.2324, 0.99585]).double(), rtol=1e-5)
    values = value_importance(golden_z(), value_gram(w_o, 2))
    close(values.square(), held["paper_imp_v_out_sq"])
    output = mlp_importance(golden_z().flatten(1), row_norms(w_o.flatten(0, 1)))
    close(output.square(), held["paper_imp_o_out_sq"])


@pytest.mark.parametrize("side", ["q", "k"])
def test_golden_queries_and_keys(side: Any) -> None:
    held, rows = golden(), torch.arange(5)
    found = pattern_importance(golden_attention(), rows, side)
    close(found.square(), held[f"paper_imp_{side}_attn_sq"])
    through = pattern_importance(golden_attention(), rows, side, w_o=golden_w_o())
    close(through.square(), held[f"paper_imp_{side}_out_sq"])


def test_golden_scores_of_the_released_code() -> None:
    held = golden()
    found = released_pattern_score(golden_attention(), torch.arange(5), scale=0.5)
    close(found, torch.tensor(held["score_q"]).double(), rtol=1e-6)
    assert held["score_k"] == held["score_q"]
    up = (held["mx"] @ held["W_up"].T).abs().sum(0)
    close(up, torch.tensor(held["score_up"]).double(), rtol=1e-6)
    z = golden_z().abs().sum(0).flatten()
    close(z, torch.tensor(held["score_v"]).double(), rtol=1e-6)


# --- every neuron of every architecture, removed from the model ---

TOKENS = torch.tensor([[1, 40, 9, 77, 23, 61, 5, 88, 14]])


def run(model: Any, tokens: torch.Tensor, hooks: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """What the hook points saw, in a whole pass with TransformerLens's own functions."""
    seen: dict[str, torch.Tensor] = {}

    def keep(values: torch.Tensor, hook: Any, name: str) -> None:
        seen[name] = values.clone()

    readers = [(name, partial(keep, name=name)) for name in names]
    with torch.inference_mode(), in_float64(), model.hooks(fwd_hooks=[*hooks, *readers]):
        model(tokens)
    return seen


def changes(model: Any, layer: int, site: Site, output: str) -> torch.Tensor:
    """How far `output` moves for each neuron of a site: row n + 1 of a batch lacks neuron n."""

    def remove(values: torch.Tensor, hook: Any) -> torch.Tensor:
        flat = flat_neurons(values, site).clone()
        for neuron in range(flat.shape[-1]):
            flat[neuron + 1, :, neuron] = 0
        return flat.view_as(values)

    width = flat_neurons(run(model, TOKENS, [], [site.at(layer)])[site.at(layer)], site).shape[-1]
    batch = TOKENS.expand(width + 1, -1)
    seen = run(model, batch, [(site.at(layer), remove)], [output])[output]
    return (seen[1:] - seen[:1]).flatten(1).norm(dim=1)


def closed(model: Any, layer: int, **options: Any) -> dict[Site, torch.Tensor]:
    with torch.inference_mode(), in_float64():
        bound = PLNDImportance(**options).bind(model)
    values = run(model, TOKENS, [], [site.at(layer) for site in bound.sites])
    reading = Reading(
        layer,
        {site: values[site.at(layer)] for site in bound.sites},
        torch.ones_like(TOKENS, dtype=torch.bool),
    )
    with torch.inference_mode():
        return {site: scores[0] for site, scores in bound.scores(reading).items()}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_score_is_what_removing_the_neuron_changes(architecture: str, layer: int) -> None:
    model = tiny64(architecture)
    scores = closed(model, layer)
    outputs = {
        MLP_POST: MLP_OUT.at(layer),  # behind Gemma's post-norm
        ATTN_Q: ATTN_PATTERN.at(layer),
        ATTN_K: ATTN_PATTERN.at(layer),
        ATTN_V: f"blocks.{layer}.attn.hook_out",  # before it
        ATTN_Z: f"blocks.{layer}.attn.hook_out",
    }
    for site, output in outputs.items():
        found = scores[site]
        assert found.dtype == torch.float64
        assert float(found.median()) > 0  # a ReLU that is off changes nothing
        # the removal itself loses digits: its norm is that of a difference of outputs
        torch.testing.assert_close(
            found, changes(model, layer, site, output), rtol=1e-9, atol=1e-12, msg=site.name
        )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "gpt2"])
def test_queries_and_keys_through_the_output(architecture: str) -> None:
    model = tiny64(architecture)
    scores = closed(model, 1, target="output", sites=(ATTN_Q, ATTN_K))
    for site in (ATTN_Q, ATTN_K):
        expected = changes(model, 1, site, "blocks.1.attn.hook_out")
        torch.testing.assert_close(scores[site], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("part", ["gate", "in", "out"])
def test_gate_up_and_down_weights_of_a_unit_have_one_score(part: str) -> None:
    """Golden case 3: whichever of its weights is zeroed, the MLP's output changes as much."""
    model = bridge(hf_model("llama").double())
    scores = closed(model, 1, sites=(MLP_POST,))[MLP_POST]
    name = MLP_OUT.at(1)
    whole = run(model, TOKENS, [], [name])[name]
    for unit in (0, 17, 111):
        mask = torch.zeros(3, 112, dtype=torch.bool)
        mask[1, unit] = True
        (weight,) = [
            some
            for some in neuron_weights(model, NeuronSet({MLP_POST: mask}))
            if some.name == f"blocks.1.mlp.{part}.weight"
        ]
        kept = weight.read()
        weight.write(torch.zeros_like(kept))
        without = run(model, TOKENS, [], [name])[name]
        weight.write(kept)
        close((without - whole).norm()[None], scores[unit][None])


# --- laws, over random shapes ---

sizes = st.integers(1, 3)


@st.composite
def attentions(draw: Any, *, normed: bool | None = None, capped: bool | None = None) -> Attention:
    kv_heads, group, half = draw(sizes), draw(sizes), draw(sizes)
    n_tokens, d_head = draw(st.integers(2, 40)), 2 * half
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    normed = draw(st.booleans()) if normed is None else normed
    capped = draw(st.booleans()) if capped is None else capped
    norms = [RMSNorm(1 + random(d_head) / 4, 1e-6) if normed else None for _ in "qk"]
    rule = AttentionRule(
        scale=d_head**-0.5,
        cap=2.0 if capped else None,
        q_norm=norms[0],
        k_norm=norms[1],
        adjacent=draw(st.booleans()),
    )
    rotary = 2 * draw(st.integers(0, half))
    angle = random(n_tokens, rotary // 2)
    angle = angle.repeat_interleave(2, -1) if rule.adjacent else torch.cat([angle, angle], -1)
    window = draw(st.integers(1, n_tokens))
    causal = torch.ones(n_tokens, n_tokens).tril()
    mask = (causal - causal.tril(-window)).bool()
    return attention_of(
        random(n_tokens, kv_heads * group, d_head),
        random(n_tokens, kv_heads, d_head),
        random(n_tokens, kv_heads, d_head),
        rule=rule,
        angle=angle if rotary else None,
        mask=mask,
    )


def removed(attention: Attention, side: str, rows: torch.Tensor, w_o: Any) -> torch.Tensor:
    """Remove each column by hand: new vectors, new scores, new patterns."""
    # undo what read_attention prepared, as far as is needed to zero a raw column
    found = []
    n_heads, group = attention.q.shape[1], attention.group
    vectors = attention.q if side == "q" else attention.k
    growth = attention.q_growth if side == "q" else attention.k_growth
    for head in range(vectors.shape[1]):
        for channel in range(vectors.shape[2]):
            q, k = attention.q.clone(), attention.k.clone()
            changed = q if side == "q" else k
            if growth is not None:
                changed[:, head] *= growth[:, head, channel, None]
            changed[:, head, channel] = 0
            new = [
                x * attention.cos[:, None] + (x * attention.sin[:, None])[..., attention.partner]
                for x in (q, k)
            ]
            total = 0.0
            outputs = torch.zeros(())
            for n in range(n_heads):
                scores = new[0][:, n] @ new[1][:, n // group].T
                if attention.cap is not None:
                    scores = attention.cap * torch.tanh(scores / attention.cap)
                seen = attention.pattern[n] > 0
                change = scores.masked_fill(~seen, -torch.inf).softmax(-1) - attention.pattern[n]
                change = change[rows]
                if w_o is None:
                    total += float(change.square().sum())
                else:
                    outputs = outputs + change @ attention.v[:, n // group] @ w_o[n]
            found.append(total if w_o is None else float(outputs.square().sum()))
    return torch.tensor(found, dtype=torch.float64).sqrt()


@given(attentions(), st.sampled_from(["q", "k"]), st.integers(0, 3), st.booleans())
def test_pattern_scores_are_what_removing_a_column_gives(
    attention: Attention, side: Any, skipped: int, through: bool
) -> None:
    n_tokens, n_heads, d_head = attention.q.shape
    rows = torch.arange(min(skipped, n_tokens - 1), n_tokens)
    generator = torch.Generator().manual_seed(0)
    w_o = torch.randn(n_heads, d_head, 5, generator=generator).double() if through else None
    found = pattern_importance(attention, rows, side, w_o=w_o)
    expected = removed(attention, side, rows, w_o)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


@given(attentions(), st.sampled_from(["q", "k"]))
def test_first_order_is_the_limit_of_small_changes(attention: Attention, side: Any) -> None:
    """Shrinking one channel a little, and dividing by how little: the derivative."""
    rows = torch.arange(len(attention.q))
    found = first_order_importance(attention, rows, side)
    tiny = 1e-5
    group = attention.group
    growth = attention.q_growth if side == "q" else attention.k_growth
    vectors = attention.q if side == "q" else attention.k
    expected = []
    for head in range(vectors.shape[1]):
        for channel in range(vectors.shape[2]):
            q, k = attention.q.clone(), attention.k.clone()
            changed = q if side == "q" else k
            whole = changed[:, head].clone()
            if growth is not None:
                more = growth[:, head, channel, None]
                changed[:, head] *= more
            changed[:, head, channel] = 0
            changed[:, head] = whole + tiny * (changed[:, head] - whole)
            q, k = (
                x * attention.cos[:, None] + (x * attention.sin[:, None])[..., attention.partner]
                for x in (q, k)
            )
            total = 0.0
            for n in range(q.shape[1]):
                scores = q[:, n] @ k[:, n // group].T
                if attention.cap is not None:
                    scores = attention.cap * torch.tanh(scores / attention.cap)
                seen = attention.pattern[n] > 0
                change = scores.masked_fill(~seen, -torch.inf).softmax(-1) - attention.pattern[n]
                total += float((change / tiny).square().sum())
            expected.append(total)
    limit = torch.tensor(expected, dtype=torch.float64).sqrt()
    torch.testing.assert_close(found, limit, rtol=1e-3, atol=1e-4 * float(limit.max()) + 1e-5)


@given(attentions(), st.sampled_from(["q", "k"]))
def test_a_row_that_sees_one_key_has_no_pattern_to_change(attention: Attention, side: Any) -> None:
    first = torch.tensor([0])
    assert float(pattern_importance(attention, first, side).max()) < 1e-15
    assert float(first_order_importance(attention, first, side).max()) < 1e-5


@given(st.integers(2, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6))
def test_values_are_what_removing_a_column_gives(
    n_tokens: int, kv_heads: int, group: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n_tokens, kv_heads * group, 3, generator=generator).double()
    w_o = torch.randn(kv_heads * group, 3, 5, generator=generator).double()
    expected = []
    for kv_head in range(kv_heads):
        for channel in range(3):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            change = torch.einsum("tn,nm->tm", z[:, heads, channel], w_o[heads, channel])
            expected.append(change.norm())
    close(value_importance(z, value_gram(w_o, kv_heads)), torch.stack(expected))


@given(st.integers(1, 40), st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_mlp_behind_a_norm_is_what_removing_a_unit_gives(
    n_tokens: int, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    post = torch.randn(n_tokens, 7, generator=generator).double() * size
    w_out = torch.randn(7, 5, generator=generator).double()
    norm = RMSNorm(torch.randn(5, generator=generator).double(), 1e-3)
    y = post @ w_out
    rms = norm.mean_square(y).sqrt()
    lengths = [n_tokens // 3, n_tokens - n_tokens // 3]
    by_document = mlp_importance_behind_norm(
        post, y / rms, rms, output=NormedOutput.of(w_out, norm), lengths=lengths
    )
    found = by_document.square().sum(0).sqrt()
    expected = torch.stack(
        [
            (norm.apply(y - post[:, [k]] * w_out[k]) - norm.apply(y)).norm()
            for k in range(len(w_out))
        ]
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_mlp_scores_scale_with_the_weights_and_with_the_square_root_of_repetition() -> None:
    generator = torch.Generator().manual_seed(0)
    post, w_out = torch.randn(6, 4, generator=generator), torch.randn(4, 3, generator=generator)
    scores = mlp_importance(post, row_norms(w_out))
    w_out[2] *= -3
    torch.testing.assert_close(mlp_importance(post, row_norms(w_out))[2], 3 * scores[2])
    twice = mlp_importance(torch.cat([post, post]), row_norms(w_out))
    torch.testing.assert_close(twice, 2**0.5 * mlp_importance(post, row_norms(w_out)))


# --- golden cases 4 to 6 ---


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("side", ["q", "k"])
def test_equal_keys_make_a_uniform_pattern_that_no_query_changes(side: Any) -> None:
    key = gaussian(1, 1, 4).expand(6, 1, 4)
    attention = attention_of(gaussian(6, 2, 4), key, gaussian(6, 1, 4))
    scores = pattern_importance(attention, torch.arange(6), "q")
    assert float(scores.max()) < 1e-15
    # with equal keys, removing a column of all of them changes nothing either
    assert float(pattern_importance(attention, torch.arange(6), side).max()) < 1e-15


@pytest.mark.parametrize("side", ["q", "k"])
def test_what_follows_a_position_changes_nothing_there(side: Any) -> None:
    """Appending or exchanging later tokens leaves the rows before them as they are."""
    q, k, v = gaussian(9, 4, 4), gaussian(9, 2, 4, seed=1), gaussian(9, 2, 4, seed=2)
    angle = angles(9, 4, 100.0)
    rows = torch.arange(5)
    alone = attention_of(q[:5], k[:5], v[:5], angle=angle[:5])
    expected = pattern_importance(alone, rows, side)
    for order in (list(range(9)), [0, 1, 2, 3, 4, 8, 6, 7, 5]):
        longer = attention_of(q[order], k[order], v[order], angle=angle)
        close(pattern_importance(longer, rows, side), expected)
        close(first_order_importance(longer, rows, side), first_order_importance(alone, rows, side))


def test_identical_heads_of_a_group_add_up() -> None:
    """Values coherently (r times one head's score), patterns as squares (root of r times)."""
    q, k, v = gaussian(6, 1, 4), gaussian(6, 1, 4, seed=1), gaussian(6, 1, 4, seed=2)
    one = attention_of(q, k, v)
    three = attention_of(q.expand(6, 3, 4), k, v)
    rows = torch.arange(6)
    close(
        pattern_importance(three, rows, "k"),
        3**0.5 * pattern_importance(one, rows, "k"),
    )
    close(pattern_importance(three, rows, "q"), pattern_importance(one, rows, "q").repeat(3))
    z, w_o = gaussian(6, 1, 4, seed=3), gaussian(1, 4, 5, seed=4)
    close(
        value_importance(z.expand(6, 3, 4), value_gram(w_o.expand(3, 4, 5), 1)),
        3 * value_importance(z, value_gram(w_o, 1)),
    )


@pytest.mark.parametrize("side", ["q", "k"])
def test_a_rotation_common_to_all_positions_changes_nothing(side: Any) -> None:
    q, k, v = gaussian(6, 2, 4), gaussian(6, 1, 4, seed=1), gaussian(6, 1, 4, seed=2)
    still = attention_of(q, k, v)
    unturned = attention_of(q, k, v, angle=torch.zeros(6, 4).double())
    turned = attention_of(q, k, v, angle=torch.tensor([0.7, 2.0, 0.7, 2.0]).double().expand(6, 4))
    rows = torch.arange(6)
    expected = pattern_importance(still, rows, side)
    close(pattern_importance(unturned, rows, side), expected)
    close(pattern_importance(turned, rows, side), expected)
    # the released code removes a channel after rotation, which does depend on it
    before, after = (released_pattern_score(x, rows, scale=0.5) for x in (still, turned))
    assert not torch.allclose(before, after, rtol=1e-3)


def test_huge_changes_do_not_overflow() -> None:
    """Removing the channel that holds all attention on the first token."""
    q, k = torch.full((5, 1, 2), 20.0), torch.zeros(5, 1, 2)
    k[0] = 20.0
    attention = attention_of(q, k, torch.zeros(5, 1, 2), rule=AttentionRule(scale=1.0))
    for side in ("q", "k"):
        scores = pattern_importance(attention, torch.arange(5), side)  # type: ignore[arg-type]
        assert torch.isfinite(scores).all()
