"""The one who writes a store: commits, and what follows the log (arrays that are long enough, index, snapshot)."""

from __future__ import annotations

from collections.abc import Sequence

from daskrl.errors import DamagedError, StoreLockedError
from daskrl.records import Record
from daskrl.schedule import Rechecks
from daskrl.store import arrays, snapshot
from daskrl.store.index import INDEX_EVERY, Index, index_columns
from daskrl.store.layout import Layout
from daskrl.store.log import Segment
from daskrl.store.packed import left
from daskrl.store.progress import Progress
from daskrl.store.storage import Tag


class Driver:
    """Of one store, from `begin` to `end`, while it holds the lock."""

    def __init__(self, layout: Layout) -> None:
        self.storage, self.config, self.log, self.run_id = layout.storage, layout.config, layout.log, layout.run_id
        self._arrays = [*layout.columns, *(column.name for column in index_columns(layout.config))]
        self._lock = layout.storage.lock()
        self._capacity = 0
        self._forget()

    def _forget(self) -> None:
        self._known: dict[str, Tag] = {}  # what this driver wrote, see `Storage.rewrite`
        self._index = Index(self.storage, self.config, self._known)
        self._written = Progress([0] * self.config.schedule.streams)  # all that is committed, for the snapshot

    @property
    def head(self) -> int:
        """Commits made."""
        return self._written.commits

    def array_length(self) -> int:
        """Slots every array has now."""
        return arrays.length(self.storage, self._arrays)

    def begin(self) -> Progress:
        """Take the lock and read the whole log: a driver trusts no snapshot. Raises as `Store.lock` does."""
        self._lock.acquire()
        try:
            self.storage.tidy()
            if (pack := left(self.storage, self.run_id)) is not None:  # it will be older
                pack.remove()
            self._forget()
            schedule = self.config.schedule
            progress = Progress([0] * schedule.streams, rechecks=Rechecks(schedule, self.config.recheck_every))
            self._capacity = self.array_length()
            for segment in self.log.segments():
                self._take(segment, progress)
            if self._lock.took_over:
                self._shut_out(progress)
            progress.due.clear()  # by the driver that committed them
            self._index.flush()
            return progress
        except BaseException:
            self._lock.release()
            raise

    def _take(self, segment: Segment, progress: Progress) -> None:
        for record in segment.records:
            if record["kind"] == "fragment":
                if record["round"] != progress.committed[record["stream"]]:
                    raise DamagedError(f"{self.storage}: the commits of stream {record['stream']} are out of order.")
                self._index.take(record)
            progress.take(record)
        self._written.take_commit(segment)

    def _shut_out(self, progress: Progress) -> None:
        """Commit that another driver has the store now, so that one believed dead cannot commit any more."""
        while True:
            try:
                self._take(self.log.append(self.head, [{"kind": "driver"}]), progress)
                return
            except StoreLockedError:  # it was not dead, and this is its last commit: it knows by now, or with its next
                self._take(self.log.segment(self.head), progress)

    def commit(self, records: Sequence[Record]) -> None:
        """Commit some records, all of them or none. Growing the arrays comes first."""
        fragments = [record for record in records if record["kind"] == "fragment"]
        needed = max((record["slot"] + 1 for record in fragments), default=0)
        if needed > self._capacity:
            self._capacity = arrays.grow(self.storage, self._arrays, needed, self._known)
        self._lock.require()
        self._written.take_commit(self.log.append(self.head, records))
        for record in fragments:
            self._index.take(record)
        if self.head % INDEX_EVERY == 0:
            self._follow()

    def end(self) -> None:
        """Let another driver have the store."""
        try:
            if self._lock.held:
                self._follow()
        finally:
            self._lock.release()

    def _follow(self) -> None:
        self._index.flush()
        snapshot.save(self.log, self.run_id, self._written)
