"""The story: an image is built, the machine is booted again and again, and its key is looked for."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Final

from kms.cli.demo_show import Show
from kms.cli.output import OK, REFUSED, print_json
from kms.encoding import b64url
from kms.errors import ConfigurationError
from kms.guest.client import KeyClient
from kms.keys.names import KeyRequest
from vm.debian import debian_root
from vm.firmware import debian_firmware
from vm.image import Built, build
from vm.playing import Outcome, Stage
from vm.policy import OTHER_WORKLOAD, WORKLOAD, app_document, write_policy
from vm.psp import SimulatedProcessor
from vm.scenes import READ, SCENES, SENT, STORED
from vm.search import Searched, search
from vm.server import Server, free_port, serving

_SECOND_BOOT: Final = SCENES[1]
_SYSTEMD: Final = next(scene for scene in SCENES if scene.systemd)
_MEBIBYTE: Final = 1 << 20
_FINGERPRINT: Final = 16  # hexadecimal digits of SHA-256, as `vm/inside/dracut/workload` shows them
_LUKS: Final = b"LUKS\xba\xbe"  # how a LUKS2 header begins


def tell(folder: Path, cache: Path, firmware: Path | None, *, as_json: bool, kept: bool) -> int:
    """Tell the story in `folder`, an empty one of our own, and give the exit status.

    Raises:
        KmsError: the demo itself cannot run.

    """
    began = time.monotonic()
    show = Show(programs=as_json)
    show.development()
    show.fact("emulation", "QEMU's TCG, no KVM: slow, and the machine's memory is NOT encrypted")
    show.chapter("The image")
    with show.step("firmware: Debian's OVMF for a measured direct boot"):
        firmware = firmware or debian_firmware(cache)
    with show.step("mmdebstrap: a Debian to make the initrd in (kept for the next run)"):
        root = debian_root(cache)
    with show.step("a key hierarchy in the form of AMD's, for the SIMULATED processor (RSA-4096)"):
        processor = SimulatedProcessor()
    roots, policy, port = folder / "development-roots.pem", folder / "policy", free_port()
    roots.write_bytes(processor.root_pem)
    with serving(folder / "server", port=port, roots=roots) as server:
        with show.step("kms guest hooks install, mkinitramfs, dracut: initrds that pin the running KMS"):
            built = build(root, folder, firmware=firmware, server=server)
        _show_image(show, built, server)
        with show.step("kms image describe, kms policy apply: these images, one workload"):
            write_policy(policy, built.image, built.systemd_image)
            server.apply(policy)
        stage = Stage(
            show=show,
            folder=folder / "machine",
            processor=processor,
            image=built.image,
            systemd_image=built.systemd_image,
        )
        stage.lay_out(app_document=app_document(), workload=WORKLOAD, other_workload=OTHER_WORKLOAD)
        outcomes = [stage.play(scene, server) for scene in SCENES if not scene.impostor]
        key = _disk_key(stage, server)
    tls = server.ca_file.parent
    with serving(folder / "impostor", port=port, roots=roots, tls=tls) as impostor:
        impostor.apply(policy)
        outcomes += [stage.play(scene, impostor) for scene in SCENES if scene.impostor]
    searched, wrong = _search(stage, folder, key)
    wrong += _compare(stage, key)
    seconds = round(time.monotonic() - began, 1)
    wrong += [f"{each.name}: {what}" for each in outcomes for what in each.wrong]
    if as_json:
        print_json(_document(built, outcomes, searched, wrong, seconds))
    _show_table(show, outcomes, seconds)
    if kept:
        show.done(f"everything is in {folder}")
    if wrong:
        show.failure("NOT AS IT MUST BE: " + "; ".join(wrong))
        return REFUSED
    show.success("The disk opened for the measured machine with its workload, and for nothing else.")
    return OK


def _disk_key(stage: Stage, server: Server) -> bytes:
    """Give the disk's key, to look for it: the same launch asks for it here."""
    machine = stage.processor.launch(stage.launch(_SECOND_BOOT))
    client = KeyClient(server.url, ca_file=server.ca_file, identity=server.identity, source=machine)
    document = stage.app_document.read_bytes()
    secret: bytes = client.fetch([KeyRequest.parse("disk", "app")], app_document=document).keys[0].secret
    return secret


def _compare(stage: Stage, key: bytes) -> list[str]:
    """Compare the fingerprints of the credentials that systemd handed out with the disk's key."""
    console = stage.console_log(_SYSTEMD).read_text(encoding="utf-8", errors="replace")
    fingerprint = sha256(key).hexdigest()[:_FINGERPRINT]
    return [f"`{what}` of another key" for what in (SENT, STORED) if what + fingerprint not in console]


def _search(stage: Stage, folder: Path, key: bytes) -> tuple[Searched, list[str]]:
    """Look for the disk's key everywhere, and for the secret, which the consoles of two boots alone show."""
    show = stage.show
    show.chapter("What is left on this computer's disks")
    console = stage.console_log(_SECOND_BOOT)
    _, shown, after = console.read_text(encoding="utf-8", errors="replace").partition(READ)
    if not shown:
        raise ConfigurationError("the second boot showed no secret, so that there is nothing to look for")
    secret = after.split()[0].encode("ascii")
    with show.step("looked for the disk's key and the secret, raw, in hex and in base64"):
        searched = search(folder, {"disk key": key, "secret": secret})
    show.fact("looked through", f"{searched.files} files, {searched.bytes // _MEBIBYTE} MiB")
    wrong = []
    # That it is found where it was shown proves that the search finds things.
    shown_in = {stage.console_log(scene).relative_to(folder) for scene in (_SECOND_BOOT, _SYSTEMD)}
    if set(searched.found) == {f"{path}: secret in raw" for path in shown_in}:
        show.fact("disk's key", "nowhere")
        show.fact("the secret", "on the consoles that showed it, and not on the disk: that is encrypted")
    else:
        wrong.append(f"found: {', '.join(searched.found) or 'nothing, not even the secret on the consoles'}")
    if not stage.disk.read_bytes().startswith(_LUKS):
        wrong.append("the disk has no LUKS2 header")
    return searched, wrong


def _show_image(show: Show, built: Built, server: Server) -> None:
    show.text(built.hooks)
    for name, size in _sizes(built).items():
        show.fact(name, f"{size / _MEBIBYTE:6.1f} MiB")
    show.fact("KMS identity", f"{b64url(server.identity)}, in the initrd")


def _sizes(built: Built) -> dict[str, int]:
    """Give the bytes of each initrd."""
    return {
        "without ours": built.plain_size,
        "initramfs-tools": built.image.initrd.stat().st_size,
        "dracut": built.systemd_image.initrd.stat().st_size,
    }


def _show_table(show: Show, outcomes: Sequence[Outcome], seconds: float) -> None:
    show.chapter("All together")
    ended = ("as it must be", "NOT AS IT MUST BE")
    rows = [(each.name, each.seconds, ended[bool(each.wrong)]) for each in outcomes]
    for name, took, how in (*rows, ("everything", seconds, "")):
        show.text(f"{name:<24} {took:6.1f} s   {how}")


def _document(
    built: Built, outcomes: Sequence[Outcome], searched: Searched, wrong: Sequence[str], seconds: float
) -> dict[str, object]:
    return {
        "simulated": True,
        "as_it_must_be": not wrong,
        "wrong": list(wrong),
        "seconds": seconds,
        "initrd_bytes": _sizes(built),
        "boots": [asdict(each) for each in outcomes],
        "searched": asdict(searched),
    }
