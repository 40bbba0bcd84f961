"""The readers of shards of AIStore's package, reading through a daemon.

Where they differ from their originals:

* A sample has the same fields from the first one to the last, in every pass and worker: those of
  all regular members of all shards, or `fields`.  Names of folders and links add none.
* `len` counts samples.
* A header that is damaged behind the first member is an error, not the end of the shard; a shard is
  read by ranges, so one that is damaged is refused before the first sample.
* Ranks share the samples, and so do the workers of a joined stream: each comes once.
* Joined streams take the members of each shard in the order of their names, as the store lists
  them, and never those of another shard whose name begins alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..buckets import PROVIDERS, Bucket
from ..checks import check_flag, check_integer
from ..errors import PlanError
from ..plans import Sequential, Slice
from ..shards import MultiShard, Shards
from ..sources import Stream
from .items import ItemStream

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from ..batch import Batch
    from ..members import MemberRule
    from ..topology import Topology

SAMPLES_PER_STEP: Final = 32

_ALL_NAMES: Final = ("",)
"""The originals take every object for a shard, whatever its name ends with."""


class AISShardReader(ItemStream[tuple[str, dict[str, bytes]]]):
    """Samples of shards one by one, as ``(basename, {extension: bytes})``.

    Order: the sources, of each its prefixes, of each the shards by name, the samples as they stand.
    Shard i goes to worker ``i % num_workers`` of a ``DataLoader``.

    Args:
        bucket_list: Bucket objects of AIStore's SDK, URIs or folders; or one of these.  The daemon
            knows where the cluster is, whatever client a bucket has.
        prefix_map: Beginnings of the names of shards by source: a text or a list of them; None, or
            no entry, for all; an empty list for nothing.
        etl_name: Only None: use a transform in the trainer.
        show_progress: Only False: ``headrace status`` shows the progress.
        partition_sources_by_worker: Deal sources to workers, not shards.
        socket: Path of the daemon's socket, as for `headrace.DaemonDataset`.
        local: Start a daemon of its own, which ends with this process.
        rule: How names become keys and fields (`headrace.members`); ``"webdataset"`` loses no
            member where extensions have several dots.
        fields: The fields of each sample; by default those of all shards.  What has none of them is
            no sample, and a source without any is an error then.
        samples_per_step: Samples that the daemon sends at a time: a batch of the plan.
        topology: Rank and world size; by default as `headrace.DaemonDataset` finds them.

    Raises:
        PlanError: If an argument is out of range or of the wrong kind.
    """

    def __init__(
        self,
        bucket_list: Any,  # noqa: ANN401 - buckets of a package that may be absent
        prefix_map: Mapping[Any, str | Sequence[str] | None] | None = None,
        etl_name: str | None = None,
        show_progress: bool = False,
        partition_sources_by_worker: bool = False,
        *,
        socket: str | os.PathLike[str] | None = None,
        local: bool = False,
        rule: MemberRule = "aistore",
        fields: Sequence[str] | None = None,
        samples_per_step: int = SAMPLES_PER_STEP,
        topology: Topology | None = None,
    ) -> None:
        sources = list(bucket_list) if isinstance(bucket_list, list | tuple) else [bucket_list]
        if not bucket_list:
            raise PlanError(f"bucket_list={bucket_list!r} has no source: give one bucket at least")
        _refuse_etl("etl_name", etl_name)
        check_flag("show_progress", show_progress, PlanError)
        if show_progress:
            raise PlanError(
                "show_progress=True is not offered: leave it out; 'headrace status' shows what a "
                "daemon reads"
            )
        check_flag("partition_sources_by_worker", partition_sources_by_worker, PlanError)
        self._plan = _plan(samples_per_step)
        self._rule, self._fields = rule, fields
        # A source without a sample of these is more likely to have others.
        self._may_be_empty = fields is None
        self._by_source = partition_sources_by_worker
        self._uris = [_uri_of(source) for source in sources]
        self._prefixes = _prefixes(prefix_map or {}, self._uris)
        super().__init__(self._stream_of(self._uris), socket=socket, local=local, topology=topology)

    def _stream_of(self, uris: Sequence[str]) -> Stream | None:
        """Return the stream over some of the sources; None if nothing is taken of them."""
        taken = [uri for uri in uris if self._prefixes.get(uri) != ()]
        if not taken:
            return None
        source = Shards(
            taken,
            suffix=_ALL_NAMES,
            prefixes={uri: self._prefixes[uri] for uri in taken if uri in self._prefixes},
            fields=self._fields,
            missing="empty",
            rule=self._rule,
            on_empty="skip",
        )
        return Stream(source, self._plan)

    def _share(self, worker: int, num_workers: int) -> Stream | None:
        if self._by_source and num_workers > 1:
            return self._stream_of(self._uris[worker::num_workers])
        return _every(self.stream, worker, num_workers)

    def _item(self, batch: Batch, row: int) -> tuple[str, dict[str, bytes]]:
        values = {field: column[row] for field, column in batch._columns.items()}
        return batch.sample_keys[row], values


@dataclass
class DataShard:
    """Shards of one bucket, as AIStore's SDK describes a stream of them."""

    client_url: str
    """Not used: the daemon knows where the cluster is."""

    bucket_name: str
    provider: str = "ais"
    prefix: str = ""
    etl_name: str | None = None


