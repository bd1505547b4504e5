"""Hugging Face models, made here at random: text by id, masks, inner states, and what decides the answers."""

import copy

import pytest
import torch
from kinds import batch, bert, texts, tokenizer

import limbeck as lb
from limbeck.core.errors import ConfigError, DataError


def test_text_is_found_by_id_and_padding_changes_nothing():
    model, words = bert(0).eval(), tokenizer()
    answer = lb.teacher(model, tokenizer=words, data=texts())(batch())["logits"]
    by_id = dict(zip(texts().ids.tolist(), texts().columns["text"], strict=True))
    alone = [model(**words(by_id[i], return_tensors="pt")).logits[0] for i in batch()["id"].tolist()]
    torch.testing.assert_close(answer, torch.stack(alone).detach(), atol=1e-5, rtol=1e-5)


def test_ids_and_masks_that_are_columns_go_in_by_name():
    model, words = bert(0).eval(), tokenizer()
    encoded = dict(words(texts().columns["text"], padding=True, return_tensors="pt"))
    answer = lb.teacher(model)({"id": texts().ids, **encoded})["logits"]
    expected = lb.teacher(model, tokenizer=words, data=texts())({"id": texts().ids})["logits"]
    torch.testing.assert_close(answer, expected)


def test_inner_states_are_the_model_s_and_the_model_is_as_it_was():
    model = bert(0).eval()
    said = copy.deepcopy(model.config.to_dict())
    teacher = lb.teacher(model, tokenizer=tokenizer(), data=texts())
    answer = teacher.open(["hidden_states.2", "attentions.1"], batch())
    encoded = tokenizer()([dict(zip(texts().ids.tolist(), texts().columns["text"], strict=True))[i]
                           for i in batch()["id"].tolist()], padding=True, return_tensors="pt")  # fmt: skip
    expected = model(**encoded, output_hidden_states=True).hidden_states[2].detach()
    torch.testing.assert_close(answer["hidden_states.2"], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answer["attentions.1"].sum(-1), torch.ones(answer["attentions.1"].shape[:-1]))
    assert model.config.to_dict() == said
    assert model.config._attn_implementation == "sdpa"
    teacher.close()
    assert "hidden_states.2" not in teacher.open(["logits"], batch())


def test_the_fingerprint_covers_weights_configuration_and_tokenizer():
    words = tokenizer()
    make = lambda **how: lb.teacher(bert(0), tokenizer=words, **how).fingerprint()  # noqa: E731
    first = make()
    words(["red cat", "red"], padding=True, truncation=True, max_length=5)  # leaves a mark in the tokenizer
    assert make() == first
    other = tokenizer()
    other.add_tokens(["fish"])
    changed = bert(0)
    changed.config.layer_norm_eps = 1e-3
    prints = {
        first,
        lb.teacher(bert(0), tokenizer=other).fingerprint(),
        lb.teacher(changed, tokenizer=words).fingerprint(),
        lb.teacher(bert(1), tokenizer=words).fingerprint(),
        make(max_length=4),
        make(padding="max_length"),
    }
    assert len(prints) == 6


def test_texts_are_cut_to_what_the_model_can_and_filled_to_one_length_where_asked():
    long = ["red " * 40, "cat"]
    teacher = lb.teacher(bert(0), tokenizer=tokenizer(), data=long, padding="max_length")
    answer = teacher.open(["hidden_states.0"], {"id": torch.arange(2)})
    assert answer["hidden_states.0"].shape[1] == 12


def test_what_is_missing_is_told():
    with pytest.raises(DataError, match="has no tokenizer"):
        lb.teacher(bert(0), data=["red"]).open([], {"id": torch.arange(1)})
    with pytest.raises(DataError, match="it has no sample 9"):
        lb.teacher(bert(0), tokenizer=tokenizer(), data=["red"]).open([], {"id": torch.tensor([9])})
    with pytest.raises(ConfigError, match=r"teacher.padding"):
        lb.teacher(bert(0), padding="left")
