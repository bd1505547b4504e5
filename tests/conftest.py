"""What all tests share; `warm.py` beside it can be imported from any of them."""

import pytest
from hypothesis import settings

from limbeck.evaluation import latency

ROUNDS = latency._MOST

settings.register_profile("untimed", deadline=None)  # a busy machine breaks no law
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def in_a_hurry():
    """Calls are timed for a few rounds: a run takes seven seconds to be sure of its times, and hardly a test asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_MOST", 6)
        yield


@pytest.fixture
def unhurried(monkeypatch):
    """For tests that ask how sure a time is: as many rounds as it takes."""
    monkeypatch.setattr(latency, "_MOST", ROUNDS)
