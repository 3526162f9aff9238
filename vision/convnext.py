# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.7,<2.12", "torchvision>=0.22,<0.27", "pillow>=10,<13",
#                 "scikit-learn>=1.4,<2", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"]
# ///
"""ConvNeXt, V1 and V2: a ResNet made over, step by step, after what transformers do.

Papers: Liu, Mao, Wu, Feichtenhofer, Darrell & Xie, "A ConvNet for the 2020s", CVPR 2022, arXiv
2201.03545; Woo, Debnath, Hu, Chen, Liu, Kweon & Xie, "ConvNeXt V2: Co-designing and Scaling
ConvNets with Masked Autoencoders", CVPR 2023, arXiv 2301.00808.

    x' = x + gamma F(x)                                       (1)  V1: gamma starts at 1e-6
    x' = x + F(x)                                             (2)  V2: GRN in its place
    F(x) = W_2 GRN(gelu(W_1 LN(dw(x))))                       (3)  dw: 7x7, each channel by itself
    G_d = |h_d|,  N_d = G_d / mean_d G_d                      (4)  how strong a channel is
    GRN(h)_d = gamma_d h_d N_d + beta_d + h_d                 (5)  V1: just h

Attention mixes places, and the MLP mixes channels: here a depthwise convolution, with a window as
large as Swin's, does the one and W_1, W_2, four times as wide in between, the other. One layer norm
and one gelu a block in place of a batch norm and a relu a layer; between stages a layer norm and a
2x2 convolution of stride 2, before the first one patches. (4) and (5) let the channels compete: in
V1 many of them come to say the same, or nothing.

Shapes: B batch, C channels, S img_size, K classes, D dim of a stage; images x (B, C, S, S) as
bytes, maps (B, D, h, w), inside a block (B, h, w, D), scores (B, K).
Unlike the paper: V2 is not pretrained as a masked autoencoder here, it is only its network; no
EMA, no mixing of images; a warm-up and a cosine for the steps of the learning rate; ImageNet's mean
and deviation for all data; images are scaled and cut to S once, and may then be moved and mirrored;
digits and a tiny net by default. gamma at 1e-6 makes a shallow net slow to learn: small ones take
V2, or --layer_scale 0.1.
Folder: DATA_ROOT/train/CLASS and DATA_ROOT/test/CLASS (or val), or DATA_ROOT/CLASS, of which one
image in five is held out.
Weights: the official convnext_tiny_1k_224_ema.pth, convnextv2_atto_1k_224_ema.pt and their like
(their "model" part); of a file with other classes all but the head is taken.

    python convnext.py                                   8x8 digits shipped with scikit-learn
    python convnext.py --config convnextv2_cifar         CIFAR-10, downloaded at first use
    python convnext.py --config convnext_tiny --weights official.pth --predict photo.jpg
    python convnext.py --smoke                           seconds; exits 1 unless all BARS are met
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Defaults under --smoke (a flag the user types still wins); lowest and highest value that pass.
SMOKE = {"n_epochs": 6}
BARS = {"test_acc": (0.96, 1.0), "norm_gap": (0.0, 1e-5)}
CIFAR = {"dataset": "cifar10", "n_epochs": 200, "batch_size": 128, "pad": 4, "flip": True}
CIFAR |= {"lr": 2e-3, "warmup_epochs": 10, "patch_size": 2, "drop_path": 0.1}
IMAGENET = {"dataset": "folder", "flip": True, "n_epochs": 300, "batch_size": 256, "lr": 1e-3}
IMAGENET |= {"warmup_epochs": 20, "patch_size": 4, "depths": [3, 3, 27, 3]}
V1 = IMAGENET | {"v1": True, "layer_scale": 1e-6}
CONFIGS = {"digits": {}, "mnist": {"dataset": "mnist", "n_epochs": 2, "pad": 2, "patch_size": 2}}
CONFIGS["convnextv2_cifar"] = CIFAR | {"depths": [2, 2, 6, 2], "dims": [40, 80, 160, 320]}
CONFIGS["convnext_tiny"] = V1 | {"depths": [3, 3, 9, 3], "dims": [96, 192, 384, 768]}
CONFIGS["convnext_small"] = V1 | {"dims": [96, 192, 384, 768]}
CONFIGS["convnext_base"] = V1 | {"dims": [128, 256, 512, 1024]}
CONFIGS["convnext_large"] = V1 | {"dims": [192, 384, 768, 1536]}
CONFIGS["convnext_xlarge"] = V1 | {"dims": [256, 512, 1024, 2048]}
CONFIGS["convnextv2_atto"] = IMAGENET | {"depths": [2, 2, 6, 2], "dims": [40, 80, 160, 320]}
CONFIGS["convnextv2_femto"] = IMAGENET | {"depths": [2, 2, 6, 2], "dims": [48, 96, 192, 384]}
CONFIGS["convnextv2_pico"] = IMAGENET | {"depths": [2, 2, 6, 2], "dims": [64, 128, 256, 512]}
CONFIGS["convnextv2_nano"] = IMAGENET | {"depths": [2, 2, 8, 2], "dims": [80, 160, 320, 640]}
CONFIGS["convnextv2_tiny"] = IMAGENET | {"depths": [3, 3, 9, 3], "dims": [96, 192, 384, 768]}
CONFIGS["convnextv2_base"] = IMAGENET | {"dims": [128, 256, 512, 1024]}
CONFIGS["convnextv2_large"] = IMAGENET | {"dims": [192, 384, 768, 1536]}
CONFIGS["convnextv2_huge"] = IMAGENET | {"dims": [352, 704, 1408, 2816]}


# --- the idea ------------------------------------------------------------------------------------
# Copied from vision/vit.py
class DropPath(nn.Module):
    """Leaves a branch out for a share p of the images (Huang et al. 2016), in training alone."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.p or not self.training:
            return x
        keep = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.p
        return x * keep / (1 - self.p)


