"""Tests of recipes: what is understood of the configuration that each trainer documents.

The files here hold the fields that the trainers' pages show; a field that changes what is learned
and is not understood must be named, for a prediction for another training is worse than none.
"""

import json
import os

import pytest

from memaudit.errors import UsageError
from memaudit.recipes import FIELDS, PRESETS, read_recipe

FILES = {
    "axolotl.yaml": """
base_model: Qwen/Qwen3-0.6B
plugins: [axolotl.integrations.kd.KDPlugin]
kd_trainer: true
kd_ce_alpha: 0.1
kd_alpha: 0.9
kd_temperature: 1.0
kd_beta: 0.0
kd_normalize_topk: true
kd_online_server_base_url: http://127.0.0.1:8000
kd_online_topk: 64
datasets:
  - path: some/data
    type: axolotl.integrations.kd.chat_template
    field_messages: messages_combined
    logprobs_field: logprobs
adapter: lora
lora_alpha: 16
num_epochs: 3
learning_rate: 2e-5
""",
    "axolotl-sft.yaml": "base_model: Qwen/Qwen3-0.6B\nnum_epochs: 2\ntrain_on_inputs: true\n",
    "distillkit.yaml": """
model: Qwen/Qwen3-8B
sequence_length: 8192
dataset: {train_dataset: {repo_id: some/logits, split: train}, prepacked: true}
teacher:
  kind: dataset
  logprob_compressor: {d: 151936, delta_encoding: true, exact_k: 32, k: 128}
loss_functions:
  - {function: cross_entropy, weight: 0.5}
  - function: kl
    weight: 0.5
    temperature: 1.0
    missing_probability_handling: symmetric_uniform
    sparse_chunk_length: 1024
training_args: {num_train_epochs: 1, learning_rate: 2.0e-6, optim: adamw_torch}
""",
    "llama-factory.yaml": """
model_name_or_path: Qwen/Qwen3-4B
stage: sft
do_train: true
finetuning_type: lora
lora_alpha: 16
dataset: sampled_by_teacher
template: qwen3
num_train_epochs: 3.0
learning_rate: 1.0e-4
""",
    "trl-gkd.yaml": """
model_name_or_path: Qwen/Qwen2-0.5B
teacher_model_name_or_path: Qwen/Qwen2-1.5B
lmbda: 0.5
beta: 0.1
temperature: 0.9
seq_kd: false
num_train_epochs: 1
learning_rate: 2e-5
""",
    "trl.yaml": """
model_name_or_path: Qwen/Qwen2-0.5B
teacher_model_name_or_path: Qwen/Qwen2-1.5B
max_completion_length: 512
""",
    "ms-swift.json": json.dumps(
        {
            "rlhf_type": "gkd",
            "model": "Qwen/Qwen2.5-0.5B",
            "teacher_model": "Qwen/Qwen2.5-7B",
            "lmbda": 0.0,
            "beta": 0.5,
            "temperature": 0.9,
            "lora_alpha": 32,
            "num_train_epochs": 1,
            "learning_rate": 1e-5,
        }
    ),
    "nemo.yaml": """
recipe: KnowledgeDistillationRecipeForNextTokenPrediction
step_scheduler: {num_epochs: 2, global_batch_size: 32}
model: {pretrained_model_name_or_path: meta-llama/Llama-3.2-1B}
teacher_model: {pretrained_model_name_or_path: meta-llama/Llama-3.2-3B}
kd_ratio: 0.5
kd_loss_fn:
  _target_: nemo_automodel.components.loss.kd_loss.KDLoss
  temperature: 2.0
  ignore_index: -100
optimizer: {lr: 1.0e-5}
""",
    "modelopt.yaml": """
logit_layers: [output_layer, output_layer]
intermediate_layer_pairs:
  - [decoder.final_layernorm, decoder.final_layernorm]
logit_kl_temperature: 2.0
""",
    "easydistill.json": json.dumps(
        {
            "job_type": "kd_white_box_train_only",
            "dataset": {"labeled_path": "a.json", "logits_path": "b.json", "seed": 42},
            "inference": {"temperature": 0.8, "top_logits_num": 20},
            "distillation": {
                "kd_ratio": 0.5,
                "max_seq_length": 512,
                "distillation_type": "forward_kld",
            },
            "models": {"teacher": "t/", "student": "s/"},
            "training": {"num_train_epochs": 3, "learning_rate": 2e-5},
        }
    ),
    "tinker.yaml": "model_name: some/model\nn_teacher_targets: 20\nlearning_rate: 1e-3\n",
}
UNDERSTOOD = {
    "axolotl.yaml": "axolotl: forward KL on the top 64, T = 1, 10% cross-entropy, answers only, "
    "3 epochs, learning rate 2e-05",
    "axolotl-sft.yaml": "axolotl: plain fine-tuning, 2 epochs",
    "distillkit.yaml": "DistillKit: forward KL on the top 128 and the rest as one, T = 1, "
    "50% cross-entropy, 1 epoch, learning rate 2e-06",
    "llama-factory.yaml": "LLaMA-Factory: plain fine-tuning, answers only, 3 epochs, "
    "learning rate 0.0001",
    "trl-gkd.yaml": "TRL GKDTrainer: JSD with beta 0.1, T = 0.9, 50% on text of the student, "
    "1 epoch, learning rate 2e-05",
    "trl.yaml": "TRL DistillationTrainer: reverse KL, T = 1, 100% on text of the student, 3 epochs",
    "ms-swift.json": "ms-swift: JSD with beta 0.5, T = 0.9, answers only, 1 epoch, "
    "learning rate 1e-05",
    "nemo.yaml": "NeMo AutoModel: forward KL, T = 2, 50% cross-entropy, answers only, 2 epochs, "
    "learning rate 1e-05",
    "modelopt.yaml": "ModelOpt: forward KL, T = 2",
    "easydistill.json": "EasyDistill: forward KL on the top 20, T = 1, 50% cross-entropy, "
    "answers only, 3 epochs, learning rate 2e-05",
    "tinker.yaml": "tinker: forward KL on the top 20, T = 1, answers only, learning rate 0.001",
}


