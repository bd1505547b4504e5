"""Laws over every public loss function: reductions, refusals, words, and compiling."""

import inspect
import sys
from pathlib import Path

import pytest
import torch

from limbeck import functional as F
from limbeck.objectives import TERMS

sys.path.insert(0, str(Path(__file__).parent))
from calls import CALLS, NO_REDUCTION

NAMES = sorted(F.__all__)
REDUCED = [name for name in NAMES if name not in NO_REDUCTION]
CONTRACT = {
    "kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation", "alpha_beta",
    "soft_cross_entropy", "mse_logits", "mse_probabilities", "dkd", "nkd", "dist", "standardize", "mlkd",
    "hint", "cosine", "attention", "nst", "fsp", "activation_boundary", "factor", "variational", "review",
    "masked_generative", "similarity", "rkd", "rkd_distance", "rkd_angle", "pkt", "correlation", "cka",
    "attention_relation", "info_nce", "crd", "token_mask", "uld", "topk_kl", "linear_kl",
}  # fmt: skip


def test_every_promised_function_is_there_and_every_function_is_called_here():
    assert set(NAMES) >= CONTRACT
    assert set(CALLS) == set(NAMES)


@pytest.mark.parametrize("name", REDUCED)
def test_mean_and_sum_are_those_of_the_values(name):
    call = CALLS[name]
    each = call(reduction="none")
    assert each.dim() >= 1
    torch.testing.assert_close(call(), each.mean())
    torch.testing.assert_close(call(reduction="mean"), each.mean())
    torch.testing.assert_close(call(reduction="sum"), each.sum())
    with pytest.raises(ValueError, match="mean, sum, none"):
        call(reduction="batchmean")


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_by_keyword_and_the_promise_is_said_with_its_source(name):
    loss = getattr(F, name)
    parameters = list(inspect.signature(loss).parameters.values())
    with_default = [p for p in parameters if p.default is not p.empty]
    assert all(p.kind is p.KEYWORD_ONLY for p in with_default)
    said = inspect.getdoc(loss)
    assert said
    assert said.partition("\n")[0].endswith((".", ":"))
    if name not in NO_REDUCTION:
        assert "Source:" in said, "name the paper"


@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_whole_and_gives_the_same_value(name):
    """One graph, no break. The capture runs here; code generation is in the slow test below."""
    _compiles(name, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_to_code_that_gives_the_same_value(name):
    _compiles(name, backend="inductor")


def _compiles(name, backend):
    import warnings

    call = CALLS[name]
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(getattr(F, name), fullgraph=True, backend=backend)
        value = call(function=compiled)
    torch.testing.assert_close(value, call(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [k for k, term in TERMS.items() if hasattr(term, "formula")])
def test_a_term_s_formula_is_a_public_function(kind):
    assert TERMS[kind].formula in {getattr(F, name) for name in NAMES}
