"""What is planned: a plan, the facts of its data, and the names of its samples.

They come from a SOURCE and options, from a stream of a configuration, from a stream in a file, or
without any source from a length.  Parts of a composition that have a source of their own are listed
like the main one, each source once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.errors import PlanError
from headrace.plans import ByteBudget, Chain, Data, Interleaved, Plan
from headrace.plans.base import Ordered
from headrace.sources import Source, Stream, is_streamed, typed

from ...errors import SettingsError
from ...settings import Settings, load, part
from ..sources import configured_stream, current_manifest, named_source
from .choice import SHORTCUTS, chosen_plan, table, to_plan
from .columns import columns, lengths, sizes

if TYPE_CHECKING:
    import argparse

    from headrace.manifest import Manifest
    from headrace.plans.base import Described


class Subject(NamedTuple):
    """What is planned."""

    plan: Plan
    data: Data
    """Facts of the main source, and of those of the parts."""

    sources: dict[str, Source]
    """The sources that were listed, by part; ``""`` for the main one."""

    manifests: dict[str, Manifest]
    """Their manifests, likewise; empty where only lengths are known."""

    def part(self, stream: str) -> str:
        """Return under which name the data of a stream stands."""
        return stream if stream in self.data.parts else ""

    def manifest(self, stream: str) -> Manifest | None:
        """Return the manifest of a stream; None where only a length is known."""
        return self.manifests.get(self.part(stream))


def named_subject(options: argparse.Namespace) -> Subject:
    """Return what the options name.

    Raises:
        SettingsError: If they contradict each other.
        PlanError: If there is no such plan or stream.
        SourceError: If a source cannot be listed.
    """
    settings = Settings() if options.config is None else load(options.config)
    plan, source = _plan_and_source(options, settings)
    found = Subject(plan, Data(0), {}, {})
    if options.length:
        data = _made_up(options, plan)
    elif source is None:
        raise SettingsError(
            "give a SOURCE, --config with a stream, --stream with a file, or --length"
        )
    else:
        found.sources.update({"": source, **plan.sources})
        by_source: dict[Source, Manifest] = {}
        for name, place in found.sources.items():
            if is_streamed(place):
                raise PlanError(
                    f"the samples of {place.title} are known only while its shards are streamed: "
                    "index them (plain .tar, without index=False), or give --length"
                )
            if place not in by_source:
                by_source[place] = current_manifest(settings, place)
            found.manifests[name] = by_source[place]
        data = {
            name: Data(len(manifest), manifest.digest, {"sizes": manifest.sizes}, manifest.bounds)
            for name, manifest in found.manifests.items()
        }
    data = columns(options.column, sizes(options.sizes, data))
    _check_columns(plan, data)
    main = data.pop("")
    # A digest of its own where there are parts: what is added to that of the main data.
    whole = Data(main.length, main.digest, main.columns, main.shards, data)
    return found._replace(data=whole)


def streams_of(plan: Described) -> dict[str, Ordered]:
    """Return the plans over one order by name of their stream; that of a single plan is empty."""
    if isinstance(plan, Chain):
        return {name: link.plan for name, link in plan.links.items()}
    if isinstance(plan, Interleaved):
        main = streams_of(plan.train)
        return {
            **({"train": main[""]} if "" in main else main),
            **{name: every.effective_plan for name, every in plan.extras.items()},
        }
    assert isinstance(plan, Ordered), "every other plan has one order"
    return {"": plan}


def _plan_and_source(options: argparse.Namespace, settings: Settings) -> tuple[Plan, Source | None]:
    given = None
    if options.source is not None:
        given = named_source(options)
    elif options.suffix and options.config is None:
        raise SettingsError("--suffix belongs to a SOURCE: a stream has its own")
    if given is not None and options.length:
        raise SettingsError("give a SOURCE or --length, not both")
    if options.config is not None:
        if given is not None:
            raise SettingsError("give a SOURCE or --config, not both")
        _refuse_plan_options(options, "--config", ("suffix", "shards"))
        stream = configured_stream(settings, options.stream)[1]
        assert isinstance(stream.plan, Plan), "settings refuse any other"
        return stream.plan, stream.source
    if options.stream is None:
        return chosen_plan(options), given
    _refuse_plan_options(options, "--stream", ())
    plan, source = _stream_of_file(options.stream)
    if given is not None and source is not None:
        raise SettingsError(f"give a SOURCE or --stream, not both: {options.stream} names a source")
    return plan, given or source


def _refuse_plan_options(options: argparse.Namespace, origin: str, others: tuple[str, ...]) -> None:
    for name in (*others, "plan", "option", *SHORTCUTS):
        value = getattr(options, name)
        if not (value is None or value is False or value == []):
            raise SettingsError(
                f"--{name.replace('_', '-')} belongs to a SOURCE: with {origin} the source and the "
                "plan are those of the stream"
            )


def _stream_of_file(path: str) -> tuple[Plan, Source | None]:
    """Return the plan and the source, if it has one, of a stream (or a plan) in a file."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise SettingsError(
            f"--stream {path}: there is no such file; a name of a configured stream goes with "
            "--config"
        ) from None
    except OSError as error:
        raise SettingsError(f"--stream {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"--stream {path} is no text: {error}") from None
    facts = table(text, f"--stream {path}")
    if "plan" not in facts and "type" in facts:
        return to_plan(facts), None
    unknown = [name for name in facts if name not in Stream.__struct_fields__]
    if unknown or not isinstance(facts.get("plan"), dict):
        what = f"has the unknown key {unknown[0]!r}" if unknown else "has no plan"
        raise SettingsError(
            f"--stream {path} {what}: a stream has plan = {{ type = … }} and perhaps source = "
            f"{{ uri = … }}; allowed: {', '.join(Stream.__struct_fields__)}"
        )
    return to_plan(facts["plan"]), _source(facts.get("source"), path)


def _check_columns(plan: Plan, data: dict[str, Data]) -> None:
    """Refuse a budget of a column that nobody gave, with the option that gives it."""
    for name, single in streams_of(plan).items():
        where = name if name in data else ""
        if isinstance(single, ByteBudget) and single.column not in data[where].columns:
            of_part = f" of part {where!r}" if where else ""
            said = f"--column {where + '.' if where else ''}{single.column}=FILE.npy"
            if single.column == "sizes":
                said = f"--sizes {where + '=' if where else ''}LOW:HIGH"
            raise SettingsError(
                f"plan ByteBudget needs the column {single.column!r}{of_part}, which is not known: "
                f"add {said}"
            )


def _source(facts: Any, path: str) -> Source | None:  # noqa: ANN401 - of a file
    if facts is None:
        return None
    if not isinstance(facts, dict):
        raise SettingsError(f"--stream {path}: source = {facts!r}: write source = {{ uri = … }}")
    described = typed({"source": facts})["source"]
    source: Source = part(described, Source, origin=f"--stream {path}: source")
    return source


def _made_up(options: argparse.Namespace, plan: Plan) -> dict[str, Data]:
    """Return the data by part that has no more than lengths."""
    found = lengths(options.length)
    # The main plan of a composition has the data of the whole.
    parts = [name for name in streams_of(plan) if name not in ("", "train")]
    for name in found:
        if name and name not in parts:
            raise SettingsError(
                f"--length {name}={found[name]}: the plan has no part {name!r}; its parts: "
                f"{', '.join(parts) or 'none'}"
            )
    missing = [name for name in ("", *plan.sources) if name not in found]
    if missing:
        what = (
            f"part {missing[0]!r} has a source of its own" if missing[0] else "the whole has none"
        )
        example = f"{missing[0]}=NUMBER" if missing[0] else "NUMBER"
        raise SettingsError(f"--length: {what}: give --length {example} too")
    return {name: Data(length) for name, length in found.items()}
