"""BERT and GPT-2 against the library transformers: the same tensors, numbers and parameters."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from orchestrator import models
from orchestrator.config.base import find
from orchestrator.errors import WeightsError
from orchestrator.models.weights import WeightsMismatch, load_weights
from orchestrator.networks import build_network

VOCABULARY, LENGTH = 40, 12
BERT = {"dim": 16, "depth": 2, "heads": 4, "hidden": 24}
GPT2 = {"dim": 16, "depth": 2, "heads": 4}
PUBLISHED = {
    name: known
    for name in models.names()
    if (known := models.published(name))
    and known.reference.startswith("transformers:")
    and known.vocabulary is not None
}


def bert(transformers, kind="BertForSequenceClassification", **more):
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=LENGTH,
        num_labels=3,
        **more,
    )
    return shaken(getattr(transformers, kind)(config))


def gpt2(transformers):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
    special = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(vocab_size=VOCABULARY, **sizes, **special)
    return shaken(transformers.GPT2LMHeadModel(config))


def shaken(model: nn.Module) -> nn.Module:
    """Fresh biases and norms would hide that they are mixed up."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model.eval()


def saved(model: nn.Module, path, rename=lambda name: name):
    """The model's file; a tied head is in it twice, as files of its state dict have it."""
    state = {
        rename(name): tensor.clone().contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(state, path)
    return path


def texts() -> torch.Tensor:
    tokens = torch.randint(1, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    return tokens.masked_fill(torch.arange(LENGTH) >= torch.tensor([[12], [7], [1]]), 0)


def network(path, *, outputs=3, length=LENGTH, per_token=False, **section):
    """What a YAML file's model section gives."""
    section = find("model", section["type"]).config.model_validate({"weights": str(path)} | section)
    given = {"shape": (length,), "vocabulary": VOCABULARY, "per_token": per_token}
    return build_network(section, outputs=outputs, **given).eval()


def close(found, expected):
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_bert_answers_as_transformers(transformers, tmp_path):
    theirs = bert(transformers)
    section = {"type": "transformer_encoder", **BERT, "token_types": 2}
    ours = network(saved(theirs, tmp_path / "bert.safetensors"), **section)
    tokens = texts()
    with torch.inference_mode():
        expected = theirs(tokens, attention_mask=(tokens != 0).long()).logits
        close(ours(tokens), expected)
        types = (torch.arange(LENGTH) > 4).long().expand_as(tokens)
        paired = theirs(tokens, attention_mask=(tokens != 0).long(), token_type_ids=types).logits
        close(ours(tokens, types), paired)
        assert (paired - expected).abs().max() > 1e-3
    doubles = (
        ours.double()(tokens),
        theirs.double()(tokens, attention_mask=(tokens != 0).long()).logits,
    )
    torch.testing.assert_close(*doubles, rtol=1e-10, atol=1e-10)


def test_gpt2_answers_as_transformers(transformers, tmp_path):
    theirs, tokens = gpt2(transformers), texts()
    path = saved(theirs, tmp_path / "gpt2.safetensors")
    section = {"type": "gpt2", **GPT2}
    ours = network(path, outputs=VOCABULARY, per_token=True, **section)
    assert ours.tied
    with torch.inference_mode():
        close(ours(tokens), theirs(tokens).logits)
    doubles = ours.double()(tokens), theirs.double()(tokens).logits
    torch.testing.assert_close(*doubles, rtol=1e-10, atol=1e-10)


def test_gradients_are_transformers_too(transformers, tmp_path):
    """Dropout off, in training mode: every parameter's gradient under our names."""
    theirs, tokens = gpt2(transformers), texts()
    section = {"type": "transformer_decoder", **GPT2, "tied": True, "dropout": 0.0}
    path = saved(theirs, tmp_path / "gpt2.safetensors")
    ours = network(path, outputs=VOCABULARY, per_token=True, **section).train()
    for model, logits in ((ours, ours(tokens)), (theirs, theirs(tokens).logits)):
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        model.gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, gradient in theirs.gradients.items():
        for own, expected in ours.tensor_map(name, gradient).items():
            torch.testing.assert_close(ours.gradients[own], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_the_published_size_is_ours(name, transformers):
    known = PUBLISHED[name]
    variant = models.bert.VARIANTS.get(name) if name.startswith("bert") else None
    variant = variant or models.gpt2.VARIANTS[name]
    kind = known.reference.partition(":")[2]
    given = {"vocabulary": known.vocabulary, "length": known.resolution}
    if name.startswith("bert"):
        sizes = {"hidden_size": variant.dim, "num_hidden_layers": variant.depth}
        sizes |= {"num_attention_heads": variant.heads, "intermediate_size": 4 * variant.dim}
        config = transformers.BertConfig(**sizes)
    else:
        sizes = {"n_embd": variant.dim, "n_layer": variant.depth, "n_head": variant.heads}
        config = transformers.GPT2Config(**sizes)
    with torch.device("meta"):
        theirs = getattr(transformers, kind)(config)
        classes = {"num_classes": known.classes, "per_token": known.per_token}
        ours = models.create_sequence_model(name, **given, **classes)
    assert [layer.self_attn.heads for layer in ours.layers] == [variant.heads] * variant.depth
    parts = [ours.tensor_map(key, value) for key, value in theirs.state_dict().items()]
    expected = {key: value.shape for part in parts for key, value in part.items()}
    if known.per_token:  # the head is the embedding
        assert expected.pop("head.weight") == expected["tokens.weight"]
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    count = sum(p.numel() for p in ours.parameters())
    assert count == known.parameters == sum(p.numel() for p in theirs.parameters())
    if name == "bert_base":  # what is published as BERT-base is without the head
        assert count - sum(p.numel() for p in ours.head.parameters()) == 109_482_240


def test_a_file_of_pre_training_has_old_names_and_no_head(transformers, tmp_path):
    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta")

    theirs = bert(transformers, "BertForPreTraining")
    path = saved(theirs, tmp_path / "bert.safetensors", old)
    ours = network(path, outputs=7, type="bert_base", **BERT)
    tokens = texts()
    with torch.inference_mode():
        expected = theirs.bert(tokens, attention_mask=(tokens != 0).long()).pooler_output
        close(ours.forward_features(tokens), expected)
    fresh = models.create_sequence_model(
        "bert_base", **BERT, num_classes=7, vocabulary=VOCABULARY, length=8
    )
    before = copy.deepcopy(fresh.head.state_dict())
    report = load_weights(fresh, path)
    assert report.adapted == (
        "positions are cut from 12 tokens to 8",
        "the file has no head, so it starts fresh",
    )
    assert all(torch.equal(before[key], value) for key, value in fresh.head.state_dict().items())
    with torch.inference_mode():
        expected = theirs.bert(tokens[:1, :8]).pooler_output
        close(fresh.eval().forward_features(tokens[:1, :8]), expected)


def test_a_head_is_found_where_it_was_tied(transformers, tmp_path):
    theirs, tokens = gpt2(transformers), texts()
    state = {k: v.clone().contiguous() for k, v in theirs.transformer.state_dict().items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, LENGTH, LENGTH)  # the mask, as old files have it
    path = tmp_path / "gpt2.safetensors"
    save_file(state, path)
    untied = network(path, outputs=VOCABULARY, per_token=True, type="gpt2", **GPT2, tied=False)
    with torch.inference_mode():
        close(untied(tokens), theirs(tokens).logits)
    classifier = network(path, outputs=4, type="gpt2", **GPT2)
    assert not classifier.tied
    with torch.inference_mode():
        expected = theirs.transformer(tokens[:1]).last_hidden_state[:, -1]
        close(classifier.forward_features(tokens[:1]), expected)


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_a_matrix_that_is_no_gpt2s_is_named(shape, tmp_path):
    path = tmp_path / "gpt2.safetensors"
    save_file({"h.0.attn.c_attn.weight": torch.zeros(shape)}, path)
    with pytest.raises(WeightsError, match=r"unknown to the model: h\.0\.attn\.c_attn\.weight"):
        network(path, outputs=VOCABULARY, per_token=True, type="gpt2", **GPT2)


def test_what_does_not_fit_says_why(transformers, tmp_path):
    path = saved(bert(transformers), tmp_path / "bert.safetensors")
    with pytest.raises(WeightsError, match=r"unknown to the model: types\.weight"):
        network(path, type="transformer_encoder", **BERT)
    wider = models.create_sequence_model(
        "bert_base", **BERT, num_classes=3, vocabulary=50, length=20
    )
    with pytest.raises(WeightsMismatch, match=r"tokens\.weight \(40, 16\) in the file, \(50, 16\)"):
        load_weights(wider, path)
    with pytest.raises(ValueError, match="build it with token_types: 2"):
        plain = models.create_sequence_model(
            "transformer_encoder", **BERT, num_classes=3, vocabulary=VOCABULARY, length=LENGTH
        )
        plain(texts(), texts())
