"""Trainer and SFTTrainer as people use them: dropout, shuffled data, gradient accumulation, evaluation on the way."""

import functools
import json
import os
import random
import signal
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.bert import modeling_bert as modeling_bert
from transformers.models.gpt2 import modeling_gpt2 as modeling_gpt2
from trl import SFTConfig, SFTTrainer

import lorry
from lorry.train import rng
from lorry.train.export import export

SPECIAL = ("<pad>", "<eos>", "<unk>", "<mask>")
LETTERS = "abcdefghijklmnopqrstuvwxyz +=0123456789"
LENGTH = 24


def tokenizer():
    vocabulary = {text: number for number, text in enumerate((*SPECIAL, *LETTERS))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = dict(zip(("pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LENGTH, **names)


def texts(count):
    draw = random.Random(count)
    pairs = ((draw.randrange(100), draw.randrange(100)) for _ in range(count))
    return [f"{a}+{b}={a + b} {''.join(draw.choices(LETTERS[:26], k=draw.randint(1, 12)))}" for a, b in pairs]


def model(kind):
    transformers.set_seed(3)
    size = {"vocab_size": len(SPECIAL) + len(LETTERS), "hidden_size": 32, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "max_position_embeddings": LENGTH}
    if kind == "masked":
        return transformers.BertForMaskedLM(transformers.BertConfig(**size, intermediate_size=64))
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size))  # both have a dropout of 0.1


def trainer(kind, folder, workers, **arguments):
    options = {
        "output_dir": str(folder / "output"),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "logging_steps": 3,
        "save_strategy": "no",
        "dataloader_num_workers": workers,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 11,
    } | arguments
    rows, words = [Dataset.from_dict({"text": texts(count)}) for count in (46, 6)], tokenizer()
    if kind in ("sft", "lora"):
        lora = {}
        if kind == "lora":
            from peft import LoraConfig

            lora = {"peft_config": LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear")}
        config = SFTConfig(**options, max_length=LENGTH, bf16=False, packing=False, dataset_num_proc=None)
        return SFTTrainer(
            model("causal"), config, train_dataset=rows[0], eval_dataset=rows[1], processing_class=words, **lora
        )
    parts = [part.map(lambda row: words(row["text"], truncation=True), remove_columns="text") for part in rows]
    return transformers.Trainer(
        model(kind),
        transformers.TrainingArguments(**options),
        train_dataset=parts[0],
        eval_dataset=parts[1],
        data_collator=transformers.DataCollatorForLanguageModeling(words, mlm=kind == "masked", mlm_probability=0.3),
    )


def train(folder, *, on_its_own=False, **options):
    (with_trainer_s_checkpoints if on_its_own else with_a_run)(Path(folder), **options)


def with_a_run(folder, *, kind="causal", workers=0, every=4, restore_rng=True, rng_mode="state", wait=False, **options):
    if not restore_rng:
        rng.restore = lambda state: None  # the control: this must show
    patience, leave, weighted = (options.pop(name, None) for name in ("patience", "leave", "weighted"))
    made = trainer(kind, folder, workers, **options)
    if patience is not None:
        made.add_callback(transformers.EarlyStoppingCallback(patience))
    if weighted:
        draws = torch.Generator().manual_seed(7)
        sampler = torch.utils.data.WeightedRandomSampler([1.0] * 46, 46, generator=draws)
        made._get_train_sampler = lambda dataset=None: sampler
    run = lorry.run(folder, every=every, rng=rng_mode)
    run.hugging_face(made)
    if wait or leave:
        run.step = functools.partial(step, run, run.step, leave)
    made.train()
    run.export(made.model)
    (folder / "history.json").write_text(json.dumps(history(made)))


def step(run, original, leave, **metrics):
    """run.step, with every checkpoint that is due saved before the next step, so that the n-th is always the same;
    and as it is at a slice's end, or with a signal pending."""
    if leave == ["SIGTERM", run.step_number + 1]:
        os.kill(os.getpid(), signal.SIGTERM)
    original(**metrics)
    run._saver.wait()
    if leave == ["slice", run.step_number]:
        raise YieldSlice


class YieldSlice(BaseException):
    pass


def history(made):
    """What Trainer logged, without what depends on the time it took."""
    rows = [row for row in made.state.log_history if "train_runtime" not in row]
    return [
        {name: value for name, value in row.items() if not name.endswith(("runtime", "per_second"))} for row in rows
    ]


def with_trainer_s_checkpoints(folder, *, kind, workers=0):
    """Trainer's own checkpoints: go on from the newest that can be loaded. Prints the ones that cannot."""
    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 3}
    found = sorted((folder / "output").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for checkpoint in [*reversed(found), None]:
        made = trainer(kind, folder, workers, **options)
        try:
            made.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            break
        except Exception as error:
            if checkpoint is None:
                raise
            print(f"cannot load {checkpoint.name}: {type(error).__name__}: {error}", flush=True)
    export(made.model, folder / "model.safetensors")


torch.set_num_threads(1)
