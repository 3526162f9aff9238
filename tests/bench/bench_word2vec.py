"""word2vec.py against gensim: an epoch of the same text, and how good the vectors are afterwards.

The text has 1,000 words in 50 topics, and every second word of a sentence comes from anywhere. The
share of the same topic among 5 neighbours after 3 epochs of each is printed beside the times.
"""

import torch
import torch.nn.functional as F
from gensim.models import Word2Vec
from house import load

mod = load("nlp/word2vec.py")
EPOCHS = 3


def text():
    """10,000 sentences of 10 words."""
    torch.manual_seed(0)
    topic = torch.randint(50, (10_000, 1)).expand(-1, 10)
    topic = torch.where(torch.rand(topic.shape) < 0.5, torch.randint(50, topic.shape), topic)
    words = torch.stack([topic, torch.randint(20, topic.shape)], 2).tolist()
    return [[f"t{t}w{w}" for t, w in row] for row in words]


def purity(vectors, words):
    topic = torch.tensor([int(word[1:].split("w")[0]) for word in words])
    cosine = (v := F.normalize(vectors.cpu())) @ v.T - 2 * torch.eye(len(words))
    return (topic[cosine.topk(5).indices] == topic[:, None]).float().mean().item()


def rows(device):
    sentences, before = text(), mod.planted
    for arch, loss in [("skipgram", "ns"), ("skipgram", "hs"), ("cbow", "ns"), ("cbow", "hs")]:
        lr = 0.025 if arch == "skipgram" else 0.05
        flags = {"arch": arch, "loss": loss, "dim": 100, "subsample": 0, "lr": lr, "device": device}
        flags |= {"batch_size": 256}
        args = mod.parse_args([word for key in flags for word in (f"--{key}", str(flags[key]))])
        mod.planted = lambda: sentences
        corpus = mod.load_data(args)
        mod.planted = before
        model, asked = mod.build(args, corpus), mod.questions(corpus.counts, loss, device)
        K = 5 if loss == "ns" else 0

        @torch.inference_mode()
        def ours(done=0.0, args=args, corpus=corpus, model=model, asked=asked, K=K):
            for step in mod.w2v_steps(args, corpus, asked):
                lr = mod.linear_rate(args.lr, done + step.done / EPOCHS)
                mod.w2v_learn(model, step, args.arch, K, lr)

        known = {"sg": int(arch == "skipgram"), "hs": int(loss == "hs"), "negative": K, "alpha": lr}
        known |= {"vector_size": 100, "sample": 0, "workers": torch.get_num_threads(), "window": 5}
        peer = Word2Vec(**known)
        peer.build_vocab(sentences)

        def theirs(start=lr, end=1e-5, peer=peer):
            size = {"total_examples": len(sentences), "epochs": 1}
            peer.train(sentences, start_alpha=start, end_alpha=end, **size)

        for epoch in range(EPOCHS):
            ours(epoch / EPOCHS)
            theirs(lr * (1 - epoch / EPOCHS), lr * max(1e-4, 1 - (epoch + 1) / EPOCHS))
        words = corpus.words
        gensim = torch.stack([torch.from_numpy(peer.wv[word].copy()) for word in words])
        pair = purity(model.syn0, words), purity(gensim, words)
        print("word2vec {}, {}: purity {:.3f}, of gensim {:.3f}".format(arch, loss, *pair))
        yield {
            "name": f"word2vec {arch}, {loss}, an epoch of 100k words, D 100",
            "peer": "gensim",
            "target": 2.0,
            "rounds": 5,
            "ours": ours,
            "theirs": theirs,
        }