class AISMultiShardStream(ItemStream[tuple[bytes, ...]]):
    """The members of several streams of shards side by side: ``(bytes, …)``, one of each stream.

    They are joined by their places, and end with the shortest stream.  `headrace.MultiShard` joins
    samples by key, and refuses streams of unequal lengths.

    Args:
        data_sources: `DataShard` objects, of here or of AIStore's SDK; URIs with a prefix, or
            folders.
        socket: Path of the daemon's socket, as for `headrace.DaemonDataset`.
        local: Start a daemon of its own, which ends with this process.
        samples_per_step: Samples that the daemon sends at a time: a batch of the plan.
        topology: Rank and world size; by default as `headrace.DaemonDataset` finds them.

    Raises:
        PlanError: If an argument is out of range or of the wrong kind.
    """

    def __init__(
        self,
        data_sources: Sequence[Any],
        *,
        socket: str | os.PathLike[str] | None = None,
        local: bool = False,
        samples_per_step: int = SAMPLES_PER_STEP,
        topology: Topology | None = None,
    ) -> None:
        plan = _plan(samples_per_step)
        if isinstance(data_sources, str) or not isinstance(data_sources, list | tuple):
            raise PlanError(f"data_sources={data_sources!r} must be a list: one for each stream")
        streams = {str(number): _members_of(source) for number, source in enumerate(data_sources)}
        stream = None
        if streams:
            stream = Stream(MultiShard(streams=streams, join="position", length="shortest"), plan)
        super().__init__(stream, socket=socket, local=local, topology=topology)

    def _share(self, worker: int, num_workers: int) -> Stream | None:
        return _every(self.stream, worker, num_workers)

    def _item(self, batch: Batch, row: int) -> tuple[bytes, ...]:
        return tuple(column[row] for column in batch._columns.values())


def _plan(samples_per_step: int) -> Sequential:
    check_integer("samples_per_step", samples_per_step, 1, 2**16, PlanError)
    return Sequential(batch_size=samples_per_step)


def _every(stream: Stream, worker: int, num_workers: int) -> Stream:
    """Return the share of a worker that gets every so manieth shard."""
    assert isinstance(stream.plan, Sequential)
    if num_workers == 1:
        return stream
    plan = Sequential(batch_size=stream.plan.batch_size, shards=Slice(worker, None, num_workers))
    return Stream(stream.source, plan)


def _members_of(source: Any) -> Shards:  # noqa: ANN401 - see `AISMultiShardStream`
    """Return the source of the members of the shards of a stream."""
    prefix = ""
    if isinstance(getattr(source, "bucket_name", None), str):
        _refuse_etl("etl_name", source.etl_name)
        uri, prefix = _bucket_uri(source.bucket_name, source.provider, None), source.prefix or ""
    else:
        uri = _uri_of(source)
    return Shards(
        uri,
        suffix=_ALL_NAMES,
        prefixes={uri: (prefix,)} if prefix else None,
        rule="files",
        on_empty="skip",
    )


def _prefixes(given: Mapping[Any, Any], uris: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the prefixes of each source that has any, by its URI."""
    found: dict[str, tuple[str, ...]] = {}
    for source, chosen in given.items():
        uri = _uri_of(source)
        if uri not in uris:
            raise PlanError(f"prefix_map has {uri!r}, which is not in bucket_list: {uris}")
        if chosen is not None:
            found[uri] = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    return found


def _uri_of(source: Any) -> str:  # noqa: ANN401 - a bucket of a package that may be absent
    """Return the URI of a bucket of AIStore's SDK, or what was given as one.

    Raises:
        PlanError: If it is neither.
    """
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        return str(source)
    name, provider = getattr(source, "name", None), getattr(source, "provider", None)
    if not isinstance(name, str) or provider is None:
        raise PlanError(
            f"{source!r} is no bucket: give a Bucket of aistore.sdk, a URI such as ais://bucket, "
            "or a folder; for objects by name use DaemonDataset and Shards(uri, names=[…])"
        )
    return _bucket_uri(name, provider, getattr(source, "namespace", None))


def _bucket_uri(name: str, provider: Any, namespace: Any) -> str:  # noqa: ANN401 - of the SDK
    word = str(getattr(provider, "value", provider))
    if word not in PROVIDERS:
        raise PlanError(f"bucket {name!r} has provider {word!r}: known are {', '.join(PROVIDERS)}")
    space = "@#" if namespace is None else f"@{namespace.uuid}#{namespace.name}"
    return str(Bucket(PROVIDERS[word], space, name, ""))


def _refuse_etl(name: str, value: object) -> None:
    if value:
        raise PlanError(
            f"{name}={value!r} is not offered: transform samples in the trainer, in its own loop "
            "or by DaemonDataset(stream=…, transform=…)"
        )
