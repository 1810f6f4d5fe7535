"""Retries, and errors that a retry cannot fix."""

import errno
import socket

import pytest

from biomedclip.processing.retries import explained, is_unreachable, lasting_error, with_retries


LASTING = ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EMFILE", "ENFILE"]


@pytest.mark.parametrize("name", [*LASTING, "ENOLCK", "EOPNOTSUPP"])
def test_an_error_of_this_machine_is_found_in_wrapped_errors(name):
    cause = OSError(getattr(errno, name), "text")
    wrapped = ConnectionError("cannot connect")
    wrapped.__cause__ = cause
    outer = ValueError("request failed")
    outer.__context__ = wrapped
    assert lasting_error(cause) is lasting_error(wrapped) is lasting_error(outer) is cause


@pytest.mark.parametrize(
    "error", [None, TimeoutError(), OSError(errno.EIO, "text"), OSError(errno.ECONNRESET, "text"), ValueError("text")]
)
def test_a_temporary_error_may_be_retried(error):
    if error is not None:
        error.__cause__ = error  # a cycle
    assert lasting_error(error) is None


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_error_states_the_place_and_the_solution(name):
    with pytest.raises(OSError, match=r"\. [A-Z].* '/data/out'") as raised, explained("/data/out"):
        raise OSError(getattr(errno, name), "text")
    assert raised.value.errno == getattr(errno, name)


def test_other_errors_are_not_changed():
    error = PermissionError(errno.EACCES, "text")
    with pytest.raises(PermissionError) as raised, explained("/data/out"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("name", ["ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH"])
def test_without_a_connection_a_source_is_unreachable(name):
    wrapped = ValueError("request failed")
    wrapped.__cause__ = OSError(getattr(errno, name), "text")
    assert is_unreachable(wrapped) and is_unreachable(socket.gaierror("no such host"))
    assert not is_unreachable(OSError(errno.ECONNRESET, "text")) and not is_unreachable(ValueError("text"))


def test_a_call_is_repeated_with_growing_pauses_until_it_succeeds_or_the_check_raises(monkeypatch):
    pauses, errors = [], []
    monkeypatch.setattr("time.sleep", pauses.append)
    answers = iter([KeyError("a"), KeyError("b"), KeyError("c"), "answer", ZeroDivisionError()])

    def call() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def check(error: Exception, attempt: int) -> None:
        errors.append((type(error), attempt))
        if isinstance(error, ZeroDivisionError):
            raise error

    assert with_retries(call, check=check, pause=2, factor=3) == "answer"
    assert pauses == [2, 6, 18] and errors == [(KeyError, 1), (KeyError, 2), (KeyError, 3)]
    with pytest.raises(ZeroDivisionError):
        with_retries(call, check=check, pause=2)
    assert len(pauses) == 3
