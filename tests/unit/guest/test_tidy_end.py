"""What is tidied up before a signal ends a process, in processes of their own."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys, threading
from kms.guest.tidy_end import tidy_end

{before}

def work():
    with tidy_end():
        try:
            signal.raise_signal({number})
            print("went on")
        finally:
            signal.raise_signal({number})
            print("tidied")
    print("after")

{run}
"""


def ran(number: signal.Signals, *, before: str = "", run: str = "work()") -> tuple[int, list[str]]:
    program = PROGRAM.format(number=int(number), before=before, run=run)
    done = subprocess.run(
        [sys.executable, "-u", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_deadly_signal_waits_for_the_tidying_even_when_it_comes_twice(number: signal.Signals) -> None:
    assert ran(number) == (-number, ["tidied"])


def test_a_signal_that_the_program_handles_is_left_to_it() -> None:
    before = "signal.signal(signal.SIGTERM, lambda *_: print('handled'))"
    assert ran(signal.SIGTERM, before=before) == (0, ["handled", "went on", "handled", "tidied", "after"])


def test_a_signal_that_the_program_ignores_is_ignored() -> None:
    before = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert ran(signal.SIGHUP, before=before) == (0, ["went on", "tidied", "after"])


def test_in_another_thread_nothing_changes() -> None:
    run = "thread = threading.Thread(target=work); thread.start(); thread.join()"
    assert ran(signal.SIGTERM, run=run) == (-signal.SIGTERM, [])


def test_afterwards_all_is_as_before() -> None:
    run = "\n".join(
        [
            "with tidy_end(): pass",
            "print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)",
            "try:",
            "    with tidy_end(): raise ValueError",
            "except ValueError: print(signal.getsignal(signal.SIGHUP) is signal.SIG_DFL)",
        ]
    )
    assert ran(signal.SIGTERM, run=run) == (0, ["True", "True"])
