"""`make vm-demo` judges itself: what it would call wrong, and that its search finds what is there."""

import json
from base64 import b64encode, urlsafe_b64encode
from dataclasses import replace
from pathlib import Path

import pytest

from vm import search
from vm.playing import decisions, judge, told
from vm.qemu import Boot
from vm.scenes import SCENES, Scene
from vm.search import Searched

SECRET = bytes(range(200, 232))
FIRST = SCENES[0]
REFUSED = next(scene for scene in SCENES if scene.refused)
NOTHING_STARTS = next(scene for scene in SCENES if not scene.console)


class TestSearch:
    @pytest.mark.parametrize(
        "written",
        [
            SECRET,
            SECRET.hex().encode(),
            SECRET.hex().upper().encode(),
            b64encode(SECRET),
            urlsafe_b64encode(SECRET),
            *(b64encode(b"x" * number + SECRET + b"y" * number) for number in (1, 2, 3)),
        ],
    )
    def test_finds_a_secret_however_it_was_written_down(self, tmp_path: Path, written: bytes) -> None:
        (tmp_path / "below").mkdir()
        (tmp_path / "below" / "file").write_bytes(b"before" + written + b"after")
        (tmp_path / "other").write_bytes(b"nothing")
        found = search.search(tmp_path, {"key": SECRET})
        assert found.files == 2
        assert {each.partition(" in ")[0] for each in found.found} == {"below/file: key"}

    def test_finds_it_between_two_pieces_of_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search, "_CHUNK", 64)
        (tmp_path / "file").write_bytes(bytes(50) + SECRET + bytes(50))
        assert search.search(tmp_path, {"key": SECRET}).found == ("file: key in raw",)

    def test_finds_nothing_where_nothing_is(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(SECRET[:-1])
        assert search.search(tmp_path, {"key": SECRET}) == Searched(files=1, bytes=31, found=())


class TestJudge:
    @pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
    def test_a_scene_that_ends_as_it_must_is_right(self, scene: Scene) -> None:
        assert judged(scene) == []

    def test_a_machine_that_stands_still_is_wrong(self) -> None:
        assert judged(FIRST, powered_off=False) == ["the machine did not power itself off"]

    def test_a_release_that_should_not_be_is_wrong(self) -> None:
        assert judged(REFUSED, released=1) == ["1 released, not 0"]

    def test_another_refusal_is_wrong(self) -> None:
        assert judged(REFUSED, refused=("policy-denied",)) == [
            "refused policy-denied, not measurement-unknown"
        ]

    def test_being_asked_at_all_is_wrong_where_the_guest_refuses_itself(self) -> None:
        scene = next(each for each in SCENES if each.other_workload)
        assert judged(scene, refused=("policy-denied",)) == ["refused policy-denied, not nothing"]

    def test_a_boot_that_goes_on_with_a_shut_disk_is_wrong(self) -> None:
        assert "THE BOOT WENT ON" in judged(REFUSED, console="measurement-unknown\nvm-demo: done")

    def test_a_written_disk_is_wrong_where_it_must_stay_shut(self) -> None:
        assert judged(REFUSED, written=True) == ["the disk was written"]

    def test_a_firmware_that_starts_an_unmeasured_command_line_is_wrong(self) -> None:
        assert judged(NOTHING_STARTS, console="Loading, please wait...") == ["the firmware started something"]


def judged(
    scene: Scene,
    *,
    console: str | None = None,
    powered_off: bool | None = None,
    released: int | None = None,
    refused: tuple[str, ...] | None = None,
    written: bool | None = None,
) -> list[str]:
    starts = bool(scene.console)
    seen = Boot(
        console="\n".join(["[    1.0] kernel", *scene.console]),
        seconds=1.0,
        powered_off=starts if powered_off is None else powered_off,
        kernel_after=0.5,
    )
    if console is not None:
        seen = replace(seen, console=console)
    return judge(
        scene,
        seen,
        scene.released if released is None else released,
        ((scene.refused,) if scene.refused else ()) if refused is None else refused,
        written=scene.writes if written is None else written,
    )


def test_the_console_is_told_without_the_kernels_lines_and_control_sequences() -> None:
    console = "\x1b[2J\x1b[001;001H\x1b[=3hfirst\n[    0.123456] kernel\n\n  second\n"
    assert told(console) == ["first", "second"]


def test_decisions_are_read_from_the_log_from_a_place_on(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    before = json.dumps({"event": "released"}) + "\n"
    after = ["no JSON", json.dumps({"event": "refused", "code": "x"}), json.dumps({"event": "released"})]
    log.write_text(before + "\n".join(after) + "\n")
    assert decisions(log, len(before)) == (1, ("x",))
    assert decisions(log, 0) == (2, ("x",))
