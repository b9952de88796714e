"""What is wrong with data sets: findings from what was seen of their entries, within a set and between two; reads nothing."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from datamodules.exams import TEXTURE, Exam, Look
from datamodules.likeness import Match, Signature, matches
from datamodules.sets import DataSet, Fault

ERROR, WARNING, NOTE = "error", "warning", "note"
KINDS: Mapping[str, tuple[str, str]] = {
    "unreadable": (ERROR, "copy it again from where it came from, or remove it"),
    "no partner": (ERROR, "add the partners, or move these away"),
    "sizes differ": (
        ERROR,
        "look for the right partner, or for a crop or rotation that only one of them has undergone",
    ),
    "identical": (
        ERROR,
        "there is nothing to learn or to measure: replace lq by the degraded image, or remove the pair",
    ),
    "cut off": (WARNING, "the end of the image was lost before it was saved: copy it again, or remove it"),
    "too small": (WARNING, "no crop fits in: take a smaller crop (here and in data.crop), or do not train on them"),
    "misaligned": (WARNING, "register or remove the pair; where lq is blurred, its kernel may be off the centre"),
    "turned": (WARNING, "turn one of the two: an EXIF orientation may have been lost"),
    "wrong partner": (WARNING, "pair it with the image named here"),
    "unlike": (WARNING, "look whether the two show the same"),
    "exchanged": (WARNING, "look whether the degraded and the clean image have changed places"),
    "two averages": (WARNING, "take one version of the data set: these were blurred in another way than the others"),
    "half gray": (WARNING, "one of the two is gray, the other in colour: make both the same"),
    "transparent": (WARNING, "training ignores alpha: flatten them onto a background first"),
    "duplicate": (WARNING, "remove all but one"),
    "leak": (WARNING, "leave them out of training if the other set is measured on"),
    "shared": (NOTE, "the two sets are of one part: their means are not independent"),
    "alike": (NOTE, "expected of a video's frames; otherwise remove all but one"),
    "average": (NOTE, "measure on images that were blurred in the same way"),
    "unused": (NOTE, "the layout says nothing of these: name their folder by itself to look at them"),
    "scale": (NOTE, "lq is brought to the size of its partner by bicubic interpolation"),
    "16 bits": (NOTE, "rounded to 8 bits by training"),
    "gray": (NOTE, "taken as RGB with three equal channels"),
    "palette": (NOTE, "colours are quantised: take the originals if there are any"),
    "alpha": (NOTE, "opaque, and ignored by training"),
}
"""What is looked for, worst first -> how bad it is, what to do."""

SURE = 0.2  # the share of a pair's difference that a shift must explain
OWN = 0.5  # likeness of a pair below which it is looked at; of all real pairs that we know it is above 0.65
BETTER = 0.2  # another partner's likeness must be higher by this
UNLIKE = 0.25
MIXED = 0.1  # the share of blurred images averaged in the other way from which on they are reported
SHOWN = 5  # names of one group


@dataclass(frozen=True)
class Finding:
    """Faults of one kind in one set, or between two; `where` has an entry per place."""

    what: str
    set: str
    where: tuple[str, ...]

    @property
    def severity(self) -> str:
        return KINDS[self.what][0]

    @property
    def advice(self) -> str:
        return KINDS[self.what][1]

    def to_dict(self) -> dict[str, Any]:
        return {"severity": self.severity, "what": self.what, "set": self.set, "where": self.where, "do": self.advice}


class Seen(NamedTuple):
    """A data set with the exams of its entries."""

    set: DataSet
    exams: Sequence[Exam]


def diagnose(seen: Seen, max_shift: float = 0.5, alike: float = 0.85) -> list[Finding]:
    """What is wrong within a set. max_shift: pixels. alike: likeness from which on two pictures show the same."""
    faults = [*seen.set.faults, *(fault for exam in seen.exams for fault in exam.faults)]
    for exam in seen.exams:
        by = exam.pair and exam.pair.shift
        if by and by.distance > max_shift and by.explained >= SURE:
            faults.append(("misaligned", f"{exam.entry.lq}: {by}"))
    faults += [*_partners(seen), *_averages(seen), *_duplicates(seen), *_alike(seen, alike)]
    return _findings(seen.set.name, faults)


def compare(first: Seen, second: Seen, alike: float = 0.85) -> list[Finding]:
    """The pictures that two sets have in common: each of `first` with the one of `second` that is most like it."""
    a, b = _photographs(first), _photographs(second)
    what = "shared" if first.set.part and first.set.part == second.set.part else "leak"
    found = _best(matches(_signatures(a), _signatures(b), alike))
    faults = [(what, f"{a[m.first][0]} shows the same as {b[m.second][0]} ({_how(m)})") for m in found.values()]
    return _findings(f"{first.set.name} and {second.set.name}", faults)


def statistics(seen: Seen) -> list[dict[str, Any]]:
    """A row per degradation and one of the clean images: counts, sizes (width, height), and means over images of what was seen.

    psnr: of the degraded images, without those that are identical. shift: medians to the right and down, in pixels; None
    unless those of most pairs are sure.
    """
    rows = []
    for name in sorted({exam.degradation for exam in seen.exams if exam.degradation}):
        exams = [exam for exam in seen.exams if exam.degradation == name]
        pairs = [exam.pair for exam in exams if exam.pair]
        psnr = [pair.psnr for pair in pairs if pair.psnr is not None and np.isfinite(pair.psnr)]
        shifts = [pair.shift[:2] for pair in pairs if pair.shift and pair.shift.explained >= SURE]
        about = {
            "images": len(exams),
            "photographs": len({exam.hq.sha256 for exam in exams if exam.hq}),
            "psnr": _mean(psnr),
            "shift": np.median(shifts, axis=0).tolist() if 2 * len(shifts) > len(pairs) else None,
        }
        rows.append({"set": seen.set.name, "degradation": name, **about, **_seen([exam.lq for exam in exams])})
    clean = [look for _, look in _photographs(seen)]
    about = {"images": len(clean), "photographs": len(clean), "psnr": None, "shift": None}
    return [*rows, {"set": seen.set.name, "degradation": None, **about, **_seen(clean)}] if clean else rows


def _seen(looks: Iterable[Look | None]) -> dict[str, Any]:
    """The smallest and the largest size, and the mean texture."""
    known = [look for look in looks if look]
    sizes = sorted((look.size[::-1] for look in known), key=np.prod)
    textures = zip(*(look.texture for look in known if look.texture), strict=True)
    return {
        "smallest": sizes[0] if sizes else None,
        "largest": sizes[-1] if sizes else None,
        "texture": {name: _mean(values) for name, values in zip(TEXTURE, textures, strict=False)},
    }


def _mean(values: Sequence[float]) -> dict[str, float] | None:
    return {"mean": float(np.mean(values)), "std": float(np.std(values))} if len(values) else None


def _findings(name: str, faults: Iterable[Fault]) -> list[Finding]:
    """One finding per kind, in the order of KINDS; the same place only once, as many pairs may share a clean image."""
    places: dict[str, dict[str, None]] = {what: {} for what in KINDS}
    for what, place in faults:
        places[what][place] = None
    return [Finding(what, name, tuple(where)) for what, where in places.items() if where]


def _photographs(seen: Seen) -> list[tuple[str, Look]]:
    """The different clean images of a set, with their names."""
    by_content = {exam.hq.sha256: (exam.entry.hq, exam.hq) for exam in reversed(seen.exams) if exam.hq}
    return list(by_content.values())[::-1]


def _signatures(photographs: Iterable[tuple[str, Look]]) -> list[Signature]:
    return [look.signature for _, look in photographs]


def _best(found: Iterable[Match]) -> dict[int, Match]:
    """Of the matches of each first picture the closest."""
    best: dict[int, Match] = {}
    for match in found:
        best[match.first] = max(match, best.get(match.first, match), key=lambda m: m.likeness)
    return best


def _how(match: Match) -> str:
    return f"likeness {match.likeness:.2f}" + (", mirrored or rotated" if match.turned else "")


def _partners(seen: Seen) -> list[Fault]:
    """Pairs whose images are unlike, and the clean image that the degraded one is like, if there is one."""
    doubtful = [(e.entry, e.pair, e.hq, e.lq) for e in seen.exams if e.pair and e.hq and e.lq and e.pair.likeness < OWN]
    photographs = _photographs(seen)
    best = _best(matches([lq.signature for *_, lq in doubtful], _signatures(photographs), OWN))
    faults = []
    for i, (entry, pair, hq, _) in enumerate(doubtful):
        if i in best and best[i].likeness > pair.likeness + BETTER:
            name, look = photographs[best[i].second]
            what = "turned" if look.sha256 == hq.sha256 else "wrong partner"
            text = f"{entry.lq} shows the same as {name} ({_how(best[i])}), unlike {entry.hq} ({pair.likeness:.2f})"
            faults.append((what, text))
        elif pair.likeness < UNLIKE and pair.psnr is not None:  # otherwise the sizes do not fit, which says enough
            faults.append(("unlike", f"{entry.lq}, {entry.hq}: likeness {pair.likeness:.2f}"))
    return faults


def _averages(seen: Seen) -> list[Fault]:
    """How most blurred images were averaged, as far as it can be told; and those that were averaged in the other way."""
    ways: dict[str, list[str]] = {"display values, as GoPro's blur": [], "linear light, as GoPro's blur_gamma": []}
    display, linear = ways.values()
    for exam in seen.exams:
        if exam.pair and exam.pair.linear is not None:
            (linear if exam.pair.linear > 0.5 else display).append(f"{exam.entry.lq}")
    few, many = sorted(ways, key=lambda way: len(ways[way]))
    told = len(display) + len(linear)
    faults = [("two averages", name) for name in ways[few] if len(ways[few]) > MIXED * told]
    return [("average", f"{len(ways[many])} of {told} blurred images are averages of {many}"), *faults] if told else []


def _duplicates(seen: Seen) -> list[Fault]:
    """Entries of the same files; a clean image in several pairs is none."""
    same: dict[tuple[bytes, bytes | None], list[str]] = defaultdict(list)
    for exam in seen.exams:
        if exam.hq and (exam.lq or exam.degradation is None):
            same[exam.hq.sha256, exam.lq.sha256 if exam.lq else None].append(exam.entry.lq or exam.entry.hq)
    return [("duplicate", _listed(names, " is ")) for names in same.values() if len(names) > 1]


def _alike(seen: Seen, least: float) -> list[Fault]:
    """Groups of clean images that show the same without being the same files."""
    photographs = _photographs(seen)
    leader: dict[int, int] = {}  # the first picture of a group, which matches() names before all others
    for match in matches(_signatures(photographs), least=least):
        leader.setdefault(match.second, leader.get(match.first, match.first))
    groups: dict[int, list[str]] = defaultdict(list)
    for i, (name, _) in enumerate(photographs):
        groups[leader.get(i, i)].append(name)
    return [("alike", _listed(names, ", ")) for names in groups.values() if len(names) > 1]


def _listed(names: Sequence[str], between: str) -> str:
    return between.join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
