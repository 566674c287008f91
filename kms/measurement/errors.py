"""The one exception of this room."""

from kms.errors import KmsError


class MeasurementError(KmsError):
    """Firmware, description, machine or mode that cannot be measured.

    Raised for every input that has no well-defined launch measurement, however hostile; nothing else leaves
    this room (field lesson 16). `detail` names offsets and limits.
    """

    code = "measurement-input"
