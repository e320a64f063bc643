import pytest
from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError

from elas_lightning.data import hub
from elas_lightning.errors import UserError


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    seconds = []
    monkeypatch.setattr(hub.time, "sleep", seconds.append)
    return seconds


def failing(times, error):
    calls = iter(range(1000))

    def ask():
        if next(calls) < times:
            raise error
        return "answer"

    return ask


def test_asks_again_after_longer_and_longer_waits(slept):
    assert hub.with_retries(failing(3, ConnectionError("reset")), "a file", "advice") == "answer"
    assert slept == [1.0, 2.0, 4.0]


def test_gives_up_in_one_line_that_says_what_to_do(slept):
    with pytest.raises(UserError) as caught:
        hub.with_retries(failing(99, TimeoutError("slow\nvery slow")), "allenai/c4", "use data.source=pydocs")
    message = str(caught.value)
    assert message == "cannot reach the hub for allenai/c4 (TimeoutError: slow); use data.source=pydocs"
    assert len(slept) == len(hub.BACK_OFF_SECONDS)


def test_does_not_wait_when_the_user_is_offline_on_purpose(slept):
    with pytest.raises(UserError, match="cannot reach the hub"):
        hub.with_retries(failing(1, OfflineModeIsEnabled("HF_HUB_OFFLINE=1")), "a file", "advice")
    assert slept == []


def test_what_does_not_exist_is_not_asked_for_twice(slept):
    # Its constructor wants the response of a server; the class is all that is looked at.
    error = RevisionNotFoundError.__new__(RevisionNotFoundError)
    with pytest.raises(UserError, match=r"the hub has no a file \(RevisionNotFoundError\); check its name"):
        hub.with_retries(failing(1, error), "a file", "advice")
    assert slept == []


def test_our_own_faults_are_not_the_hubs():
    with pytest.raises(KeyError):
        hub.with_retries(failing(1, KeyError("bug")), "a file", "advice")
