"""Keras models as teachers on two backends, and as students on torch."""

import copy
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from kinds import FEATURES, batch, keras_net, module

import limbeck as lb
from limbeck.core.errors import ModelError
from limbeck.core.keras import KerasModule, as_module, is_keras, layers_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

OTHER = """
import os, sys
os.environ["KERAS_BACKEND"] = sys.argv[1]
import keras, torch
import limbeck as lb
keras.utils.set_random_seed(0)
hidden = keras.layers.Dense(8, activation="relu", name="hidden")
model = keras.Sequential([keras.Input((6,)), hidden, keras.layers.BatchNormalization(), keras.layers.Dense(3)])
x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
answer = lb.teacher(model).open(["hidden"], {"id": torch.arange(5), "x": x})
weights = [torch.from_numpy(w) for w in model.get_weights()]
expected = (x @ weights[0] + weights[1]).relu()
torch.testing.assert_close(answer["hidden"], expected)
out = expected / (1 + 1e-3) ** 0.5 @ weights[-2] + weights[-1]
torch.testing.assert_close(answer["logits"], out)
inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, name="deep")], name="block")
nested = keras.Sequential([keras.Input((6,)), inner])
try:
    lb.teacher(nested).open(["block.deep"], {"id": torch.arange(5), "x": x})
except lb.LimbeckError as error:
    assert f"on {sys.argv[1]} its layers block.deep cannot be read" in str(error)
else:
    raise AssertionError
from limbeck.core.keras import KerasModule
try:
    KerasModule(model)
except lb.LimbeckError as error:
    assert f"runs on {sys.argv[1]}" in str(error)
    print("done")
"""


def test_layers_have_the_names_that_keras_gives_them():
    assert {"hidden", "block", "block.dense", "block.norm", "drop", "out"} <= set(layers_of(keras_net(0)))
    assert not is_keras(module())
    assert as_module(net := module()) is net


def test_inner_layers_hold_what_the_layer_returned():
    model = keras_net(0)
    answer = lb.teacher(model).open(["hidden", "block.dense", "out"], batch())
    hidden = model.get_layer("hidden")
    expected = (batch()["x"] @ hidden.kernel.value + hidden.bias.value).relu()
    torch.testing.assert_close(answer["hidden"], expected.detach())
    assert torch.equal(answer["out"], answer["logits"])
    assert torch.equal(answer["logits"], model(batch()["x"], training=False))


def test_images_with_channels_last_and_a_softmax_at_the_end():
    import keras

    layers = [keras.layers.Conv2D(4, 3, data_format="channels_last"), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((5, 4, 3)), *layers, keras.layers.Dense(3, activation="softmax")])
    images = {"id": torch.arange(2), "x": torch.rand(2, 3, 5, 4)}
    last = {"inputs": lambda b: b["x"].permute(0, 2, 3, 1)}
    with pytest.raises(ModelError, match="the Keras model failed on the first batch"):
        lb.teacher(model).open([], images)
    with pytest.raises(ModelError, match='gives="probabilities"'):
        lb.teacher(model, **last).open([], images)
    answer = lb.teacher(model, gives="probabilities", **last).open([], images)["logits"]
    torch.testing.assert_close(answer.exp(), model(images["x"].permute(0, 2, 3, 1), training=False).detach())


def test_the_same_network_built_again_has_the_same_fingerprint():
    import keras

    def nameless():
        keras.utils.set_random_seed(0)
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)])

    first, again = nameless(), nameless()
    assert first.name != again.name
    assert lb.teacher(first).fingerprint() == lb.teacher(again).fingerprint()
    again.layers[0].activation = keras.activations.relu
    assert lb.teacher(first).fingerprint() != lb.teacher(again).fingerprint()


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_other_backends_go_through_numpy(backend):
    if find_spec("jax") is None:
        pytest.skip("both backends need JAX")
    said = subprocess.run(
        [sys.executable, "-c", OTHER, backend],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert said.stdout.strip().endswith("done"), said.stderr


def test_as_a_module_it_heeds_its_mode_and_holds_each_weight_once():
    model = keras_net(0)
    own = as_module(model)
    assert {id(p) for p in own.parameters()} == {id(v.value) for v in model.variables}
    assert len(own.state_dict()) == len(model.variables)
    x, moving = batch()["x"], model.get_layer("block").get_layer("norm").moving_mean
    before = moving.value.clone()
    own.eval()
    assert torch.equal(own(x), own(x))
    assert torch.equal(moving.value, before)
    own.train()
    assert not torch.equal(own(x), own(x))  # dropout
    assert not torch.equal(moving.value, before)


def test_weights_saved_from_one_load_into_another_of_the_same_make():
    import keras

    def nameless(seed):
        keras.utils.set_random_seed(seed)
        return KerasModule(keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)]))

    first, second = nameless(0), nameless(1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(batch()["x"]), second(batch()["x"]))
    third = copy.deepcopy(first)
    with torch.no_grad():
        next(iter(first.parameters())).zero_()
    assert torch.equal(third(batch()["x"]), second(batch()["x"]))


def test_a_keras_student_is_trained_itself_in_its_training_mode(tmp_path):
    x = torch.randn(160, FEATURES, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    teacher, model = module(), keras_net(0)
    own = KerasModule(model)
    objective = (lb.KL(), lb.Label(), lb.Hint(student="block.dense", teacher="0"))
    how = {"train": (x, y), "epochs": 2, "batch_size": 40, "progress": False, "objective": objective}
    norm = model.get_layer("block").get_layer("norm")
    before = [v.value.clone() for v in (*norm.variables, *model.get_layer("hidden").variables)]
    run = lb.distill(own, teacher, out=tmp_path / "run", **how)
    after = [v.value for v in (*norm.variables, *model.get_layer("hidden").variables)]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    back = lb.load(tmp_path / "run", into=KerasModule(keras_net(3)))
    assert torch.equal(back.eval()(x), model(x, training=False))
    assert run.scores["student"]["accuracy"] == lb.distill(
        KerasModule(keras_net(0)), module(), **how).scores["student"]["accuracy"]  # fmt: skip


def test_a_model_without_weights_is_told():
    import keras

    with pytest.raises(ModelError, match="is not built"):
        KerasModule(keras.Sequential([keras.layers.Dense(3)]))