class GRN(nn.Module):
    """Global response normalisation of (B, h, w, D)."""

    def __init__(self, dim):
        super().__init__()
        self.gamma, self.beta = map(nn.Parameter, torch.zeros(2, 1, 1, 1, dim))

    def forward(self, h):
        G = torch.linalg.vector_norm(h, dim=(1, 2), keepdim=True)  # (B, 1, 1, D)
        N = G / (G.mean(3, keepdim=True) + 1e-6)  # eq. (4)
        return self.gamma * (h * N) + self.beta + h  # eq. (5)


# Differs from ssm/h3.py
class Block(nn.Module):
    """Maps (B, D, h, w) -> (B, D, h, w); layer_scale None: V2."""

    def __init__(self, dim, drop, layer_scale):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.drop_path, v2 = DropPath(drop), layer_scale is None
        self.grn = GRN(4 * dim) if v2 else nn.Identity()
        self.gamma = None if v2 else nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # (B, h, w, D)
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y))))  # eq. (3)
        y = y if self.gamma is None else self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))  # eq. (1), (2)


# --- model ---------------------------------------------------------------------------------------
# Copied from vision/resnet.py
class Head(nn.Linear):
    """The layer of the classes; it stays as it is if a state dict knows another number of them."""

    anew = ""

    def _load_from_state_dict(self, saved, prefix, *rest):
        there = len(saved.get(f"{prefix}weight", self.weight))
        if there != self.out_features:
            own = {prefix + key: value for key, value in self.state_dict().items()}
            self.anew = f"{prefix}weight knows {there} classes, not {self.out_features}"
            saved = saved | own
        super()._load_from_state_dict(saved, prefix, *rest)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of maps (B, D, h, w)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Images (B, C, S, S) -> scores (B, K)."""

    def __init__(self, patch_size, channels, depths, dims, layer_scale, drop, n_classes):
        super().__init__()
        stem = nn.Conv2d(channels, dims[0], patch_size, patch_size)
        self.downsample_layers = nn.ModuleList([nn.Sequential(stem, LayerNorm2d(dims[0], 1e-6))])
        for n_in, n in itertools.pairwise(dims):
            layer = nn.Sequential(LayerNorm2d(n_in, 1e-6), nn.Conv2d(n_in, n, 2, 2))
            self.downsample_layers.append(layer)
        drops, self.stages = torch.linspace(0, drop, sum(depths), device="cpu"), nn.ModuleList()
        for n, part in zip(dims, drops.split(depths), strict=True):
            blocks = [Block(n, p, layer_scale) for p in part.tolist()]
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(dims[-1], 1e-6)
        self.head = Head(dims[-1], n_classes)
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(m.weight, std=0.02)
                nn.init.zeros_(m.bias)

    def features(self, x):
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return x  # (B, D, h, w)

    def classify(self, x):
        return self.head(self.norm(x.mean((2, 3))))  # (B, K)

    def forward(self, x):
        return self.classify(self.features(x))


# Copied from vision/resnet.py
def explain(model, x):
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): how far each place of images x
    (B, C, S, S) spoke for the first choice, (B, S, S) in [0, 1]."""
    maps = model.features(x).detach().requires_grad_()  # (B, D, h, w)
    (slope,) = torch.autograd.grad(model.classify(maps).amax(1).sum(), maps)
    seen = (slope.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()  # (B, 1, h, w)
    seen = F.interpolate(seen.detach(), x.shape[2:], mode="bilinear")[:, 0]
    return seen / seen.amax((1, 2), keepdim=True).clamp(min=1e-12)


# --- data ----------------------------------------------------------------------------------------
# Side and channels of the images; those of a folder are scaled and cut.
SIZES = {"digits": (8, 1), "mnist": (28, 1), "fashion_mnist": (28, 1)}
SIZES |= {"cifar10": (32, 3), "folder": (224, 3)}


# Copied from vision/resnet.py
def find_images(root):
    """All image files below a folder, or the one file that root is."""
    kinds, root = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}, Path(root)
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in kinds)


