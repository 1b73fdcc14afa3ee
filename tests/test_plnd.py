"""PLND keeps what matters in enough documents, of enough layers, and says how much that is."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_lang.detect.plnd import plnd
from lens_lang.errors import LanguageError, OptionError, SiteError
from lens_lang.importance import Importance
from lens_lang.neurons import LanguageNeurons
from lens_lang.sites import ATTN_K, ATTN_Q, ATTN_V, MLP_POST, Site

LANGUAGES = ("en", "fr", "zh")


def importance(
    hits: dict[Site, Any], *, n_documents: list[int], scores: Any = None, **changes: Any
) -> Importance:
    counted = {site: torch.tensor(rows) for site, rows in hits.items()}
    summed = {site: torch.ones(x.shape, dtype=torch.float64) for site, x in counted.items()}
    if scores is not None:
        summed = {site: torch.tensor(x, dtype=torch.float64) for site, x in scores.items()}
    return Importance(
        languages=LANGUAGES[: len(n_documents)],
        hits=counted,
        score_sum=summed,
        n_documents=torch.tensor(n_documents),
        n_tokens=torch.tensor(n_documents) * 20,
        **changes,
    )


def lists(neurons: LanguageNeurons, site: Site = MLP_POST) -> list[list[list[int]]]:
    return [[row.nonzero().flatten().tolist() for row in s.masks[site]] for s in neurons.values()]


def test_the_intersection_of_two_documents() -> None:
    """Golden case 7: {1, 2, 3} and {2, 3, 4} have {2, 3} in common."""
    imp = importance({MLP_POST: [[[0, 1, 2, 2, 1]]]}, n_documents=[2])
    assert lists(plnd(imp)) == [[[2, 3]]]
    assert lists(plnd(imp, min_share=0.5)) == [[[1, 2, 3, 4]]]


def test_an_empty_intersection_is_an_empty_set() -> None:
    imp = importance({MLP_POST: [[[1, 1]]]}, n_documents=[2])
    assert len(plnd(imp)["en"]) == 0


@given(st.integers(1, 60), st.floats(0.01, 1.0), st.integers(0, 60))
def test_the_share_is_of_the_languages_own_documents(n: int, share: float, hits: int) -> None:
    hits = min(hits, n)
    imp = importance({MLP_POST: [[[hits]]]}, n_documents=[n])
    # as a whole number of documents, whatever a product of floats makes of it
    needed = max(next(k for k in range(n + 1) if k >= share * n - 1e-9), 1)
    assert bool(len(plnd(imp, min_share=share)["en"])) == (hits >= needed)


@pytest.mark.parametrize(("n", "share", "needed"), [(10, 0.9, 9), (30, 0.7, 21), (100, 0.29, 29)])
def test_shares_that_floats_miss_by_a_digit(n: int, share: float, needed: int) -> None:
    imp = importance({MLP_POST: [[[needed, needed - 1]]]}, n_documents=[n])
    assert lists(plnd(imp, min_share=share)) == [[[0]]]


def test_the_best_of_each_layer_are_kept_by_score_not_by_index() -> None:
    imp = importance(
        {MLP_POST: [[[2, 2, 2, 0], [2, 2, 1, 2]]]},
        scores={MLP_POST: [[[1.0, 3.0, 2.0, 9.0], [5.0, 5.0, 9.0, 5.0]]]},
        n_documents=[2],
    )
    assert lists(plnd(imp, top=2)) == [[[1, 2], [0, 1]]]  # ties go to the lower index
    assert lists(plnd(imp, top=9)) == lists(plnd(imp))


def test_taking_a_language_away_leaves_its_own() -> None:
    imp = importance({MLP_POST: [[[2, 2, 0]], [[2, 0, 2]], [[2, 2, 2]]]}, n_documents=[2, 2, 2])
    assert lists(plnd(imp, without="en")) == [[[0, 1]], [[2]], [[2]]]
    assert lists(plnd(imp, without="English")) == lists(plnd(imp, without="en"))
    assert lists(plnd(imp, without="common")) == [[[1]], [[2]], [[1, 2]]]
    # what is taken away are the neurons found, after `top`
    scored = importance(
        {MLP_POST: [[[2, 2]], [[2, 2]]]},
        scores={MLP_POST: [[[3.0, 1.0]], [[1.0, 3.0]]]},
        n_documents=[2, 2],
    )
    assert lists(plnd(scored, top=1, without="en")) == [[[0]], [[1]]]


def test_sites_can_be_chosen_afterwards() -> None:
    imp = importance({MLP_POST: [[[2]]], ATTN_Q: [[[2, 1]]], ATTN_K: [[[1]]]}, n_documents=[2])
    assert plnd(imp).sites == (MLP_POST, ATTN_Q, ATTN_K)
    assert plnd(imp, sites=[ATTN_Q]).sites == (ATTN_Q,)
    with pytest.raises(SiteError, match="attn_v was not scored"):
        plnd(imp, sites=[ATTN_V])
    with pytest.raises(SiteError, match="sites is empty"):
        plnd(imp, sites=[])


def test_numerator_and_denominator_are_reported() -> None:
    imp = importance(
        {MLP_POST: [[[2, 2, 0], [0, 0, 2]]], ATTN_Q: [[[2, 1], [0, 0]]]},
        n_documents=[2],
        rule={"by": "top_k", "thresholds": {"mlp_post": 2}},
        provenance={"model": "toy"},
    )
    provenance = plnd(imp, min_share=1.0).provenance
    assert provenance["found"] == {
        "en": {"mlp_post": {"found": 3, "of": 6}, "attn_q": {"found": 1, "of": 4}}
    }
    assert provenance["method"] == "plnd"
    assert provenance["documents"] == {"en": 2}
    assert provenance["scored"] == {
        "mode": "exact",
        "by": "top_k",
        "thresholds": {"mlp_post": 2},
    }
    assert provenance["statistic"] == {"model": "toy"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_share": 0.0}, "min_share is a share of documents"),
        ({"min_share": 1.5}, "min_share is a share of documents"),
        ({"top": 0}, "top must be at least 1"),
    ],
)
def test_wrong_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    imp = importance({MLP_POST: [[[1]]]}, n_documents=[1])
    with pytest.raises(OptionError, match=message):
        plnd(imp, **options)


def test_an_unknown_language_to_take_away_is_refused() -> None:
    imp = importance({MLP_POST: [[[1]]]}, n_documents=[1])
    with pytest.raises(LanguageError, match="de"):
        plnd(imp, without="de")
