"""gan.py against a plain GAN with the habits of PyTorch-GAN's scripts: the same networks, batch
64, 28 px; both sides do one step of each player, logging included."""

import numpy as np
import torch
from house import load
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

gan = load("gan/gan.py")
LATENT, SIZE, BATCH = 100, 28, 64


class Strokes(Dataset):
    """Bytes of the MNIST kind, one PIL image at a time, as torchvision's MNIST hands them out."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform
        self.labels = torch.zeros(len(images), dtype=torch.long)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, at):
        image = Image.fromarray(self.images[at].numpy(), mode="L")
        return self.transform(image), int(self.labels[at])


def lean(images, device):
    """Ours: data as one tensor on the device, the script's own steps, fused Adam."""
    x = (images[:, None].float() / 127.5 - 1).to(device)
    generator = gan.Generator(LATENT, SIZE, 1, 128).to(device)
    discriminator = gan.Discriminator(SIZE, 1, 128).to(device)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": True}
    optimizer_g = torch.optim.Adam(generator.parameters(), **adam)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **adam)
    total = torch.zeros(2, device=device)

    def run():
        real = x[torch.randint(len(x), (BATCH,), device=device)]
        z = torch.randn(BATCH, LATENT, device=device)
        d = gan.d_step(generator, discriminator, optimizer_d, real, z)
        z = torch.randn(BATCH, LATENT, device=device)
        g = gan.g_step(generator, discriminator, optimizer_g, z, "ns")
        total.add_(torch.stack([g, d]))

    return run


def plain(images, device):
    """Theirs: PIL transforms per image, noise from numpy, sigmoid and BCELoss with labels made
    anew, the generator first, its gradients in the discriminator, two passes through that, Adam as
    a loop, losses read out."""
    steps = [transforms.Resize(SIZE), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    data = Strokes(images, transforms.Compose(steps))
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
    layers = [nn.Linear(LATENT, 128), nn.LeakyReLU(0.2, inplace=True)]
    for n in (128, 256, 512):
        layers += [nn.Linear(n, 2 * n), nn.BatchNorm1d(2 * n), nn.LeakyReLU(0.2, inplace=True)]
    layers += [nn.Linear(1024, SIZE**2), nn.Tanh(), nn.Unflatten(1, (1, SIZE, SIZE))]
    generator = nn.Sequential(*layers).to(device)
    layers = [nn.Flatten(), nn.Linear(SIZE**2, 512), nn.LeakyReLU(0.2, inplace=True)]
    layers += [nn.Linear(512, 256), nn.LeakyReLU(0.2, inplace=True), nn.Linear(256, 1)]
    discriminator = nn.Sequential(*layers, nn.Sigmoid()).to(device)
    adversarial_loss = nn.BCELoss()
    adam = {"lr": 2e-4, "betas": (0.5, 0.999), "foreach": False, "fused": False}
    optimizer_g = torch.optim.Adam(generator.parameters(), **adam)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **adam)
    batches = iter([])

    def batch():
        nonlocal batches
        try:
            return next(batches)[0].to(device)
        except StopIteration:
            batches = iter(loader)
            return next(batches)[0].to(device)

    def run():
        real = batch()
        valid = torch.ones(len(real), 1, device=device)
        fake = torch.zeros(len(real), 1, device=device)
        optimizer_g.zero_grad()
        z = torch.from_numpy(np.random.normal(0, 1, (len(real), LATENT))).float().to(device)
        images = generator(z)
        g_loss = adversarial_loss(discriminator(images), valid)
        g_loss.backward()
        optimizer_g.step()
        optimizer_d.zero_grad()
        real_loss = adversarial_loss(discriminator(real), valid)
        fake_loss = adversarial_loss(discriminator(images.detach()), fake)
        d_loss = (real_loss + fake_loss) / 2
        d_loss.backward()
        optimizer_d.step()
        return f"[D loss: {d_loss.item():f}] [G loss: {g_loss.item():f}]"

    return run


def rows(device):
    images = (torch.rand(6400, SIZE, SIZE) * 256 * (torch.rand(6400, SIZE, SIZE) < 0.2)).byte()
    yield {
        "name": f"gan 1 step of each player, batch {BATCH}, {SIZE} px",
        "peer": "plain form with PyTorch-GAN's habits",
        "target": 0.55,
        "rounds": 60,
        "ours": lean(images, device),
        "theirs": plain(images, device),
    }
