"""Hugging Face's Trainer: a whole Llama, released and stepped on the host, against the plain loop."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from automagic_cameamp import Automagic_CameAMP8bit, release_gradients

PASSES = 2
ROWS = [torch.randint(0, 60, (12,), generator=torch.Generator().manual_seed(i)) for i in range(6)]


def net():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).train()


class Released(Trainer):
    def create_optimizer(self, *arguments, **options):
        self.optimizer = Automagic_CameAMP8bit(self.model.parameters(), lr=1e-3, offload="cpu")
        self.handle = release_gradients(self.model, self.optimizer, accumulation=PASSES)
        return self.optimizer


model = net()
arguments = TrainingArguments(
    sys.argv[1],
    num_train_epochs=2,
    per_device_train_batch_size=1,
    gradient_accumulation_steps=PASSES,
    gradient_checkpointing=True,
    gradient_checkpointing_kwargs={"use_reentrant": False},
    max_grad_norm=0.0,
    lr_scheduler_type="constant",
    use_cpu=True,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    dataloader_pin_memory=False,
)
trainer = Released(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ROWS])
trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(ROWS)
trainer.train()

plain = net()
optimizer = Automagic_CameAMP8bit(plain.parameters(), lr=1e-3)
for _ in range(2):
    for i in range(0, len(ROWS), PASSES):
        count = sum(
            len(row) - 1 for row in ROWS[i : i + PASSES]
        )  # tokens that are predicted, as the Trainer counts
        for row in ROWS[i : i + PASSES]:
            out = plain(input_ids=row[None], labels=row[None], num_items_in_batch=torch.tensor(count))
            out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
moved = max(float((p - q).abs().max()) for p, q in zip(plain.parameters(), net().parameters(), strict=True))
apart = max(float((p - q).abs().max()) for p, q in zip(plain.parameters(), model.parameters(), strict=True))
assert apart == 0.0, (apart, moved)
print("Trainer: equal")
