"""Measures too heavy for a script: how far generated images are from real ones.

A small classifier is trained on the real images of the run; it names the class of each generated
image and gives the features in which the Frechet distance is taken. Such distances compare only
with one another, so the distance of real training images, as many, stands beside each as a floor.
"""

import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import datasets


class FeatureNet(nn.Module):
    """Two convolutions and a hidden layer; features are its 64 activations."""

    def __init__(self, channels, n_classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.LazyLinear(64), nn.BatchNorm1d(64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, n_classes)

    def forward(self, x):
        features = self.body(x)  # (B, 64)
        return features, self.head(features)


def labels(args):
    """Class of every image that load_data returns, training and test, for the MNIST kind."""
    kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[args.dataset]
    return [kind(args.data_root, train=part).targets.to(args.device) for part in (True, False)]


def judge(x, y, n_epochs=3, seed=0):
    """Train a FeatureNet on images x (N, C, H, W) in [-1, 1] with classes y (N,)."""
    torch.manual_seed(seed)
    net = FeatureNet(x.shape[1], int(y.max()) + 1).to(x.device)
    net(x[:2])
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for epoch in range(n_epochs):
        optimizer.param_groups[0]["lr"] = 2e-3 / 4**epoch
        for i in torch.randperm(len(x), device=x.device).split(128):
            loss = F.cross_entropy(net(x[i])[1], y[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@torch.inference_mode()
def look(net, x):
    """Features (N, 64) and class probabilities (N, K) of images, in batches."""
    features, scores = zip(*(net(part) for part in x.split(500)), strict=True)
    return torch.cat(features), torch.cat(scores).softmax(1)


def frechet(x, y):
    """Frechet distance between the Gaussians fitted to x (N, D) and y (M, D)."""
    x, y = x.double().cpu(), y.double().cpu()
    cov_x, cov_y = x.T.cov(), y.T.cov()
    root = torch.linalg.eigvals(cov_x @ cov_y).real.clamp(min=0).sqrt().sum()
    gap = (x.mean(0) - y.mean(0)).square().sum()
    return (gap + cov_x.trace() + cov_y.trace() - 2 * root).item()


def nearest(x, reals):
    """Median Euclidean distance of images x to the nearest of reals, pixels in [-1, 1]."""
    parts = [torch.cdist(part.flatten(1), reals.flatten(1)).amin(1) for part in x.split(100)]
    return torch.cat(parts).median().item()


class Judge:
    """Real images (N, C, S, S) in [-1, 1] with their classes, and a FeatureNet that knows them."""

    def __init__(self, train, y, test, y_test):
        self.train, self.test = train, test
        self.net = judge(train, y)
        self.features, probabilities = look(self.net, test)
        self.accuracy = (probabilities.argmax(1) == y_test).float().mean().item()
        self.confident = (probabilities.amax(1) > 0.9).float().mean().item()

    def floor(self, n):
        """Frechet distance of n training images, at random, from the test images."""
        torch.manual_seed(0)
        part = self.train[torch.randperm(len(self.train))[:n]]
        return frechet(look(self.net, part)[0], self.features)

    def verdict(self, fakes, asked=None):
        """What there is to say of fakes (N, C, S, S), if need be of the classes asked (N,)."""
        n = len(fakes)
        features, probabilities = look(self.net, fakes)
        confidence, classes = probabilities.max(1)
        share = classes.bincount(minlength=probabilities.shape[1]) / n
        said = {
            "judge_test_acc": self.accuracy,
            "n_samples": n,
            "frechet": frechet(features, self.features),
            "frechet_floor": self.floor(n),
            "confident_share": (confidence > 0.9).float().mean().item(),
            "confident_share_of_test": self.confident,
            "effective_classes": (-share.xlogy(share).sum()).exp().item(),
            "nearest_train": nearest(fakes, self.train),
            "nearest_train_of_test": nearest(self.test[:n], self.train),
        }
        if asked is not None:
            said["asked_class_acc"] = (classes == asked).float().mean().item()
        return said


def of_diffusion(module, args):
    """The judge of a run in diffusion/."""
    train, test = (module.to_model(part) for part in module.load_data(args))
    y, y_test = labels(args)
    return Judge(train, y, test, y_test)


def drawn(module, model, process, args, n):
    """n images, a hundred a seed, from seed 1000 on."""
    part, fakes = copy.copy(args), []
    part.n_samples = 100
    for part.seed in range(1000, 1000 + n // 100):
        fakes.append(module.sample(model, process, part)[0].float())
    return torch.cat(fakes)


def images(module, args, n=1000):
    """Draw n images with OUT/last.pt and hold them against the real ones."""
    real = of_diffusion(module, args)
    model, process = module.build(args)
    module.load_weights(f"{args.out}/last.pt", model)
    return real.verdict(drawn(module, model, process, args, n))


def asked_images(module, args, n=1000):
    """The same of a net that is told the class: n images, a hundred a seed, of all classes."""
    (x, y), (x_test, y_test) = module.load_data(args)
    real = Judge(module.to_model(x), y, module.to_model(x_test), y_test)
    part, fakes, asked = copy.copy(args), [], []
    part.n_samples, part.weights = 100, f"{args.out}/last.pt"
    part.classifier_weights = part.weights
    *nets, process = module.build(part)
    module.load_weights(part.weights, nets[0])
    which = torch.arange(100, device=args.device) // 10
    for part.seed in range(1000, 1000 + n // 100):
        if hasattr(module, "captions"):
            how = module.captions(args), which, part, args.cfg_scale
            drawing = module.sample(nets[0], process, *how)
        else:
            drawing, _ = module.sample(*nets, process, part)
        fakes, asked = [*fakes, drawing.float()], [*asked, which]
    return real.verdict(torch.cat(fakes), torch.cat(asked))


def players(module, args, n=1000):
    """The same of a run in gan/ whose generator takes noise, and a class if the net is told one."""
    torch.manual_seed(args.seed)
    (x, y), (x_test, y_test) = module.load_data(args)
    real = Judge(x, y, x_test, y_test)
    generator, _ = module.build(args)
    module.load_weights(f"{args.out}/last.pt", generator)
    torch.manual_seed(1000)
    z = module.noise(args, n)
    if not hasattr(args, "n_classes"):
        return real.verdict(module.sample(generator, z))
    asked = torch.arange(n, device=args.device) % args.n_classes
    return real.verdict(module.sample(generator, z, asked), asked)


def steps(module, args, n=500):
    """Frechet distance of n images drawn in few steps and in many, with and without noise."""
    real = of_diffusion(module, args)
    model, process = module.build(args)
    module.load_weights(args.weights or f"{args.out}/last.pt", model)
    metrics, part = {"n_samples": n, "frechet_floor": real.floor(n)}, copy.copy(args)
    for part.eta, counts in (0.0, (5, 10, 20, 50, 100)), (1.0, (10, 50)):
        for part.sampling_steps in counts:
            fakes = drawn(module, model, process, part, n)
            key = f"frechet_eta{part.eta:.0f}_{part.sampling_steps}"
            metrics[key] = frechet(look(real.net, fakes)[0], real.features)
    return metrics


def grids(module, args):
    """Error of a KAN after its last step on each of --grids, as OUT/log.jsonl tells it."""
    rows = map(json.loads, Path(args.out, "log.jsonl").read_text(encoding="utf-8").splitlines())
    rmse = {row["step"]: row["test_rmse"] for row in rows}
    last = {G: (at + 1) * args.grid_interval for at, G in enumerate(args.grids)}
    last[args.grids[-1]] = args.n_steps
    return {f"test_rmse_G{G}": rmse[step] for G, step in last.items()}


def smoothings(module, args):
    """Perplexity on the test text of every smoothing that leaves nothing impossible."""
    last = {name: row[-1] for name, row in module.run(args)[1].items()}
    return {f"perplexity_{name}": ppl for name, ppl in last.items() if math.isfinite(ppl)}


def copies(module, args):
    """What PESQ (narrow band) and STOI say of held-out digits 0 to 9, each by another voice, made
    anew of their mel alone, and how far the mels are apart. Needs the packages pesq and pystoi.
    OUT/digits.wav, _gen.wav and .png."""
    from pesq import pesq
    from pystoi import stoi
    from scipy.io import wavfile

    part, parts = copy.copy(args), []
    for digit in range(10):
        files = sorted(Path(args.data_root, "fsdd/recordings").glob(f"{digit}_*_0.wav"))
        x = module.read_sound(files[digit % len(files)], "--data_root", args.sr)
        parts.append(0.95 * x / x.abs().max())
    x = (torch.cat(parts) * 32767).round().short().numpy()
    part.predict, part.weights = f"{args.out}/digits.wav", None
    wavfile.write(part.predict, args.sr, x)
    module.generate(part)
    gen = wavfile.read(f"{args.out}/digits_gen.wav")[1] / 32767
    mel = module.Mel(args.sr, 64, args.n_mels, args.sr / 2)
    m, e = (mel(torch.from_numpy(part).float()[None]) for part in (x / 32767, gen))
    found = {"digits_mel_l1": (m - e).abs().mean().item(), "digits_seconds": len(x) / args.sr}
    return found | {
        "pesq_nb": pesq(args.sr, x / 32767, gen, "nb"),
        "stoi": float(stoi(x / 32767, gen, args.sr)),
    }
