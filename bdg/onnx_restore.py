"""Restores a photograph with denoiser.onnx; needs numpy, onnxruntime, Pillow: python restore.py photo.jpg restored.png."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime


def restore(x_lq, noise, folder=Path(__file__).parent):
    """x_hq of x_lq, both float32 `b 3 h w` in [-1, 1], any size. noise: unit Gaussian numbers in the shape of x_lq."""
    facts = json.loads((Path(folder) / "schedule.json").read_text())
    network = onnxruntime.InferenceSession(str(Path(folder) / "denoiser.onnx"), providers=["CPUExecutionProvider"])
    # point t + 1 of a curve belongs to time t; time -1 is the clean image
    A, B, D = (np.asarray(facts[name], np.float32) for name in ("alpha_bar", "beta_bar", "delta_bar"))
    x = (1 - D[-1]) * x_lq + np.float32(facts["start_noise"]) * noise
    for t, s in pairwise(facts["times"]):
        r, e = heads(network, facts, x, x_lq, np.float32(facts["time"][t]))
        t, s = t + 1, s + 1
        x_hq = x_lq - r if facts["estimate"] == "residual" else x - A[t] * r - B[t] * e + D[t] * x_lq
        if facts["clamp"]:
            x_hq = x_hq.clip(-1, 1)
        if facts["clamp"] or facts["estimate"] == "residual":
            r = x_lq - x_hq
            e = (x - x_hq - A[t] * r + D[t] * x_lq) / B[t]
        if facts["sampler"] == "diffuir":
            r = r.clip(-1, 1)
            x = x_lq - r if s == 0 else x - (A[t] - A[s]) * r + (D[t] - D[s]) * x_lq
        else:
            x = x_hq + A[s] * r + B[s] * e - D[s] * x_lq
    return x.clip(-1, 1)


def heads(network, facts, x, x_lq, time):
    """Residual and noise that the network predicts, on images reflected to multiples of pad_to and cropped again."""
    h, w = x.shape[2:]
    bottom, right = -h % facts["pad_to"], -w % facts["pad_to"]
    missing = ((0, 0), (0, 0), (0, bottom), (0, right))
    x_t, x_lq = (np.pad(i, missing, "reflect" if bottom < h and right < w else "edge") for i in (x, x_lq))
    (prediction,) = network.run(None, {"x_t": x_t, "x_lq": x_lq, "time": np.full(len(x), time)})
    return np.split(prediction[..., :h, :w], 2, axis=1)


if __name__ == "__main__":
    from PIL import Image

    photograph = np.asarray(Image.open(sys.argv[1]).convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    restored = restore(photograph, np.random.default_rng(0).standard_normal(photograph.shape, np.float32))
    Image.fromarray(((restored[0].transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)).save(sys.argv[2])
