"""Every threshold, sign and axis in `detect` is pinned down by a test.

Each mutant is the source of a detector with one operator, constant or word changed. It is run
through a short battery of golden cases and laws; a mutant that passes them all would mean that
nothing guards the changed place.
"""

import ast
import copy
import dataclasses
import json
import types
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_lang.errors import OptionError
from lens_lang.importance import Importance
from lens_lang.patterns import SharingPatterns
from lens_lang.sites import MLP_POST
from lens_lang.stats import Activations, Frequency

LANGUAGES = ("en", "zh", "fr", "es", "vi", "id", "ja")
GOLDEN = Path(__file__).parent / "golden"

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Eq: (ast.NotEq,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Sub: (ast.Add,),
    ast.Add: (ast.Sub,),
    ast.BitAnd: (ast.BitOr,),
    ast.USub: (ast.UAdd,),
}


def mutants(source: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield (what was changed, changed tree): one change each, never in a docstring."""
    tree = ast.parse(source)
    for place, node in enumerate(ast.walk(tree)):
        for field, value in ast.iter_fields(node):
            for spot, old in enumerate(value if isinstance(value, list) else [value]):
                for new in replacements(old, node, field):
                    changed = copy.deepcopy(tree)
                    twin = list(ast.walk(changed))[place]
                    if isinstance(value, list):
                        getattr(twin, field)[spot] = new
                    else:
                        setattr(twin, field, new)
                    line = getattr(node, "lineno", 0)
                    yield f"line {line}: {describe(old)} -> {describe(new)}", changed


def replacements(old: Any, parent: ast.AST, field: str) -> list[Any]:
    if isinstance(old, ast.AST) and type(old) in SWAPS and not in_annotation(parent):
        return [kind() for kind in SWAPS[type(old)]]
    number = type(old) in (int, float) and field == "value"
    if number and isinstance(parent, ast.Constant):
        return [old + 1] if isinstance(old, int) else [old / 2]
    return []


def in_annotation(node: ast.AST) -> bool:
    """`int | None` is no operation on values."""
    return isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant)


def describe(node: Any) -> str:
    return type(node).__name__ if isinstance(node, ast.AST) else repr(node)


def loaded(module: str, tree: ast.Module) -> types.ModuleType:
    """Run a changed tree as a module of its own, beside the real one."""
    real = import_module(module)
    mutant = types.ModuleType(module)
    mutant.__dict__["__file__"] = real.__file__
    exec(compile(ast.fix_missing_locations(tree), str(real.__file__), "exec"), mutant.__dict__)
    return mutant


def frequency(probability: list[list[float]], n: int = 1000) -> Frequency:
    count = (torch.tensor(probability, dtype=torch.float64) * n).round().long()[:, None]
    names = LANGUAGES[: len(count)]
    return Frequency(languages=names, count=count, n_tokens=torch.full((len(count),), n))


def golden(name: str) -> tuple[Frequency, list[Any]]:
    held = json.loads((GOLDEN / f"lape_{name}.json").read_text())
    n_tokens = torch.tensor(held["n"]).expand(7).clone()
    count = torch.tensor(held["over_zero"])
    return Frequency(languages=LANGUAGES, count=count, n_tokens=n_tokens), held["result"]


def lists(neurons: Any) -> list[Any]:
    return [[r.nonzero().flatten().tolist() for r in s.masks[MLP_POST]] for s in neurons.values()]


def refuses(function: Callable[[], Any]) -> bool:
    try:
        function()
    except OptionError:
        return True
    return False


def battery_lape(module: Any) -> None:
    lape, variant = module.lape, module.LapeVariant
    for name in ("A", "B"):
        freq, expected = golden(name)
        assert lists(lape(freq, compat=True)) == expected
        padded = expected + [[[]] * freq.count.shape[1]] * (7 - len(expected))
        assert lists(lape(freq)) == padded
    freq, _ = golden("B")
    p = freq.probability
    entropy = module.activation_entropy(freq)
    share = p / p.sum(0)
    assert torch.allclose(entropy, -(share * share.clamp(min=1e-300).log()).sum(0))
    dead = frequency([[0.0, 0.9], [0.0, 0.3]])
    assert module.activation_entropy(dead)[0, 0] == 0
    # quantiles: rank, ties, strictness, each filter by itself
    steps = frequency([[0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9, 1.0]]).probability
    for quantile, above in ((0.5, 5), (0.45, 6), (0.55, 4), (0.04, 9), (1.0, 0)):
        found = module.select_by_entropy(
            steps, top=1.0, filter_quantile=0.04, bar_quantile=quantile
        )
        assert int(found.sum()) == above, quantile
        kept = module.select_by_entropy(steps, top=1.0, filter_quantile=quantile, bar_quantile=0.04)
        assert int(kept.any(0).sum()) == min(above, 5), quantile
    options: dict[str, Any] = {"filter_quantile": 0.01, "bar_quantile": 0.9}
    for quantile in (0.9, 0.5, 0.33):
        between = module.select_by_entropy(
            p,
            top=1.0,
            filter_quantile=0.01,
            bar_quantile=quantile,
            variant=variant(quantile="interpolated"),
        )
        assert torch.equal(between, p > torch.quantile(p, quantile))
    tiny = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    top_of_all = module.select_by_entropy(
        tiny,
        top=1.0,
        filter_quantile=0.01,
        bar_quantile=1.0,
        variant=variant(quantile="interpolated"),
    )
    assert not top_of_all.any()
    # two neurons of two languages: the quantile lies between ranks, or at the very end
    for quantile in (0.2, 0.5, 0.7, 0.99, 1.0):
        found = module.select_by_entropy(
            tiny,
            top=1.0,
            filter_quantile=0.01,
            bar_quantile=quantile,
            variant=variant(quantile="interpolated"),
        )
        assert torch.equal(found, tiny > torch.quantile(tiny, quantile)), quantile
    own = module.select_by_entropy(p, top=1.0, **options, variant=variant(pool="language"))
    assert own.sum((1, 2)).tolist() == [100] * 7
    layers = module.select_by_entropy(
        p, top=0.02, filter_quantile=0.01, bar_quantile=0.01, variant=variant(scope="layer")
    )
    assert layers.any(0).sum(1).tolist() == [5] * 4
    cut = module.select_by_entropy(
        p, max_entropy=float(entropy.median()), filter_quantile=0.01, bar_quantile=0.01
    )
    assert torch.equal(cut.any(0), entropy <= entropy.median())
    two = frequency([[0.9, 0.1, 0.1, 0.1], [0.8, 0.1, 0.1, 0.1], [0.0, 0.1, 0.1, 0.1]])
    for assign, counts in (
        ("above_bar", [1, 1, 0]),
        ("argmax", [1, 0, 0]),
        ("exclusive", [0, 0, 0]),
    ):
        found = lape(
            two, top=0.25, filter_quantile=0.8, bar_quantile=0.8, variant=variant(assign=assign)
        )
        assert [len(s) for s in found.values()] == counts
    alone = frequency([[0.9, 0.1], [0.1, 0.1]])
    found = lape(
        alone, top=0.5, filter_quantile=0.7, bar_quantile=0.7, variant=variant(assign="exclusive")
    )
    assert [len(s) for s in found.values()] == [1, 0]
    few = frequency([[0.9, 0.2, 0.3, 0.1], [0.0, 0.2, 0.3, 0.1]])
    loose: dict[str, Any] = {"top": 1.0, "filter_quantile": 0.9, "bar_quantile": 0.3}
    assert len(lape(few, **loose).union()) == 1
    assert len(lape(few, **loose, variant=variant(filtered="keep")).union()) > 1
    assert len(lape(few, **loose, compat=True).union()) > 1
    count = torch.tensor([[[2**25, 2**25 + 1]], [[2**25 + 1, 2**25]]])
    close = Frequency(languages=("en", "fr"), count=count, n_tokens=torch.tensor([2**26] * 2))
    half: dict[str, Any] = {"top": 1.0, "filter_quantile": 0.5, "bar_quantile": 0.5}
    assert len(lape(close, **half).union()) == 2
    assert len(lape(close, **half, compat=True).union()) == 0
    assert list(lape(frequency([[0.5] * 4] * 3), compat=True)) == ["en"]
    last = lape(
        frequency([[0.1, 0.1, 0.1, 0.9], [0.1] * 4]),
        top=0.25,
        filter_quantile=0.8,
        bar_quantile=0.8,
        compat=True,
    )
    assert lists(last) == [[[3]]]
    uneven = Frequency(
        languages=("en", "fr"),
        count=torch.tensor([[[40, 5]], [[10, 30]]]),
        n_tokens=torch.tensor([50, 1000]),
    )
    mine: dict[str, Any] = {"top": 1.0, "filter_quantile": 0.75, "bar_quantile": 0.75}
    for compat in (False, True):
        assert list(lape(uneven, **mine, compat=compat).union()) == [(MLP_POST, 0, 0)]
    default = lape(golden("B")[0])
    assert default.provenance["options"]["top"] == 0.01
    assert default.provenance["options"]["filter_quantile"] == 0.95
    assert default.provenance["options"]["bar_quantile"] == 0.95
    assert torch.equal(
        module.select_by_entropy(p),
        module.select_by_entropy(p, top=0.01, filter_quantile=0.95, bar_quantile=0.95),
    )
    for wrong in (
        {"top": 0.0},
        {"top": 1.2},
        {"filter_quantile": 0.0},
        {"filter_quantile": 1.2},
        {"bar_quantile": 0.0},
        {"bar_quantile": 1.2},
    ):
        assert refuses(lambda wrong=wrong: lape(freq, **wrong))
    assert not refuses(lambda: lape(freq, top=1.0, filter_quantile=1.0, bar_quantile=1.0))
    assert refuses(lambda: lape(frequency([[0.4, 0.2]])))
    assert not refuses(lambda: lape(freq, max_entropy=0.3, top=0.0))


def battery_baselines(module: Any) -> None:
    found = module.lap(frequency([[0.96, 0.95, 0.2], [0.1, 0.99, 0.97]]))
    assert lists(found) == [[[0]], [[1, 2]]]
    assert refuses(lambda: module.lap(frequency([[0.5]]), threshold=1.0))
    assert refuses(lambda: module.lap(frequency([[0.5]]), threshold=-0.1))
    assert not refuses(lambda: module.lap(frequency([[0.5]]), threshold=0.0))
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4, 2, 400, generator=generator, dtype=torch.float64)
    sums = Activations(
        languages=LANGUAGES[:4],
        sum=mean * 10,
        sum_sq=mean.square() * 10,
        n_tokens=torch.full((4,), 10),
    )
    from lens_lang.detect.lape import select_by_entropy

    expected = select_by_entropy(mean.clamp(min=0))
    assert expected.any()
    for row, some in zip(expected, module.lave(sums).values(), strict=True):
        assert torch.equal(some.masks[MLP_POST], row)
    counts = {"en": 20, "zh": 0}
    drawn = module.random_neurons(
        ("en", "zh"), counts=counts, shape=(2, 10), generator=torch.Generator().manual_seed(0)
    )
    assert {lang: len(some) for lang, some in drawn.items()} == counts
    for wrong in (21, -1):
        assert refuses(
            lambda wrong=wrong: module.random_neurons(
                ("en",), counts={"en": wrong}, shape=(2, 10), generator=torch.Generator()
            )
        )
    edge = module.lap(frequency([[0.951, 0.6, 0.95]])).provenance["options"]["threshold"]
    assert edge == 0.95
    assert module.lave(sums).provenance["options"] == {
        "top": 0.01,
        "filter_quantile": 0.95,
        "bar_quantile": 0.95,
    }
    # in space="gate" the neurons were read before the activation function
    assert module.lave(sums).provenance["read at"] == "mlp_pre"


def battery_plnd(module: Any) -> None:
    plnd = module.plnd
    hits = torch.tensor([[[2, 2, 2, 1]], [[4, 4, 0, 3]], [[3, 0, 3, 0]]])
    scores = torch.tensor([[[1.0, 3.0, 3.0, 9.0]], [[4.0, 1.0, 2.0, 3.0]], [[1.0, 1.0, 2.0, 1.0]]])
    imp = Importance(
        languages=LANGUAGES[:3],
        score_sum={MLP_POST: scores.double()},
        hits={MLP_POST: hits},
        n_documents=torch.tensor([2, 4, 3]),
        n_tokens=torch.tensor([40, 80, 60]),
    )
    assert lists(plnd(imp)) == [[[0, 1, 2]], [[0, 1]], [[0, 2]]]
    assert lists(plnd(imp, min_share=0.75)) == [[[0, 1, 2]], [[0, 1, 3]], [[0, 2]]]
    assert lists(plnd(imp, top=1)) == [[[1]], [[0]], [[2]]]
    assert lists(plnd(imp, top=2)) == [[[1, 2]], [[0, 1]], [[0, 2]]]
    # scores of 0 are no less members than others, and come before what is no member
    still = dataclasses.replace(imp, score_sum={MLP_POST: torch.zeros(3, 1, 4).double()})
    last = dataclasses.replace(still, hits={MLP_POST: hits.flip(-1)})
    assert lists(plnd(last, top=2)) == [[[1, 2]], [[2, 3]], [[1, 3]]]
    assert lists(plnd(imp, without="en")) == [[[0, 1, 2]], [[]], [[]]]
    assert lists(plnd(imp, without="fr")) == [[[1]], [[1]], [[0, 2]]]
    assert lists(plnd(imp, without="common")) == [[[1, 2]], [[1]], [[2]]]
    found = plnd(imp).provenance["found"]["zh"]["mlp_post"]
    assert found == {"found": 2, "of": 4}
    for wrong in ({"min_share": 0.0}, {"min_share": 1.1}, {"top": 0}):
        assert refuses(lambda wrong=wrong: plnd(imp, **wrong))
    assert plnd(imp).provenance["options"]["min_share"] == 1.0


def battery_sharing(module: Any) -> None:
    sharing = module.sharing
    acts = torch.tensor([[[[1.0, 0, 1, 1, -1]], [[1, 0, 0, 0, 0]], [[1, 0, 0, 1, 2]]]])
    one = SharingPatterns.from_activations(acts, ("en", "fr", "de"), threshold=(0.0, 1.5))
    found = sharing(one)
    names = ("all_shared", "partial_shared", "non_activated")
    assert [found[name].indices(MLP_POST).tolist() for name in names] == [
        [[0, 0]], [[0, 3]], [[0, 1]],
    ]  # fmt: skip
    assert lists(found.specific) == [[[2]], [[]], [[4]]]
    assert found["specific"].indices(MLP_POST).tolist() == [[0, 2], [0, 4]]
    assert found.share.tolist() == [[0.2, 0.2, 0.4, 0.2]]
    assert found.consistent.tolist() == found.share.tolist()
    assert found.active.flatten().tolist() == pytest.approx([0.6, 0.2, 0.6])
    assert found.n_neurons == 5
    high = sharing(one, threshold=1.5)
    assert lists(high.specific) == [[[]], [[]], [[4]]]
    assert len(high.non_activated) == 4
    assert high.provenance["options"]["threshold"] == 1.5
    assert sharing(one).provenance["options"] == {
        "threshold": 0.0, "min_share": 1.0, "across": "every", "space": "gate",
        "position": "last",
    }  # fmt: skip
    ten = -torch.ones(10, 2, 1, 4)
    ten[:9, :, :, 0] = ten[:6, :, :, 1] = 1.0
    ten[:7, 0, :, 2] = 1.0
    many = SharingPatterns.from_activations(ten, ("en", "fr"))
    assert lists(sharing(many).neurons()) == [[[]], [[]], [[]], [[]], [[3]]]
    assert lists(sharing(many, min_share=0.9).neurons())[0] == [[0]]
    assert lists(sharing(many, min_share=0.91).neurons())[0] == [[]]
    assert lists(sharing(many, min_share=0.7).neurons())[2] == [[2]]
    assert lists(sharing(many, min_share=0.6).neurons())[0] == [[0, 1]]
    assert sharing(many).same.tolist() == [[0, 0, 0, 1]]
    assert sharing(many).range[0, 0].tolist() == [0.0, 0.5]
    assert sharing(many).ci.shape == (1, 4, 2)
    frame = sharing(many).to_frame()
    assert frame["share"].tolist() == pytest.approx([0.375, 0.0, 0.175, 0.45])
    assert frame["least"].tolist() == [0.0, 0.0, 0.0, 0.25]
    assert frame["most"].tolist() == [0.5, 0.0, 0.25, 1.0]
    assert frame["ci_low"][0] < 0.375 < frame["ci_high"][0]
    assert "18.8 %" not in repr(sharing(many)) and "37.5 %" in repr(sharing(many))
    any_example = sharing(many, across="any")
    assert lists(any_example.neurons()) == [[[0, 1]], [[]], [[2]], [[]], [[3]]]
    three = -torch.ones(1, 3, 1, 2)
    three[0, :2, 0, 0] = 1.0
    assert lists(
        sharing(SharingPatterns.from_activations(three, ("a", "b", "c")), across="any").neurons()
    )[1] == [[0]]
    for wrong in (0.5, 1.01):
        assert refuses(lambda wrong=wrong: sharing(many, min_share=wrong))
    assert refuses(lambda: sharing(many, across="any", min_share=0.9))
    assert refuses(lambda: sharing(many, across="all"))
    assert refuses(lambda: sharing(many, threshold=0.3))
    assert refuses(lambda: found["shared"])


BATTERIES = {
    "lens_lang.detect.lape": battery_lape,
    "lens_lang.detect.baselines": battery_baselines,
    "lens_lang.detect.plnd": battery_plnd,
    "lens_lang.detect.sharing": battery_sharing,
}


def source_of(module: str) -> str:
    return Path(str(import_module(module).__file__)).read_text(encoding="utf-8")


@pytest.mark.parametrize("module", BATTERIES)
def test_the_unchanged_source_passes(module: str) -> None:
    BATTERIES[module](loaded(module, ast.parse(source_of(module))))


@pytest.mark.parametrize("module", BATTERIES)
def test_every_mutant_fails(module: str) -> None:
    survivors = []
    changes = list(mutants(source_of(module)))
    for change, tree in changes:
        try:
            BATTERIES[module](loaded(module, tree))
        except Exception:  # any failure kills a mutant: that is the point
            continue
        survivors.append(change)
    assert len(changes) > 10
    assert not survivors, f"{len(survivors)} of {len(changes)} mutants survive: {survivors}"