# Copied from vision/resnet.py
def read_images(paths, args):
    """Bytes (N, C, S, S): turned as EXIF says, the shorter side scaled to S, the middle cut out."""
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    images, mode = [], "L" if args.channels == 1 else "RGB"
    for path in tqdm(paths, "reading", leave=False, disable=None):
        try:
            with Image.open(path) as image:
                image = ImageOps.exif_transpose(image).convert(mode)
            images.append(pil_to_tensor(ImageOps.fit(image, (args.img_size, args.img_size))))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            fail(f"{path}: cannot be read as an image ({error}); mend or remove it")
    return torch.stack(images)


def load_data(args):
    """Return (x, y) to learn from, (x, y) to be tested on, and the names of the classes: bytes x
    (N, C, S, S) and classes y (N,), whole on the device."""
    if args.dataset == "folder":  # train/CLASS and test/CLASS or val/CLASS, or just CLASS
        root, paths = Path(args.data_root), find_images(args.data_root)
        names = sorted({path.parent.name for path in paths})
        if len(paths) < 20 or len(names) < 2:
            fail(f"--data_root {root}: {len(paths)} images in {len(names)} folders; see --help")
        held = torch.tensor([path.relative_to(root).parts[0] in ("test", "val") for path in paths])
        held = held if held.any() else torch.rand(len(paths)) < 0.2
        x, order = read_images(paths, args), held.int().argsort(stable=True)
        y, n = torch.tensor([names.index(path.parent.name) for path in paths]), int((~held).sum())
        x, y = x[order], y[order]
    elif args.dataset == "digits":
        from sklearn.datasets import load_digits

        x, y = map(torch.from_numpy, load_digits(return_X_y=True))
        order, n, names = torch.randperm(len(x)), 1437, [*"0123456789"]
        x, y = x[order].view(-1, 1, 8, 8) * 255 / 16, y[order]
    else:
        from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

        read = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "cifar10": CIFAR10}[args.dataset]
        try:
            parts = [read(args.data_root, train=part, download=True) for part in (True, False)]
        except Exception as error:  # whatever the files hold
            where = f"--dataset {args.dataset}: cannot be read from --data_root {args.data_root}"
            fail(f"{where} nor downloaded; --dataset digits needs neither ({error!r})")
        x = torch.cat([torch.as_tensor(part.data) for part in parts])
        y = torch.cat([torch.as_tensor(part.targets) for part in parts])
        x, n, names = x.view(*x.shape[:3], -1).movedim(3, 1), len(parts[0]), parts[0].classes
    if x.shape[3] != args.img_size:
        x = F.interpolate(x.float(), [args.img_size] * 2, mode="bilinear", antialias=True)
    if x.shape[1] != args.channels:  # colour to grey, or grey to colour
        x = x.float().mean(1, keepdim=True).expand(-1, args.channels, -1, -1)
    x, y = x.round().byte().to(args.device), y.to(args.device)
    return (x[:n], y[:n]), (x[n:], y[n:]), names


