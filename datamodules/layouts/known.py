"""The data sets of the field as tables of rules: the folders in which their downloads come, or in which papers keep them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from datamodules.layouts.rules import BEFORE_UNDERSCORE, LAST, RAIN, TIMES, Rule

CDD11_MIXTURES = (
    *("low", "haze", "rain", "snow", "low_haze", "low_rain", "low_snow", "haze_rain", "haze_snow"),
    *("low_haze_rain", "low_haze_snow"),
)

LOL = [
    Rule("{our485,LOLdataset/our485,train}", "low", "high", "low_light", "train", "LOL"),
    Rule("{eval15,LOLdataset/eval15,test}", "low", "high", "low_light", "test", "LOL"),
]

SNOW100K = [  # all/ and media/ are what the two archives unpack to, here or each into a folder of its name; masks are left out
    Rule("{train,{,Snow100K-training/}all}", "synthetic", "gt", "snow", "train", "Snow100K"),
    Rule("{test,{,Snow100K-testset/}{,media/}jdway/GameSSD/overlapping/test}/*", "synthetic", "gt", "snow", "test"),
]


def _reside(
    folder: str,
    lq: str,
    hq: str,
    part: str,
    name: str | None,
    lq_name: str = BEFORE_UNDERSCORE,
    listed: str | None = None,
) -> Rule:
    return Rule(folder, lq, hq, "haze", part, name, lq_name, LAST, listed=listed)


RESIDE = [
    _reside("{OTS_ALPHA,OTS}", "haze/OTS", "clear/clear_images", "train", "OTS"),
    _reside("{SOTS/outdoor,outdoor}", "hazy", "gt", "test", "SOTS-outdoor"),
]

GOPRO = [
    Rule(f"{part}{{,/*}}", blur, "sharp", "blur", part, "GoPro", choice=("gopro", blur))
    for part in ("train", "test")
    for blur in ("blur", "blur_gamma")
]

CDD11 = [
    Rule(f"{{,CDD-11_}}{part}/{mixture}", ".", "../clear", mixture, part, "CDD-11")
    for part in ("train", "test")
    for mixture in CDD11_MIXTURES
]

REALSR = [
    Rule(
        f"{{,RealSR(V3)/}}{{Canon,Nikon}}/{part.title()}/{scale}",
        *(".", ".", "real_sr", part, "RealSR", rf"(.+)_LR{scale}", r"(.+)_HR"),
        choice=("scale", scale),
    )
    for part in ("train", "test")
    for scale in ("2", "3", "4")
]

DREALSR = [
    Rule(
        f"{part.title()}_x{scale}",
        *(f"{part}_LR", f"{part}_HR", "real_sr", part, "DRealSR", TIMES, TIMES),
        choice=("scale", scale),
    )
    for part in ("train", "test")
    for scale in ("2", "3", "4")
] + [  # one of those folders alone, and the crops of StableSR's test sets
    Rule(".", f"{part}_LR", f"{part}_HR", "real_sr", part, None, TIMES, TIMES) for part in ("train", "test")
]

AIRNET = [
    Rule("Train/Denoise", None, part="train", set="Denoise", listed="noisy/denoise.txt"),
    Rule("Train/Derain", "rainy", "gt", "rain", "train", "RainTrainL", RAIN, RAIN, listed="rainy/rainTrain.txt"),
    _reside("Train/Dehaze", "synthetic", "original", "train", "OTS", listed="hazy/hazy_outside.txt"),
    Rule("Train/Deblur", "blur", "sharp", "blur", "train", "GoPro"),
    Rule("Train/Enhance", "low", "gt", "low_light", "train", "LOL"),
    Rule("test/denoise", None, part="test", set="denoise", hq_name="([^/]+)"),
    Rule("test/denoise/*", None, part="test"),
    Rule("test/derain{,/*}", "input", "target", "rain", "test", lq_name=RAIN, hq_name=RAIN),
    _reside("test/dehaze{,/*}", "input", "target", "test", None),
    Rule("test/deblur{,/*}", "input", "target", "blur", "test"),
    Rule("test/enhance{,/*}", "input", "target", "low_light", "test"),
]

MOCEIR = [
    Rule("denoising/{WaterlooED,BSD400}", None, part="train"),
    Rule("deraining/RainTrainL", "rainy", "gt", "rain", "train", None, RAIN, RAIN),
    _reside("dehazing/RESIDE", ".", "clear", "train", "OTS", lq_name=r"part[1-4]/([^/_]+)_[^/]*"),
    Rule("deblurring/GoPro/crop/train", "input_crops", "target_crops", "blur", "train", "GoPro"),
    Rule("llie/LOLv1/Train", "input", "target", "low_light", "train", "LOL"),
    Rule("denoising/cBSD68/original_png", None, part="test", set="CBSD68"),
    Rule("deraining/Rain100L", "rainy", "gt", "rain", "test", None, RAIN, RAIN),
    _reside("dehazing/SOTS/outdoor", "hazy", "gt", "test", "SOTS-outdoor"),
    Rule("deblurring/GoPro/test", "input", "target", "blur", "test", "GoPro"),
    Rule("llie/LOLv1/Test", "input", "target", "low_light", "test", "LOL"),
]


def _in(folder: str, rules: Iterable[Rule]) -> list[Rule]:
    return [replace(rule, folder=f"{folder}/{rule.folder}") for rule in rules]


DIFFUIR = [
    Rule("syn_rain/train", "input", "target", "rain", "train", "syn_rain"),
    Rule("syn_rain/test/*", "input", "target", "rain", "test"),
    *_in("LOL", LOL),
    *_in("Snow100K", SNOW100K),
    Rule("Deblur/train", "input", "target", "blur", "train", "GoPro"),
    Rule("Deblur/test/*", "input", "target", "blur", "test"),
    *_in("RESIDE", RESIDE),
]

KNOWN: Mapping[str, Sequence[Rule]] = {
    "diffuir": DIFFUIR,
    "airnet": AIRNET + _in("data", AIRNET),
    "moceir": MOCEIR,
    "cdd11": CDD11,
    "lol": LOL,
    "gopro": GOPRO,
    "snow100k": SNOW100K,
    "reside": RESIDE,
    "realsr": REALSR,
    "drealsr": DREALSR,
}
