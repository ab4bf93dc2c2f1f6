"""Which models may be patched from one another: equal but for their attention weights, in memory."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from pairs_of_models import pair, tuned_again
from tiny_models import FAMILIES, tiny_model, word_tokenizer

from rhstudy.errors import InputError
from rhstudy.interventions.pairs import require_pair
from rhstudy.models.adapters import add_adapter


@pytest.mark.parametrize("family", FAMILIES)
def test_models_tuned_apart_are_a_pair(family):
    donor, recipient = pair(family)
    tuned = recipient.model.state_dict()
    apart = [name for name, value in donor.model.state_dict().items() if not torch.equal(value, tuned[name])]
    assert apart, "equal models would be a pair in any case"
    require_pair(donor, recipient)
    require_pair(recipient, donor)
    require_pair(donor, dataclasses.replace(recipient, tokenizer=word_tokenizer()))


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_adapters_are_training_and_not_the_base(targets):
    pytest.importorskip("peft")
    donor, base = tiny_model("llama"), tiny_model("llama")
    add_adapter(donor.model, rank=2, alpha=4, targets=targets, seed=0)
    require_pair(donor, base)
    require_pair(base, donor)
    with torch.no_grad():
        donor.model.model.layers[1].mlp.up_proj.weight.add_(1)
    with pytest.raises(InputError, match=r"got <model.layers.1.mlp.up_proj.weight differs>"):
        require_pair(donor, base)


def test_another_base_is_refused():
    must = r"donor must be of the recipient's base \(weights outside attention are equal\), "
    with pytest.raises(InputError, match=must + r"got <model.embed_tokens.weight differs> \(llama, llama\)"):
        require_pair(tiny_model("llama", seed=1), tiny_model("llama"))
    with pytest.raises(InputError, match="donor must be of the recipient's architecture, got <.donor, recipient.: {'"):
        require_pair(tiny_model("qwen2"), tiny_model("llama"))


def test_other_rope_parameters_are_refused():
    donor, recipient = pair("llama")
    donor.model.config.rope_parameters = {**donor.model.config.rope_parameters, "rope_theta": 3e5}
    with pytest.raises(
        InputError, match=r"donor rope parameters must be the recipient's, <.*10000.*>, got <.*300000.0"
    ):
        require_pair(donor, recipient)


def test_another_tokenizer_is_refused():
    donor, recipient = pair("llama")
    other = copy.deepcopy(recipient.tokenizer)
    other.add_tokens(["w77"])
    with pytest.raises(InputError, match=r"donor tokenizer must be the recipient's, got 'llama' \(llama\). Token ids"):
        require_pair(dataclasses.replace(donor, tokenizer=other), recipient)


def test_a_model_outside_attention_that_moved_is_refused_in_either_role():
    donor, recipient = pair("gpt_neox")
    moved = tuned_again(donor, 4)
    with torch.no_grad():
        moved.model.gpt_neox.final_layer_norm.weight.mul_(1.0001)
    for models in ((moved, recipient), (recipient, moved)):
        with pytest.raises(InputError, match="gpt_neox.final_layer_norm.weight differs"):
            require_pair(*models)