@pytest.fixture
def write(tmp_path):
    """Writes a configuration, and gives its path as the command line would."""

    def write(name, content):
        (tmp_path / name).write_text(content, encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", FILES)
def test_a_trainers_documented_configuration_is_understood(write, name):
    """The line that the user reads must be what that trainer does with that file."""
    assert read_recipe(write(name, FILES[name])).in_words == UNDERSTOOD[name]


@pytest.mark.parametrize("name", sorted({*FILES} - {"modelopt.yaml"}))
def test_nothing_in_a_documented_configuration_is_left_over(write, name):
    """A warning about fields that everybody has would teach people to overlook warnings."""
    assert read_recipe(write(name, FILES[name])).not_understood == ()


def test_losses_on_hidden_states_are_named(write):
    """Nothing in memaudit stands for them: the user must know."""
    assert len(read_recipe(write("modelopt.yaml", FILES["modelopt.yaml"])).not_understood) == 1
    more = FILES["distillkit.yaml"].replace(
        "training_args", "  - {function: hs_cosine, weight: 0.2}\ntraining_args"
    )
    found = read_recipe(write("distillkit.yaml", more)).not_understood
    assert found == ("loss_functions[].function: hs_cosine",)


@pytest.mark.parametrize("name", FILES)
def test_an_unknown_field_that_may_change_the_objective_is_named(write, name):
    """A trainer's next release may bring one: it must not be overlooked."""
    content = FILES[name]
    extra = "new_kd_loss_weight"
    content = (
        json.dumps(json.loads(content) | {extra: 0.3})
        if name.endswith("json")
        else f"{content}\n{extra}: 0.3\n"
    )
    assert extra in read_recipe(write(name, content)).not_understood


def test_a_switch_that_is_off_is_no_unknown_field(write):
    """What a file switches off changes nothing."""
    content = FILES["llama-factory.yaml"]
    assert read_recipe(write("a.yaml", content + "use_asft_loss: false\n")).not_understood == ()
    found = read_recipe(write("b.yaml", content + "use_asft_loss: true\n")).not_understood
    assert found == ("use_asft_loss: True",)


def test_every_preset_has_fields_a_source_and_words():
    """The table is data: a line half filled in would fail far from it."""
    assert set(PRESETS) - {"tinker-on-policy"} == set(FIELDS)
    for name, preset in PRESETS.items():
        assert preset.source.startswith("https://")
        assert read_recipe(name).in_words.startswith(preset.trainer)


def test_a_weight_without_the_square_of_the_temperature_is_converted(write):
    """NeMo multiplies KL by T² as memaudit does; DistillKit does not, so its KL weighs T² less."""
    content = FILES["distillkit.yaml"].replace("temperature: 1.0", "temperature: 2.0")
    found = read_recipe(write("a.yaml", content)).objective
    assert found.cross_entropy_share == pytest.approx(0.5 / (0.5 + 0.5 / 4))
    assert read_recipe(write("b.yaml", FILES["nemo.yaml"])).objective.cross_entropy_share == 0.5


def test_fields_in_the_place_of_a_value_are_named(write):
    """A file may hold anything: what is no value is not understood, and stops nothing."""
    found = read_recipe(write("a.yaml", "kd_trainer: {a: 1}\n")).not_understood
    assert found == ("kd_trainer: {'a': 1}",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("just text", "expected fields"),
        ("a: [1", "not a YAML"),
        ("colour: blue\n", "no field tells which trainer"),
        ("kd_ratio: high\n", "expected a number for kd_ratio"),
        ("kd_ratio: 0.5\nkd_loss_fn: {temperature: -1}\n", "temperature must be above 0"),
        ("kd_trainer: true\nkd_temperature: 0\n", "temperature must be above 0"),
        ("kd_trainer: true\nkd_temperature: 1.0e+200\n", "out of range"),
        ("kd_trainer: true\nkd_online_topk: .inf\n", "out of range"),
        ("kd_trainer: true\nnum_epochs: -3\n", "epochs must be above 0"),
        ("lmbda: 3\n", r"on_policy must be in \[0, 1\]"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(write, content, message):
    """Half a recipe is worse than none."""
    with pytest.raises(UsageError, match=message):
        read_recipe(write("a.yaml", content))


def test_a_file_that_is_not_there_lists_the_recipes():
    """The name was probably mistyped."""
    with pytest.raises(UsageError, match="no recipe and no file") as raised:
        read_recipe("axolotel")
    assert "axolotl" in str(raised.value.hint)


def test_a_pipe_is_no_recipe(tmp_path):
    """Whoever opened it would wait for ever."""
    os.mkfifo(tmp_path / "recipe.yaml")

    with pytest.raises(UsageError, match="not a regular file"):
        read_recipe(str(tmp_path / "recipe.yaml"))
