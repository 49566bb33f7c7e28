"""Explain why an image is in a pool, or why not: whatever any batch has offered, of this week or of an earlier one.

The pools tell of images that were picked, and by content of those that were not taken. What git and DVC's cache keep of the
outputs of each batch tells of all others, with their names.
"""

import difflib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from datapool.core import atomic
from datapool.core.base import IMPORTED, MIGRATED
from datapool.core.errors import DatapoolError, counted, short_repr
from datapool.core.lineage import LINEAGE, SAMPLES, Removal, Version, read_entries, unknown_pool
from datapool.core.recorded_rows import PICKED, open_beginning, read_recorded_seen
from datapool.core.schema import Params
from datapool.core.tables import parse_csv_table
from datapool.query.batches import Offer, deciding, find_in_batches, number, runs_of
from datapool.workspace.states import Cache, State, first_with, history, state_here

_SIMILAR = 5  # names in a message
_COMPARED = 50_000  # names that are compared with one letter by letter


class Departure(NamedTuple):
    """An image that has left a pool because exclude.txt lists it."""

    pool: str
    content_hash: str
    removal: Removal


class Answer(NamedTuple):
    """All that is known of an image."""

    offers: list[Offer]
    """The earliest batch first."""
    departures: list[Departure]
    gaps: list[str]
    """Sentences about what could not be read."""
    weeks: dict[tuple[str, str], str]
    """In which week an image came, by pool and filename, for the neighbors."""

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON document, with a sentence for each offer."""
        removed = [
            {"pool": pool, "content_hash": content, "reason": removal.reason, "after_version": removal.after}
            for pool, content, removal in self.departures
        ]
        offers = [{**asdict(offer), "sentence": self.sentence(offer)} for offer in self.offers]
        return {"offers": offers, "removed": removed, "not_read": self.gaps}

    def as_text(self) -> Iterator[str]:
        """Yield lines for a person: for each content of the name that was asked for, what became of it, batch by batch."""
        contents = [*(offer.content_hash for offer in self.offers), *(each.content_hash for each in self.departures)]
        for content in dict.fromkeys(contents):
            offers = [offer for offer in self.offers if offer.content_hash == content]
            names = list(dict.fromkeys(offer.filename for offer in offers if offer.filename))
            yield f"{', '.join(names) or 'an image'} (content {content[:12] or 'unknown'})"
            for place, of_place in groupby(offers, _place):
                yield f"  {place}"
                for offer in of_place:
                    name = f"{offer.filename} " if len(names) > 1 and offer.filename else ""
                    yield f"    {name}{self.sentence(offer)}"
            for pool, left, removal in self.departures:
                if left == content:
                    versions = counted(removal.after, "version")
                    why = f": {removal.reason}" if removal.reason else ""
                    yield f"  left pool {pool!r} when it had {versions}, because exclude.txt lists it{why}"
        for gap in self.gaps:
            yield f"not read: {gap}"

    def sentence(self, offer: Offer) -> str:
        """Return what became of an image, as a clause whose subject is the image."""
        nearest, distance = self._nearest(offer), offer.distance
        if offer.fate == PICKED:
            if offer.parameters.get("method") == IMPORTED:
                return f"was imported, as image {offer.rank} of {offer.picks}"
            if offer.parameters.get("method") == MIGRATED:
                place = f", at distance {distance:.4g} from {nearest} here" if distance is not None else ""
                return f"came from a pool of another embedding space, as image {offer.rank} of {offer.picks}{place}"
            which = f"was picked as {ordinal(offer.rank or 0)} of {offer.picks}"
            if distance is None:
                return f"{which}, the first image of the pool"
            return f"{which}, at distance {distance:.4g} from {nearest}, its nearest then"
        if offer.fate == "covered" and distance is not None:
            by = f" by {nearest}" if nearest else ""
            return f"is covered{by} at distance {distance:.4g}"
        if offer.fate == "duplicate":
            return f"is an exact copy, {offer.reason}"
        before = "is damaged: " if offer.fate == "corrupt" else "was not taken: "
        if offer.reason:
            return before + offer.reason.removeprefix("damaged: ")
        return f"{before}{offer.fate}" + ("" if distance is None else f", at distance {distance:.4g} from its nearest")

    def _nearest(self, offer: Offer) -> str:
        """Return the nearest image of an offer, with the week it came in."""
        week = self.weeks.get((offer.pool, offer.nearest or ""))
        return f"{offer.nearest} of {'the same week' if week == offer.week else week}" if week else offer.nearest or ""


def _place(offer: Offer) -> str:
    """Return in which batch an image was offered, what was decided by, and which commit has that."""
    made = f"version {offer.version}" if offer.version else "no new version"
    undone = ", which has been undone or replaced" * offer.is_undone
    settings = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in offer.parameters.items())
    commit = f"commit {offer.commit[:10]} of {offer.date}" if offer.commit else "not committed"
    week = offer.week or "a batch whose name is not recorded"
    return f"{week}, {made} of pool {offer.pool!r}{undone} ({'; '.join(filter(None, [settings, commit]))})"


def ordinal(number: int) -> str:
    """Return a number as a person says a place.

    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 112, 123)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '21st', '112th', '123rd']
    """
    last = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{last}"


def why(params: Params, image: str, *, pool: str | None = None) -> Answer:
    """Find all that the pools, and the outputs of all batches, know of an image.

    Args:
        params: Of the workspace in the current folder.
        image: Its name in a pool, its path below the input_dir of its batch, the path of its file, or its content hash or
            the first eight characters of it. A name may stand for several contents, which are all found.
        pool: The only pool to ask; None for all.

    Raises:
        DatapoolError: If no batch has offered such an image, with the most similar names; or the pool is not known.
    """
    lineage = read_entries(LINEAGE)
    if pool and pool not in lineage:
        raise unknown_pool(LINEAGE, pool, lineage)
    asked = image.removeprefix("./")
    prefix = image.lower() if re.fullmatch("[0-9a-fA-F]{8,64}", image) else None
    is_file = os.path.isfile(image)  # noqa: PTH113  False if too long
    contents = {atomic.sha256(Path(image))} if is_file else set[str]()

    def names_in(input_dir: str) -> set[str]:
        return possible_names(asked, input_dir)

    states = [state_here(), *history("dvc.lock")]
    names, gaps, tables = set[str](), [], {}
    for name in lineage:
        try:
            table = _samples(Path(params.shared_dir) / name, lineage[name].versions[-1])
        except DatapoolError as error:
            gaps.append(str(error))
            continue
        tables[name] = table
        is_it = _is_it(table, names_in(params.input_dir), prefix)
        contents.update(table.content_hash[is_it])
        names.update(table.filename)
    runs = [run for run in runs_of(states) if pool in (None, run.pool)]
    found = find_in_batches(runs, Cache(), lineage, names_in, contents - {""}, prefix)
    contents = found.contents
    ours = {name: entry for name, entry in lineage.items() if pool in (None, name)}
    offers = found.offers
    for name, entry in ours.items():
        if name in tables:
            table = tables[name]
            is_it = table.content_hash.isin(contents) | _is_it(table, names_in(params.input_dir), prefix)
            _add(offers, _picked(name, entry.versions, table[is_it], states))
        try:
            _add(offers, _not_taken(Path(params.shared_dir), name, entry.versions, contents, prefix, states))
        except DatapoolError as error:
            gaps.append(str(error))
    departures = [
        Departure(name, removal.content_hash, removal)
        for name, entry in ours.items()
        for removal in entry.removed or []
        if removal.content_hash in contents or (prefix and removal.content_hash.startswith(prefix))
    ]
    if not offers and not departures:
        raise _unknown(image, names | found.names, [*gaps, *found.gaps])
    weeks = {
        (name, row.filename): week
        for name, table in tables.items()
        for row in table[table.filename.isin([offer.nearest for offer in offers])].itertuples()
        if (week := lineage[name].versions[row.version - 1].week)
    }
    return Answer(_in_order(offers), departures, [*gaps, *found.gaps], weeks)


def possible_names(asked: str, input_dir: str) -> set[str]:
    """Return the names that an image may have in a batch: as asked, or below its input_dir; with accents in either encoding.

    >>> sorted(possible_names("data/w1/a.png", "./data/w1/"))
    ['a.png', 'data/w1/a.png']
    """
    folder = input_dir.removesuffix("/").removeprefix("./")
    names = {asked, asked.removeprefix(f"{folder}/")}
    return names | {unicodedata.normalize(form, name) for form in ("NFC", "NFD") for name in names}


def _in_order(offers: list[Offer]) -> list[Offer]:
    """Return offers by pool and version; a batch that made no version comes after the one before it.

    Args:
        offers: First those that the outputs of batches tell, the earliest batch first; then others, of versions.
    """
    latest: dict[str, int] = {}
    places = []
    for position, offer in enumerate(offers):
        before = latest.get(offer.pool, 0)
        latest[offer.pool] = max(before, offer.version or 0)
        places.append((offer.pool, offer.version or before + 0.5, position))
    return [offers[position] for *_, position in sorted(places)]


def _is_it(table: pd.DataFrame, names: set[str], prefix: str | None) -> pd.Series:
    is_it = table.filename.isin(names)
    if "path" in table:
        is_it |= table.path.isin(names)
    if prefix is not None:
        is_it |= table.content_hash.str.startswith(prefix)
    return is_it


def _samples(folder: Path, version: Version) -> pd.DataFrame:
    with open_beginning(folder / SAMPLES, version) as file:
        return parse_csv_table(file)


def _add(offers: list[Offer], others: Iterator[Offer]) -> None:
    """Add what the outputs of the batches do not tell already."""
    told = {(offer.pool, offer.version, offer.content_hash) for offer in offers if not offer.is_undone}
    offers.extend(other for other in others if (other.pool, other.version, other.content_hash) not in told)


def _picked(pool: str, versions: list[Version], rows: pd.DataFrame, states: list[State]) -> Iterator[Offer]:
    for row in rows.itertuples():
        version = versions[row.version - 1]
        yield Offer(
            filename=row.filename,
            content_hash=row.content_hash,
            fate=PICKED,
            rank=int(row.rank),
            picks=version.new,
            distance=number(row.distance),
            nearest=row.nearest or None,
            reason=None,
            **_of_version(pool, version, states),
        )


def _not_taken(
    pools: Path, pool: str, versions: list[Version], contents: set[str], prefix: str | None, states: list[State]
) -> Iterator[Offer]:
    seen = read_recorded_seen(pools / pool, versions, ())
    is_it = seen.content_hash.isin(contents)
    if prefix is not None:
        is_it |= seen.content_hash.str.startswith(prefix)
    for row in seen[is_it].itertuples():
        yield Offer(
            filename=None,
            content_hash=row.content_hash,
            fate=row.fate,
            rank=None,
            picks=None,
            distance=number(row.distance),
            nearest=None,
            reason=None,
            **_of_version(pool, versions[row.version - 1], states),
        )


def _of_version(pool: str, version: Version, states: list[State]) -> dict[str, Any]:
    """Return what an offer has of the version that its batch made."""
    first = first_with(states, pool, version)
    return {
        "pool": pool,
        "week": version.week,
        "version": version.version,
        "commit": first.commit if first else None,
        "date": first.date if first else None,
        "parameters": _parameters(version),
        "is_undone": False,
    }


def _parameters(version: Version) -> dict[str, Any]:
    if version.parameters is None:
        return {}
    recorded = version.parameters
    stop = {f"stopping_condition.{key}": value for key, value in (recorded.stopping_condition or {}).items()}
    rules = {f"rules.{key}": getattr(recorded, key) for key in ("balance", "sequence_gap", "time_gap", "where")}
    return deciding({"method": recorded.method, **stop, **rules})


def _unknown(image: str, names: set[str], gaps: list[str]) -> DatapoolError:
    last = Path(image).name.lower()
    containing = [name for name in sorted(names) if last in name.lower()][:_SIMILAR]
    similar = containing or difflib.get_close_matches(image, sorted(names)[:_COMPARED], _SIMILAR)
    hint = f"; similar names: {', '.join(map(short_repr, similar))}" if similar else ""
    unread = f"; {counted(len(gaps), 'place')} could not be read, the first: {gaps[0]}" if gaps else ""
    return DatapoolError(f"no batch has offered an image {short_repr(image)}{hint}{unread}")
