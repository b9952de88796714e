"""One small model from real pairs and degraded clean photographs, measured on pairs held back.

    python benchmarks/all_in_one.py FOLDER [--steps 200 800 4500] [KEY=VALUE ...] > table.md

FOLDER holds samples of public data sets as <task>/<dataset>/{lq,gt}; see SETS. Each is packed, then
`bdg pipeline experiment=[small,all_in_one]` trains and measures whole images. Training and test share no photograph: LOL's
eval15 22 and 23 are the scene of our485's 21 (`bdg doctor` finds it) and are left out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from circumstances import circumstances

from datamodules.layouts import look
from datamodules.pack import pack
from datamodules.parts import Parts
from datamodules.shards import index

WORK = Path("runs") / "benchmark_all_in_one"
TRAIN, TEST, HALF = {"train": "rest"}, {"test": "rest"}, {"train": "rest", "test": 0.5}
SETS: dict[str, Parts] = {
    "lowlight/lol_our485": TRAIN,
    "lowlight/lol_eval15": TEST,
    "derain/rain100l": HALF,
    "derain/ddn_samples": TRAIN,
    "dehaze/its_indoor": TRAIN,
    "dehaze/revide_like": TRAIN,
    "dehaze/sots_indoor": TEST,
    "dehaze/sots_outdoor": TEST,
    "deblur/reds_320x180": TRAIN,
    "deblur/gopro": TEST,
    "denoise/polyu": TRAIN,
    "denoise/cc15": TEST,
    "denoise/kodak24/gt": TRAIN,
    "denoise/mcmaster/gt": TRAIN,
    "denoise/urban100/gt": TRAIN,
}
"""Folder -> its parts; what ends with gt is clean images."""
LEAKS = {"lowlight/lol_eval15": ("22", "23")}
LARGEST = {"dehaze/revide_like": 1024}  # pixels of the longer side: photographs of 5 megapixels are slow to decode


def packed(folder: Path, name: str) -> list[Path]:
    """The shards of one set."""
    found = look(folder / name)
    items = [item for item in found.items if item.hq.stem not in LEAKS.get(name, ())]
    output = WORK / name.replace("/", "_")
    print(f"{name}: {len(items)} images", file=sys.stderr)
    pack(replace(found, items=items), output, SETS[name], max_size=LARGEST.get(name))
    return sorted(output.glob("*.tar"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, nargs=3, default=[200, 800, 4500])
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    shards = [path for name in SETS for path in packed(options.folder, name)]
    train, test = ([f"{p}" for p in shards if p.name.startswith(part)] for part in ("train", "test"))
    learnt, scores = index(train).kinds, WORK / "scores.json"
    begun, cpu_begun = time.monotonic(), os.times().children_user
    words = [
        "experiment=[small,all_in_one]",
        "project=benchmark_all_in_one",
        f"data.root={WORK}",
        f"data.shards=[{','.join(train)}]",
        "data.val_shards=null",
        f"data.test_shards=[{','.join(test)}]",
        "data.val_crop=null",
        f"max_steps={{generation: {options.steps[0]}, bridging: {options.steps[1]}, restoration: {options.steps[2]}}}",
        f"json={scores}",
        *options.overrides,
    ]
    subprocess.run([sys.executable, "-m", "bdg", "pipeline", *words], check=True, stdout=sys.stderr)
    minutes, cpu_minutes = (time.monotonic() - begun) / 60, (os.times().children_user - cpu_begun) / 60
    found = json.loads(scores.read_text())
    print(f"# All in one on a few real pairs\n\n{circumstances('torch')}\n")
    print(
        "Steps of generation, bridging and restoration: {}, {}, {}; ".format(*options.steps)
        + f"{minutes:.0f} minutes, {cpu_minutes:.0f} of a core, with the measurement."
    )
    kinds = [f"{count} {kind.label} pairs" if kind.pair else f"{count} photographs" for kind, count in learnt.items()]
    print(f"Trained on {', '.join(kinds)}.\n")
    print(
        "| held back | images | PSNR in | PSNR | gain | SSIM in | SSIM |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name, row in found["scores"].items():
        values = [f"{row[key]:.2f}" for key in ("psnr_input", "psnr", "gain")]
        values += [f"{row[key]:.4f}" for key in ("ssim_input", "ssim")]
        print(f"| {name} | {row['num_images']:.0f} | " + " | ".join(values) + " |")
    print(f"\nWhole images; {found['protocol']['text']}.")


if __name__ == "__main__":
    main()
