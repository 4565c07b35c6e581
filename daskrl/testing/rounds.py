"""What every source of rounds must do, as tests for the author of one."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from daskrl.arithmetic import ALIGNMENT
from daskrl.errors import DaskrlError
from daskrl.records import Array
from daskrl.replay.rounds import Fragments, RoundReader, Rounds

_COLUMNS = ("reward", "terminated", "truncated", "episode_step", "continues")

_Bytes = list[dict[str, tuple[str, tuple[int, ...], bytes]]]


class RoundsTests:
    """In a file that pytest collects::

    class TestMine(daskrl.testing.RoundsTests):
        def make(self):
            return Mine(...)  # at least four rounds; the same ones each time
    """

    def make(self) -> Rounds:
        """The source, made anew; it holds the same rounds each time."""
        raise NotImplementedError("define make(self): it returns a source of at least four rounds")

    def run(self) -> list[str]:
        """Call every test, without pytest; the names of those that passed, where all did."""
        names = [name for name in dir(self) if name.startswith("test_")]
        for name in names:
            getattr(self, name)()
        return names

    def _all(self, source: Rounds) -> range:
        assert source.before >= 0, f"before is {source.before}"
        assert source.before or not source.cut, "cut says what came before the first of no rounds"
        assert source.count() >= 4, f"{source.count()} rounds are too few to test with: at least four are needed"
        return range(-source.before, source.count())

    def test_rounds_are_of_one_shape(self) -> None:
        source = self.make()
        first: list[dict[str, tuple[str, tuple[int, ...]]]] = []
        for round_, fragments in zip(self._all(source), source.read(self._all(source)), strict=True):
            for stream, fragment in enumerate(fragments):
                where = f"round {round_}, stream {stream}"
                missing = [name for name in _COLUMNS if name not in fragment]
                assert not missing, f"{where} has no {', '.join(missing)}"
                steps, count = fragment["reward"].shape
                for name in ("terminated", "truncated"):
                    found = (fragment[name].dtype, fragment[name].shape)
                    assert found == (np.dtype(bool), (steps, count)), f"{where}: {name} is {found}"
                assert fragment["episode_step"].shape == (count,), f"{where}: episode_step, not one of each environment"
                for name, value in fragment.items():
                    place = value.__array_interface__["data"][0]
                    assert place % ALIGNMENT == 0, f"{where}: {name} does not begin at a multiple of {ALIGNMENT} bytes"
            shapes = [_shapes(fragment) for fragment in fragments]
            first = first or shapes
            assert shapes == first, f"round {round_} has other streams, types or shapes than the first"

    def test_rounds_come_in_order_however_many_are_asked_for(self) -> None:
        source = self.make()
        together = _read(source, self._all(source))
        alone = [_read(source, range(round_, round_ + 1)) for round_ in reversed(self._all(source))]
        assert [one for some in reversed(alone) for one in some] == together, "read alone, rounds are others"
        assert together[1:3] == _read(source, self._all(source)[1:3]), "read from the middle, rounds are others"
        assert len({repr(one) for one in together}) > 1, "all rounds are the same; nothing can be said of their order"

    def test_a_round_is_the_same_whenever_it_is_read(self) -> None:
        source, other = self.make(), self.make()
        once = _read(source, self._all(source))
        assert _read(source, self._all(source)) == once, "read again, rounds differ"
        assert _read(other, self._all(other)) == once, "a source made anew has other rounds"
        assert (other.count(), other.before, other.cut) == (source.count(), source.before, source.cut)

    def test_two_threads_read_at_once(self) -> None:
        source = self.make()
        wanted, expected, found = self._all(source), _read(self.make(), self._all(source)), list[list[_Bytes]]()
        together = threading.Barrier(2)

        def read() -> None:
            together.wait()
            found.append(_read(source, wanted))

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected, expected], "two that read at once do not read the same"

    def test_an_iterator_may_be_left_and_goes_on_in_another_thread(self) -> None:
        source = self.make()
        expected, rounds, found = _read(self.make(), self._all(source)), source.read(self._all(source)), list[_Bytes]()
        next(source.read(self._all(source)))  # and no more of it
        found.append(_bytes(next(rounds)))
        thread = threading.Thread(target=lambda: found.append(_bytes(next(rounds))))
        thread.start()
        thread.join()
        found += [_bytes(fragments) for fragments in rounds]
        assert found == expected

    def test_what_is_read_ahead_is_the_same(self) -> None:
        source = self.make()
        expected, reader = _read(self.make(), self._all(source)), RoundReader(source)
        for begun in (0, 1, source.count() - 1):
            reader.begin(begun)
        before = [_bytes(fragments) for fragments in reader.read(range(-source.before, 0))]
        learned = [_bytes(fragments) for fragments in reader.read(range(source.count()))]
        assert [*before, *learned] == expected

    def test_rounds_end_with_an_error(self) -> None:
        source = self.make()
        first, count = -source.before, source.count()
        assert _read(source, range(1, 1)) == [], "of no rounds some were given"
        for rounds in (range(count, count + 1), range(first - 1, first)):
            assert _fails(source, rounds), f"round {rounds.start} is given, and is not one of {first} to {count - 1}"
        assert _fails(source, range(count - 1, count + 1)), "rounds that are not there are left out silently"


def _bytes(fragments: Fragments) -> _Bytes:
    return [
        {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in sorted(fragment.items())}
        for fragment in fragments
    ]


def _read(source: Rounds, rounds: range) -> list[_Bytes]:
    return [_bytes(fragments) for fragments in source.read(rounds)]


def _shapes(fragment: Mapping[str, Array]) -> dict[str, tuple[str, tuple[int, ...]]]:
    # Last observations are there only where an episode was truncated.
    return {name: (v.dtype.str, v.shape) for name, v in fragment.items() if not name.startswith("final_")}


def _fails(source: Rounds, rounds: range) -> bool:
    try:
        _read(source, rounds)
    except DaskrlError:
        return True
    return False
