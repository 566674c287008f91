"""The index of all images says what their tables say."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from kms.identifiers import Measurement
from kms.measurement.images import Image, MeasurementTable
from kms.measurement.index import MeasurementIndex, RecentTables
from kms.measurement.launch import LaunchDescription, Vmm, os_image_hash
from tests.unit.measurement.test_images import APP, COMPOSE, FIRMWARE, image


def images(count: int) -> list[Image]:
    made = []
    for number in range(count):
        cmdline = f"console=ttyS0 number={number}"
        description = LaunchDescription(vmm=Vmm.QEMU, firmware=FIRMWARE, kernel=b"\xaa" * 32, cmdline=cmdline)
        named = os_image_hash(description.to_json())
        made.append(image(cmdline, name=f"os-{number}", os_image_hash=named))
    return made


def indexed(*listed: Image) -> MeasurementIndex:
    index = MeasurementIndex()
    for each in listed:
        index.compute(index.number(each))
    return index


def test_every_measurement_is_found_with_its_image_and_machine() -> None:
    listed = images(20)
    index = indexed(*listed)
    for number, each in enumerate(listed):
        assert index.number(each) == number
        for measurement, machine in MeasurementTable(each):
            assert list(index.find(measurement)) == [(number, machine)]


def test_nothing_else_is_found() -> None:
    """A measurement that begins as an allowed one does is another measurement."""
    listed = images(3)
    index = indexed(*listed)
    for measurement, _ in MeasurementTable(listed[1]):
        for at in (0, 1, 8, 9, 24, 47):
            other = bytearray(measurement)
            other[at] ^= 1
            assert not list(index.find(Measurement(bytes(other))))


def test_records_are_not_found_across_each_other() -> None:
    """What is sought may stand where one record ends and the next begins; that is no record."""
    index = indexed(*images(4))
    for first, shelf in enumerate(index._shelves):
        for at in range(len(shelf) - 8):
            if at % 16:
                straddling = bytes([first]) + bytes(shelf[at : at + 8]) + bytes(39)
                assert not list(index.find(Measurement(straddling)))


def test_images_that_measure_the_same_are_all_found() -> None:
    one = images(1)[0]
    index = indexed(one, replace(one, name="os-other"), replace(one, vcpus_maximum=4))
    measurement, machine = next(iter(MeasurementTable(one)))
    assert list(index.find(measurement)) == [(0, machine), (1, machine), (2, machine)]


def test_an_equal_image_has_the_same_number_and_is_computed_once() -> None:
    index = MeasurementIndex()
    first, again = images(1)[0], images(1)[0]
    assert first is not again
    assert index.number(first) == index.number(again) == 0
    assert len(index) == 1
    measurement, machine = next(iter(MeasurementTable(first)))
    assert not list(index.find(measurement))
    assert index.compute(0)
    assert not index.compute(0)
    assert list(index.find(measurement)) == [(0, machine)]


def test_threads_compute_each_image_once() -> None:
    index, listed = MeasurementIndex(), images(12)
    with ThreadPoolExecutor(6) as threads:
        numbers = list(threads.map(index.number, listed * 6))
        computed = list(threads.map(index.compute, numbers))
    assert sum(computed) == len(index) == 12
    for each in listed:
        measurement, machine = next(iter(MeasurementTable(each)))
        assert list(index.find(measurement)) == [(index.number(each), machine)]


class TestRecentTables:
    def test_the_latest_are_kept(self) -> None:
        tables, listed = RecentTables(2), images(3)
        first, second = (tables.table(each, None, remember=True) for each in listed[:2])
        assert tables.table(listed[0], None, remember=True) is first
        tables.table(listed[2], None, remember=True)
        assert len(tables) == 2
        assert tables.table(listed[0], None, remember=True) is first
        assert tables.table(listed[1], None, remember=True) is not second

    def test_nothing_is_kept_that_need_not_be_remembered(self) -> None:
        tables, one = RecentTables(2), images(1)[0]
        tables.table(one, None, remember=False)
        assert not tables
        kept = tables.table(one, None, remember=True)
        assert tables.table(one, None, remember=False) is kept
        assert len(tables) == 1

    def test_one_table_for_each_filled_command_line(self) -> None:
        template = image("app={app_id} compose={compose_hash}")
        tables = RecentTables(2)
        filled = template.filled_cmdline(APP, COMPOSE)
        measurement = next(iter(MeasurementTable(template, filled)))[0]
        assert tables.table(template, (APP, COMPOSE), remember=True).find(measurement)
        assert not tables.table(template, None, remember=True).find(measurement)


@pytest.mark.parametrize("number", [0, 255])
def test_any_first_byte_has_a_shelf(number: int) -> None:
    unknown = Measurement(bytes([number]) + bytes(47))
    assert not list(MeasurementIndex().find(unknown))
