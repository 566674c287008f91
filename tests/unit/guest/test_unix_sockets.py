"""Unix sockets: who is at the other end, where a socket may be, and what systemd passes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.guest.unix_sockets import Peer, listening, notify, passed_listener, peer_name, peer_of
from tests.local_peers import SOMEBODY, connect, in_child, needs_root, open_folder

pytestmark = pytest.mark.enable_socket


@contextmanager
def accepted(path: Path, *, mode: int = 0o600, name: bytes | None = None) -> Iterator[socket.socket]:
    with listening(path, mode=mode) as listener, connect(path, name), closing(listener.accept()[0]) as other:
        yield other


class TestPeers:
    def test_the_kernel_says_who_it_is(self, tmp_path: Path) -> None:
        with accepted(tmp_path / "s") as connection:
            peer = peer_of(connection)
        assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
        assert peer.groups == {os.getegid(), *os.getgroups()}

    @needs_root
    def test_another_user_is_known_with_its_groups_after_it_ended(self) -> None:
        with open_folder() as folder, listening(folder / "s", mode=0o666) as listener:
            path = folder / "s"
            assert in_child(lambda: connect(path).close(), uid=SOMEBODY, groups=(70001, 70002)) == 0
            with closing(listener.accept()[0]) as connection:
                peer = peer_of(connection)
        assert peer == Peer(pid=peer.pid, uid=SOMEBODY, groups=frozenset({SOMEBODY, 70001, 70002}))

    @needs_root
    def test_who_is_in_more_groups_than_can_be_read_has_its_own_alone(self) -> None:
        with open_folder() as folder, listening(folder / "s", mode=0o666) as listener:
            path = folder / "s"
            groups = tuple(range(70000, 70300))
            assert in_child(lambda: connect(path).close(), uid=SOMEBODY, groups=groups) == 0
            with closing(listener.accept()[0]) as connection:
                assert peer_of(connection).groups == {SOMEBODY}

    @needs_root
    def test_a_mode_keeps_others_out(self) -> None:
        with open_folder() as folder, listening(folder / "s", mode=0o600) as listener:
            path = folder / "s"
            assert in_child(lambda: connect(path).close(), uid=SOMEBODY) == 1
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()

    @pytest.mark.parametrize("name", [b"1f/cryptsetup/data", b"\xff\x00x"])
    def test_the_name_is_what_the_peer_bound(self, tmp_path: Path, name: bytes) -> None:
        unique = f"{os.getpid():x}".encode() + name
        with accepted(tmp_path / "s", name=unique) as connection:
            assert peer_name(connection) == unique

    def test_a_peer_without_an_abstract_name_has_none(self, tmp_path: Path) -> None:
        with accepted(tmp_path / "s") as connection:
            assert peer_name(connection) is None
        with (
            listening(tmp_path / "s", mode=0o600) as listener,
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.bind(str(tmp_path / "1f"))
            client.connect(str(tmp_path / "s"))
            with closing(listener.accept()[0]) as connection:
                assert peer_name(connection) is None


class TestListening:
    def test_it_has_the_mode_it_was_given_whatever_the_umask_is(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        before = os.umask(0)
        try:
            with listening(path, mode=0o600):
                assert path.stat().st_mode & 0o777 == 0o600
        finally:
            os.umask(before)
        assert not path.exists()

    def test_what_an_earlier_run_left_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
            dead.listen()
        with accepted(path):
            pass

    def test_a_socket_that_somebody_answers_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with listening(path, mode=0o600) as first:
            with pytest.raises(ConfigurationError, match="listens on"), listening(path, mode=0o600):
                pass
            with connect(path), closing(first.accept()[0]):
                pass

    @needs_root
    def test_what_this_user_may_not_look_at_or_remove_is_said(self) -> None:
        def refused() -> None:
            with pytest.raises(ConfigurationError, match="Permission denied"), listening(path, mode=0o600):
                pass

        with open_folder() as folder, socket.socket(socket.AF_UNIX) as dead:
            path = folder / "s"
            dead.bind(str(path))
            path.chmod(0o666)
            assert in_child(refused, uid=SOMEBODY) == 0  # to remove it
            folder.chmod(0o744)
            assert in_child(refused, uid=SOMEBODY) == 0  # to look at it

    def test_anything_else_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        path.write_text("mine")
        with pytest.raises(ConfigurationError, match="no socket"), listening(path, mode=0o600):
            pass
        assert path.read_text() == "mine"

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "s").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigurationError, match="no socket"), listening(tmp_path / "s", mode=0o600):
            pass

    @pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
    def test_a_folder_that_others_can_write_to_is_refused(self, tmp_path: Path, mode: int) -> None:
        folder = tmp_path / "open"
        folder.mkdir()
        folder.chmod(mode)
        with pytest.raises(ConfigurationError, match="others can write"), listening(folder / "s", mode=0o600):
            pass

    def test_a_missing_folder_and_a_name_too_long_are_said(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none" / "s", tmp_path / ("s" * 120)):
            with pytest.raises(ConfigurationError, match=str(path.name[:4])), listening(path, mode=0o600):
                pass

    def test_the_socket_of_a_successor_is_not_removed(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as successor:
            with listening(path, mode=0o600):
                path.unlink()
                successor.bind(str(path))
            assert path.exists()


PASSED = """
import os, socket, sys
from kms.errors import ConfigurationError
from kms.guest.unix_sockets import passed_listener
made = eval(sys.argv[1])
if made is not None and made.fileno() != 3:
    os.dup2(made.fileno(), 3)
