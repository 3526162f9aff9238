"""Limits of the scripts: seconds of a smoke, lines of code, lines that siblings differ in."""

from fnmatch import fnmatch

# CPU seconds of a whole --smoke on one thread; the first pattern that fits a script counts.
SMOKE_SECONDS = {
    "diffusion/latent_diffusion.py": 35,
    "diffusion/*": 25,
    "gan/stylegan*": 25,
    "gan/draggan.py": 25,
    "basics/*": 10,
    "gnn/*": 10,
    "*": 15,
}

# Lines, blank ones aside, between the imports and the plumbing.
LINES = {
    "diffusion/ddpm.py": 450,
    "diffusion/ddim.py": 450,
    "diffusion/improved_ddpm.py": 450,
    "diffusion/guided_diffusion.py": 450,
    "diffusion/dit.py": 450,
    "diffusion/autoencoder_kl.py": 400,
    "diffusion/latent_diffusion.py": 620,
    "gan/stylegan*": 450,
    "gan/draggan.py": 450,
    "vocoder/bigvgan.py": 450,
    "vocoder/hifigan.py": 300,
    "vocoder/wavenet.py": 300,
    "vocoder/diffwave.py": 290,
    "separation/sepreformer.py": 450,
    "separation/skim.py": 280,
    "llm/minimind.py": 450,
    "llm/minimind_moe.py": 450,
    "llm/sft.py": 450,
    "llm/dpo.py": 450,
    "nlp/ngram_lm.py": 450,
    "ssm/mamba_scan.py": 370,
    "vision/swin.py": 360,
    "vision/edgenext.py": 340,
    "vision/*": 320,
    "pruning/structured_pruning.py": 390,
    "pruning/*": 300,
    "basics/kan.py": 127,
    "basics/*": 120,
    "*": 250,
}

# Changed lines between two siblings, counted by test_siblings.
DIFFS = {
    ("diffusion/ddpm.py", "diffusion/ddim.py"): 167,
    ("diffusion/ddpm.py", "diffusion/improved_ddpm.py"): 278,
    ("diffusion/improved_ddpm.py", "diffusion/guided_diffusion.py"): 402,
    ("diffusion/improved_ddpm.py", "diffusion/dit.py"): 388,
    ("gan/gan.py", "gan/cgan.py"): 70,
    ("gan/gan.py", "gan/dcgan.py"): 40,
    ("gan/gan.py", "gan/wgan.py"): 60,
    ("gan/wgan.py", "gan/wgan_gp.py"): 45,
    ("gnn/gcn.py", "gnn/graphsage.py"): 40,
    ("gnn/graphsage.py", "gnn/gat.py"): 88,
    ("gan/pix2pix.py", "gan/cyclegan.py"): 150,
    ("gan/cyclegan.py", "gan/stargan.py"): 209,
    ("gan/stylegan.py", "gan/stylegan2.py"): 220,
    ("gan/stylegan2.py", "gan/stylegan3.py"): 260,
    ("ssm/mamba.py", "ssm/retnet.py"): 160,
    ("vocoder/melgan.py", "vocoder/hifigan.py"): 260,
    ("vocoder/hifigan.py", "vocoder/bigvgan.py"): 160,
    ("vocoder/wavenet.py", "vocoder/diffwave.py"): 260,
    ("separation/conv_tasnet.py", "separation/sepformer.py"): 220,
    ("separation/sepformer.py", "separation/sepreformer.py"): 300,
    ("vision/resnet.py", "vision/resnext.py"): 40,
    ("vision/resnet.py", "vision/senet.py"): 40,
    ("vision/resnet.py", "vision/res2net.py"): 70,
    ("vision/vit.py", "vision/swin.py"): 220,
    ("vision/convnext.py", "vision/edgenext.py"): 220,
}


def budget(table, script):
    """The limit of a script, diffusion/ddpm.py say, by the first pattern that fits."""
    return next(limit for pattern, limit in table.items() if fnmatch(script, pattern))