# Copied from vision/resnet.py
def augment(x, pad, flip):
    """Bytes x (B, C, S, S), each image moved by up to pad pixels, and half of them mirrored."""
    B, _, S, _ = x.shape
    move = torch.randint(2 * pad + 1, (2, B, 1), device=x.device)
    rows, cols = move + torch.arange(S, device=x.device)  # (B, S)
    at = torch.arange(B, device=x.device)[:, None, None], rows[:, :, None], cols[:, None]
    x = F.pad(x, [pad] * 4).permute(0, 2, 3, 1)[at].permute(0, 3, 1, 2)  # (B, C, S, S)
    return x.where(torch.rand(B, 1, 1, 1, device=x.device) < 0.5, x.flip(3)) if flip else x


# Copied from vision/resnet.py
def standardise(x):
    """Bytes x (B, C, S, S) less ImageNet's mean colour, in units of its deviation."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], device=x.device)
    if x.shape[1] == 1:
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    return (x / 255 - mean[:, None, None]) / std[:, None, None]


# --- train, predict, evaluate, smoke -------------------------------------------------------------
def build(args, n_classes):
    """Return the model, on the device, with --weights if there are any."""
    shape = args.patch_size, args.channels, args.depths, args.dims
    model = ConvNeXt(*shape, args.layer_scale if args.v1 else None, args.drop_path, n_classes)
    if args.weights:
        load_weights(args.weights, model)
    if model.head.anew and args.predict:
        fail(f"--weights {args.weights}: {model.head.anew}; list them in classes.txt beside it")
    if model.head.anew:
        print(f"--weights {args.weights}: {model.head.anew}: it is left out", file=sys.stderr)
    return model.to(args.device)


# Copied from vision/resnet.py
def make_optimizer(args, model):
    """SGD or AdamW; only the weights of linear layers and convolutions decay."""
    heavy = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    light = [p for p in model.parameters() if all(p is not weight for weight in heavy)]
    groups = [{"params": heavy}, {"params": light, "weight_decay": 0.0}]
    shared = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": True}
    if args.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=args.momentum, **shared)
    return torch.optim.AdamW(groups, betas=(args.b1, args.b2), **shared)


# Copied from vision/resnet.py
def rate(done, total, warmup):
    """Share of --lr after done of total epochs: up in a straight line, down along a cosine."""
    if done < warmup:
        return done / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / max(total - warmup, 1e-9))


def train(args):
    """Train from scratch, or on from OUT/last.pt; return the metrics of the test set."""
    torch.manual_seed(args.seed)
    (x, y), test, names = load_data(args)
    model = build(args, len(names))
    optimizer = make_optimizer(args, model)
    state = {"model": model, "optimizer": optimizer}
    epoch = begin(args, state)
    Path(args.out, "classes.txt").write_text("\n".join(names), encoding="utf-8")
    cast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.amp)
    n = max(1, len(x) // args.batch_size)  # whole batches: batch norm cannot do with a single image
    try:
        while epoch < args.n_epochs:
            torch.manual_seed(args.seed * 10_000 + epoch + 1)  # so that a resumed run is exact
            model.train()
            total = torch.zeros((), device=args.device)  # summed there: no sync at every step
            batches = torch.randperm(len(x)).to(args.device).split(args.batch_size)[:n]
            for at, i in enumerate(tqdm(batches, f"epoch {epoch + 1}", leave=False, disable=None)):
                share = rate(epoch + (at + 1) / n, args.n_epochs, args.warmup_epochs)
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * share
                with cast:
                    z = model(standardise(augment(x[i], args.pad, args.flip)))
                loss = F.cross_entropy(z.float(), y[i], label_smoothing=args.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            if not total.isfinite():
                sys.exit(f"stopped: the loss is not finite in epoch {epoch + 1}; try a lower --lr")
            epoch += 1
            save(args, state, epoch)
            log(args, epoch=epoch, loss=total.item() / n, **evaluate(model, *test))
    except KeyboardInterrupt:
        save(args, state, epoch)
        print(f"interrupted: --resume --out {args.out} goes on", file=sys.stderr)
        raise
    plot(args)
    x = test[0][:8]
    draw(args, model, x, [names[k] for k in scores(model, x).argmax(1)])
    return evaluate(model, *test)


# Copied from vision/resnet.py
@torch.inference_mode()
def scores(model, x):
    """Scores (N, K) of bytes x (N, C, S, S)."""
    model.eval()
    return torch.cat([model(standardise(part)) for part in x.split(250)])


def evaluate(model, x, y):
    z = scores(model, x)
    acc = (z.argmax(1) == y).float().mean()
    return {"test_loss": F.cross_entropy(z, y).item(), "test_acc": acc.item()}


def draw(args, model, x, titles):
    """OUT/explained.png: images x (N, C, S, S), and below what spoke for the class of the title."""
    from matplotlib.figure import Figure

    figure = Figure((1.6 * len(x), 3.6), layout="constrained")
    maps = explain(model.eval(), standardise(x)).cpu()
    for at, (image, seen, title) in enumerate(zip(x.cpu(), maps, titles, strict=True), 1):
        for row, alpha in (0, 0.0), (1, 0.6):
            axes = figure.add_subplot(2, len(x), at + row * len(x), xticks=[], yticks=[])
            axes.imshow(image.permute(1, 2, 0), cmap="gray")
            axes.imshow(seen, cmap="jet", alpha=alpha)
        axes.set_xlabel(title[:20], fontsize=9)
    figure.savefig(Path(args.out, "explained.png"))


def generate(args):
    """The work of --predict: the five likeliest classes of each image, and OUT/explained.png."""
    from torchvision.models import ResNet18_Weights

    args.weights = args.weights or f"{args.out}/last.pt"
    paths, listed = find_images(args.predict), Path(args.weights).with_name("classes.txt")
    if not paths:
        fail(f"--predict {args.predict}: neither an image nor a folder of some; name one")
    names = ResNet18_Weights.DEFAULT.meta["categories"]  # of ImageNet
    if listed.exists():
        names = listed.read_text(encoding="utf-8").splitlines()
    model = build(args, len(names))
    begin(args)
    x = read_images(paths, args).to(args.device)
    shares, best = scores(model, x).softmax(1).topk(min(5, len(names)))  # (N, 5)
    for path, row, k in zip(paths, shares.tolist(), best.tolist(), strict=True):
        print(path, *(f"{names[i]} {share:.1%}" for share, i in zip(row, k, strict=True)), sep="  ")
    draw(args, model, x[:8], [names[k[0]] for k in best[:8]])
    return 0


def smoke(args):
    """A short run in a temporary folder, then what must hold exactly."""
    with tempfile.TemporaryDirectory() as args.out:
        metrics = train(args)
    grn, h = GRN(8), torch.randn(2, 5, 5, 8)
    nn.init.ones_(grn.gamma)  # all channels alike in strength: h is doubled
    even = h / torch.linalg.vector_norm(h, dim=(1, 2), keepdim=True)
    return report(args, **metrics, norm_gap=(grn(even) - 2 * even).abs().max().item())


# --- plumbing, word for word the same in every script --------------------------------------------
def fail(message):
    """A mistake the user can mend: one line on stderr, exit code 2."""
    print(f"{Path(__file__).name}: error: {' '.join(message.split())[:300]}", file=sys.stderr)
    sys.exit(2)


def pick_device(name):
    try:
        auto = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        probe = torch.ones(1, device=auto if name == "auto" else name)
        return str(probe.device) if probe.item() else name  # item() fails where nothing can run
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name}: cannot be used, try --device cpu: {error}")


def begin(args, state=None):
    """Open OUT before the work starts. With --resume restore every part of state and return how
    many epochs (or steps) are done; else put an earlier run aside and return 0. Without state
    (nothing is trained, as in --sample) leave what is there."""
    out, resume = Path(args.out), state is not None and getattr(args, "resume", False)
    free = {"n_epochs", "n_steps", "sample_interval", "n_samples", "data_root", "weights"}
    free |= {"compile", "device", "out", "resume"}
    try:
        if resume:
            saved = dict(torch.load(out / "last.pt", map_location="cpu", weights_only=True))
            made = {key: value for key, value in saved["args"].items() if key not in free}
            if odd := [f"--{k} {v}" for k, v in made.items() if v != vars(args).get(k)]:
                fail(f"--resume: {out}/last.pt was made with {' '.join(odd)}; type that")
            for name, part in state.items():
                part.load_state_dict(saved[name])
            return saved["done"]
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # fails now where nothing can be written
        for name in ("last.pt", "log.jsonl") if state is not None else ():
            if (out / name).exists():
                os.replace(out / name, out / f"previous_{name}")
        return 0
    except OSError as error:
        fail(f"--out {out}: {'no last.pt to resume from' if resume else 'cannot write'}: {error}")
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--resume: {out}/last.pt is damaged or no checkpoint of this script")


def save(args, state, done):
    """Write every part of state next to last.pt, then rename: a crash never leaves half a file."""
    path = Path(args.out, "last.pt")
    parts = {name: part.state_dict() for name, part in state.items()}
    torch.save(parts | {"done": done, "args": vars(args)}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_weights(path, model, parts=("ema", "model", "generator")):
    """Load, strictly, the first of parts that a checkpoint of ours has, or a bare state dict."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = next((saved[part] for part in parts if part in saved), saved)
        theirs = {key: tuple(value.shape) for key, value in saved.items()}
    except OSError as error:
        fail(f"--weights {path}: cannot be read ({error.strerror}); name an existing file")
    except Exception:  # torch's own text advises to switch its safety off
        fail(f"--weights {path}: holds no state dict; name a file made by torch.save of one")
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        key = next((k for k in ours | theirs if ours.get(k) != theirs.get(k)), error)
        there, here = theirs.get(key, "absent"), ours.get(key, "absent")
        fail(f"--weights {path}: {key} is {there} there but {here} here; set the flags to match")


