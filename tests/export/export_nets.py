"""Small networks of each kind, with inputs of their own, in a state that training leaves behind."""

import torch
from torch import nn

WORDS, LENGTH = 40, 7


class ConvNet(nn.Module):
    """Convolutions with batch norm around a shortcut, pooled to a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.out = nn.Linear(8, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.first(x)
        return self.out(self.drop(torch.relu(x + self.second(x)).mean((2, 3))))


class Recurrent(nn.Module):
    """Words through an LSTM or a GRU; the last state decides."""

    def __init__(self, layer=nn.LSTM):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.cells = layer(16, 24, batch_first=True)
        self.out = nn.Linear(24, 5)

    def forward(self, tokens):
        return self.out(self.cells(self.embed(tokens))[0][:, -1])


class Attention(nn.Module):
    """One encoder layer over words, padding left out; it also returns what it looked at."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.out = nn.Linear(16, 5)

    def forward(self, tokens, mask):
        hidden = self.layer(self.embed(tokens), src_key_padding_mask=~mask)
        share = mask.float().unsqueeze(-1)
        pooled = (hidden * share).sum(1) / share.sum(1)
        return {"logits": self.out(pooled), "pooled": pooled}


class Both(nn.Module):
    """Convolutions over a signal, an LSTM over time."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 16, 3, padding=1)
        self.cells = nn.LSTM(16, 24, batch_first=True)
        self.out = nn.Linear(24, 5)

    def forward(self, x):
        return self.out(self.cells(torch.relu(self.conv(x)).transpose(1, 2))[0][:, -1])


def trained(net):
    """The network with weights that answer differently to different inputs, and norms that have seen data."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                fan = parameter[0].numel()
                parameter.normal_(0, 1.5 * fan**-0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.3, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
    return net


def example(net, samples=64):
    generator = torch.Generator().manual_seed(1)
    if isinstance(net, ConvNet):
        return torch.randn(samples, 1, 8, 8, generator=generator)
    if isinstance(net, Both):
        return torch.randn(samples, 4, LENGTH, generator=generator)
    tokens = torch.randint(0, WORDS, (samples, LENGTH), generator=generator)
    if isinstance(net, Recurrent):
        return tokens
    lengths = torch.randint(2, LENGTH + 1, (samples, 1), generator=generator)
    return {"tokens": tokens, "mask": torch.arange(LENGTH) < lengths}


NETS = {"conv": ConvNet, "lstm": Recurrent, "gru": lambda: Recurrent(nn.GRU), "attention": Attention, "both": Both}


def made(kind):
    torch.manual_seed(0)
    net = trained(NETS[kind]())
    return net, example(net)


def answers(net, given):
    """The network's logits in evaluation mode."""
    with torch.no_grad():
        out = net.eval()(**given) if isinstance(given, dict) else net.eval()(given)
    return out["logits"] if isinstance(out, dict) else out
