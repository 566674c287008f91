"""Differences of the documents that judge platform and launch: tcb and guest."""

from collections.abc import Iterator
from typing import TypeAlias

from kms.policy.difference import Difference, Effect, Member, effect_of, header
from kms.policy.documents import FirmwareMinimum, GuestDocument, Levels, TcbDocument, Wanted
from kms.snp.product import Product

_Entry: TypeAlias = tuple[Product, int | None]  # a product line, or one CPU model of it


def tcb_differences(document: str, old: TcbDocument, new: TcbDocument) -> Iterator[Difference]:
    """Compare minimum firmware."""
    yield from header(document, old, new)
    yield from _product_differences(Member(document, "products"), old, new)
    yield from Member(document, "check").items("check of", set(old.check), set(new.check), demands=True)
    allowed, new_allowed = old.provisional_firmware, new.provisional_firmware
    if allowed != new_allowed:
        member, effect = Member(document, "provisional_firmware"), effect_of(widens=new_allowed)
        yield member.turned(effect, "provisional firmware:", _word(allowed), _word(new_allowed))
    platform = Member(document, "platform")
    yield from platform.items("required platform bit", set(old.require), set(new.require), demands=True)
    yield from platform.items("forbidden platform bit", set(old.forbid), set(new.forbid), demands=True)
    for which, mask, new_mask in (
        ("launch", old.launch_mitigations, new.launch_mitigations),
        ("current", old.current_mitigations, new.current_mitigations),
    ):
        if mask != new_mask:
            effect = effect_of(widens=bool(mask & ~new_mask))
            what = f"{which} mitigations"
            yield Member(document, "mitigations").turned(effect, what, f"{mask:#x}", f"{new_mask:#x}")


def _product_differences(member: Member, old: TcbDocument, new: TcbDocument) -> Iterator[Difference]:
    for product in Product:
        entries = [
            *((product, None) for documents in (old, new) if product in documents.products),
            *(entry for entry in {**old.models, **new.models} if entry[0] is product),
        ]
        found = [
            difference
            for entry in dict.fromkeys(entries)
            for difference in _entry_differences(member, entry, old, new)
        ]
        yield from found
        if not any(each.effect is Effect.WIDENS for each in found):
            yield from _version_2_differences(member, product, old, new)


def _entry_differences(
    member: Member, entry: _Entry, old: TcbDocument, new: TcbDocument
) -> Iterator[Difference]:
    """Compare what a CPU of this entry had to reach with what it has to: its line's levels without one."""
    product, model = entry
    name = product.value if model is None else f"{product}/{model:#04x}"
    levels, new_levels = _entry(old, entry), _entry(new, entry)
    if levels is not None and new_levels is not None:
        for component, level in levels.items():
            if level != new_levels[component]:
                effect = effect_of(widens=new_levels[component] < level)
                yield member.turned(effect, f"minimum {component} of {name}", level, new_levels[component])
        return
    # An entry for one model replaces its line's for that model, and may be the lower of the two.
    line, new_line = (None if model is None else each.products.get(product) for each in (old, new))
    reached, reaches = levels or line, new_levels or new_line
    lower = reaches is not None and (reached is None or _lower(reaches, reached))
    effect = effect_of(widens=lower, narrows=reached != reaches)
    if new_levels is not None:
        yield member.tells(effect, f"{name} added: {_text(new_levels)}")
    elif levels is not None:
        held = "" if new_line is None else f"; as {product} now: {_text(new_line)}"
        yield member.tells(effect, f"{name} removed: {_text(levels)}{held}")


def _entry(document: TcbDocument, entry: _Entry) -> Levels | None:
    product, model = entry
    return document.products.get(product) if model is None else document.models.get((product, model))


def _version_2_differences(
    member: Member, product: Product, old: TcbDocument, new: TcbDocument
) -> Iterator[Difference]:
    """Compare the maximum of all entries of a line, which a report without CPUID must reach.

    It falls when a high entry is removed, though every other CPU is judged as before.
    """
    before, after = old.minimum(product, None), new.minimum(product, None)
    if before is None or after is None:
        return  # the first entry of a line widens by itself, and without any nothing is allowed
    for component, level in after.items():
        if level < before[component]:
            what = f"minimum {component} of {product} in reports of version 2"
            yield member.turned(Effect.WIDENS, what, before[component], level)


def _lower(levels: Levels, than: Levels) -> bool:
    return any(level < than[name] for name, level in levels.items())


def _text(levels: Levels) -> str:
    return ", ".join(f"{name} {level}" for name, level in levels.items())


def guest_differences(document: str, old: GuestDocument, new: GuestDocument) -> Iterator[Difference]:
    """Compare how a guest must be launched, and who must ask."""
    yield from header(document, old, new)
    yield from Member(document, "vmpl").items("VMPL", old.vmpl, new.vmpl)
    versions = Member(document, "report_versions")
    yield from versions.items("report version", old.report_versions, new.report_versions)
    yield from Member(document, "signers").items("signer", set[str](old.signers), set[str](new.signers))
    yield from Member(document, "csp").items("provider", old.csp, new.csp)
    if old.debug != new.debug:
        # Both ways: outside development mode `allow` denies whoever relies on the document, so that to forbid
        # lets them in. Which mode a server is in, a policy does not say.
        what = "guests in debug mode:"
        if old.debug:
            what = "guests in debug mode (outside development mode, `allow` denies everybody):"
        yield Member(document, "debug").turned(Effect.WIDENS, what, _word(old.debug), _word(new.debug))
    for (name, wanted), (_, new_wanted) in zip(old.bits, new.bits, strict=True):
        if wanted is not new_wanted:
            # `any` is written `allow` where a set bit is what one would forbid.
            anything = "allow" if Wanted.CLEAR in {wanted, new_wanted} else "any"
            words = [anything if each is Wanted.ANY else each.value for each in (wanted, new_wanted)]
            effect = effect_of(widens=wanted is not Wanted.ANY)
            yield Member(document, name).turned(effect, f"{name}:", *words)
    firmware, new_firmware = old.firmware_minimum, new.firmware_minimum
    if firmware != new_firmware:
        effect = effect_of(widens=_order(new_firmware) < _order(firmware))
        texts = _firmware(firmware), _firmware(new_firmware)
        yield Member(document, "firmware_minimum").turned(effect, "minimum firmware", *texts)
    svn, new_svn = old.guest_svn_minimum, new.guest_svn_minimum
    if svn != new_svn:
        effect = effect_of(widens=new_svn < svn)
        yield Member(document, "guest_svn_minimum").turned(effect, "minimum guest SVN", svn, new_svn)
    yield from Member(document, "id_key_digests").allowlists(
        "ID key", old.id_key_digests, new.id_key_digests, plural="ID keys"
    )
    yield from Member(document, "author_key_digests").allowlists(
        "author key", old.author_key_digests, new.author_key_digests, plural="author keys"
    )


def _word(allowed: bool) -> str:
    return "allow" if allowed else "forbid"


def _order(version: FirmwareMinimum) -> tuple[int, int, int]:
    # As `kms.policy.guest_checks` compares: one version number, its parts from left to right.
    return version.major, version.minor, version.build


def _firmware(version: FirmwareMinimum) -> str:
    build = f".{version.build}" if version.build else ""
    return f"{version.major}.{version.minor}{build}"
