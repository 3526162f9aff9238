"""wgan_gp.py against a plain WGAN-GP with the habits of PyTorch-GAN's scripts: the same networks,
batch 64, 28 px; both sides do five critic steps and one generator step, logging included."""

import numpy as np
import torch
from house import load
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

gan = load("gan/wgan_gp.py")
LATENT, SIZE, BATCH, N_CRITIC, LAMBDA = 100, 28, 64, 5, 10.0


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
    critic = gan.Discriminator(SIZE, 1, 128).to(device)
    adam = {"lr": 1e-4, "betas": (0.0, 0.9), "fused": True}
    optimizer_g = torch.optim.Adam(generator.parameters(), **adam)
    optimizer_d = torch.optim.Adam(critic.parameters(), **adam)
    total = torch.zeros(3, device=device)

    def run():
        for _ in range(N_CRITIC):
            real = x[torch.randint(len(x), (BATCH,), device=device)]
            z = torch.randn(BATCH, LATENT, device=device)
            losses = gan.d_step(generator, critic, optimizer_d, real, z, LAMBDA)
        z = torch.randn(BATCH, LATENT, device=device)
        total.add_(torch.stack([gan.g_step(generator, critic, optimizer_g, z), *losses]))

    return run


def plain(images, device):
    """Theirs: PIL transforms per image, noise from numpy, a graph through the fakes in the
    critic's step, the critic's gradients in the generator's, Adam as a loop, losses read out."""
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
    critic = nn.Sequential(*layers).to(device)
    adam = {"lr": 1e-4, "betas": (0.0, 0.9), "foreach": False, "fused": False}
    optimizer_g = torch.optim.Adam(generator.parameters(), **adam)
    optimizer_d = torch.optim.Adam(critic.parameters(), **adam)
    batches = iter([])

    def batch():
        nonlocal batches
        try:
            return next(batches)[0].to(device)
        except StopIteration:
            batches = iter(loader)
            return next(batches)[0].to(device)

    def penalty_of(real, fake):
        alpha = torch.from_numpy(np.random.random((len(real), 1, 1, 1))).float().to(device)
        between = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
        score = critic(between)
        gradients = torch.autograd.grad(
            outputs=score,
            inputs=between,
            grad_outputs=torch.ones_like(score),
            create_graph=True,
            retain_graph=True,
            only_inputs=True,
        )[0]
        return ((gradients.view(len(real), -1).norm(2, dim=1) - 1) ** 2).mean()

    def run():
        for _ in range(N_CRITIC):
            real = batch()
            optimizer_d.zero_grad()
            z = torch.from_numpy(np.random.normal(0, 1, (BATCH, LATENT))).float().to(device)
            fake = generator(z)
            gp = penalty_of(real.data, fake.data)
            d_loss = -critic(real).mean() + critic(fake).mean() + LAMBDA * gp
            d_loss.backward()
            optimizer_d.step()
            optimizer_g.zero_grad()
        fake = generator(z)
        g_loss = -critic(fake).mean()
        g_loss.backward()
        optimizer_g.step()
        return f"[D loss: {d_loss.item():f}] [G loss: {g_loss.item():f}]"

    return run


def rows(device):
    images = (torch.rand(6400, SIZE, SIZE) * 256 * (torch.rand(6400, SIZE, SIZE) < 0.2)).byte()
    yield {
        "name": f"wgan_gp {N_CRITIC} critic steps and 1 generator step, batch {BATCH}, {SIZE} px",
        "peer": "plain form with PyTorch-GAN's habits",
        "target": 0.55,
        "ours": lean(images, device),
        "theirs": plain(images, device),
    }
