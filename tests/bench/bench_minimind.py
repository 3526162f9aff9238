"""Writing and training of minimind2-small, 25.8M parameters, against Llama in transformers."""

import torch
from house import load
from transformers import LlamaConfig, LlamaForCausalLM

mod = load("llm/minimind.py")


def pair(device):
    args = mod.parse_args(["--config", "minimind2-small"])
    args.device = device
    ours = mod.build(args, mod.Tokenizer())
    config = LlamaConfig(
        vocab_size=6400,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    theirs = LlamaForCausalLM(config).to(device)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def writing(model, prompts, n):
    return lambda: [*mod.sample(model, prompts, n, temperature=0)]


def their_writing(model, prompts, n):
    x = torch.tensor(prompts, device=model.device)
    flags = {"max_new_tokens": n, "do_sample": False, "attention_mask": torch.ones_like(x)}
    return lambda: model.generate(x, **flags)


def training(model, x, loss):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def run():
        model.train()
        loss(model, x).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def rows(device):
    torch.manual_seed(0)
    ours, theirs = pair(device)
    for batch in (1, 8):
        prompts = torch.randint(6400, (batch, 32)).tolist()
        yield {
            "name": f"minimind2-small writes 32 tokens, batch {batch}, prompt 32",
            "peer": "transformers generate",
            "target": 1.0,
            "ours": writing(ours, prompts, 32),
            "theirs": their_writing(theirs.eval(), prompts, 32),
        }
    x = torch.randint(6400, (4, 257), device=device)
    yield {
        "name": "minimind2-small, a training step of 4 x 256 tokens",
        "peer": "transformers LlamaForCausalLM",
        "target": 1.0,
        "ours": training(ours, x, lambda m, x: mod.next_token_loss(m(x[:, :-1]), x[:, 1:], 1024)),
        "theirs": training(theirs, x, lambda m, x: m(x, labels=x).loss),
    }
