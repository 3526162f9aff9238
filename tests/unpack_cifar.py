"""Unpack a CIFAR-10 that is stored as two files of JPEG images into a folder of PNG images.

    python tests/unpack_cifar.py cifar10-jpeg photos
    python vision/resnet.py --dataset folder --data_root photos --img_size 32 --config resnet20

reads cifar10-jpeg/train.npz and test.npz (jpeg: the files one after another; offset: where each
begins, and the end; label) and writes photos/train/CLASS/00000.png and photos/test/CLASS/... .
JPEG has altered the pixels: what is measured on them does not stand beside published numbers.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"


def unpack(source, target):
    names = CLASSES.split()
    for part in ("train", "test"):
        for name in names:
            Path(target, part, name).mkdir(parents=True, exist_ok=True)
        with np.load(Path(source, f"{part}.npz")) as stored:
            jpeg, offset, label = (stored[key] for key in ("jpeg", "offset", "label"))
        for at, k in enumerate(label):
            with Image.open(io.BytesIO(jpeg[offset[at] : offset[at + 1]].tobytes())) as image:
                image.save(Path(target, part, names[k], f"{at:05}.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("target")
    unpack(**vars(parser.parse_args()))