pid = sys.argv[3] if sys.argv[3:] else str(os.getpid())
environment = {"LISTEN_PID": pid, "LISTEN_FDS": sys.argv[2], "LISTEN_FDNAMES": "x"}
try:
    taken = passed_listener(environment)
except ConfigurationError as error:
    print(error.detail)
else:
    print(None if taken is None else (taken.fileno(), os.get_inheritable(3)), environment)
os._exit(0)
"""
UNIX = "socket.socket(socket.AF_UNIX)"
LISTENER = f"(lambda s: (s.bind('\\0' + str(os.getpid())), s.listen(), s)[2])({UNIX})"


class TestPassed:
    """In processes of their own: systemd's first descriptor is 3."""

    def passed(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", PASSED, *words], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    def test_a_listening_socket_is_taken_and_kept_from_children(self) -> None:
        assert self.passed(LISTENER, "1") == "(3, False) {}"

    def test_one_for_another_process_is_not_ours(self) -> None:
        assert self.passed(LISTENER, "1", "1") == "None {}"

    @pytest.mark.parametrize(
        ("made", "count", "told"),
        [
            (LISTENER, "2", "must pass one socket"),
            (LISTENER, "x", "must pass one socket"),
            (UNIX, "1", "another kind of socket"),
            ("socket.socket(socket.AF_INET)", "1", "another kind of socket"),
            ("socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)", "1", "another kind of socket"),
            ("open('/dev/null')", "1", "no socket"),
        ],
    )
    def test_anything_else_is_refused(self, made: str, count: str, told: str) -> None:
        assert told in self.passed(made, count)

    def test_nothing_is_passed_without_systemd(self) -> None:
        assert passed_listener({}) is None


class TestNotify:
    def test_the_manager_is_told(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(5)
            manager.bind(str(tmp_path / "notify"))
            notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
            assert manager.recv(100) == b"READY=1"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(5)
            manager.bind(f"\0kms-test-{os.getpid()}")
            notify("STOPPING=1", {"NOTIFY_SOCKET": f"@kms-test-{os.getpid()}"})
            assert manager.recv(100) == b"STOPPING=1"

    @pytest.mark.parametrize(
        "environment", [{}, {"NOTIFY_SOCKET": "/nowhere"}, {"NOTIFY_SOCKET": "vsock:1:2"}]
    )
    def test_a_manager_that_is_not_there_stops_nobody(self, environment: dict[str, str]) -> None:
        notify("READY=1", environment)
