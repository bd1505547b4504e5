"""From a budget to a model: what may be spent, what may change, and the search for the best that meets it."""

from limbeck.search.budget import COSTS, Budget, Limits
from limbeck.search.find import Attempt, Found, Lever, find
from limbeck.search.halving import Rung, Trial, halve, rungs

__all__ = ["COSTS", "Attempt", "Budget", "Found", "Lever", "Limits", "Rung", "Trial", "find", "halve", "rungs"]
