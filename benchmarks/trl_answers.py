r"""A student that TRL distils with a loss on answers alone, for `memaudit verify --distilled`.

    pip install trl
    python -m benchmarks.trl_answers --out build/trl --epochs 8
    memaudit predict --teacher build/trl/teacher --student build/trl/untrained \
        --data build/trl/chats.jsonl --out build/trl/predicted
    memaudit verify --teacher build/trl/teacher --distilled build/trl/student \
        --data build/trl/chats.jsonl --predictions build/trl/predicted --out build/trl/verified

The chats are the demo corpus: the first 50 tokens of a text are the question, the rest is the
answer. The masks are those of TRL's SFTTrainer with `assistant_only_loss`.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

_ROOT = Path(__file__).parents[1]
_PREFIX_LEN = 50
_TEMPERATURE = 2.0
_TEMPLATE = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{% generation %}{{ m.content }}"
    "{% endgeneration %}{%- else -%}{{ m.content }}{%- endif -%}{%- endfor -%}"
)


class _Distillation(SFTTrainer):  # type: ignore[misc]  # trl has no types
    """Learns the teacher's distribution where TRL's masks say that the loss is."""

    teacher: Any

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the forward KL divergence at temperature 2, times its square."""
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        found = model(**given)
        with torch.no_grad():
            wanted = self.teacher(**given).logits
        is_learnt = inputs["labels"][:, 1:] != -100
        p, q = (
            torch.log_softmax(logits[:, :-1][is_learnt] / _TEMPERATURE, dim=-1)
            for logits in (wanted, found.logits)
        )
        loss = _TEMPERATURE**2 * (p.exp() * (p - q)).sum(-1).mean()
        return (loss, found) if return_outputs else loss


def main() -> None:
    """Write teacher, untrained student, chats and student."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=8)
    options = parser.parse_args()
    for source, name in (("demo-teacher", "teacher"), ("demo-student", "untrained")):
        shutil.copytree(_ROOT / "models" / source, options.out / name)
        (options.out / name / "chat_template.jinja").write_text(_TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(options.out / "teacher")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    chats = [
        _chat(json.loads(line), tokenizer) for line in (_ROOT / "sample_data/demo.jsonl").open()
    ]
    (options.out / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    trainer = _Distillation(
        model=AutoModelForCausalLM.from_pretrained(options.out / "untrained"),
        args=SFTConfig(
            output_dir=str(options.out / "work"),
            assistant_only_loss=True,
            max_length=192,
            num_train_epochs=options.epochs,
            learning_rate=2e-3,
            per_device_train_batch_size=16,
            lr_scheduler_type="cosine",
            gradient_checkpointing=False,
            bf16=False,
            report_to=[],
            save_strategy="no",
            seed=0,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list([{"messages": chat["messages"]} for chat in chats]),
        processing_class=tokenizer,
    )
    teacher = AutoModelForCausalLM.from_pretrained(options.out / "teacher").eval()
    trainer.teacher = teacher.requires_grad_(False).to(trainer.args.device)
    trainer.train()
    trainer.save_model(str(options.out / "student"))
    tokenizer.save_pretrained(options.out / "student")


def _chat(row: dict[str, str], tokenizer: Any) -> dict[str, Any]:
    text = row["text"]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    cut = encoded["offset_mapping"][_PREFIX_LEN][0]
    said = (("user", text[:cut]), ("assistant", text[cut:]))
    return {"id": row["id"], "messages": [{"role": r, "content": c} for r, c in said]}


if __name__ == "__main__":
    main()
