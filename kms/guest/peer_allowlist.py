"""Which processes of this machine may have which keys: by user and group, deny by default."""

from collections.abc import Sequence

from kms.guest.config import ServedKey
from kms.guest.unix_sockets import Peer
from kms.keys.names import KeyRequest


class PeerAllowlist:
    """The keys that are served, and to whom; what is not in it is nobody's."""

    def __init__(self, served: Sequence[ServedKey]) -> None:
        self._served = tuple(served)
        self._uids = frozenset().union(*(each.uids for each in served))
        self._gids = frozenset().union(*(each.gids for each in served))

    def allows(self, peer: Peer, wanted: KeyRequest) -> bool:
        """Say whether a peer may have a key, of whichever epoch."""
        return any(
            (each.key, each.scope) == (wanted.name, wanted.scope)
            and (peer.uid in each.uids or not peer.groups.isdisjoint(each.gids))
            for each in self._served
        )

    def share_of(self, peer: Peer) -> str:
        """Say with whom a peer shares its connections: its listed user, or group, or all who are not listed.

        There are as many shares as listed users and groups, and one: a container with ten thousand users has
        no more than another.
        """
        if peer.uid in self._uids:
            return f"uid {peer.uid}"
        listed = peer.groups & self._gids
        return f"gid {min(listed)}" if listed else "others"

    @property
    def shares(self) -> int:
        """How many shares there are."""
        return len(self._uids) + len(self._gids) + 1