def line(row):
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def log(args, **row):
    """Append a JSON line to OUT/log.jsonl and show it; --smoke keeps stdout to one line."""
    with open(Path(args.out, "log.jsonl"), "a", encoding="utf-8") as file:
        print(json.dumps(row), file=file)
    print(line(row), file=sys.stderr if args.smoke else sys.stdout, flush=True)


def plot(args):
    """Draw every column of OUT/log.jsonl against its first one into OUT/curves.png."""
    from matplotlib.figure import Figure

    path = Path(args.out, "log.jsonl")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if rows := [json.loads(row) for row in text.splitlines()]:
        first, *others = rows[-1]
        wide, high = min(len(others), 4), math.ceil(len(others) / 4)
        figure = Figure(figsize=(4 * wide, 3 * high), layout="constrained")
        for at, key in enumerate(others, 1):
            axes = figure.add_subplot(high, wide, at, xlabel=first, title=key)
            axes.plot([row[first] for row in rows], [row.get(key) for row in rows], marker=".")
        figure.savefig(Path(args.out, "curves.png"))


def report(args, **values):
    """Print the JSON line of --smoke; return 0 if every bar is met, else 1."""
    values = {key: float(value) for key, value in values.items()}
    ok = all(low <= values[key] <= high for key, (low, high) in BARS.items())
    values = {key: value if math.isfinite(value) else None for key, value in values.items()}
    head = {"script": Path(__file__).name, "ok": ok, "device": getattr(args, "device", "cpu")}
    tail = {"bars": BARS, "cpu_seconds": round(time.process_time(), 1)}
    print(json.dumps(head | values | tail))
    return 0 if ok else 1


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the docstring as written, and every default that tells something."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def at_least(low, below=2**31):
    """Type of a flag: a number of low's kind (int or float), low <= number < below."""

    def number(text):
        with contextlib.suppress(ValueError):
            if low <= (value := type(low)(text)) < below:
                return value
        raise argparse.ArgumentTypeError(f"{text} is no {type(low).__name__} in [{low}, {below})")

    return number


