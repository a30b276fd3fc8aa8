"""TRL's SFTTrainer with a PEFT LoRA, through the name in ``optim``; resume is bitwise."""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

OUT = sys.argv[1]
words = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(60))]
reader = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
reader.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=reader, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
)
rows = Dataset.from_list([{"text": " ".join(f"w{i * j % 60}" for j in range(1, 20))} for i in range(32)])
config = SFTConfig(
    OUT,
    max_steps=6,
    use_cpu=True,
    bf16=False,
    report_to=[],
    logging_steps=2,
    save_steps=3,
    disable_tqdm=True,
    gradient_checkpointing=False,
    learning_rate=1e-3,
    optim="automagic_cameamp8bit",
    optim_args="warmup_steps=200",
)
shape = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    eos_token_id=1,
)


def made():
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = LlamaForCausalLM(shape)
    return SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)


def trained(trainer):
    return [p for p in trainer.model.parameters() if p.requires_grad]


whole, resumed = made(), made()
whole.train()
resumed.train(resume_from_checkpoint=f"{OUT}/checkpoint-3")
optimizer = getattr(whole.optimizer, "optimizer", whole.optimizer)
assert type(optimizer).__name__ == "Automagic_CameAMP8bit"
assert all("applied_learning_rate" in row for row in whole.state.log_history if "learning_rate" in row)
pairs = list(zip(trained(whole), trained(resumed), strict=True))
assert len(pairs) == 8 and all(torch.equal(a, b) for a, b in pairs), "resume is not bitwise"
