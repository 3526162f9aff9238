"""The mixture of experts, all in one grouped product, against a loop over experts with masks."""

import torch
import torch.nn.functional as F
from house import load
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

mod, dense = load("llm/minimind_moe.py"), load("llm/minimind.py")


def loop(experts, x, choice, w):
    """What is often shown: each expert looks through all choices for its own."""
    y = torch.zeros_like(x)
    for e in range(len(experts.down_proj)):
        row, which = (choice == e).nonzero(as_tuple=True)
        gate, up = F.linear(x[row], experts.gate_up_proj[e]).chunk(2, -1)
        part = F.linear(F.silu(gate) * up, experts.down_proj[e]) * w[row, which, None]
        y.index_add_(0, row, part)
    return y


def both_ways(function, experts, inputs, grad):
    leaves = [*experts.parameters(), inputs[0]]
    return lambda: torch.autograd.grad(function(*inputs), leaves, grad)


def rows(device):
    for n, tokens, dim, width in ((8, 2048, 256, 256), (32, 2048, 256, 64)):
        torch.manual_seed(0)
        experts = mod.Experts(n, dim, width).to(device)
        for part in experts.parameters():
            torch.nn.init.normal_(part, std=0.05)
        x, grad = torch.randn(2, tokens, dim, device=device)
        _, choice, w = mod.route(x, torch.randn(n, dim, device=device), 2)
        inputs = [x.requires_grad_(), choice, w.detach()]
        name = (
            f"minimind_moe {n} experts of {width}, {tokens} tokens of {dim}, forward and backward"
        )
        yield {
            "name": name,
            "peer": "a loop over experts",
            "target": 1.0,
            "ours": both_ways(experts, experts, inputs, grad),
            "theirs": both_ways(lambda *a, e=experts: loop(e, *a), experts, inputs, grad),
        }
        config = MixtralConfig(hidden_size=dim, intermediate_size=width, num_local_experts=n)
        config._experts_implementation = "eager"
        peer = MixtralExperts(config).to(device)
        peer.load_state_dict(experts.state_dict())
        yield {
            "name": f"{name}, and its library",
            "peer": "transformers MixtralExperts",
            "target": 1.0,
            "ours": both_ways(experts, experts, inputs, grad),
            "theirs": both_ways(peer, peer, inputs, grad),
        }
    args = mod.parse_args(["--dim", "256", "--depth", "4"])
    other = dense.parse_args(["--dim", "256", "--depth", "4"])
    args.device = other.device = device
    models = [m.build(a, mod.Tokenizer()) for m, a in ((mod, args), (dense, other))]
    x = torch.randint(259, (8, 129), device=device)

    def step(model):
        model.zero_grad()
        mod.next_token_loss(model(x[:, :-1]), x[:, 1:], 1024).backward()

    yield {
        "name": "minimind_moe, forward and backward of 4 layers of 256",
        "peer": "the dense model of equal work for a token",
        "target": 1.4,
        "ours": lambda: step(models[0]),
        "theirs": lambda: step(models[1]),
    }
