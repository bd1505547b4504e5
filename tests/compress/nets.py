"""Small networks of every kind that units are cut from, and a batch for each."""

import torch
from torch import nn
from torch.nn import functional as F

from limbeck.models.resnet import ResNet


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 10, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(10)
        self.project = nn.Conv2d(6, 10, 1, stride=2)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.head(F.relu(y + self.project(x)).mean((2, 3)))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 1)
        self.head = nn.Linear(9 * 4, 3)

    def forward(self, x):
        both = torch.cat([F.relu(self.left(x)), torch.tanh(self.right(x))], 1)
        return self.head(F.max_pool2d(both, 4).flatten(1))


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn = nn.BatchNorm2d(8)
        self.multiply = nn.Conv2d(8, 16, 3, groups=8)
        self.project = nn.Conv2d(16, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu6(self.bn(self.deep(F.hardswish(self.expand(x)))))
        return self.head(F.adaptive_avg_pool2d(self.project(F.relu(self.multiply(x))), 1).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.silu(self.bn(self.conv(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head((x * gate).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1 = nn.Conv2d(3, 4, 3, padding=1)
        self.down2 = nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.join = nn.Conv2d(10, 5, 3, padding=1)
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        first = F.relu(self.down1(x))
        low = F.relu(self.down2(F.max_pool2d(first, 2)))
        return self.out(F.relu(self.join(torch.cat([self.up(low), first], 1))))


class OwnAttention(nn.Module):
    """Heads by view and by its own numbers; keys, queries and values in one projection."""

    def __init__(self, dim=12, heads=3):
        super().__init__()
        self.heads, self.head_dim, self.inner = heads, dim // heads, dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        batch, time, _ = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, self.inner))


class Grouped(nn.Module):
    """Grouped-query attention: four heads of queries share two of keys and values."""

    def __init__(self, dim=8, heads=4, shared=2):
        super().__init__()
        self.num_heads, self.num_kv, self.width = heads, shared, 3
        self.q = nn.Linear(dim, heads * 3)
        self.k = nn.Linear(dim, shared * 3)
        self.v = nn.Linear(dim, shared * 3)
        self.o = nn.Linear(heads * 3, dim, bias=False)

    def forward(self, x):
        batch, time, _ = x.shape
        q = self.q(x).view(batch, time, self.num_heads, self.width).transpose(1, 2)
        k, v = (f(x).view(batch, time, self.num_kv, self.width).transpose(1, 2) for f in (self.k, self.v))
        k, v = (t.repeat_interleave(self.num_heads // self.num_kv, dim=1) for t in (k, v))
        mixed = (q @ k.transpose(2, 3) / self.width**0.5).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm = nn.LayerNorm(attention[1])
        self.attention = attention[0]
        self.up = nn.Linear(attention[1], 10)
        self.down = nn.Linear(10, attention[1])
        self.head = nn.Linear(attention[1], 3)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class SelfAttention(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.inner = nn.MultiheadAttention(12, 3, batch_first=True, **settings)

    def forward(self, x):
        return self.inner(x, x, x)[0]


class Norms(nn.Module):
    """Each kind of norm, over inner channels."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.group = nn.GroupNorm(4, 8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.instance = nn.InstanceNorm2d(6, affine=True)
        self.conv3 = nn.Conv2d(6, 5, 3, padding=1)
        self.layer = nn.LayerNorm(5)
        self.wide = nn.Linear(5, 7)
        self.rms = nn.RMSNorm(7)
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        x = F.relu(self.group(self.conv1(x)))
        x = F.relu(self.instance(self.conv2(x)))
        x = self.layer(self.conv3(x).mean((2, 3)))
        return self.head(self.rms(self.wide(x)))


class Recurrent(nn.Module):
    def __init__(self, kind, **settings):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = kind(6, 8, batch_first=True, **settings)
        width = 8 if not settings.get("proj_size") else settings["proj_size"]
        self.head = nn.Linear(width * (2 if settings.get("bidirectional") else 1), 3)

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0][:, -1])


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 9)
        self.back = nn.Linear(9, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.back(F.gelu(self.mix(x))))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=13, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=10,
        max_position_embeddings=9, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=13, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=10, max_position_embeddings=9,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def conv():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(True), nn.Conv2d(6, 4, 3), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


IMAGES = {"x": (4, 3, 8, 8)}
VECTORS = {"x": (4, 5)}
TIMES = {"x": (3, 5, 12)}
WORDS = {"x": (3, 5)}
TOKENS = {"input_ids": (3, 5)}

NETS = {
    "mlp": (mlp, VECTORS),
    "conv": (conv, IMAGES),
    "residual": (Residual, IMAGES),
    "resnet": (lambda: ResNet(3, 1, 1, 4), IMAGES),
    "concat": (Concat, IMAGES),
    "depthwise": (Depthwise, IMAGES),
    "grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(192, 3)
        ),
        IMAGES,
    ),
    "norms": (Norms, IMAGES),
    "squeeze and excitation": (SqueezeExcite, IMAGES),
    "u-net": (UNet, IMAGES),
    "own attention": (lambda: Transformer((OwnAttention(), 12)), TIMES),
    "grouped-query attention": (lambda: Transformer((Grouped(dim=12), 12)), TIMES),
    "multihead attention": (lambda: Transformer((SelfAttention(), 12)), TIMES),
    "multihead attention, three projections": (
        lambda: Transformer((SelfAttention(kdim=12, vdim=12, bias=False), 12)),
        TIMES,
    ),
    "encoder layer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(12, 3, 10, batch_first=True), nn.Flatten(), nn.Linear(60, 3)),
        TIMES,
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 4, 10, batch_first=True), 2),
        TIMES,
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), WORDS),
    "lstm, deep, both ways": (lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), WORDS),
    "lstm with projection": (lambda: Recurrent(nn.LSTM, proj_size=4), WORDS),
    "gru": (lambda: Recurrent(nn.GRU), WORDS),
    "gru, deep, both ways": (lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True), WORDS),
    "plain recurrence": (lambda: Recurrent(nn.RNN), WORDS),
    "tied embeddings": (Tied, WORDS),
    "bert": (bert, TOKENS),
    "llama": (llama, TOKENS),
}  # fmt: skip
"""What makes each network, and the shapes of its inputs."""


def made(name, seed=0):
    """A network with weights that are nowhere zero, in evaluation mode, and a batch for it."""
    make, shapes = NETS[name]
    torch.manual_seed(seed)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for path, buffer in model.named_buffers():
            if path.endswith("running_mean"):
                buffer.normal_()
            if path.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    words = shapes in (WORDS, TOKENS)
    batch = {key: torch.randint(0, 11, shape) if words else torch.randn(shape) for key, shape in shapes.items()}
    batch["y"] = torch.randint(0, 3, (len(next(iter(batch.values()))),))
    return model, batch
