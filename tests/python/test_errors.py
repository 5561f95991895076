"""Every kind of error in Go has its class in Python, with all it says."""

import json
import pickle

import pytest

from trivium import _bridge, _errors


def test_the_kinds_are_those_of_go():
    assert set(_errors.CLASSES) == set(json.loads(_bridge.call("ErrorKinds")))
    assert len(_errors.CLASSES) == len(_errors.TriviumError.__subclasses__())


@pytest.mark.parametrize("kind", sorted(_errors.CLASSES))
def test_a_job_that_fails_raises_the_class_of_its_kind(kind):
    request = {"error": kind, "message": "m\0é", "hint": "h", "plugin": "p", "strategy": "attention.s"}
    with pytest.raises(_errors.CLASSES[kind]) as caught:
        _bridge.run("bridge.check", request)
    error = caught.value
    assert type(error) is _errors.CLASSES[kind]
    assert (error.kind, error.message, error.hint, error.plugin, error.strategy) == (kind, "m\0é", "h", "p", "attention.s")
    assert str(error) == "attention.s: m\0é (h)"


@pytest.mark.parametrize(
    ("made", "base"),
    [
        (_errors.InvalidArgument, ValueError),
        (_errors.UnknownStrategy, LookupError),
        (_errors.DeadlineExceeded, TimeoutError),
        (_errors.OutOfMemory, MemoryError),
    ],
)
def test_python_code_catches_them_by_its_own_names(made, base):
    assert issubclass(made, base)


@pytest.mark.parametrize("made", _errors.CLASSES.values(), ids=lambda c: c.kind)
def test_errors_cross_processes(made):
    error = pickle.loads(pickle.dumps(made("m", hint="h", plugin="p", strategy="s")))
    assert type(error) is made
    assert (error.message, error.hint, error.plugin, error.strategy) == ("m", "h", "p", "s")


def test_a_kind_from_the_future_is_still_a_trivium_error():
    error = _errors.decode('TRIVIUM{"kind":"not_known_yet","message":"m"}')
    assert isinstance(error, _errors.TriviumError)
    assert error.message == "m"


def test_an_error_that_is_not_ours_keeps_its_text():
    assert _errors.decode("something else").message == "something else"