# --- command line --------------------------------------------------------------------------------
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.error = fail
    add = parser.add_argument
    add("--n_epochs", type=at_least(0), default=20, help="passes over the training set")
    add("--batch_size", type=at_least(2), default=32, help="examples per step")
    add("--optimizer", choices=["sgd", "adamw"], default="adamw", help="rule of the steps")
    add("--lr", type=at_least(0.0), default=6e-3, help="largest learning rate")
    add("--momentum", type=at_least(0.0, 1.0), default=0.9, help="sgd: decay of the velocity")
    add("--b1", type=at_least(0.0, 1.0), default=0.9, help="adam: decay of the gradient's mean")
    add("--b2", type=at_least(0.0, 1.0), default=0.999, help="adam: decay of its square")
    add("--weight_decay", type=at_least(0.0), default=0.05, help="pull of the weights to zero")
    add("--warmup_epochs", type=at_least(0), default=1, help="epochs in which --lr is reached")
    add(
        "--label_smoothing", type=at_least(0.0, 1.0), default=0.0, help="share of all classes alike"
    )
    add("--config", choices=[*CONFIGS], default="digits", help="named set of defaults")
    add("--v1", action="store_true", help="layer scale, eq. (1), for GRN, eq. (2)")
    add("--layer_scale", type=at_least(0.0), default=0.1, help="v1: what gamma starts at")
    add("--patch_size", type=at_least(1), default=1, help="side of the patches of the stem")
    add("--depths", type=at_least(1), nargs="+", default=[2, 2], help="blocks of each stage")
    add("--dims", type=at_least(1), nargs="+", default=[24, 48], help="width D of each stage")
    add("--drop_path", type=at_least(0.0, 1.0), default=0.0, help="share of branches left out")
    add("--dataset", choices=[*SIZES], default="digits", help="digits needs no download")
    add("--data_root", default="data", help="folder of the data sets; for folder, of the images")
    add("--img_size", type=at_least(1), help="side of the images; default: that of the data set")
    add("--channels", type=int, choices=[1, 3], help="1 grey, 3 colour; default: as the data set")
    add("--pad", type=at_least(0), default=0, help="pixels that a training image may be moved")
    add("--flip", action="store_true", help="mirror half of the training images")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--weights", help="state dict or checkpoint to load")
    add("--predict", help="image, or folder of images, to name; nothing is trained")
    add("--seed", type=at_least(0), default=0, help="fixes split, weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--out", default=f"out/{Path(__file__).stem}", help="folder this run writes to")
    add("--resume", action="store_true", help="go on from OUT/last.pt")
    add("--smoke", action="store_true", help="tiny self-check: one JSON line, exit 1 on failure")
    typed = parser.parse_args(argv)
    parser.set_defaults(**CONFIGS[typed.config])
    if typed.smoke:
        parser.set_defaults(**SMOKE)
    args = parser.parse_args(argv)
    size, channels = SIZES[args.dataset]
    args.img_size, args.channels = args.img_size or size, args.channels or channels
    step = args.patch_size * 2 ** (len(args.depths) - 1)
    if args.img_size < step:
        fail(f"--img_size {args.img_size}: nothing is left of it; take {step} or more")
    if len(args.dims) != len(args.depths):
        fail(f"--dims {args.dims}: {len(args.depths)} stages have --depths; give each a width")
    return args


def main(argv=None):
    args = parse_args(argv)
    args.device = pick_device(args.device)
    try:
        if args.smoke:
            return smoke(args)
        if args.predict:
            return generate(args)
        print(line(train(args)))
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
