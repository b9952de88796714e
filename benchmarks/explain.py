"""How often the explainer of some weights names the degradation of real pictures.

    python benchmarks/explain.py FOLDER [WEIGHTS] > table.md

FOLDER holds samples of public data sets as <task>/<dataset>/{lq,gt}; see SETS. The degraded pictures of a set should be told to
have its degradation, those in gt, and sets of clean pictures, to be clean. WEIGHTS: a file with an explainer beside it; none:
those in the package, whose explainer knows synthetic degradations of 16 photographs.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from circumstances import circumstances

from bdg.commands.explain import explainer_file
from bdg.explain import CLEAN, Explainer, Explanation
from bdg.restoration import PACKAGED
from datamodules.images import SUFFIXES, read_image

SETS = {
    "derain/rain100l": "rain",
    "derain/rain100h": "rain",
    "derain/ddn_samples": "rain",
    "derain/real_rain_unpaired": "rain",
    "dehaze/its_indoor": "haze",
    "dehaze/sots_indoor": "haze",
    "dehaze/sots_outdoor": "haze",
    "dehaze/sots_outdoor_unpaired": "haze",
    "dehaze/revide_like": "haze",
    "dehaze/ohaze": "haze",
    "deblur/gopro": "blur",
    "deblur/reds_320x180": "blur",
    "deblur/levin09_gray": "blur",
    "denoise/cbsd68_noisy_ref": "noise",
    "denoise/polyu": "noise",
    "denoise/cc15": "noise",
    "lowlight/lol_eval15": "low_light",
    "lowlight/lol_our485": "low_light",
    "lowlight/dicm_unpaired": "low_light",
    "denoise/cbsd68": CLEAN,
    "denoise/kodak24": CLEAN,
    "denoise/mcmaster": CLEAN,
    "denoise/urban100": CLEAN,
}
"""Folder -> what its degraded pictures have."""


def explained(folder: Path, explainer: Explainer) -> list[Explanation]:
    """Of every picture in a folder."""
    found = []
    for path in sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES):
        found += explainer(torch.from_numpy(read_image(path).to_uint8().copy()).permute(2, 0, 1)[None])
    return found


def row(name: str, truth: str, found: Sequence[Explanation]) -> list[str]:
    answers = Counter(next(iter(each.probabilities)) for each in found)
    others = ", ".join(f"{answer} {count}" for answer, count in answers.most_common() if answer != truth)
    belief = sum(each.probabilities[truth] for each in found) / len(found)
    near = sum(each.nearest[0][1] == truth for each in found)
    unusual = sum(each.unusual for each in found)
    numbers = [len(found), f"{100 * answers[truth] / len(found):.0f}", f"{100 * belief:.0f}"]
    return [
        name,
        truth,
        *map(str, numbers),
        f"{100 * near / len(found):.0f}",
        f"{100 * unusual / len(found):.0f}",
        others,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path, nargs="?", default=PACKAGED)
    options = parser.parse_args()
    path = explainer_file(options.weights)
    explainer = Explainer.load(path)
    begun, rows, right = time.monotonic(), [], Counter[str]()
    total: Counter[str] = Counter()
    for name, truth in SETS.items():
        degraded = [] if truth == CLEAN else explained(options.folder / name / "lq", explainer)
        for part, kind, found in (
            (f"{name}", truth, degraded),
            (f"{name}, gt", CLEAN, explained(options.folder / name / "gt", explainer)),
        ):
            if found:
                rows.append(row(part, kind, found))
                right[kind] += sum(next(iter(each.probabilities)) == kind for each in found)
                total[kind] += len(found)
    seconds = time.monotonic() - begun
    part = explainer.description
    print(f"# What the explainer says of real pictures\n\n{circumstances('torch')}\n")
    print(
        f"`{path.name}`: {part.seen_by} of at most {part.grid} x {part.grid} squares of {part.side} pixels; "
        f"{len(explainer.known)} known pictures; {1000 * seconds / sum(total.values()):.0f} ms per picture with reading.\n"
    )
    print(
        "right: share of pictures whose most probable class is the set's, in %; belief: mean probability of that class, in %; "
        "neighbour: nearest known picture of that class, in %; unusual: share called so, in %.\n"
    )
    print(
        "| set | has | pictures | right | belief | neighbour | unusual | taken for |\n| --- | --- " + "| --- " * 6 + "|"
    )
    for cells in rows:
        print(f"| {' | '.join(cells)} |")
    print("\n| class | pictures | right |\n| --- | --- | --- |")
    for kind, count in total.items():
        print(f"| {kind} | {count} | {100 * right[kind] / count:.0f} |")
    mean = sum(right[kind] / count for kind, count in total.items()) / len(total)
    print(f"| mean of classes | {sum(total.values())} | {100 * mean:.0f} |")


if __name__ == "__main__":
    main()
