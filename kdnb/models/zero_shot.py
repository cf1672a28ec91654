"""Class names scored by a language model: a teacher without a single label.

The score of a class is the mean log-probability of its name's tokens after the text and a question, less the same after an
empty text (contextual calibration, Zhao et al. 2021, arXiv:2102.09690), so that a name that is likely anyway wins nothing.
Cost: a forward pass per text and class.
"""

from collections.abc import Sequence

import torch

_QUESTION = "\nThis text is about:"


@torch.inference_mode()
def label_logits(
    name: str, texts: Sequence[str], classes: Sequence[str], *, max_length: int, batch_size: int, device: torch.device
) -> torch.Tensor:
    """Logits float32 [N, C] of `texts` for `classes`, by the causal language model `name` (a folder, or on the Hub).

    A text is cut such that it, the question and the longest class name fit into `max_length` tokens.

    Raises:
        ValueError: a `max_length` too small for question and name, a tokenizer that does not give back what it encodes.
        ConnectionError: a name that cannot be fetched.
    """
    from transformers import AutoModelForCausalLM

    from kdnb.models.text import fetching, quiet
    from kdnb.models.tokenizer import load_tokenizer

    with fetching(name), quiet():
        tokenizer = load_tokenizer(name)
        model = AutoModelForCausalLM.from_pretrained(name).to(device).eval()
    names = [tokenizer(" " + label, add_special_tokens=False)["input_ids"] for label in classes]
    question = tokenizer(_QUESTION, add_special_tokens=False)["input_ids"]
    room = max_length - len(question) - max(map(len, names))
    if room < 1:
        raise ValueError(f"max_length is {max_length}, but question and class name take {max_length - room} tokens; raise it.")
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"][:room] for text in ["", *texts]]
    rows = [(text + question, label) for text in encoded for label in names]
    scores = []
    for start in range(0, len(rows), batch_size):
        scores.append(_mean_log_probability(model, rows[start : start + batch_size], device))
    table = torch.cat(scores).view(len(encoded), len(names))
    return table[1:] - table[0]


def _mean_log_probability(model, rows: list[tuple[list[int], list[int]]], device) -> torch.Tensor:
    """Of the second part's tokens after the first part, float32 [B] on the CPU; padded on the right, where nothing looks."""
    width = max(len(prompt) + len(label) for prompt, label in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask, counted = torch.zeros_like(ids), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, label) in enumerate(rows):
        end = len(prompt) + len(label)
        ids[row, :end], mask[row, :end] = torch.tensor(prompt + label), 1
        counted[row, len(prompt) : end] = True
    ids, mask, counted = ids.to(device), mask.to(device), counted.to(device)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    chosen = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.logsumexp(2)
    return ((chosen * counted[:, 1:]).sum(1) / counted[:, 1:].sum(1)).cpu()
