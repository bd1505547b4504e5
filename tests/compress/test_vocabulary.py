"""A trimmed vocabulary answers as before on every sentence of its data, in a file smaller by the rows left out."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.compress import Evidence, Vocabulary, apply, id_map, plan, remap, stored_bytes
from limbeck.core.errors import ConfigError, DataError
from limbeck.core.setting import as_plain
from limbeck.export import save_model

SST2 = Path(os.environ.get("LIMBECK_DATA", Path(__file__).parents[3] / "shared" / "data")) / "sst2"
WORDS, WIDTH = 20_000, 32


class Classifier(nn.Module):
    """A bag of words through an embedding; row 3 is padding, which counts as nothing."""

    def __init__(self, words=WORDS, width=WIDTH):
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=3)
        self.hidden, self.out = nn.Linear(width, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(self.embed(x).sum(1))))


class Tied(nn.Module):
    """Two embeddings and an output layer with one weight."""

    def __init__(self, words=40):
        super().__init__()
        self.source, self.target = nn.Embedding(words, 8, padding_idx=2), nn.Embedding(words, 8)
        self.out = nn.Linear(8, words)
        self.target.weight = self.out.weight = self.source.weight

    def forward(self, x):
        return self.out(self.source(x) + self.target(x.flip(1)))


def of(ids, parts=2):
    return Evidence(batch={"x": ids[:2]}, batches=lambda: ({"x": part} for part in ids.chunk(parts)))


def sentences():
    """Every sentence of SST-2 as ids in a vocabulary that is larger than theirs, spread over all of it."""
    if not (SST2 / "train.tsv").exists():
        pytest.skip(f"SST-2 is not at {SST2}; set LIMBECK_DATA to the folder of data sets")
    texts = []
    for name in ("train", "dev", "test"):
        with (SST2 / f"{name}.tsv").open(encoding="utf-8") as file:
            texts += [row["sentence"].split() for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    known = sorted({word for text in texts for word in text})
    order = torch.randperm(WORDS - 4, generator=torch.Generator().manual_seed(0)) + 4
    ids = {word: int(order[i]) for i, word in enumerate(known[: WORDS - 4])}
    longest = max(map(len, texts))
    return torch.tensor([[ids[word] for word in text] + [3] * (longest - len(text)) for text in texts])


def test_a_classifier_of_20_000_words_is_trimmed_to_those_of_sst_2(tmp_path):
    ids = sentences()
    torch.manual_seed(0)
    model = Classifier().eval()
    found = plan(model, Vocabulary(keep=(0, 1, 2)), of(ids, 20))
    small = apply(model, found)
    kept = len(set(ids.flatten().tolist()) | {0, 1, 2, 3})
    assert kept < WORDS
    assert found.before.parameters - found.after.parameters == (WORDS - kept) * WIDTH
    with torch.no_grad():
        for part in ids.split(500):
            assert torch.equal(small(part), model(part))
    plain = {"lineage": {"base": {}}, "card": ""}
    whole = save_model(tmp_path / "whole", model, **plain) / "model.safetensors"
    cut = save_model(tmp_path / "cut", small, **plain, operations=[found]) / "model.safetensors"
    saved = whole.stat().st_size - cut.stat().st_size
    assert saved == pytest.approx(((WORDS - kept) * WIDTH - WORDS) * 4, rel=0.01)  # less the map, 4 bytes an old id
    assert stored_bytes(small) == (kept * WIDTH + WIDTH * 16 + 16 + 32 + 2 + WORDS) * 4
    again = lb.load(tmp_path / "cut", into=Classifier()).eval()
    with torch.no_grad():
        assert torch.equal(again(ids[:500]), model(ids[:500]))


def test_ties_stay_tied_padding_moves_and_new_ids_are_in_order():
    torch.manual_seed(0)
    model = Tied().eval()
    ids = torch.tensor([[5, 9, 2], [30, 9, 5]])
    found = plan(model, Vocabulary(keep=(0,)), of(ids))
    small = apply(model, found)
    assert small.source.weight is small.target.weight is small.out.weight
    assert small.out.weight.shape == (5, 8)
    assert small.source.embedding.padding_idx == 1
    assert small.target.embedding.padding_idx is None
    assert id_map(found) == {"source": {0: 0, 2: 1, 5: 2, 9: 3, 30: 4}}
    assert torch.allclose(small(ids), model(ids)[..., [0, 2, 5, 9, 30]], atol=1e-5)
    assert found.after.parameters == sum(p.numel() for p in small.parameters()) == 5 * 8 + 5
    small(ids).square().sum().backward()
    assert small.source.weight.grad.abs().sum() > 0


def test_labels_of_a_trimmed_output_layer_are_turned_into_its_ids():
    torch.manual_seed(0)
    model = Tied().eval()
    ids = torch.tensor([[5, 9, 2], [30, 9, 5]])
    found = plan(model, Vocabulary(), of(ids))
    small = apply(model, found)
    labels = remap(torch.tensor([[5, 9, 2], [30, 8, 5]]), id_map(found)["source"])
    assert labels.tolist() == [[1, 2, 0], [3, -100, 1]]
    loss = nn.functional.cross_entropy(small(ids).flatten(0, 1), labels.flatten())
    assert torch.isfinite(loss)


def test_an_id_left_out_is_refused_by_name_or_stands_for_the_unknown():
    torch.manual_seed(0)
    model = Classifier(40, 8).eval()
    ids = torch.tensor([[5, 9, 3], [30, 9, 5]])
    strict = apply(model, plan(model, Vocabulary(), of(ids)))
    with pytest.raises(DataError, match="id 7 was trimmed"):
        strict(torch.tensor([[5, 7]]))
    loose = apply(model, plan(model, Vocabulary(unknown=1), of(ids)))
    assert torch.equal(loose(torch.tensor([[5, 7]])), model(torch.tensor([[5, 1]])))
    assert torch.equal(loose(ids), model(ids))


def test_padding_goes_on_learning_nothing():
    torch.manual_seed(0)
    model = Classifier(40, 8)
    ids = torch.tensor([[5, 9, 3], [30, 9, 5]])
    small = apply(model, plan(model, Vocabulary(), of(ids)))
    small(ids).sum().backward()
    new = small.embed.embedding.padding_idx
    assert new == 0
    assert (small.embed.embedding.weight.grad[new] == 0).all()
    assert (small.embed.embedding.weight.grad[1:].abs().sum(1) > 0).all()


def test_what_cannot_be_trimmed_is_left_and_said():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.all, self.unread, self.bag, self.tied = (nn.Embedding(4, 3) for _ in range(4))
            self.bag = nn.EmbeddingBag(4, 3)
            self.bag.weight = self.tied.weight

        def forward(self, x):
            return self.all(x) + self.tied(x) + self.bag(x)[:, None]

    model = Odd()
    found = plan(model, Vocabulary(), of(torch.tensor([[0, 1], [2, 3]])))
    why = {left.at: left.why for left in found.left}
    assert found.changes == ()
    assert "every row" in why["all"]
    assert "does not reach" in why["unread"]
    assert "bag" in why["tied"]


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ConfigError, match="id 40 is outside the 40 rows of embed"):
        plan(Classifier(40, 8), Vocabulary(keep=(40,)), of(torch.tensor([[1, 2]])))


def test_the_plan_is_plain_and_short():
    model = Classifier(2_000, 4)
    found = plan(model, Vocabulary(), of(torch.arange(1_000)[None].repeat(2, 1)))
    assert found.changes[0].detail["kept"] == "0-999"
    assert len(json.dumps(as_plain(found))) < 1_000


def test_a_hugging_face_model_takes_its_old_ids():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(5, 60, (4, 7))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = plan(
        model,
        Vocabulary(keep=(0, 1, 2, 3, 4), include=("*word_embeddings",)),
        Evidence(batch=batch, batches=lambda: iter([batch])),
    )
    small = apply(model, found)
    with torch.no_grad():
        assert torch.equal(small(**batch).logits, model(**batch).logits)
    assert found.after.parameters < found.before.parameters
