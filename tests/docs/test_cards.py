"""The cards in docs/methods/ are what `dev/cards.py` writes from the code and the records."""

import importlib.util
from pathlib import Path

import pytest

from limbeck.objectives import TERMS

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("cards", ROOT / "dev" / "cards.py")
CARDS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CARDS)
PAGES = CARDS.pages()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_committed_page_is_the_generated_one(name):
    assert (ROOT / "docs" / "methods" / name).read_text(encoding="utf-8") == PAGES[name], "run: python dev/cards.py"


def test_every_method_has_a_card_and_no_card_is_left_over():
    assert {p.name for p in (ROOT / "docs" / "methods").glob("*.md")} == set(PAGES)
    assert {f"{kind}.md" for kind in TERMS} <= set(PAGES)
