"""Sources and streams: where the samples are, and with which plan they are read.

Both are frozen values that stand in a configuration, travel over the wire and are validated
where they are made.  Nothing here does any I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from .checks import check_choice, check_flag, check_integer
from .conversion import prepare
from .errors import PlanError
from .located import Located
from .plans import Drawn, FromSampler, Plan, Sequential, ShardShuffled
from .plans.cursor import MAX_SKIPS
from .plans.dictated import Dictated
from .plans.streamed import StreamedPlan
from .shards import MultiShard, Shards


class Objects(Located, frozen=True, forbid_unknown_fields=True, tag="Objects"):
    """One sample per object of a bucket or file of a folder, in the order of their names.

    The name of a sample is that of its object in the bucket, or of its file relative to the folder,
    with ``/`` between components; the order is that of their UTF-8 bytes.  The single field of a
    sample is ``data``.

    Several URIs, or several prefixes, are one after the other: the order is that of the URIs, for
    each that of its prefixes, for each that of the names.  Where they are in several buckets or
    folders, the name of a sample begins with the name of its bucket, or the last component of its
    folder, and a ``/``; a second ``b`` is ``b@1``.  No object is in a source twice: prefixes of
    which one is the beginning of another are refused.

    Example:
        >>> Objects(["ais://images/train/", "ais://more"], prefixes={"ais://more": ["a/", "b/"]})
        Objects(uri=('ais://images/train/', 'ais://more'), prefixes={'ais://more': ('a/', 'b/')})
        >>> Objects("ais://images", names="img-{000..255}.jpg").selections[0].names[-1]
        'img-255.jpg'
    """


Source = Objects | Shards | MultiShard
"""All sources, told apart by ``type``."""


def typed(plain: Any) -> Any:  # noqa: ANN401 - what TOML or a message has
    """Return a description with the type of each source that does not say its own: `Objects`.

    Args:
        plain: Maps and lists; those below a key ``source`` describe sources.
    """
    if not isinstance(plain, dict):
        return plain
    found = {key: typed(value) for key, value in plain.items()}
    source = found.get("source")
    if isinstance(source, dict) and "type" not in source:
        found["source"] = {"type": "Objects", **source}
    return found


class Skip(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What leaves out samples that cannot be read, up to a limit.

    A sample that is missing, changed, or arrives corrupt leaves a *hole* in its batch: its values
    are None, its flag is ``hole``, and no other sample moves.  It stays left out for the rest of
    the run, also if it is repaired; the state has the list.

    The ranks that torchrun has started on a node, with their DataLoader workers, count together:
    where they pass the limit, all of them end in front of the same step, with one error that names
    the samples.  That is the step in which the limit is passed, unless a rank was given it before
    another one had read it; then it is the first that none was given, and a few more samples may be
    left out until then.  Each node counts for itself, since nothing is shared between daemons: a
    run on M nodes may leave out M times as many, and where one node ends, the others notice as they
    notice any rank that fails.  A rank with ``topology=`` counts alone.
    """

    limit: int = 100
    """Samples that may be left out by all ranks of the run on a node together, in the whole run, or
    with `repair` in an epoch; one more ends the stream."""

    repair: bool = False
    """Whether each epoch tries again what the one before has left out."""

    def __post_init__(self) -> None:
        check_integer("on_bad limit", self.limit, 0, MAX_SKIPS + 1, PlanError)
        check_flag("on_bad repair", self.repair, PlanError)


if TYPE_CHECKING:
    # One that runs in the trainer is taken too, but never read from a map.
    StreamPlan = Plan | Dictated | FromSampler
else:
    StreamPlan = Plan | Dictated


def is_streamed(source: Source) -> bool:
    """Return whether a source has shards that are read from beginning to end, without an index."""
    return isinstance(source, Shards) and source.is_streamed


def _anchored(source: Source) -> Source:
    return source.anchored()


MAX_STREAM_BYTES: Final = 1 << 19
"""Of a stream that a client brings: half of a message, which has other things in it."""


MAX_SAMPLE_BYTES: Final = 64 << 20
"""Of a sample in a shard that is streamed, where the stream does not say it."""


