"""One small model from real pairs and degraded clean photographs, measured on pairs held back.

    python benchmarks/all_in_one.py FOLDER [--steps 200 800 4500] [KEY=VALUE ...] > table.md

FOLDER holds samples of public data sets as <task>/<dataset>/{lq,gt}; see SETS. Each is packed, then
`bdg pipeline experiment=[small,all_in_one]` trains and measures whole images. Training and test share no photograph: LOL's
eval15 22 and 23 are the scene of our485's 21 (`bdg doctor` finds it) and are left out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from circumstances import circumstances

WORK = Path("runs") / "benchmark_all_in_one"
TEST = "parts={train: null, test: rest}"
SETS = {  # packed from here, with these options; what is in no part named test is trained on
    "lol_our485": ("lowlight/lol_our485",),
    "lol_eval15": ("lowlight/lol_eval15", TEST),
    "rain100l": ("derain/rain100l", "parts={train: rest, test: 0.5}"),
    "ddn_samples": ("derain/ddn_samples",),
    "its_indoor": ("dehaze/its_indoor",),
    "revide_like": ("dehaze/revide_like", "max_size=1024"),
    "sots_indoor": ("dehaze/sots_indoor", TEST),
    "sots_outdoor": ("dehaze/sots_outdoor", TEST),
    "reds": ("deblur/reds_320x180",),
    "gopro": ("deblur/gopro", TEST),
    "polyu": ("denoise/polyu",),
    "cc15": ("denoise/cc15", TEST),
    "kodak24": ("denoise/kodak24/gt",),
    "mcmaster": ("denoise/mcmaster/gt",),
    "urban100": ("denoise/urban100/gt",),
}
LEAKS = {"lol_eval15": ("22", "23")}


def packed(folder: Path, name: str) -> list[Path]:
    """The shards of one set."""
    where, *options = SETS[name]
    source, leaks = folder / where, LEAKS.get(name, ())
    if leaks:
        cleaned = WORK / "without_leaks" / name
        shutil.copytree(
            source, cleaned, dirs_exist_ok=True, ignore=lambda _, names: [n for n in names if Path(n).stem in leaks]
        )
        source = cleaned
    run("pack", f"source={source}", f"output={WORK / name}", *_labelled(where), *options)
    return sorted((WORK / name).glob("*.tar"))


def _labelled(where: str) -> tuple[str, ...]:
    """Named by its task, since a copy no longer lies in the folder that says it."""
    task = where.partition("/")[0]
    labels = {"lowlight": "low_light", "derain": "rain", "dehaze": "haze", "deblur": "blur", "denoise": "noise"}
    return () if where.endswith("/gt") else (f"label={labels[task]}",)


def run(verb: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "bdg", verb, *words], check=True, stdout=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, nargs=3, default=[200, 800, 4500])
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    shards = [path for name in SETS for path in packed(options.folder, name)]
    train, test = ([f"{p}" for p in shards if p.name.startswith(part)] for part in ("train", "test"))
    scores = WORK / "scores.json"
    begun, cpu_begun = time.monotonic(), os.times().children_user
    run(
        "pipeline",
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
    )
    minutes, cpu_minutes = (time.monotonic() - begun) / 60, (os.times().children_user - cpu_begun) / 60
    found = json.loads(scores.read_text())
    print(f"# All in one on a few real pairs\n\n{circumstances('torch')}\n")
    print(f"Steps {options.steps}; {minutes:.0f} minutes, {cpu_minutes:.0f} of a core, with the measurement.\n")
    print(
        "| held back | images | PSNR in | PSNR | gain | SSIM in | SSIM |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name, row in found["scores"].items():
        values = [f"{row[key]:.2f}" for key in ("psnr_input", "psnr", "gain")]
        values += [f"{row[key]:.4f}" for key in ("ssim_input", "ssim")]
        print(f"| {name} | {row['num_images']:.0f} | " + " | ".join(values) + " |")
    print(f"\nProtocol: {found['protocol']['text']}.")


if __name__ == "__main__":
    main()
