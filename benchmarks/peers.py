"""The peers: other packages that score windows or generate from them, each used as it is meant."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paths import Answers, Models, Run, one_process_vllm
from benchmarks.windows import Windows


def load_lm_eval(models: Models) -> Run:
    """Return `HFLM._loglikelihood_tokens` of lm-evaluation-harness.

    The first token is the context, all others the continuation. It gives their sum.
    """
    from lm_eval.models.huggingface import HFLM

    language_model: Any = HFLM(
        pretrained=models.teacher, device="cpu", dtype=models.dtype, batch_size=1
    )

    def run(windows: Windows, batch_size: int) -> Answers:
        language_model.batch_size_per_gpu = batch_size
        # The key of a request only serves its cache; equal keys would mix answers up.
        requests = [
            (("", str(i)), ids[:1], ids[1:]) for i, ids in enumerate(windows.token_ids.tolist())
        ]
        found = language_model._loglikelihood_tokens(requests, disable_tqdm=True)
        return {"window_logprob": np.array([logprob for logprob, _ in found])}

    return run


def load_privacy_guard(models: Models) -> Run:
    """Return `HuggingFacePredictor.get_logprobs` of PrivacyGuard: the suffixes' tokens only."""
    predictor = _predictor(models)

    def run(windows: Windows, batch_size: int) -> Answers:
        found = predictor.get_logprobs(windows.prefixes, windows.suffixes, batch_size=batch_size)
        shape = (len(found), windows.token_ids.shape[1] - 1)
        logprobs = np.full(shape, np.nan, dtype=np.float32)
        logprobs[:, windows.prefix_len - 1 :] = [row.float().numpy() for row in found]
        return {"logprobs": logprobs}

    return run


def load_privacy_guard_generation(models: Models) -> Run:
    """Return `GenerationAttack` of PrivacyGuard; what is extracted is decided by its text."""
    from privacy_guard.attacks.extraction.generation_attack import GenerationAttack

    predictor = _predictor(models)

    def run(windows: Windows, batch_size: int) -> Answers:
        pairs = list(zip(windows.prefixes, windows.suffixes, strict=True))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prompts.jsonl"
            lines = [json.dumps({"prompt": prefix, "target": suffix}) for prefix, suffix in pairs]
            path.write_text("\n".join(lines) + "\n")
            attack = GenerationAttack(
                str(path),
                None,
                predictor,
                output_format=None,
                batch_size=batch_size,
                max_new_tokens=windows.token_ids.shape[1] - windows.prefix_len,
                do_sample=False,
            )
            frame = attack.run_attack().generation_df
        texts = frame["prediction"].tolist()
        extracted = [
            text == prefix + suffix for text, (prefix, suffix) in zip(texts, pairs, strict=True)
        ]
        return {"extracted": np.array(extracted)}

    return run


def load_vllm(models: Models) -> Run:
    """Return plain vLLM with `prompt_logprobs`, in its cheapest form."""
    one_process_vllm()
    from vllm import LLM, SamplingParams

    language_model: Any = LLM(
        model=models.teacher, dtype=models.dtype, enable_prefix_caching=False, max_model_len=512
    )
    options = SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=1, flat_logprobs=True, detokenize=False
    )

    def run(windows: Windows, _batch_size: int) -> Answers:
        prompts = [{"prompt_token_ids": ids} for ids in windows.token_ids.tolist()]
        outputs = language_model.generate(prompts, options, use_tqdm=False)
        rows = [_flat_logprobs(output.prompt_logprobs) for output in outputs]
        return {
            "logprobs": np.array([logprobs for logprobs, _ in rows]),
            "is_argmax": np.array([is_argmax for _, is_argmax in rows]),
        }

    return run


def _predictor(models: Models) -> Any:
    import torch
    from privacy_guard.attacks.extraction.predictors.huggingface_predictor import (
        HuggingFacePredictor,
    )

    predictor: Any = HuggingFacePredictor(
        models.teacher, device="cpu", model_kwargs={"dtype": getattr(torch, models.dtype)}
    )
    predictor.model.generation_config.eos_token_id = None
    return predictor


def _flat_logprobs(flat: Any) -> tuple[list[float], list[bool]]:
    """Return log-probability and whether it is a best one of each token but the first."""
    logprobs, is_argmax = [], []
    for start, end in list(zip(flat.start_indices, flat.end_indices, strict=True))[1:]:
        # The prompt's own token comes first, then the best ones.
        logprobs.append(flat.logprobs[start])
        is_argmax.append(flat.logprobs[start] >= max(flat.logprobs[start:end]))
    return logprobs, is_argmax