class Stream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A source and the plan by which it is read."""

    source: Source
    """Where the samples are."""

    plan: StreamPlan
    """In which order and in which batches they are read."""

    on_bad: Literal["fail", "skip"] | Skip = "fail"
    """What a sample that cannot be read does: ``"fail"`` ends the stream with an error; ``"skip"``,
    or ``Skip(limit=…)``, leaves it out.  Of a shard that is streamed and breaks off, the rest is
    left out; that is for one rank only (`docs/shards.md`)."""

    max_sample_bytes: int | None = None
    """The largest sample, and member, of shards that are streamed: a larger one ends the stream
    with an error.  None: 64 MiB.  Memory is taken for what there is, not for this."""

    steps_per_epoch: int | None = None
    """Steps of an epoch over shards that are streamed, the same on all ranks, of which there may be
    several then.  Where the shards end before, they begin again, and samples carry the flag
    ``wrapped``; what is left of them is left out.  None: an epoch ends where the shards end."""

    def __post_init__(self) -> None:
        if not isinstance(self.source, Source):
            raise PlanError(
                f"source={self.source!r} is no source: use Objects(uri), Shards(uri) or MultiShard"
            )
        plan: object = self.plan
        if not isinstance(plan, Plan | Drawn | FromSampler | Dictated):
            is_sampler = hasattr(plan, "__iter__") and not isinstance(plan, str | bytes | dict)
            hint = "use plans.FromSampler(…)" if is_sampler else "see headrace.plans"
            raise PlanError(f"plan={plan!r} is no plan: {hint}")
        if not isinstance(self.on_bad, Skip):
            check_choice("on_bad", self.on_bad, ("fail", "skip"), PlanError)
        self._check_streamed()

    def _check_streamed(self) -> None:
        """Check what goes with streamed shards only, and what does not go with them."""
        for name, limit in (("max_sample_bytes", 2**32), ("steps_per_epoch", 2**48)):
            value = getattr(self, name)
            if value is None:
                continue
            check_integer(name, value, 1, limit, PlanError)
            if not self.is_streamed:
                raise PlanError(
                    f"{name}={value} is for shards that are streamed, and of {self.source.title} "
                    "all samples are known: leave it out"
                )
        own = {} if isinstance(self.plan, FromSampler) else self.plan.sources
        streamed = [source for source in (self.source, *own.values()) if is_streamed(source)]
        if not streamed:
            return
        if own or not isinstance(self.plan, Sequential | ShardShuffled):
            raise PlanError(
                f"plan={self.plan!r} has to know all samples beforehand, and {streamed[0].title} "
                "is streamed: use Sequential or ShardShuffled, or index the shards (plain .tar, "
                "without index=False)"
            )
        assert isinstance(self.served_plan, StreamedPlan), "it checks the options of the plan"

    @property
    def is_streamed(self) -> bool:
        """Whether the source has shards that are read from beginning to end, without an index."""
        return is_streamed(self.source)

    @property
    def skip(self) -> Skip | None:
        """What is left out; None for nothing."""
        if isinstance(self.on_bad, Skip):
            return self.on_bad
        return Skip() if self.on_bad == "skip" else None

    def anchored(self) -> Stream:
        """Return the stream with absolute paths, for a daemon that runs in another folder."""
        plan = self.plan
        if not isinstance(plan, FromSampler):
            plan = plan.with_sources(_anchored)
        return msgspec.structs.replace(self, source=self.source.anchored(), plan=plan)

    def plain(self) -> dict[str, Any]:
        """Return the stream as it travels: a map, with absolute paths.

        Raises:
            PlanError: If it does not fit into a message.
        """
        plain: dict[str, Any] = msgspec.to_builtins(self.anchored())
        num_bytes = len(msgspec.msgpack.encode(plain))
        if num_bytes > MAX_STREAM_BYTES:
            raise PlanError(
                f"the stream over {self.source.title} takes {num_bytes} bytes to say, the limit is "
                f"{MAX_STREAM_BYTES}: give names as a template or by a prefix, or configure the "
                "stream in the daemon and open it by name"
            )
        return plain

    @property
    def served_plan(self) -> Plan | Dictated | StreamedPlan:
        """The plan as the daemon knows it; not for a stream that holds a sampler."""
        assert not isinstance(self.plan, FromSampler), f"{self.plan!r} does not travel"
        source, plan = self.source, self.plan
        if not is_streamed(source) or not isinstance(plan, Sequential | ShardShuffled):
            return plan
        assert isinstance(source, Shards)
        assert source.fields is not None
        return StreamedPlan(
            plan=plan,
            fields=tuple(source.fields),
            missing=source.missing,
            lowercase=source.lowercase,
            steps_per_epoch=self.steps_per_epoch,
        )

    @property
    def checked_plan(self) -> Plan | Dictated | StreamedPlan | FromSampler:
        """The plan that cursors of the stream belong to."""
        return self.plan if isinstance(self.plan, FromSampler) else self.served_plan

    @property
    def sample_limit(self) -> int:
        """Bytes of the largest sample of shards that are streamed."""
        return MAX_SAMPLE_BYTES if self.max_sample_bytes is None else self.max_sample_bytes

    @property
    def sources(self) -> dict[str, Source]:
        """All sources: that of the stream under an empty name, and those of parts of the plan."""
        own = {} if isinstance(self.plan, FromSampler) else self.plan.sources
        return {"": self.source, **own}


prepare(Stream, Source)
