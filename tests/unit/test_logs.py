import io
import os

from kms.telemetry.logs import UnfailingStream


def test_a_reader_that_went_away_stops_nobody() -> None:
    read, write = os.pipe()
    os.close(read)
    # Not a `with`: closing flushes again, which is what must not be needed.
    pipe = io.TextIOWrapper(io.FileIO(write, "w"), write_through=True)
    stream = UnfailingStream(pipe)
    assert stream.write("a line\n") == 7
    stream.flush()
    assert stream.lost >= 1
    pipe.detach().close()


def test_what_can_be_written_is_written() -> None:
    target = io.StringIO()
    stream = UnfailingStream(target)
    stream.write("a line\n")
    assert (target.getvalue(), stream.lost) == ("a line\n", 0)
