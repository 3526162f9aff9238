"""pix2pix.py against a plain form with the habits of PyTorch-GAN's script: the same networks and
losses; one step of both players on both sides, from images in memory, logging included."""

import torch
from house import load
from torch import nn

gan = load("gan/pix2pix.py")
LAMBDA = 100.0


def players(size, dim, device):
    torch.manual_seed(0)
    return gan.Generator(size, dim).to(device), gan.Discriminator(6, dim).to(device)


def lean(x, y, dim, device):
    """Ours: one fake for both players, cut off for D; D is frozen in G's step; fused Adam."""
    generator, discriminator = players(x.shape[2], dim, device)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": True}
    optimizer_g = torch.optim.Adam(generator.parameters(), **adam)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **adam)
    amp = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=False)
    total = torch.zeros(3, device=device)

    def run():
        y_hat = generator(x)
        d = gan.d_step(discriminator, optimizer_d, x, y, y_hat, amp)
        g = gan.g_step(discriminator, optimizer_g, x, y, y_hat, LAMBDA, amp)
        total.add_(torch.stack([d, *g]))

    return run


def plain(x, y, dim, device):
    """Theirs: labels made anew, gradients of G's loss in D too, Adam as a loop, losses read out."""
    generator, discriminator = players(x.shape[2], dim, device)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999), "foreach": False, "fused": False}
    optimizer_g = torch.optim.Adam(generator.parameters(), **adam)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **adam)
    bce, l1 = nn.BCEWithLogitsLoss(), nn.L1Loss()

    def judge(image, value):
        score = discriminator(torch.cat([image, x], 1))
        return bce(score, torch.full(score.shape, value).to(device))

    def run():
        optimizer_g.zero_grad()
        fake = generator(x)
        loss_g = judge(fake, 1.0) + LAMBDA * l1(fake, y)
        loss_g.backward()
        optimizer_g.step()
        optimizer_d.zero_grad()
        loss_d = 0.5 * (judge(y, 1.0) + judge(fake.detach(), 0.0))
        loss_d.backward()
        optimizer_d.step()
        return f"[D loss: {loss_d.item():f}] [G loss: {loss_g.item():f}]"

    return run


def rows(device):
    for size, dim in ((64, 32), (256, 64)):
        x, y = (2 * torch.rand(2, 1, 3, size, size, device=device) - 1).unbind()
        yield {
            "name": f"pix2pix step of both networks, batch 1, {size} px, dim {dim}",
            "peer": "plain form with PyTorch-GAN's habits",
            "target": 1.0,
            "ours": lean(x, y, dim, device),
            "theirs": plain(x, y, dim, device),
        }
