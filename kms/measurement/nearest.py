"""The known image that a measurement is nearest to, where nobody gives launch inputs to compare it with."""

from collections.abc import Iterable, Sequence

from kms.identifiers import AppId, ComposeHash, Measurement
from kms.measurement.explanation import Explanation, explain_measurement
from kms.measurement.images import Image


def nearest_image(
    measurement: Measurement, groups: Iterable[Sequence[Image]], app: tuple[AppId, ComposeHash] | None
) -> Explanation:
    """Say what differs from the nearest image, by the first group of images that explains the measurement.

    The likely ones come first: a group of one image is named also where nothing explains the difference. Each
    group may take `kms.measurement.explanation.MAX_HASHES`.
    """
    best: Explanation | None = None
    seen: set[Image] = set()
    for group in groups:
        images = [image for image in dict.fromkeys(group) if image not in seen]
        if images:
            found = explain_measurement(measurement, images, None, app=app)
            if found.conclusive:
                return found
            best = best or found
            seen.update(images)
    return best or explain_measurement(measurement, (), None, app=app)
