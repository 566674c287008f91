"""What is tidied up before a signal ends a process, in processes of their own."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys, threading
from kms.guest.tidy_end import tidied

{before}

def work():
    signal.raise_signal({number})
    print("went on")

def tidy():
    signal.raise_signal({number})
    print("tidied")

def both():
    tidied(work, tidy)
    print("after")

{run}
"""

# A signal before each instruction of Python that the whole takes: what was made must be gone every time.
EVERYWHERE = """
import itertools, os, signal, sys, tempfile
from kms.guest import tidy_end

entry = os.path.join(tempfile.mkdtemp(), "entry")
number = signal.Signals({number})

def work():
    os.mkdir(entry)
    return "made"

def tidy():
    try:
        os.rmdir(entry)
    except FileNotFoundError:
        pass

def run(place):
    sent = False
    def trace(frame, event, _):
        nonlocal place, sent
        if frame.f_code.co_filename not in (tidy_end.__file__, "<string>"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            place -= 1
            if place == 0:
                sent = True
                os.kill(os.getpid(), number)
        return trace
    sys.settrace(trace)
    try:
        tidy_end.tidied(work, tidy)
    except KeyboardInterrupt:
        os._exit(1)
    finally:
        sys.settrace(None)
        os._exit(2 if sent else 3)

ends = set()
for place in itertools.count(1):
    child = os.fork()
    if not child:
        run(place)
    ends.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if os.path.exists(entry):
        print("left behind at", place)
        os.rmdir(entry)
    if 3 in ends:  # past its end
        break
os.rmdir(os.path.dirname(entry))
print(sorted(ends - {{3}}), place > 50)
"""


def ran(number: signal.Signals, *, before: str = "", run: str = "both()") -> tuple[int, list[str]]:
    return ended(PROGRAM.format(number=int(number), before=before, run=run))


def ended(program: str) -> tuple[int, list[str]]:
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
    run = "thread = threading.Thread(target=both); thread.start(); thread.join()"
    assert ran(signal.SIGTERM, run=run) == (-signal.SIGTERM, [])


def test_afterwards_all_is_as_before() -> None:
    run = "\n".join(
        [
            "tidied(lambda: None, lambda: None)",
            "print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)",
            "try:",
            "    tidied(lambda: int('x'), lambda: None)",
            "except ValueError: print(signal.getsignal(signal.SIGHUP) is signal.SIG_DFL)",
        ]
    )
    assert ran(signal.SIGTERM, run=run) == (0, ["True", "True"])


def test_an_interrupt_of_the_keyboard_waits_for_the_tidying_too() -> None:
    run = "\n".join(["try: both()", "except KeyboardInterrupt: print('interrupted')"])
    assert ran(signal.SIGINT, run=run) == (0, ["tidied", "interrupted"])


@pytest.mark.parametrize(("number", "end"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 1)])
def test_wherever_the_signal_comes_nothing_is_left_behind_and_it_ends_the_process(
    number: signal.Signals, end: int
) -> None:
    assert ended(EVERYWHERE.format(number=int(number))) == (0, [f"[{int(end)}] True"])


def test_a_signal_that_another_thread_is_given_waits_as_well() -> None:
    """The kernel hands a process's signal to any thread that does not block it."""
    before = "\n".join(
        [
            "import os, time",
            "def tidy():",
            "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
            "    os.kill(os.getpid(), signal.SIGTERM)",
            "    time.sleep(0.1)",
            "    print('tidied')",
            "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        ]
    )
    program = [
        before,
        "from kms.guest.tidy_end import tidied",
        "tidied(lambda: None, tidy)",
        "print('after')",
    ]
    assert ended("\n".join(["import signal, threading", *program])) == (-signal.SIGTERM, ["tidied"])
